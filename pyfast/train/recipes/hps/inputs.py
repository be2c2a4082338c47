"""What a run of HPS reads, checked before anything heavy is imported or loaded."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyfast.train import files
from pyfast.train.data.prompts import Prompt, check_heldout
from pyfast.train.data.records import Record, read_records
from pyfast.train.errors import UserError
from pyfast.train.evaluation import bleu, judging
from pyfast.train.recipes.hps import hard_negatives, heldout_pairs
from pyfast.train.recipes.hps.hard_negatives import NegativesConfig
from pyfast.train.recipes.hps.heldout_pairs import HeldOut
from pyfast.train.runs import kept
from pyfast.train.scoring import rewards
from pyfast.train.scoring.reward_models import is_model

DEMO = "runs/demo-hps-data/"
"""Where the demo's data is made."""


@dataclass(frozen=True)
class Example:
    """A training group.

    Attributes
    ----------
    number : int
        Its place in the file, from 0, which its draws depend on.
    record : Record
        Cut to the first responses that are asked for.
    scores : float64 array (n,)
    heads : list of int
        The chosen response, then other valid ones.
    """

    number: int
    record: Record
    scores: NDArray[np.float64]
    heads: list[int]


@dataclass(frozen=True)
class Inputs:
    """What a run reads, checked.

    Attributes
    ----------
    examples : list of Example
        The groups that have a negative.
    counts : dict of str to int
        ``groups`` in the file, those ``skipped`` for want of a negative, and those ``short`` of the
        responses that `negatives.first` asks for.
    pairs : list of HeldOut
    heldout : list of Prompt
        Their prompts.
    judge : callable or None
        The evaluation's scorer; None without held-out prompts.
    reward : callable or None
        What made the training scores, where that is a function and another one.
    same_scorer : bool or None
        Whether one scorer made the training scores and evaluates; None where nobody says.
    referee : callable or None
        Who wins, of two answers; None: by the scores.
    against : dict of str to Path
        Answers of other runs, by name.
    hashes : dict of str to str
    """

    examples: list[Example]
    counts: dict[str, int]
    pairs: list[HeldOut]
    heldout: list[Prompt]
    judge: rewards.Reward | None
    reward: rewards.Reward | None
    same_scorer: bool | None
    referee: judging.Judge | None
    against: dict[str, Path]
    hashes: dict[str, str]

    @property
    def rewards(self) -> dict[str, rewards.Reward]:
        """The scorers by name."""
        return {} if self.judge is None else {"judge": self.judge}


def read(settings: Any) -> Inputs:
    """Read and check everything the user wrote, before any model is loaded."""
    data = settings.data
    records = _records(settings)
    examples, counts = _examples(settings, records)
    pairs = heldout_pairs.read(data.heldout) if data.heldout is not None else []
    heldout = [item.prompt for item in pairs]
    check_heldout([record.prompt for record in records], heldout, data.heldout or "")
    if any(item.chosen is not None for item in pairs) and not bleu.is_there():
        _tell("BLEU is left out: it needs the package sacrebleu (pip install sacrebleu)")
    judge = reward = same = None
    if pairs:
        judge, reward, same = _scorers(settings, records)
    referee: Any = None
    if settings.scoring.judge is not None:
        referee = rewards.imported(settings.scoring.judge, "scoring.judge")
    named = (("groups", data.groups), ("heldout", data.heldout))
    hashes = {name: files.sha256(_file(spec)) for name, spec in named if spec is not None}
    against = _against(settings)
    return Inputs(examples, counts, pairs, heldout, judge, reward, same, referee, against, hashes)


def _records(settings: Any) -> list[Record]:
    """Read the groups to learn from."""
    path = settings.data.groups
    if path is None:
        raise UserError("data.groups: expected a groups file")
    if path.startswith(DEMO) and files.resolve(path) is None:
        raise UserError(
            f"data.groups: no such file: {path} (make demo RECIPE=hps makes it, by pyfast sample "
            "and pyfast score)"
        )
    labelled = settings.negatives.chosen == "label"
    everything = read_records(path, needs=("scores", "positive") if labelled else ("scores",))
    records = [record for record in everything if record.split in (None, "train")]
    if not records:
        raise UserError(f"{path}: split: expected groups of the split train, there are none")
    if len(records) < len(everything):
        _tell(f"{len(everything) - len(records)} groups are of other splits than train: left out")
    return records


def _examples(settings: Any, records: Sequence[Record]) -> tuple[list[Example], dict[str, int]]:
    """Return the groups that have a negative, and how many have none or too few responses."""
    config = settings.negatives
    examples = [example_of(config, number, record) for number, record in enumerate(records)]
    kept = [x for x in examples if hard_negatives.negatives_of(config, x.scores, x.heads)]
    short = sum(len(record.responses) < (config.first or 0) for record in records)
    counts = {"groups": len(records), "skipped": len(records) - len(kept), "short": short}
    if not kept:
        path = settings.data.groups
        raise UserError(f"{path}: expected a group with a negative: in all, all scores tie")
    if counts["skipped"]:
        _tell(f"{counts['skipped']} of {len(records)} groups have no negative and are skipped")
    if short:
        _tell(f"negatives.first = {config.first}: {short} groups have fewer, and keep all theirs")
    _check_valid(config, examples, settings.data.groups)
    copied = [x for x in kept if _is_copied(config, x)]
    if copied:
        _tell(
            f"{len(copied)} groups have a copy of the chosen response among its negatives, which "
            f"teaches nothing; the first is {copied[0].record.place}"
        )
    return kept, counts


