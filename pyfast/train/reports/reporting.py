"""A run's numbers on other people's dashboards, through their own libraries (``run.report_to``).

The run's files stay what they are; this tells the same numbers once more. A run that goes on from a
checkpoint tells its steps from there on.
"""

from __future__ import annotations

import importlib.util
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from pyfast.train import files
from pyfast.train.data.lines import as_object, lines
from pyfast.train.errors import UserError

FOLDERS = {"tensorboard": "tensorboard", "wandb": "wandb"}
"""Where they write, in the run folder; also the packages' names."""


class Board(Protocol):
    """What takes numbers, by name and optimiser step."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a step."""

    def close(self) -> None:
        """Write what is left."""


def check(kind: str) -> None:
    """Refuse a dashboard whose package is not installed, before any model is loaded."""
    if kind != "none" and importlib.util.find_spec(kind) is None:
        raise UserError(f"run.report_to: {kind} needs the package {kind} (pip install {kind})")


class Reporter:
    """Tells the numbers of a run; to nobody, where ``run.report_to`` is none.

    Parameters
    ----------
    settings : Settings
    out : Path
        The run folder.
    """

    def __init__(self, settings: Any, out: Path) -> None:
        self._kind, self._settings, self._out = settings.run.report_to, settings, out
        self._board: Board | None = None
        self._done: int | None = None
        self._told: set[int] = set()

    def begin(self, done: int) -> None:
        """Say after how many steps the run goes on: what was told of later ones is told again."""
        self._done = done

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Tell the numbers of a step."""
        if self._kind == "none":
            return
        if self._board is None:
            board = _TensorBoard if self._kind == "tensorboard" else _Wandb
            try:
                first = (step if self._done is None else self._done) + 1
                self._board = board(self._settings, self._out, first)
            except Exception as error:  # the library's own: no network, no login
                text = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise UserError(f"run.report_to: {self._kind}: {text}") from None
        self._board.log(step, values)

    def curves(self, since: int) -> None:
        """Tell what was measured on held-out data after so many steps or more, once."""
        path = self._out / "evaluation" / "metrics.jsonl"
        if self._kind == "none" or not path.exists():
            return
        for number, text in lines(path, growing=True):
            values = as_object(path, number, text, "measured numbers")
            step = values.pop("step", None)
            if type(step) is int and step >= since and step not in self._told:
                self._told.add(step)
                self.log(step, {f"eval/{name}": value for name, value in _numbers(values)})

    def summary(self, steps: int, summary: Mapping[str, Any]) -> None:
        """Tell what a finished run found, after all its steps."""
        if self._kind != "none":
            if self._done is not None:  # else all but the summary was told by a killed process
                self.curves(0)
            metrics = summary.get("metrics") or {}
            self.log(steps, {f"summary/{name}": value for name, value in _numbers(metrics)})

    def close(self) -> None:
        """Write what is left."""
        if self._board is not None:
            self._board.close()


@contextmanager
def reporter(settings: Any, out: Path) -> Iterator[Reporter]:
    """Give what tells the numbers of a run, and close it."""
    found = Reporter(settings, out)
    try:
        yield found
    finally:
        found.close()


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Give the numbers among some values; of an interval, its mean."""
    for name, value in values.items():
        number = value.get("mean") if isinstance(value, dict) else value
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            yield name, float(number)


class _TensorBoard:
    def __init__(self, settings: Any, out: Path, first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = str(out / FOLDERS["tensorboard"])
        # What a killed run had told of these steps and later ones is not shown.
        self._writer: Any = SummaryWriter(folder, purge_step=first)
        text = f"```\n{files.to_json(settings.to_dict(), indent=2)}\n```"
        self._writer.add_text("settings", text, first)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, settings: Any, out: Path, first: int) -> None:
        import wandb

        path = out / "wandb.json"
        if not path.exists():
            files.write_json(path, {"id": uuid.uuid4().hex})
        known = files.read_json(path)
        if not isinstance(known, dict) or not isinstance(known.get("id"), str):
            raise UserError(f'{path}: expected {{"id": "..."}}')
        self._run: Any = wandb.init(
            project="pyfast",
            name=out.resolve().name,
            id=known["id"],
            resume="allow",
            dir=str(out),
            config=settings.to_dict(),
        )
        # By our own step: wandb's counter never goes back, and would drop what is told again.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self) -> None:
        self._run.finish()
