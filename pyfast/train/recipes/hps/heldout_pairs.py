"""What the policy thinks of a chosen and a rejected response to held-out prompts (HPS, table 1)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyfast._files import written_whole
from pyfast.train import files
from pyfast.train.data.group import read_groups
from pyfast.train.data.lines import as_object, lines
from pyfast.train.data.prompts import Prompt, numbered_prompts
from pyfast.train.data.records import Record, read_records
from pyfast.train.errors import UserError
from pyfast.train.runs import kept

if TYPE_CHECKING:
    from pyfast.train.context import Context

OF_PAIRS = ("rm_dpo", "rm_r_dpo", "kl_chosen", "rewards/margins", "rewards/accuracies")
MEASURES = (*OF_PAIRS, "kl_sampled")
"""What is measured of each prompt, by the names of `losses.metrics`."""


@dataclass(frozen=True)
class HeldOut:
    """A held-out prompt, and its chosen and rejected response, where it has them."""

    prompt: Prompt
    place: str
    chosen: str | None = None
    rejected: str | None = None


def read(spec: str) -> list[HeldOut]:
    """Read held-out prompts, or groups with a chosen and a rejected response.

    Parameters
    ----------
    spec : str
        A prompts file, or a groups file (`read_records`) whose records have ``"positive"`` or
        ``"scores"``. The pair is the labelled response with the other of the data set's own two,
        which come first; without a label, the best-scored and the lowest, of which equals make no
        pair. Where records have a split, those of ``"test"`` alone.

    Raises
    ------
    UserError
        With the file and the line.
    """
    path = files.resolve(spec)
    if path is None:
        raise UserError(f"data.heldout: no such file: {spec}")
    if path.suffix == ".parquet" or (path.suffix != ".txt" and _has_responses(path)):
        records = read_records(path, name="data.heldout")
        if any(record.split is not None for record in records):
            records = [record for record in records if record.split == "test"]
        if not records:
            raise UserError(f"{path}: split: expected groups of the split test, there are none")
        return [_pair_of(record) for record in records]
    found = []
    for number, prompt in numbered_prompts(path):
        if "responses" in prompt.fields:
            raise UserError(f"{path}:{number}: expected responses in all records or in none")
        found.append(HeldOut(prompt, f"{path}:{number}"))
    return found


def _has_responses(path: Path) -> bool:
    for number, text in lines(path):
        return "responses" in as_object(path, number, text, 'an object like {"prompt": "..."}')
    return False


def _pair_of(record: Record) -> HeldOut:
    scores, positive = record.scores, record.positive
    if positive is not None:
        if len(record.responses) > 2 and positive > 1:
            raise UserError(
                f"{record.place}: positive: expected 0 or 1, as the data set's own two responses "
                f"come first; got {positive}"
            )
        pair = positive, 1 - positive
    elif scores is not None:
        pair = scores.index(max(scores)), len(scores) - 1 - scores[::-1].index(min(scores))
        if max(scores) == min(scores):
            return HeldOut(record.prompt, record.place)
    else:
        raise UserError(f"{record.place}: expected positive or scores: which response is chosen?")
    return HeldOut(record.prompt, record.place, *(record.responses[i] for i in pair))


def check_lengths(ctx: Context, heldout: Sequence[HeldOut], longest: int) -> None:
    """Refuse a held-out prompt without room for its answers or its own responses.

    Parameters
    ----------
    ctx : Context
    heldout : sequence of HeldOut
    longest : int
        Tokens of the longest answer.
    """
    for item in heldout:
        prompt, responses = _tokens(ctx, item)
        most, positions = max([longest, *map(len, responses)]), ctx.positions
        if positions is not None and len(prompt) + most > positions:
            raise UserError(
                f"{item.place}: the prompt has {len(prompt)} tokens, and {most} may follow; "
                f"the model has {positions} positions (text.max_prompt and text.max_response cut)"
            )


def _tokens(ctx: Context, item: HeldOut) -> tuple[list[int], list[list[int]]]:
    responses = [text for text in (item.chosen, item.rejected) if text is not None]
    return ctx.tokens.encode(Record(item.prompt, responses, place=item.place))


def measure(
    ctx: Context, heldout: Sequence[HeldOut], config: Any, path: Path, *, beta: float
) -> None:
    """Measure the policy on held-out pairs, and its divergence from the reference.

    Of each prompt: the reward margins RM_DPO and RM_R-DPO of its pair (HPS, table 1, without beta),
    the log-ratio of the chosen response (what table 8 calls KL), and the log-ratio of a response
    that the policy samples itself at temperature 1, which estimates KL(policy || reference) without
    bias, of responses up to ``sampling.max_new_tokens``.

    Parameters
    ----------
    ctx : Context
    heldout : sequence of HeldOut
    config : Settings
        With the section sampling.
    path : Path
        Gets a line a prompt, whole or not at all.
    beta : float
        Of rewards/margins.
    """
    import torch

    from pyfast.losses import metrics

    policy, at_once = ctx.policy, config.sampling.responses
    plain = dataclasses.replace(config.sampling, temperature=1.0)

    def measured(start: int) -> list[str]:
        written = []
        batch = [_tokens(ctx, item) for item in heldout[start : start + at_once]]
        seeds = [ctx.seed("kl", start + i) for i in range(len(batch))]
        sampled = policy.answer([prompt for prompt, _ in batch], 1, plain, seeds)
        for (prompt, pair), own in zip(batch, sampled, strict=True):
            responses = [*pair, *own.token_ids]
            with torch.no_grad():
                logps = policy.logps(prompt, responses).double()
                ref = policy.logps(prompt, responses, reference=True).double()
            lengths = torch.tensor([len(tokens) for tokens in responses], device=logps.device)
            row: dict[str, Any] = {"kl_sampled": metrics.kl_sampled(logps[-1:], ref[-1:]).item()}
            if pair:
                two = (logps[:2], ref[:2])
                found = metrics.heldout_metrics(*two, beta=beta, lengths=lengths[:2], prefix="")
                row |= {name: found[name].item() for name in OF_PAIRS}
            written.append(files.to_json({**row, "lengths": lengths.tolist()}) + "\n")
        return written

    lines_of = ctx.each(range(0, len(heldout), at_once), measured)

    def write() -> None:
        path.parent.mkdir(exist_ok=True)
        with kept.sealed(path) as beside:
            beside.write_text("".join(line for some in lines_of for line in some), "utf-8")

    ctx.once(write)


def read_measures(path: Path, count: int) -> dict[str, NDArray[np.float64]]:
    """Return each measure's values, one a prompt that has it, of so many prompts."""
    rows = [as_object(path, number, text, "what was measured") for number, text in lines(path)]
    if len(rows) != count:
        raise UserError(f"{path}: expected {count} lines, one a held-out prompt, got {len(rows)}")
    found = {}
    for name in MEASURES:
        values = [row[name] for row in rows if name in row]
        if not all(type(value) in (int, float) for value in values):
            raise UserError(f"{path}: {name}: expected numbers")
        if values:
            found[name] = np.array(values, dtype=np.float64)
    return found


def write_curve(folder: Path, count: int, answers: Callable[[int], Path]) -> None:
    """Write ``metrics.jsonl``, a line a measured step, of the files of a folder's steps.

    Parameters
    ----------
    folder : Path
        With what `measure` wrote, by step.
    count : int
        Held-out prompts.
    answers : callable
        Of a step: the file of the scored answers.
    """
    steps = {
        int(named.group(1)): path
        for path in folder.glob("pairs-step-*.jsonl")
        if (named := re.fullmatch(r"pairs-step-([0-9]+)", path.stem))
    }
    rows = []
    for step in sorted(steps):
        measured = read_measures(steps[step], count)
        rows.append({"step": step, **{name: float(v.mean()) for name, v in measured.items()}})
        if not answers(step).exists():  # of a last step that is none any more
            continue
        scores = [group.scores or [] for group in read_groups(answers(step))]
        rows[-1]["score/mean"] = float(np.mean([np.mean(row) for row in scores]))
        rows[-1]["score/best"] = float(np.mean([max(row) for row in scores]))
    with written_whole(folder / "metrics.jsonl") as beside:
        text = "".join(files.to_json(row) + "\n" for row in rows)
        beside.write_text(text, encoding="utf-8")
