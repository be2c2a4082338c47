"""What a recipe may use of a run: the policy, seeds, and a place for what is made once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from pyfast.train import files
from pyfast.train.data.tokens import Tokeniser
from pyfast.train.policy.policy import Policy
from pyfast.train.processes import ALONE, Team
from pyfast.train.recipe import Scored, TrainingGroup
from pyfast.train.runs import kept
from pyfast.train.seeds import derive

Item = TypeVar("Item")
Made = TypeVar("Made")


class Context:
    """One run, in one process or in several that go through the same steps (`processes`).

    In several, every call of `each`, `split`, `once`, `remember` and the others is made by all of
    them, in the same order.

    Parameters
    ----------
    policy : Policy
    seed : int
        The run's.
    folder : Path
        The run's.
    team : Team, optional
        The run's processes; default: this one alone.
    **cut : optional
        ``system``, ``max_prompt``, ``max_response`` of the tokens (`Tokeniser`).

    Attributes
    ----------
    tokens : Tokeniser
        Of prompts, and of responses that are given as text.
    """

    def __init__(
        self, policy: Policy, seed: int, folder: Path, team: Team = ALONE, **cut: Any
    ) -> None:
        self.policy, self.folder, self._seed, self.team = policy, folder, seed, team
        rows = policy.base.get_input_embeddings().weight.shape[0]
        self.tokens = Tokeniser(policy.tokenizer, policy.end_ids, vocabulary=rows, **cut)

    @property
    def positions(self) -> int | None:
        """The positions that the model has, where it says so."""
        settings = self.policy.base.config.get_text_config()
        positions = getattr(settings, "max_position_embeddings", None)
        return positions if isinstance(positions, int) and positions > 0 else None

    def seed(self, *purpose: int | str) -> int:
        """Return the seed of one use of randomness (`seeds.derive`)."""
        return derive(self._seed, *purpose)

    def score(self, group: TrainingGroup) -> Scored:
        """Score a group under the policy, and under the reference where that is not known."""
        reference = group.ref_logps
        if reference is None:
            reference = self.policy.logps(group.prompt, group.responses, reference=True)
        policy = self.policy.logps(group.prompt, group.responses)
        scores = None if group.scores is None else policy.new_tensor(list(group.scores))
        lengths = torch.tensor([len(tokens) for tokens in group.responses], device=policy.device)
        return Scored(policy, reference.to(policy.device), scores, lengths, group.plan)

    def each(self, items: Sequence[Item], make: Callable[[Item], Made]) -> list[Made]:
        """Make something of each item, shared out to the processes; all get all, in order."""
        return self.team.split(items, lambda mine: [make(item) for item in mine])

    def split(
        self, items: Sequence[Item], make: Callable[[Sequence[Item]], Sequence[Made]]
    ) -> list[Made]:
        """Make something of items as `each` does, where some are better made together."""
        return self.team.split(items, make)

    def once(self, make: Callable[[], Made]) -> Made:
        """Let the first process do what is done once, such as writing; all get what it returns."""
        return self.team.once(make)

    def sharded(self, do: Callable[[tuple[int, int] | None], Made]) -> Made:
        """Return what `do` finds, which shares its work out itself by (rank, world).

        Like `sketch.collect` it may return None from a share; a call without one does what is
        missing, and from then on a share's call returns what there is.
        """
        if self.team.count == 1:
            return do(None)
        place = (self.team.rank, self.team.count)
        self.team.everywhere(lambda: do(place) and None)
        self.team.once(lambda: do(None) and None)
        return do(place)

    def lacks(self, names: Sequence[str]) -> bool:
        """Tell whether any of these was not kept by `remember` or `remember_each`."""
        return any(not self._path(name).exists() for name in names)

    def agree(self, what: str, value: Any) -> None:
        """Stop all processes if they have not come to the same JSON value."""
        if self.team.count > 1:
            self.team.agree(what, files.to_json(value))

    def agree_on(self, step: int, groups: Sequence[TrainingGroup]) -> None:
        """Stop all processes if they are about to learn from other groups."""
        if self.team.count > 1:
            self.team.agree(f"the groups of step {step + 1}", repr([_told(g) for g in groups]))

    def reduce(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """Give every process the sum of all their gradients."""
        self.team.reduce(list(parameters.values()))

    def remember(self, name: str, make: Callable[[], Any]) -> Any:
        """Return a JSON value that was made once in this run, or make it now.

        Parameters
        ----------
        name : str
            Of a file in the run's folder, below ``kept/`` (`runs.kept`).
        make : callable
            Makes the value, in every process, which must come to the same one.
        """
        known = self.once(lambda: self._known(name))
        if known:
            return known[0]
        value = make()
        self.agree(name, value)
        self.once(lambda: self._keep(name, value))
        return value

    def remember_each(
        self, names: Sequence[str], make: Callable[[int], Any], doing: str
    ) -> list[Any]:
        """Return a JSON value for each name, as `remember`; what is missing is shared out.

        Parameters
        ----------
        names : sequence of str
        make : callable
            Of the number of a name, makes its value.
        doing : str
            What the progress bar says.
        """
        found: list[Any] = []
        bar = tqdm(total=len(names), desc=doing, unit="batch", leave=False)
        for start in range(0, len(names), self.team.count):
            some = range(start, min(start + self.team.count, len(names)))
            found += self._remembered(names, some, make)
            bar.update(len(some))
        bar.close()
        return found

    def _remembered(
        self, names: Sequence[str], some: Sequence[int], make: Callable[[int], Any]
    ) -> list[Any]:
        known = self.once(lambda: {i: self._known(names[i]) for i in some})
        missing = [i for i in some if not known[i]]
        made = dict(zip(missing, self.each(missing, make), strict=True))

        def keep() -> None:
            for i, value in made.items():
                self._keep(names[i], value)

        self.once(keep)
        return [known[i][0] if known[i] else made[i] for i in some]

    def _path(self, name: str) -> Path:
        return self.folder / "kept" / f"{name}.json"

    def _known(self, name: str) -> list[Any]:
        path = self._path(name)
        return [kept.read(path)] if path.exists() else []

    def _keep(self, name: str, value: Any) -> None:
        kept.write(self._path(name), value)


def _told(group: TrainingGroup) -> list[Any]:
    """Return all of a group that its loss depends on, and what was measured of it."""
    reference = None if group.ref_logps is None else group.ref_logps.tolist()
    scores = None if group.scores is None else list(group.scores)
    parts = [group.prompt, group.responses, scores, reference, group.prefers, group.plan]
    return [*parts, sorted(group.measured.items())]
