"""Groups of candidates of which one is right: read, scored, ranked, and what the ranks say."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from pyfast.train import files
from pyfast.train.config import MeasuringConfig, Section, setting
from pyfast.train.data.lines import as_object, lines
from pyfast.train.data.records import Record, read_records
from pyfast.train.errors import UserError
from pyfast.train.runs import kept

if TYPE_CHECKING:
    from torch import Tensor

    from pyfast.train.context import Context

HELD_OUT = ("validation", "test")
FOLDER = "evaluation"
CURVE = "metrics.jsonl"
Value = TypeVar("Value")

SHOWN = {
    "accuracy, by beta h": "eval_rewards/accuracies",
    "margin, by beta h": "eval_rewards/margins",
    "chosen reward": "eval_rewards/chosen",
    "MRR, by beta h": "eval_rewards/MRR",
    "Recall@3, by beta h": "eval_rewards/Recall@3",
    "NDCG@3, by beta h": "eval_rewards/NDCG@3",
    "Recall@1, by log pi": "eval_logps/Recall@1",
    "MRR, by log pi": "eval_logps/MRR",
    "Recall@3, by log pi": "eval_logps/Recall@3",
    "NDCG@3, by log pi": "eval_logps/NDCG@3",
}
"""What the papers report, first in tables and files: how it is called, and its name."""


@dataclass(frozen=True)
class GroupsConfig(Section):
    """Where the candidates are."""

    section: ClassVar[str] = "data"
    groups: str | None = setting(
        None,
        'groups: JSON Lines or Parquet of {"prompt", "responses", "positive"[, "split", "id"]}; '
        "learnt from, but those of the splits validation and test",
    )
    heldout: str | None = setting(
        None, "more groups that are never learnt from: of the split test, unless they say another"
    )


@dataclass(frozen=True)
class RankingConfig(MeasuringConfig):
    """Ranking all candidates of held-out groups.

    Between steps those of the split validation, or of test, without it.
    """


@dataclass(frozen=True)
class RankingInputs:
    """The groups of a run, checked.

    Attributes
    ----------
    splits : dict of str to list of Record
        ``"train"``, ``"validation"``, ``"test"``; only the first is never empty.
    hashes : dict of str to str
        SHA-256 of the files by setting.
    """

    splits: dict[str, list[Record]]
    hashes: dict[str, str]

    @property
    def watched(self) -> str:
        """The split that is measured while training goes on."""
        return "validation" if self.splits["validation"] else "test"

    @property
    def reported(self) -> str:
        """The split that the summary is of."""
        return "test" if self.splits["test"] else "validation"


def read_inputs(config: GroupsConfig) -> RankingInputs:
    """Read the groups, and check what makes figures wrong without a sound.

    Raises
    ------
    UserError
        With file and line: a split of another name; a candidate that is empty or stands twice; a
        held-out prompt that is also learnt from.
    """
    splits: dict[str, list[Record]] = {name: [] for name in ("train", *HELD_OUT)}
    hashes = {}
    for name, default in (("groups", "train"), ("heldout", "test")):
        spec = getattr(config, name)
        if spec is None:
            continue
        for record in read_records(spec, name=f"data.{name}", needs=("positive",)):
            split = record.split or default
            if split not in splits or (name == "heldout" and split == "train"):
                known = ", ".join(list(splits)[1 if name == "heldout" else 0 :])
                raise UserError(f"{record.place}: split: expected one of {known}; got {split!r}")
            _check_distinct(record)
            splits[split].append(record)
        path = files.resolve(spec)
        assert path is not None
        hashes[name] = files.sha256(path)
    if config.groups is None:
        raise UserError("data.groups: expected a groups file")
    if not splits["train"]:
        raise UserError(f"{config.groups}: expected at least one group of the split train")
    learnt = {str(record.prompt) for record in splits["train"]}
    for record in (record for name in HELD_OUT for record in splits[name]):
        if str(record.prompt) in learnt:
            raise UserError(f"{record.place}: prompt: a held-out prompt is also learnt from")
    return RankingInputs(splits, hashes)


def read_heldout(spec: str) -> RankingInputs:
    """Read the groups of a file that are not of the split train, to rank them alone."""
    splits: dict[str, list[Record]] = {name: [] for name in ("train", *HELD_OUT)}
    for record in read_records(spec, name="data", needs=("positive",)):
        if record.split not in (None, *splits):
            known = ", ".join(splits)
            raise UserError(f"{record.place}: split: expected one of {known}; got {record.split!r}")
        if record.split != "train":
            _check_distinct(record)
            splits[record.split or "test"].append(record)
    if not any(splits.values()):
        raise UserError(f"{spec}: expected groups that are not of the split train")
    path = files.resolve(spec)
    assert path is not None
    return RankingInputs(splits, {"heldout": files.sha256(path)})


def _check_distinct(record: Record) -> None:
    """Refuse several right candidates, and one that is empty or equal to another.

    A right one must not be learnt as a negative; a tie with the right one is always lost.
    """
    if record.valid is not None and set(record.valid) != {record.positive}:
        raise UserError(
            f"{record.place}: valid: expected the positive alone, {record.positive}: one candidate "
            f"is right here; got {record.valid}"
        )
    first: dict[str, int] = {}
    for i, text in enumerate(record.responses):
        if not text.strip():
            raise UserError(f"{record.place}: responses[{i}]: expected a text, got {text!r}")
        if text in first:
            raise UserError(
                f"{record.place}: responses[{i}]: expected candidates that differ, got "
                f"{text!r} as in responses[{first[text]}]"
            )
        first[text] = i


@dataclass(frozen=True)
class Candidates:
    """A prompt and all its candidates as tokens, the right one first.

    Attributes
    ----------
    prompt : list of int
    responses : list of lists of int
    order : list of int
        Index of each in the record.
    """

    prompt: list[int]
    responses: list[list[int]]
    order: list[int]

    def as_given(self, values: Sequence[Value]) -> list[Value]:
        """Return one value a candidate in the order of the record."""
        return [value for _, value in sorted(zip(self.order, values, strict=True))]


def encode(record: Record, ctx: Context) -> Candidates:
    """Return a record's tokens.

    Raises
    ------
    UserError
        With the record's place: a candidate of no tokens but the end's, two of the same tokens
        (after a cut), or a prompt that leaves no room for the longest.
    """
    prompt, responses = ctx.tokens.encode(record)
    longest, positions = max(map(len, responses)), ctx.positions
    if positions is not None and len(prompt) + longest > positions:
        raise UserError(
            f"{record.place}: the prompt has {len(prompt)} tokens, and the longest response "
            f"{longest}; the model has {positions} positions (text.max_prompt and "
            "text.max_response cut)"
        )
    first: dict[tuple[int, ...], int] = {}
    for i, tokens in enumerate(responses):
        if tokens == [ctx.tokens.end]:
            raise UserError(f"{record.place}: responses[{i}]: it has no tokens but the end's")
        same = first.setdefault(tuple(tokens), i)
        if same != i:
            raise UserError(
                f"{record.place}: responses[{i}] has the same tokens as responses[{same}]"
            )
    assert record.positive is not None
    indices = [record.positive, *(i for i in range(len(responses)) if i != record.positive)]
    return Candidates(prompt, [responses[i] for i in indices], indices)


def reference_logps(ctx: Context, groups: Sequence[Candidates]) -> list[Tensor]:
    """Return the reference's log-probs of all candidates, from the cache where it has them.

    Before training the policy is the reference: all h are 0 then, and to the bit, so that ties
    stay ties. So the cache is kept apart by all that rounding depends on, and tried.
    """
    import torch

    from pyfast.train.policy.reference_cache import reference_logps as cached

    policy = ctx.policy
    rounding = repr((
        torch.__version__, platform.machine(), torch.backends.cpu.get_cpu_capability(),
        str(policy.device.type), torch.get_num_threads(),
    ))  # fmt: skip
    name = hashlib.sha256(rounding.encode()).hexdigest()[:16]
    pairs = [(group.prompt, group.responses) for group in groups]
    shared = files.cache_dir() / "reference" / name
    found = ctx.split(pairs, lambda mine: cached(policy, mine, folder=shared))

    def is_ours() -> bool:
        return torch.equal(found[0], policy.logps(*pairs[0], reference=True).cpu())

    if ctx.once(is_ours):
        return found
    return ctx.once(lambda: cached(policy, pairs, folder=ctx.folder / "kept" / "reference"))


def rank(
    ctx: Context, split: str, step: int, groups: Sequence[Candidates], refs: Mapping[int, Tensor]
) -> None:
    """Score all candidates of held-out groups after so many steps, once.

    ``evaluation/SPLIT-STEP.jsonl`` has a line a group: ``positive``, ``policy_logps``,
    ``ref_logps``, in the order of the record.
    """
    import torch
    from tqdm import tqdm

    path = file_of(ctx.folder, split, step)
    if not groups or ctx.once(path.exists):
        return
    bar = tqdm(total=len(groups), desc=f"{split} {step}", unit="group")

    def scored(index: int) -> str:
        group = groups[index]
        with torch.no_grad():
            logps = ctx.policy.logps(group.prompt, group.responses)
        row = {
            "positive": group.order[0],
            "policy_logps": group.as_given(logps.tolist()),
            "ref_logps": group.as_given(refs[index].tolist()),
        }
        bar.update()
        return files.to_json(row) + "\n"

    rows = ctx.each(range(len(groups)), scored)
    bar.close()

    def write() -> None:
        path.parent.mkdir(exist_ok=True)
        with kept.sealed(path) as beside:
            beside.write_text("".join(rows), encoding="utf-8", newline="\n")

    ctx.once(write)


def file_of(folder: Path, split: str, step: int) -> Path:
    """Return where the log-probs of a split after so many steps are."""
    return folder / FOLDER / f"{split}-{step}.jsonl"


def measure(path: Path, beta: float) -> dict[str, NDArray[np.float64]]:
    """Return what `heldout_metrics` says of each group of a file that `rank` wrote."""
    import torch

    from pyfast.losses.metrics import heldout_metrics

    found: dict[str, list[float]] = {}
    for number, text in lines(path):
        row = as_object(path, number, text, "log-probs of candidates")
        try:
            first = [row["positive"]]
            others = [i for i in range(len(row["policy_logps"])) if i != row["positive"]]
            policy, ref = (
                torch.tensor([row[name][i] for i in first + others])
                for name in ("policy_logps", "ref_logps")
            )
            measured = heldout_metrics(policy, ref, beta=beta)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(f"{path}:{number}: expected log-probs of candidates: {error}") from None
        for name, value in measured.items():
            found.setdefault(name, []).append(float(value))
    if not found:
        raise UserError(f"{path}: expected a line a group, the file has none")
    names = [name for name in SHOWN.values() if name in found]
    return {name: np.array(found[name]) for name in dict.fromkeys([*names, *found])}


def write_curve(folder: Path, split: str, beta: float) -> None:
    """Write ``evaluation/metrics.jsonl``: a line for each step at which a split was measured."""
    curve, found = folder / FOLDER / CURVE, dict[int, str]()
    steps = sorted(
        int(path.stem.rpartition("-")[2]) for path in (folder / FOLDER).glob(f"{split}-*.jsonl")
    )
    if curve.exists():
        for number, text in lines(curve):
            step = as_object(curve, number, text, 'an object like {"step": 1, ...}').get("step")
            if type(step) is not int:
                raise UserError(f"{curve}:{number}: step: expected a whole number, got {step!r}")
            found[step] = text
    for step in steps:
        if step not in found:
            values = measure(file_of(folder, split, step), beta)
            means = {name: float(numbers.mean()) for name, numbers in values.items()}
            found[step] = files.to_json({"step": step, **means})
    if steps:
        with kept.sealed(curve) as beside:
            text = "".join(f"{found[step]}\n" for step in steps)
            beside.write_text(text, encoding="utf-8", newline="\n")
