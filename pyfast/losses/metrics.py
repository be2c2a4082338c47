"""What a batch of groups says about the policy: TRL's preference metrics, and ranking measures."""

from __future__ import annotations

import torch
from torch import Tensor

from pyfast.losses._checks import check_groups, check_number, check_values
from pyfast.losses.reference import Groups, widen


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


@torch.no_grad()
def reward_margins(
    policy_logps: Tensor,
    ref_logps: Tensor,
    lengths: Tensor,
    *,
    beta: float = 0.1,
    penalty: float = 0.01,
    offsets: Tensor | None = None,
) -> dict[str, Tensor]:
    r"""Measure by how much the chosen response beats its rejected ones, and so for its length.

    .. math:: RM_{DPO} = \beta (h_c - h_r), \qquad
              RM_{R-DPO} = RM_{DPO} - \alpha (|y_c| - |y_r|)

    Parameters
    ----------
    policy_logps, ref_logps, beta, offsets
        As for all losses: :mod:`pyfast.losses`. With several rejected responses, r stands for
        their mean.
    lengths : Tensor
        Tokens of each response, above 0, in the shape of `policy_logps`.
    penalty : float
        alpha, from 0 on.

    Returns
    -------
    dict of str to Tensor
        ``rm_dpo`` and ``rm_r_dpo``, means over the groups that have a rejected response.

    Raises
    ------
    TypeError, ValueError
        As the losses do.

    Notes
    -----
    HPS, table 1.

    Examples
    --------
    >>> policy, ref = torch.tensor([-12.0, -15.0]), torch.tensor([-13.0, -14.0])
    >>> found = reward_margins(policy, ref, torch.tensor([30, 20]))
    >>> {name: round(float(value), 3) for name, value in found.items()}
    {'rm_dpo': 0.2, 'rm_r_dpo': 0.1}
    """
    check_number("beta", beta)
    check_number("penalty", penalty, zero=True)
    named = {"policy_logps": policy_logps, "ref_logps": ref_logps}
    check_groups(named, {"lengths": lengths}, offsets)
    check_values(named, {"lengths": lengths}, offsets)
    groups = Groups.of(policy_logps, offsets)
    rewards = (widen(policy_logps) - widen(ref_logps)).reshape(-1) * float(beta)
    fined = rewards - float(penalty) * lengths.reshape(-1).to(rewards.dtype)
    count = groups.sizes - 1

    def margin(values: Tensor) -> Tensor:
        rest = groups.sum(values.masked_fill(groups.chosen, 0.0)) / count.clamp(min=1)
        return (values[groups.starts] - rest)[count > 0].mean()

    return {"rm_dpo": margin(rewards), "rm_r_dpo": margin(fined)}


@torch.no_grad()
def ranking_metrics(
    scores: Tensor, *, offsets: Tensor | None = None, at: tuple[int, ...] = (1, 3)
) -> dict[str, Tensor]:
    r"""Measure where the chosen response ranks among its group, as S-DPO and MASS-DPO report it.

    The chosen response comes first in its group and is the only relevant one. Its rank R is one
    more than the number of negatives that score at least as high: ties count against it.

    Parameters
    ----------
    scores : Tensor
        What to rank by, beta h for instance: (n,), (B, n), or (T,) with `offsets`.
    offsets : Tensor, optional
        (B+1,) int32 or int64; group g starts at offsets[g].
    at : tuple of int
        The cut-offs k.

    Returns
    -------
    dict of str to Tensor
        Means over groups, scalars: ``hit@1`` of :math:`[R = 1]`, ``mrr`` of :math:`1/R`, and for
        each k ``recall@k`` of :math:`[R \le k]` and ``ndcg@k`` of
        :math:`[R \le k] / \log_2(1 + R)`.

    Raises
    ------
    TypeError, ValueError
        As the losses do; a cut-off below 1.

    Notes
    -----
    MASS-DPO, tables 2, 3 and 5; S-DPO, table 1.

    Examples
    --------
    >>> found = ranking_metrics(torch.tensor([2.0, 3.0, 1.0]), at=(1, 3))
    >>> {name: round(float(value), 3) for name, value in found.items()}
    {'hit@1': 0.0, 'mrr': 0.5, 'recall@1': 0.0, 'ndcg@1': 0.0, 'recall@3': 1.0, 'ndcg@3': 0.631}
    """
    check_groups({"scores": scores}, {}, offsets)
    check_values({"scores": scores}, {}, offsets)
    if not at or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in at):
        raise ValueError(f"at must hold whole numbers of at least 1, got {at}")
    groups = Groups.of(scores, offsets)
    flat = scores.reshape(-1)
    rank = groups.sum((flat >= groups.spread(flat[groups.starts])).double())
    found = {"hit@1": (rank == 1).double().mean(), "mrr": (1 / rank).mean()}
    for k in at:
        inside = (rank <= k).double()
        found[f"recall@{k}"] = inside.mean()
        found[f"ndcg@{k}"] = (inside / torch.log2(1 + rank)).mean()
    return found
