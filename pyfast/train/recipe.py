"""What the papers differ in: which groups to learn from at a step, and the loss on a group."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pyfast.train.config import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from pyfast.train.context import Context
    from pyfast.train.data.prompts import Prompt


@dataclass(frozen=True)
class Scored:
    """What the loss of a group is made of; everything has the chosen response first.

    Attributes
    ----------
    policy_logps : float32 tensor (n,)
        With the graph of the policy.
    ref_logps : float32 tensor (n,)
        Of the reference: the model as loaded.
    scores : float32 tensor (n,) or None
        Where the group has them.
    lengths : int64 tensor (n,)
        Tokens of the responses.
    plan : object
        The group's `TrainingGroup.plan`, as it was.
    """

    policy_logps: Tensor
    ref_logps: Tensor
    scores: Tensor | None
    lengths: Tensor
    plan: Any = None


@dataclass
class TrainingGroup:
    """What to learn from now: a prompt, the chosen response, and those set against it.

    Attributes
    ----------
    prompt : list of int
        Its tokens.
    responses : list of lists of int
        Tokens of the responses, the chosen one first; fewer than two prefer nothing.
    scores : list of float, optional
        One a response.
    ref_logps : float32 tensor (n,), optional
        The reference's log-probs, where they are known.
    prefers : bool
        False for a group that prefers nothing, such as one of equal scores: it is measured, and
        gives no gradient.
    measured : dict
        What its selection measured, for the step's line of metrics.
    plan : object, optional
        What the recipe decided of this group that its loss is to know, such as weights.
    line : callable, optional
        Given what was scored (None if nothing was), the group's line for ``groups.jsonl``.
    """

    prompt: list[int]
    responses: list[list[int]]
    scores: Sequence[float] | None = None
    ref_logps: Tensor | None = None
    prefers: bool = True
    measured: dict[str, float] = field(default_factory=dict)
    plan: Any = None
    line: Callable[[Scored | None], str] | None = None


class Inputs(Protocol):
    """What a run reads, checked before anything heavy is imported or loaded."""

    @property
    def hashes(self) -> Mapping[str, str]:
        """SHA-256 of the files, by the name of their setting in the section ``data``."""


class Recipe(ABC):
    """A paper's method. It touches no optimiser, no gradient and no rank.

    Parameters
    ----------
    settings : Settings
    inputs : Inputs
        What `read` made of the settings.
    ctx : Context
        The policy, and where the run is.
    """

    Settings: ClassVar[type[Settings]]
    examples: ClassVar[str]  # lines of the command line

    def __init__(self, settings: Any, inputs: Any, ctx: Context) -> None:
        self.settings, self.inputs, self.ctx = settings, inputs, ctx

    @staticmethod
    @abstractmethod
    def read(settings: Any) -> Inputs:
        """Read and check everything that the user wrote. Must not import torch."""

    @staticmethod
    @abstractmethod
    def steps(settings: Any, inputs: Any) -> int:
        """Return the optimiser steps of a run."""

    @staticmethod
    @abstractmethod
    def label(settings: Any) -> str:
        """Return what tells this run from others of the recipe, in a word for names of folders."""

    @staticmethod
    def chosen(settings: Any, inputs: Any) -> list[tuple[Prompt, str, str]]:
        """Return (prompt, response, place) of the chosen responses, for supervised fine-tuning.

        None where a recipe has none before it trains.
        """
        return []

    def schedule(self, step: int) -> tuple[int, int]:
        """Return the part of the run, [start, end), that a step's learning rate belongs to.

        At each start the optimiser is a fresh one.
        """
        return 0, self.steps(self.settings, self.inputs)

    def fingerprints(self) -> dict[str, dict[str, str]]:
        """Return the fingerprints of models beside the policy, by name (`fingerprint.of`)."""
        return {}

    def prepare(self) -> None:  # noqa: B027  # not every recipe has something to prepare
        """Do once what all steps need, such as the reference's log-probs."""

    @abstractmethod
    def groups(self, step: int) -> list[TrainingGroup]:
        """Return what to learn from at a step, from 0."""

    @abstractmethod
    def loss(self, x: Scored, step: int, metrics: dict[str, Tensor]) -> Tensor:
        """Return the loss of one group, and fill `metrics` by TRL's names."""

    @abstractmethod
    def evaluate(self, step: int) -> None:
        """Measure the policy after so many steps, once: what is measured already is left."""

    @staticmethod  # noqa: B027  # of most recipes, what reads such a file tells it
    def verify(settings: Any, out: Path) -> None:
        """Refuse a run folder with files that differ from what the run has learnt from.

        Of those that going on, or a finished run, would read no more.
        """

    @classmethod
    def elsewhere(cls, settings: Any, data: str, steps: int) -> tuple[Any, Any]:
        """Return settings and inputs with other held-out data alone, to evaluate a run on it.

        Parameters
        ----------
        settings : Settings
            A finished run's.
        data : str
            The other file.
        steps : int
            The run's.
        """
        section = dataclasses.replace(settings.data, heldout=data)
        changed = dataclasses.replace(settings, data=section)
        return changed, cls.read(changed)

    @staticmethod
    @abstractmethod
    def summary(settings: Any, inputs: Any, out: Path) -> dict[str, Any]:
        """Return what a finished run found, from its files; JSON."""

    @staticmethod
    @abstractmethod
    def plots(out: Path, **options: Any) -> list[Path]:
        """Draw what a run's files allow; return the pictures."""

    @staticmethod
    @abstractmethod
    def table(summary: dict[str, Any]) -> str:
        """Return a finished run's summary for the terminal."""
