"""Which pairs of a pool to have labelled: ActiveDPO's criterion and those that it is compared with.

Every criterion sees a round's pool before any of its labels.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from pyfast import select
from pyfast.train.errors import DivergedError, UserError
from pyfast.train.recipes.active_dpo.rounds import Pool

if TYPE_CHECKING:
    from pyfast.train.context import Context

Pairs = NDArray[np.int64]

_NOT_FINITE = 2
"""What a pool of sketches says of a response's gradient (`SketchPool.flags`)."""


@dataclass(frozen=True)
class Turn:
    """A round, as a criterion sees it.

    Attributes
    ----------
    number : int
        From 1.
    pool : Pool
    folder : Path
        Of the round's files.
    before : Path or None
        That of the round before.
    labelled : list of (prompt_ids, response_ids)
        Of all pairs labelled in the rounds before, two a pair.
    """

    number: int
    pool: Pool
    folder: Path
    before: Path | None
    labelled: list[tuple[list[int], list[int]]]


class Criterion:
    """What chooses a round's pairs; here: at random.

    Parameters
    ----------
    ctx : Context
    settings : Settings
        With the sections active and loss.
    turn : Turn
    encoder : SentenceEncoder or None
        For APO.

    Attributes
    ----------
    report : dict of str to float
        What it measured.
    """

    def __init__(self, ctx: Context, settings: Any, turn: Turn, encoder: Any) -> None:
        self.ctx, self.settings, self.config = ctx, settings, settings.active
        self.turn, self.pool, self.encoder = turn, turn.pool, encoder
        self.report: dict[str, float] = {}
        self.prepare()

    def prepare(self) -> None:
        """Measure what the choice depends on."""

    def available(self, pairs: Pairs) -> int:
        """Return how many of these pairs can be chosen."""
        return len(pairs)

    def choose(self, pairs: Pairs, k: int, seed: int) -> NDArray[np.int64]:
        """Return the positions of k of the pairs."""
        return select.random(len(pairs), k, seed=seed).indices

    def learn(self, pairs: Pairs) -> None:
        """Take note of pairs that were labelled."""

    def keep(self) -> None:
        """Keep what the next round needs."""


class Uncertainty(Criterion, ABC):
    """The largest ``||phi||_{V^-1}`` (equation 3), with V updated after each (equation 4).

    V is carried over the rounds. With refresh, it is made anew of all labelled pairs' phi under
    the policy as it is, as Proposition 1 has it.
    """

    state: select.LogDetState | None = None
    old: Pairs | None = None

    @abstractmethod
    def pick(self, pairs: Pairs, k: int, **before: Any) -> select.PairSelection:
        """Return k of the pairs, given what came before."""

    def _select(self, pairs: Pairs, k: int) -> select.PairSelection:
        if self.old is not None and len(self.old):
            return self.pick(pairs, k, refresh=self.old)
        return self.pick(pairs, k, state=self.state)

    def choose(self, pairs: Pairs, k: int, seed: int) -> NDArray[np.int64]:
        """Return the positions of the k least certain pairs."""
        return self._select(pairs, k).indices

    def learn(self, pairs: Pairs) -> None:
        """Let the labelled pairs join V; those that were skipped do not."""
        if len(pairs) == 0:
            return
        joined = self._select(pairs, len(pairs))
        if self.old is None:
            self.state = joined.state
        else:
            self.old = np.concatenate([self.old, pairs])
        self.report["logdet"] = joined.logdet

    def load_state(self) -> None:
        """Take up V where the round before has left it."""
        if self.turn.before is None:
            return
        path = self.turn.before / "V.npz"
        try:
            self.state = select.LogDetState.load(path)
        except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as error:
            raise UserError(f"{path}: expected V of the rounds before: {error}") from None

    def keep(self) -> None:
        """Keep V."""
        if self.old is None and self.state is not None:
            state = self.state

            def save() -> None:
                self.turn.folder.mkdir(parents=True, exist_ok=True)
                state.save(self.turn.folder / "V.npz")

            self.ctx.once(save)


