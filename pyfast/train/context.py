"""What a recipe may use of a run: the policy, seeds, and a place for what is made once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pyfast.train import files
from pyfast.train.data.tokens import Tokeniser
from pyfast.train.policy.policy import Policy
from pyfast.train.recipe import Scored, TrainingGroup
from pyfast.train.seeds import derive


class Context:
    """One run in one process.

    Parameters
    ----------
    policy : Policy
    seed : int
        The run's.
    folder : Path
        The run's.
    **cut : optional
        ``system``, ``max_prompt``, ``max_response`` of the tokens (`Tokeniser`).

    Attributes
    ----------
    tokens : Tokeniser
        Of prompts, and of responses that are given as text.
    """

    def __init__(self, policy: Policy, seed: int, folder: Path, **cut: Any) -> None:
        self.policy, self.folder, self._seed = policy, folder, seed
        self.tokens = Tokeniser(policy.tokenizer, policy.end_ids, **cut)

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

    def share(self, groups: Sequence[TrainingGroup]) -> Sequence[TrainingGroup]:
        """Return the groups of this process: alone, all."""
        return groups

    def remember(self, name: str, make: Callable[[], Any]) -> Any:
        """Return a JSON value that was made once in this run, or make it now.

        Parameters
        ----------
        name : str
            Of a file in the run's folder, below ``kept/``; it appears whole.
        make : callable
            Makes the value.
        """
        path = self.folder / "kept" / f"{name}.json"
        if path.exists():
            return files.read_json(path)
        value = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, value)
        return value
