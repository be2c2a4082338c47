"""MASS-DPO: the right candidate against the k negatives that inform most about the policy.

Numbers in the comments are equations and lines of Algorithm 1 of the paper. Beside it stand its
baselines, which draw their negatives at random: DPO, DPO-k, DMPO and S-DPO. A step reads all
candidates without gradients, selects, and learns from 1 + k of them alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyfast import select
from pyfast.select import reference as slow
from pyfast.train.data.group import Group
from pyfast.train.errors import DivergedError, UserError
from pyfast.train.recipe import Scored, TrainingGroup
from pyfast.train.recipes.mass_dpo.ranking import RankingInputs
from pyfast.train.recipes.mass_dpo.ranking_recipe import RankingRecipe, comparison, summarise
from pyfast.train.recipes.mass_dpo.settings import MassDpoSettings, MassSelection

if TYPE_CHECKING:
    from torch import Tensor

    from pyfast.train.context import Context


class MassDpo(RankingRecipe):
    """The right candidate against its k most informative negatives (MASS-DPO).

    Groups of candidates of which one is right are given. For each, read all candidates, keep the
    right one and k negatives - selected by a D-optimal design, or at random (S-DPO, DPO-k, DMPO,
    DPO) - and update a LoRA adapter. The candidates of held-out groups are ranked before, during
    and after.
    """

    Settings = MassDpoSettings
    examples = (
        "  pyfast data movielens --out data/movielens\n"
        "  pyfast train mass-dpo --groups data/movielens/groups.jsonl --steps 80\n"
        "  pyfast train mass-dpo --groups data/movielens/groups.jsonl --steps 80 --method s-dpo\n"
        "  pyfast train mass-dpo --config runs/mine/config.json --seed 1 --out runs/mine-1"
    )

    def __init__(self, settings: MassDpoSettings, inputs: RankingInputs, ctx: Context) -> None:
        super().__init__(settings, inputs, ctx)
        self._kept: dict[tuple[int, int], tuple[list[int], dict[str, float]]] = {}

    @staticmethod
    def label(settings: MassDpoSettings) -> str:
        """Return the method."""
        return settings.selection.method

    def groups(self, step: int) -> list[TrainingGroup]:
        """Choose the negatives of the groups of a step."""
        turns = self.turns(step)
        self._remember(turns)
        chosen = self.ctx.each(turns, lambda turn: self._choose(*turn))
        return [self._group(step, *turn, *found) for turn, found in zip(turns, chosen, strict=True)]

    def _group(
        self, step: int, epoch: int, index: int, negatives: list[int], measured: dict[str, float]
    ) -> TrainingGroup:
        group, ref = self.candidates["train"][index], self.ref_logps["train"][index]
        record = self.inputs.splits["train"][index]
        kept = [0, *negatives]
        names = [group.order[i] for i in kept]

        def line(x: Scored | None) -> str:
            """Return the group with what was chosen of it."""
            logps: list[float | None] = [None] * len(group.order)
            if x is not None:
                for name, value in zip(names, x.policy_logps.tolist(), strict=True):
                    logps[name] = value
            meta = {"step": step + 1, "epoch": epoch, "method": self.settings.selection.method}
            return Group(
                record.prompt,
                record.responses,
                policy_logps=logps,
                ref_logps=group.as_given(ref.tolist()),
                positive=names[0],
                negatives=names[1:],
                meta=meta | ({"id": record.id} if record.id is not None else {}),
            ).to_json()

        return TrainingGroup(
            group.prompt,
            [group.responses[i] for i in kept],
            ref_logps=ref[kept],
            measured=measured,
            line=line,
        )

    def _choose(self, epoch: int, index: int) -> tuple[list[int], dict[str, float]]:
        """Return a group's negatives, and what was measured of the choice."""
        config = self.settings.selection
        if config.method != "mass-dpo":
            return self._random(epoch, index), {}
        if config.reselect == "step":
            return self._informative(epoch, index)
        self._remember([(epoch, index)])
        negatives, measured = self._kept[epoch if config.reselect == "epoch" else 0, index]
        return negatives, measured

    def _remember(self, turns: Sequence[tuple[int, int]]) -> None:
        """Choose the negatives of all groups of the epoch or run, where that is due."""
        config, once = self.settings.selection, self.settings.selection.reselect == "once"
        if config.method != "mass-dpo" or config.reselect == "step":
            return
        for epoch, index in turns:
            first = 0 if once else epoch

            def choose_all(first: int = first) -> dict[str, Any]:
                wanted = sorted({i for e, i in self.turns() if e == first or once})
                found = self.ctx.each(wanted, lambda i: self._informative(first, i))
                return {str(i): value for i, value in zip(wanted, found, strict=True)}

            if (first, index) not in self._kept:
                made = self.ctx.remember(f"negatives-{first}", choose_all)
                known = {(first, int(name)): value for name, value in made.items()}
                now = {e for e, _ in turns}  # a step may hold the end of an epoch and a start
                before = {at: found for at, found in self._kept.items() if at[0] in now}
                self._kept = known if once else before | known
            if (first, index) not in self._kept:
                raise UserError(
                    f"{self.ctx.folder}: with selection.reselect = {config.reselect} the negatives "
                    "of these steps were chosen before the run was to have so many; give another "
                    "--out"
                )

    def _random(self, epoch: int, index: int) -> list[int]:
        """Return random negatives: the same for all methods of a seed, drawn anew each epoch."""
        config = self.settings.selection
        pool = len(self.candidates["train"][index].responses) - 1
        when = "once" if config.reselect == "once" else epoch
        seed = self.ctx.seed("negatives", when, index)
        return random_negatives(pool, config.k, seed)

    def _informative(self, epoch: int, index: int) -> tuple[list[int], dict[str, float]]:
        """Read all candidates without gradients, and select (Algorithm 1)."""
        import torch

        config, policy = self.settings.selection, self.ctx.policy
        group, ref = self.candidates["train"][index], self.ref_logps["train"][index]
        tokens = (group.prompt, group.responses)
        if config.features_from == "policy":
            logps, features = policy.logps_and_features(*tokens, config.features)
        else:
            with torch.no_grad():
                logps = policy.logps(*tokens)
            _, features = policy.logps_and_features(*tokens, config.features, reference=True)
        if not (logps.isfinite().all() and features.isfinite().all()):
            raise DivergedError("a log-probability or a hidden state of a candidate is not finite")
        return choose(
            config,
            self.settings.loss.beta,
            features.cpu().numpy(),
            logps.cpu().numpy().astype(np.float64),
            ref.numpy().astype(np.float64),
            self._random(epoch, index),
        )

    def loss(self, x: Scored, step: int, metrics: dict[str, Tensor]) -> Tensor:
        """Contrast the right candidate with its negatives."""
        method, beta = self.settings.selection.method, self.settings.loss.beta
        return loss(method, beta, x.policy_logps, x.ref_logps, metrics)

    @staticmethod
    def summary(settings: MassDpoSettings, inputs: RankingInputs, out: Path) -> dict[str, Any]:
        """Compare the rankings before and after."""
        steps = MassDpo.steps(settings, inputs)
        return {
            "label": settings.selection.method,
            "seed": settings.run.seed,
            "k": settings.selection.k,
            "beta": settings.loss.beta,
            "steps": steps,
            "groups": len(inputs.splits["train"]),
            **summarise(settings, inputs, steps, out),
        }

    @staticmethod
    def table(summary: dict[str, Any]) -> str:
        """Return the table of held-out rankings."""
        title = f"mass-dpo · {summary['label']} · k {summary['k']} · seed {summary['seed']}"
        return comparison(title, summary)