class Gradients(Uncertainty):
    """ActiveDPO: phi is the difference of two responses' gradients of log pi, sketched."""

    def prepare(self) -> None:
        """Sketch each response of the pool once, under the policy as it is."""
        from pyfast import sketch

        config, turn = self.config, self.turn
        responses = self.pool.responses()
        if config.refresh:
            rows = len(responses)
            responses += turn.labelled
            self.old = np.arange(rows, len(responses), dtype=np.int64).reshape(-1, 2)
        else:
            self.load_state()
        seed = self.ctx.seed("sketch")  # one for all rounds, or V would mix different projections
        try:
            collector = sketch.LoraGradients(self.ctx.policy.model, config.dim, seed)
        except ValueError as error:
            raise UserError(f"round {turn.number}: {error}") from None
        folder = turn.folder / "sketches"

        def collect(shard: tuple[int, int] | None) -> Any:
            return sketch.collect(
                collector, responses, folder, shard=shard,
                max_tokens=config.sketch_tokens, fidelity=config.fidelity,
            )  # fmt: skip

        try:
            found = self.ctx.sharded(collect)
        except ValueError as error:
            raise UserError(
                f"round {turn.number}: {error}; without {folder} it is sketched again"
            ) from None
        if (found.flags == _NOT_FINITE).any():
            row = int(np.flatnonzero(found.flags == _NOT_FINITE)[0])
            raise DivergedError(
                f"the gradient of response {row} of round {turn.number} is not finite"
            )
        if found.fidelity is not None:
            self.report["fidelity/rms_error"] = found.fidelity.rms_error
            self.report["fidelity/theory"] = found.fidelity.theory
        self.rows = found.sketches

    def pick(self, pairs: Pairs, k: int, **before: Any) -> select.PairSelection:
        """Return k of the pairs by their gradients."""
        how: Any = None if self.config.normalize == "none" else self.config.normalize
        return select.active_dpo(self.rows, pairs, k, normalize=how, lam=self.config.lam, **before)


class Embeddings(Uncertainty):
    """APO: phi is the difference of two responses' embeddings, which follow no policy."""

    def prepare(self) -> None:
        """Embed the pool."""
        self.load_state()
        self.rows = self.encoder.encode(self.pool.texts)

    def pick(self, pairs: Pairs, k: int, **before: Any) -> select.PairSelection:
        """Return k of the pairs by their embeddings."""
        return select.apo(self.rows, pairs, k, lam=self.config.lam, **before)


class Margins(Criterion):
    """APLP: prompts of high predictive entropy, then pairs of large implicit reward margins."""

    def prepare(self) -> None:
        """Score the pool under policy and reference."""
        name = f"round-{self.turn.number}/entropies"
        made = self.ctx.remember(name, self._measure)
        self.entropies, self.rewards = np.array(made["entropies"]), np.array(made["rewards"])
        self.owners = np.array(self.pool.owners)
        self.used: list[int] = []  # prompts that have given their one pair

    def _measure(self) -> dict[str, list[float]]:
        """Return -1/N sum log pi(y_n|x) of each prompt, and beta (log pi - log pi_ref) of rows."""
        import torch

        policy, beta = self.ctx.policy, self.settings.loss.beta
        owners = np.array(self.pool.owners)

        def of_prompt(number: int) -> tuple[float, list[float]]:
            ids, samples = self.pool.prompt_ids[number], self.pool.samples[number]
            rows = [self.pool.tokens[row] for row in np.flatnonzero(owners == number)]
            with torch.no_grad():
                logps = policy.logps(ids, samples).double().cpu()
            known = dict(zip(map(tuple, samples), logps.tolist(), strict=True))
            reference = policy.logps(ids, rows, reference=True).tolist()
            implied = [
                beta * (known[tuple(row)] - logp) for row, logp in zip(rows, reference, strict=True)
            ]
            return -float(logps.mean()), implied

        found = self.ctx.each(range(len(self.pool.prompt_ids)), of_prompt)
        return {
            "entropies": [entropy for entropy, _ in found],
            "rewards": [reward for _, implied in found for reward in implied],
        }

    def _open(self, pairs: Pairs) -> NDArray[np.int64]:
        return np.flatnonzero(~np.isin(self.owners[pairs[:, 0]], self.used))

    def available(self, pairs: Pairs) -> int:
        """Return how many of these pairs can be chosen: one a prompt, if that is asked for."""
        prompts = self.owners[pairs[self._open(pairs), 0]]
        return len(np.unique(prompts)) if self.config.per_prompt == "one" else len(prompts)

    def choose(self, pairs: Pairs, k: int, seed: int) -> NDArray[np.int64]:
        """Return the positions of the k pairs."""
        places, most = self._open(pairs), self.available(pairs)
        some = pairs[places]
        prompts = self.owners[some[:, 0]]
        shortlist = self.config.shortlist
        found = select.aplp(
            self.entropies[prompts], self.rewards[some], k, prompts=prompts,
            shortlist=None if shortlist is None else min(shortlist, most),
            per_prompt="one" if self.config.per_prompt == "one" else "all", seed=seed,
        )  # fmt: skip
        return places[found.indices]

    def learn(self, pairs: Pairs) -> None:
        """Take note of the prompts, if each may give one pair."""
        if self.config.per_prompt == "one":
            self.used += self.owners[pairs[:, 0]].tolist()


CRITERIA: dict[str, type[Criterion]] = {
    "active-dpo": Gradients, "random": Criterion, "apo": Embeddings, "aplp": Margins,
}  # fmt: skip
