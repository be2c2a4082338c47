"""What a batch of groups says about the policy: margins, ranking measures, divergences.

Names are those of the papers and of TRL. A ranking says in its name what it ranks by:
``rewards/hit@1`` by the implicit rewards, ``logps/hit@1`` by log pi alone. In all of them a tie
counts against the chosen response, so that a policy that equals its reference wins nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyfast.losses._batch import Batch, Reward
from pyfast.losses._checks import check_groups, check_number, check_values
from pyfast.losses._describe import preference_metrics
from pyfast.losses.reference import Groups, widen

__all__ = [
    "heldout_metrics",
    "kl_sampled",
    "preference_metrics",
    "ranking_metrics",
    "reward_margins",
]


@torch.no_grad()
def heldout_metrics(
    policy_logps: Tensor,
    ref_logps: Tensor,
    *,
    beta: float = 0.1,
    reward: Reward = "dpo",
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
    at: tuple[int, ...] = (1, 3),
    prefix: str = "eval_",
) -> dict[str, Tensor]:
    r"""Measure all that is known of groups of all candidates, which the policy did not learn from.

    Parameters
    ----------
    policy_logps, ref_logps, beta, reward, lengths, offsets
        As for all losses: :mod:`pyfast.losses`. The chosen response comes first in its group.
    at : tuple of int
        The cut-offs k of :func:`ranking_metrics`.
    prefix : str
        What all names begin with.

    Returns
    -------
    dict of str to Tensor
        Scalars, by names after the prefix: those of a loss's `metrics` (``rewards/...``,
        ``logps/...``, ``negatives/effective``); :func:`ranking_metrics` by the implicit rewards
        (``rewards/hit@1``, ...) and by log pi (``logps/hit@1``, ...); ``rm_dpo``, and with
        `lengths` ``rm_r_dpo`` (:func:`reward_margins`); and ``kl_chosen``, the mean log-ratio h of
        the chosen responses in nats.

    Raises
    ------
    TypeError, ValueError
        As the losses do; a cut-off below 1.

    Notes
    -----
    MASS-DPO, tables 1 to 3 and 5, ranks all candidates; its accuracy and R@1 differ, so they cannot
    be of one ranking. What HPS, table 8, calls KL[policy || reference] at the chosen response of
    the test set is ``kl_chosen``: no expectation over the policy, unlike :func:`kl_sampled`.

    Examples
    --------
    >>> policy, ref = torch.tensor([-12.0, -15.0, -11.0]), torch.tensor([-13.0, -14.0, -11.5])
    >>> found = heldout_metrics(policy, ref, at=(1,))
    >>> [round(float(found[f"eval_{name}"]), 3) for name in ("rewards/hit@1", "logps/hit@1")]
    [1.0, 0.0]
    """
    check_groups({"policy_logps": policy_logps, "ref_logps": ref_logps}, {}, offsets)
    batch = Batch.of(policy_logps, ref_logps, beta, reward, lengths, offsets, True)
    found: dict[str, Tensor] = {}
    batch.describe(found)
    found |= ranking_metrics(batch.scores, by="rewards", offsets=offsets, at=at)
    found |= ranking_metrics(policy_logps, by="logps", offsets=offsets, at=at)
    ratios = (widen(policy_logps) - widen(ref_logps)).reshape(-1)
    found["rm_dpo"] = _margin(ratios, batch.groups)
    if lengths is not None:
        margins = reward_margins(policy_logps, ref_logps, lengths, offsets=offsets)
        found["rm_r_dpo"] = margins["rm_r_dpo"]
    found["kl_chosen"] = ratios[batch.groups.starts].mean()
    return {prefix + name: value for name, value in found.items()}


@torch.no_grad()
def reward_margins(
    policy_logps: Tensor,
    ref_logps: Tensor,
    lengths: Tensor,
    *,
    penalty: float = 0.01,
    offsets: Tensor | None = None,
) -> dict[str, Tensor]:
    r"""Measure by how much the chosen response beats its rejected ones, and so for its length.

    .. math:: RM_{DPO} = h_c - h_r, \qquad
              RM_{R-DPO} = RM_{DPO} - \alpha (|y_c| - |y_r|)

    with the log-ratios :math:`h = \log\pi - \log\pi_{ref}`, without the beta of
    ``rewards/margins``.

    Parameters
    ----------
    policy_logps, ref_logps, offsets
        As for all losses: :mod:`pyfast.losses`. The paper has pairs, as people chose and rejected
        them; with several rejected responses, r stands for their mean.
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
    {'rm_dpo': 2.0, 'rm_r_dpo': 1.9}
    """
    check_number("penalty", penalty, zero=True)
    named = {"policy_logps": policy_logps, "ref_logps": ref_logps}
    check_groups(named, {"lengths": lengths}, offsets)
    check_values(named, {"lengths": lengths}, offsets)
    groups = Groups.of(policy_logps, offsets)
    ratios = (widen(policy_logps) - widen(ref_logps)).reshape(-1)
    fined = ratios - float(penalty) * lengths.reshape(-1).to(ratios.dtype)
    return {"rm_dpo": _margin(ratios, groups), "rm_r_dpo": _margin(fined, groups)}


def _margin(values: Tensor, groups: Groups) -> Tensor:
    """Subtract the mean of the rest of its group from the first value, on average over groups."""
    count = groups.sizes - 1
    rest = groups.sum(values.masked_fill(groups.chosen, 0.0)) / count.clamp(min=1)
    return (values[groups.starts] - rest)[count > 0].mean()


@torch.no_grad()
def kl_sampled(policy_logps: Tensor, ref_logps: Tensor) -> Tensor:
    r"""Estimate KL(policy || reference) from responses that the policy sampled itself.

    .. math:: \frac1n \sum_i \big(\log\pi(y_i|x_i) - \log\pi_{ref}(y_i|x_i)\big),
              \qquad y_i \sim \pi(\cdot|x_i)

    at the temperature of the log-probs, 1. Unbiased, and may be below 0 by chance.

    Parameters
    ----------
    policy_logps, ref_logps : Tensor
        Sequence log-probs in nats, both (n,) or (B, n), of as many responses to each prompt.

    Returns
    -------
    Tensor
        A scalar, in nats a response.

    Raises
    ------
    TypeError, ValueError
        As the losses do.

    Examples
    --------
    >>> kl_sampled(torch.tensor([-12.0, -15.0]), torch.tensor([-13.0, -14.5]))
    tensor(0.2500)
    """
    named = {"policy_logps": policy_logps, "ref_logps": ref_logps}
    check_groups(named, {}, None)
    check_values(named, {}, None)
    return (widen(policy_logps) - widen(ref_logps)).mean()


@torch.no_grad()
def ranking_metrics(
    scores: Tensor,
    *,
    by: str | None = None,
    offsets: Tensor | None = None,
    at: tuple[int, ...] = (1, 3),
) -> dict[str, Tensor]:
    r"""Measure where the chosen response ranks among its group, as S-DPO and MASS-DPO report it.

    The chosen response comes first in its group and is the only relevant one. Its rank R is one
    more than the number of negatives that score at least as high: ties count against it. A group
    without a negative ranks nothing and is left out.

    Parameters
    ----------
    scores : Tensor
        What to rank by, beta h or log pi for instance: (n,), (B, n), or (T,) with `offsets`.
    by : str, optional
        What that is: ``by="rewards"`` makes the names ``rewards/hit@1`` and so on.
    offsets : Tensor, optional
        (B+1,) int32 or int64; group g starts at offsets[g].
    at : tuple of int
        The cut-offs k. No group of k responses or fewer can be wrong at k.

    Returns
    -------
    dict of str to Tensor
        Means over groups, scalars: ``hit@1`` of :math:`[R = 1]`, ``MRR`` of :math:`1/R`, and for
        each k ``Recall@k`` of :math:`[R \le k]` and ``NDCG@k`` of
        :math:`[R \le k] / \log_2(1 + R)`; NaN where no group has a negative.

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
    {'hit@1': 0.0, 'MRR': 0.5, 'Recall@1': 0.0, 'NDCG@1': 0.0, 'Recall@3': 1.0, 'NDCG@3': 0.631}
    """
    check_groups({"scores": scores}, {}, offsets)
    check_values({"scores": scores}, {}, offsets)
    if not at or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in at):
        raise ValueError(f"at must hold whole numbers of at least 1, got {at}")
    groups = Groups.of(scores, offsets)
    flat = scores.reshape(-1)
    rank = groups.sum((flat >= groups.spread(flat[groups.starts])).double())[groups.sizes > 1]
    found = {"hit@1": (rank == 1).double().mean(), "MRR": (1 / rank).mean()}
    for k in at:
        inside = (rank <= k).double()
        found[f"Recall@{k}"] = inside.mean()
        found[f"NDCG@{k}"] = (inside / torch.log2(1 + rank)).mean()
    return found if by is None else {f"{by}/{name}": value for name, value in found.items()}