def random_negatives(pool: int, k: int | None, seed: int) -> list[int]:
    """Draw k of the candidates 1 to `pool` (0 is the right one); all where there are no more.

    Of one seed, fewer are among more: DPO's one negative is one of S-DPO's.
    """
    if k is None or k >= pool:
        return list(range(1, pool + 1))
    return [1 + int(i) for i in select.random(pool, k, seed=seed).indices]


def choose(
    config: MassSelection,
    beta: float,
    features: NDArray[np.floating[Any]],
    policy_logps: NDArray[np.float64],
    ref_logps: NDArray[np.float64],
    random: Sequence[int],
) -> tuple[list[int], dict[str, float]]:
    """Choose the negatives of one group (MASS-DPO, Algorithm 1).

    Parameters
    ----------
    config : MassSelection
    beta : float
    features : float array (n, d)
    policy_logps, ref_logps : float64 arrays (n,)
        Of all candidates, the right one first.
    random : sequence of int
        A random choice, to compare with.

    Returns
    -------
    negatives : list of int
        In the order of choice; all where there are k or fewer.
    measured : dict
        ``selection/logdet`` of eq. 12, the same of the random choice, and which part of it was
        chosen too (``selection/overlap_random``; by chance k of the pool's size).
    """
    arrays = (features, policy_logps, ref_logps)
    k = len(random)
    chosen = select.mass_dpo(
        *arrays,
        k=k,
        beta=beta,
        gamma=config.gamma,
        curvature=config.curvature,  # type: ignore[arg-type]
    )
    negatives = [int(i) for i in chosen.negatives]
    pool, v, scale = slow.mass_dpo_information(
        features.astype(np.float64), policy_logps, ref_logps, 0, beta, config.curvature
    )
    rows = v[[pool.index(i) for i in random]]
    by_chance = select.logdet(rows, k, config.gamma, scale=scale)
    return negatives, {
        "selection/logdet": float(chosen.logdet),
        "selection/logdet_random": float(by_chance.logdet),
        "selection/overlap_random": len(set(negatives) & set(random)) / k,
    }


def loss(
    method: str,
    beta: float,
    policy_logps: Tensor,
    ref_logps: Tensor,
    metrics: dict[str, Tensor] | None = None,
) -> Tensor:
    """Contrast the right candidate with its negatives, as a method does.

    Parameters
    ----------
    method : str
        One of `METHODS`. With one negative all are DPO.
    beta : float
    policy_logps, ref_logps : float tensors (1 + k,)
        The right one first.
    metrics : dict, optional
        Filled by TRL's names.

    Returns
    -------
    float tensor, scalar
    """
    from pyfast import losses  # loads torch, which choosing does without

    contrast: dict[str, Callable[..., Tensor]] = {
        "dpo": losses.dpo,
        "dpo-k": losses.dpo_k,
        "dmpo": losses.dmpo,
        "s-dpo": losses.plackett_luce_top1,  # equation 5
        "mass-dpo": losses.plackett_luce_top1,
    }
    return contrast[method](policy_logps, ref_logps, beta=beta, metrics=metrics)
