"""What a loss tells of the groups it was made of: TRL's preference metrics."""

from __future__ import annotations

import torch
from torch import Tensor

from pyfast.losses.reference import Groups


@torch.no_grad()
def preference_metrics(
    rewards: Tensor, policy_logps: Tensor, groups: Groups, weighing: Tensor
) -> dict[str, Tensor]:
    """Describe groups by the means over them, as detached scalars that stay on the device.

    Parameters
    ----------
    rewards : Tensor
        (T,) implicit rewards, of the chosen response first in each group. (Where a loss ranks by
        `rewards`, it puts the response that ranks first there.)
    policy_logps : Tensor
        Sequence log-probs of the policy in nats, T of them.
    groups : Groups
        The groups of the responses.
    weighing : Tensor
        (T,) the scores whose softmax over the negatives shares out the gradient.

    Returns
    -------
    dict of str to Tensor
        ``rewards/chosen``, ``rewards/rejected`` (the mean of the negatives), ``rewards/margins``,
        ``rewards/accuracies`` (1 where the chosen one beats every negative), ``logps/chosen``,
        ``logps/rejected``, and ``negatives/effective``: exp(entropy) of the softmax over the
        negatives, k where all weigh the same and 1 where one has all the weight. Groups without a
        negative count in the ``chosen`` means only; where no group has one, the others are NaN.
    """
    chosen = groups.chosen
    count = groups.sizes - 1
    some = (count > 0).to(rewards.dtype)
    pairs = some.sum()

    def rejected(values: Tensor) -> Tensor:
        total = groups.sum(values.masked_fill(chosen, 0.0))
        return total / count.clamp(min=1)

    def mean(values: Tensor) -> Tensor:
        return (values * some).sum() / pairs

    logps = policy_logps.detach().reshape(-1).to(rewards.dtype)
    first, others = rewards[groups.starts], rejected(rewards)
    best = groups.max(rewards.masked_fill(chosen, -torch.inf))
    return {
        "rewards/chosen": first.mean(),
        "rewards/rejected": mean(others),
        "rewards/margins": mean(first - others),
        "rewards/accuracies": mean((first > best).to(rewards.dtype)),
        "logps/chosen": logps[groups.starts].mean(),
        "logps/rejected": mean(rejected(logps)),
        "negatives/effective": mean(_effective(weighing.masked_fill(chosen, -torch.inf), groups)),
    }


def _effective(scores: Tensor, groups: Groups) -> Tensor:
    """exp(entropy) of the softmax of each group; 1 where a group has no finite score."""
    top = groups.max(scores)
    shifted = scores - groups.spread(torch.where(top == -torch.inf, 0.0, top))
    weights = torch.exp(shifted)
    mass = groups.sum(weights).clamp(min=torch.finfo(scores.dtype).tiny)
    mean_score = groups.sum(torch.where(weights > 0, weights * shifted, 0.0)) / mass
    return mass.clamp(min=1.0) * torch.exp(-mean_score)
