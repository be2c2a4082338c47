"""What recipes share that learn from groups of candidates, and are judged by how they rank them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyfast.train.data import order
from pyfast.train.evaluation.metrics import bootstrap_interval
from pyfast.train.recipe import Recipe
from pyfast.train.recipes.mass_dpo import ranking
from pyfast.train.recipes.mass_dpo.ranking import RankingInputs
from pyfast.train.runs import kept
from pyfast.train.seeds import derive

if TYPE_CHECKING:
    from torch import Tensor

    from pyfast.train.context import Context
    from pyfast.train.data.prompts import Prompt


class RankingRecipe(Recipe):
    """A recipe that ranks all candidates of held-out groups, before, during and after.

    Its settings have the sections data (`ranking.GroupsConfig`), optimisation (with epochs),
    evaluation (`ranking.RankingConfig`), run, and ``loss.beta``.

    Attributes
    ----------
    candidates : dict of str to list of Candidates
        The groups by split, as tokens.
    ref_logps : dict of str to dict of int to float32 tensor (n,)
        The reference's log-probs of all candidates of a group that the run sees.
    """

    def __init__(self, settings: Any, inputs: RankingInputs, ctx: Context) -> None:
        super().__init__(settings, inputs, ctx)
        self.candidates = {
            split: [ranking.encode(record, ctx) for record in records]
            for split, records in inputs.splits.items()
        }
        ctx.remember("cut", lambda: dict(ctx.tokens.cut))
        self.ref_logps: dict[str, dict[int, Tensor]] = {}

    @staticmethod
    def read(settings: Any) -> RankingInputs:
        """Read the groups."""
        return ranking.read_inputs(settings.data)

    @staticmethod
    def steps(settings: Any, inputs: RankingInputs) -> int:
        """Return the steps of all epochs, or those that are asked for."""
        steps: int = settings.optimisation.steps_of(len(inputs.splits["train"]))
        return steps

    @staticmethod
    def chosen(settings: Any, inputs: RankingInputs) -> list[tuple[Prompt, str, str]]:
        """Return the right candidates that are learnt from."""
        return [
            (record.prompt, record.responses[record.positive or 0], record.place)
            for record in inputs.splits["train"]
        ]

    def turns(self, *steps: int) -> list[tuple[int, int]]:
        """Return (epoch, index) of the groups of steps; of all steps, if none is named."""
        count, n = self.settings.optimisation.groups_per_step, len(self.candidates["train"])
        if not n:  # a finished run on other data
            return []
        among = steps or range(self.steps(self.settings, self.inputs))
        seed = self.settings.run.seed
        return [turn for step in among for turn in order.of_step(n, count, seed, step)]

    def prepare(self) -> None:
        """Make the reference's log-probs of all candidates that the run will see."""
        seen = {"train": sorted({index for _, index in self.turns()})}
        seen |= {name: list(range(len(self.candidates[name]))) for name in ranking.HELD_OUT}
        places = [(split, index) for split, indices in seen.items() for index in indices]
        groups = [self.candidates[split][index] for split, index in places]
        found = ranking.reference_logps(self.ctx, groups)
        self.ref_logps = {split: {} for split in seen}
        for (split, index), logps in zip(places, found, strict=True):
            self.ref_logps[split][index] = logps

    def evaluate(self, step: int) -> None:
        """Rank the candidates of held-out groups."""
        last = step in (0, self.steps(self.settings, self.inputs))
        for split in ranking.HELD_OUT:
            if last or split == self.inputs.watched:
                refs = self.ref_logps[split]
                ranking.rank(self.ctx, split, step, self.candidates[split], refs)
        watched, beta = self.inputs.watched, self.settings.loss.beta
        self.ctx.once(lambda: ranking.write_curve(self.ctx.folder, watched, beta))

    @classmethod
    def elsewhere(cls, settings: Any, data: str, steps: int) -> tuple[Any, RankingInputs]:
        """Rank the candidates of another file's held-out groups."""
        optimisation = dataclasses.replace(settings.optimisation, steps=steps)
        section = dataclasses.replace(settings.data, groups=None, heldout=data)
        changed = dataclasses.replace(settings, data=section, optimisation=optimisation)
        return changed, ranking.read_heldout(data)

    @staticmethod
    def plots(out: Path, **options: Any) -> list[Path]:
        """Draw held-out curves (MASS-DPO, figure 2), and those of training."""
        from pyfast.train.recipes.mass_dpo import plots

        return plots.plot_run(out)


def summarise(settings: Any, inputs: RankingInputs, steps: int, out: Path) -> dict[str, Any]:
    """Compare the ranks of held-out candidates before and after.

    Returns
    -------
    dict
        ``metrics`` (after training), ``before`` and ``difference``: ``{name: {"mean", "low",
        "high"}}``, bootstrap intervals over prompts, the difference paired by prompt. Also
        ``prompts``, ``split``, ``confidence``, and what was ``cut``.
    """
    cut = out / "kept" / "cut.json"
    about = {
        "split": inputs.reported,
        "prompts": len(inputs.splits[inputs.reported]),
        "confidence": settings.evaluation.confidence,
        "cut": kept.read(cut) if cut.exists() else {},
    }
    if not inputs.splits[inputs.reported]:
        return {**about, "metrics": {}, "before": {}, "difference": {}}
    ranking.write_curve(out, inputs.watched, settings.loss.beta)
    before, after = (
        ranking.measure(ranking.file_of(out, inputs.reported, step), settings.loss.beta)
        for step in (0, steps)
    )

    def intervals(values: dict[str, NDArray[np.float64]]) -> dict[str, dict[str, float]]:
        found = {}
        for name, numbers in values.items():
            low, high = bootstrap_interval(
                numbers,
                confidence=settings.evaluation.confidence,
                resamples=settings.evaluation.bootstrap,
                seed=derive(settings.run.seed, "bootstrap"),
            )
            found[name] = {"mean": float(numbers.mean()), "low": low, "high": high}
        return found

    difference = {name: after[name] - before[name] for name in after}
    return {
        **about,
        "metrics": intervals(after),
        "before": intervals(before),
        "difference": intervals(difference),
    }


def comparison(title: str, summary: dict[str, Any]) -> str:
    """Format the comparison of held-out ranks for the terminal."""
    title += f" · {summary['steps']} steps"
    if not summary["metrics"]:
        return f"{title}\nno held-out groups were given, so nothing was ranked"
    percent = f"{100 * summary['confidence']:g} % CI"
    rows = [
        ("all candidates of held-out prompts", "before", "after", percent, "difference", percent)
    ]
    for label, name in ranking.SHOWN.items():
        before, after = summary["before"][name], summary["metrics"][name]
        change = summary["difference"][name]
        rows.append((
            label,
            f"{before['mean']:.3f}",
            f"{after['mean']:.3f}",
            f"[{after['low']:.3f}, {after['high']:.3f}]",
            f"{change['mean']:+.3f}",
            f"[{change['low']:+.3f}, {change['high']:+.3f}]",
        ))  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    body = [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    ]
    rule = "-" * len(body[0])
    note = (
        f"{summary['prompts']} prompts of the split {summary['split']}; bootstrap over prompts; "
        "ties count against"
    )
    return "\n".join([title, rule, body[0], rule, *body[1:], rule, note])