def _check_valid(config: NegativesConfig, examples: Sequence[Example], path: str) -> None:
    """Refuse what is set for several valid responses where no group has them."""
    if any(len(example.heads) > 1 for example in examples):
        return
    for name in ("valid_weight", "valid_as_negatives"):
        if getattr(config, name) != getattr(NegativesConfig, name):
            raise UserError(
                f"negatives.{name}: expected groups with several valid responses, which it is for; "
                f"{path} has none"
            )


def _is_copied(config: NegativesConfig, example: Example) -> bool:
    """Tell whether the text of the chosen response stands among its negatives too."""
    responses = example.record.responses
    pool = hard_negatives.negatives_of(config, example.scores, example.heads)
    return any(responses[i] == responses[example.heads[0]] for i in pool)


def example_of(config: NegativesConfig, number: int, record: Record) -> Example:
    """Cut a record to its first responses, and find the chosen one."""
    n = min(config.first or len(record.responses), len(record.responses))
    positive, valid = record.positive, record.valid
    if config.chosen == "label" and positive is not None and positive >= n:
        raise UserError(f"{record.place}: positive: expected one of the first {n}, got {positive}")
    if config.mode == "pl":
        valid = None
    if valid is not None:
        valid = [i for i in valid if i < n]
        if not valid:
            raise UserError(f"{record.place}: valid: expected one of the first {n}")
        if config.chosen == "label" and positive not in valid:
            raise UserError(f"{record.place}: positive: expected a valid response, got {positive}")
    scores = np.array((record.scores or [])[:n])
    steepest = max(abs(config.gamma_low), abs(config.gamma_high))
    if config.score_scale == "none" and not float(np.abs(scores).max()) * steepest < 1e300:
        raise UserError(
            f"{record.place}: scores: gamma times scores overflows; expected smaller ones, or "
            "negatives.score_scale"
        )
    heads = hard_negatives.heads_of(config, scores, positive, valid)
    cut = replace(record, responses=record.responses[:n], scores=scores.tolist())
    return Example(number, cut, scores, heads)


def _scorers(
    settings: Any, records: Sequence[Record]
) -> tuple[rewards.Reward, rewards.Reward | None, bool | None]:
    """Return the evaluation's scorer, the training's if it is another, and whether it is not."""
    trained, own = settings.scoring.reward, settings.evaluation.reward
    if own is None and trained is None:
        raise UserError(
            "evaluation.reward: expected what scores the answers to data.heldout: vader, "
            "model:FOLDER_OR_HUB_ID or package.module:function"
        )
    said = {record.prompt.fields.get("scored_by") for record in records} - {None}
    named = said | ({trained} - {None})
    spec, name = (trained, "scoring.reward") if own is None else (own, "evaluation.reward")
    judge = rewards.load(spec, name)
    if spec in named:
        _tell(
            f"warning: evaluation.reward: {spec} made the training scores too, so what it says of "
            "the answers is no independent judgement; expected another scorer"
        )
        return judge, None, True
    if trained is None or is_model(trained) or (trained != "vader" and ":" not in trained):
        return judge, None, False if named else None
    return judge, rewards.load(trained, "scoring.reward"), False


def _against(settings: Any) -> dict[str, Path]:
    """Find the answers of the runs to compare with, scored by the same scorer."""
    found: dict[str, Path] = {}
    for text in (settings.scoring.against or "").split(","):
        if not text.strip():
            continue
        run = Path(text.strip())
        answers, name = run / "eval_after.jsonl", run.resolve().name
        if not answers.exists() or not (run / "config.json").exists():
            raise UserError(f"scoring.against: no answers of a finished run here: {run}")
        kept.verify_all(run)
        other = files.read_json(run / "config.json")
        theirs, ours = _scorer_of(other), _scorer_of(settings.to_dict())
        if theirs != ours:
            raise UserError(f"scoring.against: {run} was scored by {theirs}, not by {ours}")
        if name in found or name in ("before", "after"):
            raise UserError(f"scoring.against: expected other names than before, after: {name}")
        found[name] = answers
    return found


def _scorer_of(config: Any) -> Any:
    """Return the name of the scorer that a run's answers were scored by."""
    try:
        return config["evaluation"]["reward"] or config["scoring"]["reward"]
    except (KeyError, TypeError):
        return None


def _file(spec: str) -> Path:
    path = files.resolve(spec)
    assert path is not None  # it was read
    return path


def _tell(text: str) -> None:
    sys.stderr.write(f"pyfast: {text}\n")
