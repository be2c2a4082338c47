"""What recipes share whose success is told by answers to held-out prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyfast._files import written_whole
from pyfast.train.recipe import Recipe

AT_ONCE = 32
"""Responses that are sampled together: fewer are slower, more take more memory."""

NAMES = ("before", "after", "difference")
"""What `evaluate.compare` finds."""


class AnsweringRecipe(Recipe):
    """A recipe that samples answers to held-out prompts and scores them, before and after.

    Its inputs have ``heldout`` and ``judge``, its settings the sections sampling, evaluation and
    run.
    """

    def evaluate(self, step: int) -> None:
        """Answer the held-out prompts, once for each of these steps."""
        from pyfast.train.evaluation import evaluate

        path = answers_file(self.ctx.folder, step, self.steps(self.settings, self.inputs))
        if self.inputs.heldout and not self.ctx.once(path.exists):
            inputs = self.inputs
            evaluate.answer(self.ctx, inputs.heldout, inputs.judge, self.settings, path)

    @classmethod
    def summary(cls, settings: Any, inputs: Any, out: Path) -> dict[str, Any]:
        """Compare the answers before and after."""
        from pyfast.train.evaluation import evaluate

        compared = None
        if inputs.heldout:
            before, after = out / "eval_before.jsonl", out / "eval_after.jsonl"
            compared = evaluate.compare(before, after, settings)
        scores = {f"score/{name}": compared[name] for name in NAMES} if compared else {}
        return {
            "label": cls.label(settings),
            "seed": settings.run.seed,
            "steps": cls.steps(settings, inputs),
            "metrics": scores,
            "heldout": compared,
        }

    @staticmethod
    def table(summary: dict[str, Any]) -> str:
        """Return the table of held-out scores."""
        from pyfast.train.reports import report

        title = f"{summary['recipe']} · {summary['label']} · seed {summary['seed']}"
        return report.table(title, summary)


def write_curve(out: Path, steps: int) -> None:
    """Write ``evaluation/metrics.jsonl`` of the answers so far: a line for each step that has some.

    Where a run answered before and after training alone, there is no curve.
    """
    from pyfast.train import files
    from pyfast.train.evaluation import evaluate

    folder = out / "evaluation"
    if not folder.is_dir():
        return
    between = {int(path.stem[5:]) for path in folder.glob("step-*.jsonl")}
    known = [
        step for step in sorted({0, *between, steps}) if answers_file(out, step, steps).exists()
    ]
    lines = []
    for step in known:
        mean = evaluate.mean_score(answers_file(out, step, steps))
        lines.append(files.to_json({"step": step, "score/mean": mean}))
    with written_whole(folder / "metrics.jsonl") as beside:
        beside.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def answers_file(folder: Path, step: int, steps: int) -> Path:
    """Return where the answers after so many of all steps are."""
    if step in (0, steps):
        return folder / ("eval_before.jsonl" if step == 0 else "eval_after.jsonl")
    return folder / "evaluation" / f"step-{step}.jsonl"
