"""Which pairs of a group count, and with what weight; :mod:`pyfast.losses.pairs` says why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from pyfast.losses._batch import Batch
from pyfast.losses._checks import check_choice, check_number
from pyfast.losses.reference import Groups, suffixes

Weighting: TypeAlias = Literal["mean", "bt", "pl", "hps"]
PairLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
WEIGHTINGS = ("mean", "bt", "pl", "hps")


@dataclass(frozen=True, eq=False)
class Pairs:
    """Weighted pairs of responses: flat indices and weights, all (M,)."""

    winner: Tensor
    loser: Tensor
    weight: Tensor

    def total(self, groups: Groups, losses: Tensor) -> Tensor:
        """Sum the weighted losses of the pairs by group, (B,)."""
        # By winner first: one float32 sum of all pairs of 1000 responses would lose four digits.
        zeros = losses.new_zeros(groups.ids.shape)
        return groups.sum(zeros.index_add(0, self.winner, losses * self.weight))


def choose_pairs(
    groups: Groups,
    rewards: Tensor | None,
    weighting: Weighting,
    gamma: float,
    dtype: torch.dtype,
    keep_ties: bool = False,
) -> Pairs:
    """List the pairs of a weighting; `rewards` (T,) or None."""
    if weighting == "pl":
        return _ranked_pairs(groups, rewards, dtype)
    if weighting == "hps":
        assert rewards is not None
        negative = negatives(groups, rewards, keep_ties)
        loser = negative.nonzero().squeeze(1)
        group = groups.ids[loser]
    else:
        loser, group = _all_negatives(groups)
    if weighting == "mean":
        weight = 1 / (groups.sizes - 1).to(dtype)[group]
    elif weighting == "bt":
        lone = groups.sizes < 2
        last = groups.starts + groups.sizes - 1
        if rewards is not None:
            ranked = groups.ranking(rewards.masked_fill(groups.chosen, torch.inf))
            last = ranked[last]
        loser, group = last[~lone], groups.ids[last[~lone]]
        weight = torch.ones(loser.shape, dtype=dtype, device=loser.device)
    else:
        assert rewards is not None
        weights = torch.exp(tilt(groups, rewards, gamma, negative))
        weight = (weights[loser] / groups.sum(weights)[group]).to(dtype)
    return Pairs(groups.starts[group], loser, weight)


def _all_negatives(groups: Groups) -> tuple[Tensor, Tensor]:
    """Return the places of all responses but the chosen ones, and their groups.

    Without `nonzero`, for which a GPU would be waited for, and older compilers leave the graph.
    """
    starts = groups.starts
    before = starts - torch.arange(len(starts), device=starts.device)  # negatives before a group
    number = torch.arange(len(groups.ids) - len(starts), device=starts.device)
    group = torch.searchsorted(before, number, right=True) - 1  # of equals the last: it has some
    return number + group + 1, group


def negatives(groups: Groups, rewards: Tensor, keep_ties: bool) -> Tensor:
    """Tell which responses are negatives, (T,): all whose reward differs from the chosen one's."""
    if keep_ties:
        return ~groups.chosen
    return rewards != groups.spread(rewards[groups.starts])


def tilt(groups: Groups, rewards: Tensor, gamma: float, negative: Tensor) -> Tensor:
    """Gamma r_i of the negatives less the largest of their group, (T,); -inf for the others.

    The largest is subtracted first: a product of large rewards would not fit the dtype.
    """
    upward = (rewards if gamma >= 0 else -rewards).masked_fill(~negative, -torch.inf)
    top = groups.max(upward.detach())
    below = upward - groups.spread(torch.where(top == -torch.inf, 0.0, top))
    below = below.clamp(min=torch.finfo(below.dtype).min)  # 0 * -inf would be NaN
    return (below * abs(gamma)).masked_fill(~negative, -torch.inf)


def _ranked_pairs(groups: Groups, rewards: Tensor | None, dtype: torch.dtype) -> Pairs:
    """All pairs of each ranking, each winner's losers sharing a weight of 1."""
    places = torch.arange(groups.ids.numel(), device=groups.ids.device)
    members, ends = suffixes(groups, places)
    below = ends.diff() - 1
    head = torch.repeat_interleave(places, ends.diff())
    beaten = members != head
    head, members = head[beaten], members[beaten]
    weight = 1 / below.to(dtype)[head]
    if rewards is None:
        return Pairs(head, members, weight)
    order = groups.ranking(rewards)
    return Pairs(order[head], order[members], weight)


def over_pairs(
    batch: Batch,
    rewards: Tensor | None,
    weighting: Weighting,
    gamma: float,
    keep_ties: bool,
    loss: PairLoss,
    handicap: Tensor | None = None,
) -> Tensor:
    """Sum a pairwise loss of winners' and losers' scores over each group.

    `rewards` were checked with the log-probs; `handicap` (B,) is added to the losers' scores.
    """
    check_choice("weighting", weighting, WEIGHTINGS)
    check_number("gamma", gamma, signed=True)
    if weighting == "hps" and rewards is None:
        raise TypeError("rewards must be a torch.Tensor for weighting hps, got None")
    flat_rewards = None if rewards is None else batch.wide(rewards.detach()).reshape(-1)
    groups, flat = batch.groups, batch.flat
    pairs = choose_pairs(groups, flat_rewards, weighting, gamma, flat.dtype, keep_ties)
    losers = flat[pairs.loser]
    if handicap is not None:
        losers = losers + handicap[groups.ids[pairs.loser]]
    return pairs.total(groups, loss(flat[pairs.winner], losers))
