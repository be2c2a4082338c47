r"""The LSE family: DPO, Plackett-Luce's top choice, SWEPO, each a few lines on one core.

With the implicit rewards s_i of a group (see *What all losses share* in :mod:`pyfast.losses`), a
loss names its positives P and the weights b_i of the rest:

.. math:: L = \log\Big(\sum_{i \in P} e^{s_i} + \sum_{i \notin P} b_i e^{s_i}\Big)
              - \log\sum_{i \in P} e^{s_i}

:mod:`pyfast.losses.reference` does the arithmetic, and :mod:`pyfast.losses.fused` the same with
its gradient in closed form.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from pyfast.losses import fused
from pyfast.losses._batch import Batch, Metrics, Reward
from pyfast.losses._checks import check_choice, check_not_negative, check_number
from pyfast.losses._documented import documented
from pyfast.losses.fused import Backend, Reduction

Positives: TypeAlias = Literal["mean", "top"]


@documented
def dpo(
    policy_logps: Tensor,
    ref_logps: Tensor | None,
    *,
    beta: float = 0.1,
    margin: float = 0.0,
    reward: Reward = "dpo",
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
    reduction: Reduction = "mean",
    backend: Backend = "auto",
    metrics: Metrics | None = None,
    validate: bool = True,
) -> Tensor:
    r"""Direct preference optimisation: a chosen response against one rejected response.

    .. math:: L = -\log\sigma(s_{chosen} - s_{rejected} - m)

    Groups are pairs, of exactly two responses. With ``reward="simpo"`` and its margin m (its gamma)
    this is SimPO.

    Notes
    -----
    Rafailov et al., Direct Preference Optimization, 2023, equation 7; Meng et al., SimPO, 2024,
    equation 6.

    Examples
    --------
    >>> policy = torch.tensor([-12.0, -15.0])
    >>> ref = torch.tensor([-13.0, -14.0])
    >>> dpo(policy, ref, beta=0.5)  # -log sigmoid(0.5 * (1 - -1))
    tensor(0.3133)
    """
    check_number("margin", margin, signed=True)
    batch = Batch.of(policy_logps, ref_logps, beta, reward, lengths, offsets, validate, size=2)
    return batch.contrast(metrics, reduction, margin, backend)


@documented
def plackett_luce_top1(
    policy_logps: Tensor,
    ref_logps: Tensor | None,
    *,
    beta: float = 0.1,
    margin: float = 0.0,
    weights: Tensor | None = None,
    reward: Reward = "dpo",
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
    reduction: Reduction = "mean",
    backend: Backend = "auto",
    metrics: Metrics | None = None,
    validate: bool = True,
) -> Tensor:
    r"""Plackett-Luce top choice: the chosen response against all others of its group.

    .. math:: L = -\log\frac{e^{s_{chosen}}}{e^{s_{chosen}} + e^m \sum_{i \ne chosen} b_i e^{s_i}}
                = -\log\sigma\Big(-m - \log\sum_{i \ne chosen} b_i e^{s_i - s_{chosen}}\Big)

    This is the loss of S-DPO and MASS-DPO. One negative makes it :func:`dpo`. A group of one
    response has no negative: its loss and gradient are 0, and it counts in the mean.

    Parameters
    ----------
    weights : Tensor, optional
        b_i, in the shape of `policy_logps`, from 0 on, all 1 by default; those of the chosen
        responses are not used. A 0 leaves a negative out, and has a gradient like any other. They
        do not widen the loss.

    Notes
    -----
    MASS-DPO, equation 5, and Chen et al., On Softmax Direct Preference Optimization (S-DPO),
    2024, both in the second form; HPS, equation 6, in the first.

    Examples
    --------
    Two groups, of three responses and of two:

    >>> policy = torch.tensor([-12.0, -15.0, -14.0, -9.0, -8.0])
    >>> ref = torch.tensor([-13.0, -14.0, -14.0, -9.0, -8.0])
    >>> offsets = torch.tensor([0, 3, 5])
    >>> plackett_luce_top1(policy, ref, beta=1.0, offsets=offsets, reduction="none")
    tensor([0.4076, 0.6931])
    """
    check_number("margin", margin, signed=True)
    batch = Batch.of(
        policy_logps, ref_logps, beta, reward, lengths, offsets, validate, weights=weights
    )
    if weights is None:
        return batch.contrast(metrics, reduction, margin, backend)
    check_not_negative("weights", weights, offsets, values=validate)
    chosen = batch.groups.chosen.reshape(weights.shape)
    b, dtype = batch.wide(weights).masked_fill(chosen, 1.0), batch.scores.dtype
    log_weights = b.log().to(dtype)
    if not weights.requires_grad:
        return batch.contrast(metrics, reduction, margin, backend, log_weights=log_weights)
    left_out = b == 0  # where log b has no gradient
    log_weights = b.masked_fill(left_out, 1.0).log().masked_fill(left_out, -torch.inf).to(dtype)
    losses = batch.contrast(metrics, "none", margin, backend, log_weights=log_weights)
    zeros = b.masked_fill(~left_out, 0.0).to(dtype)
    return batch.reduced(losses + _of_left_out(batch, zeros, losses, margin), reduction)


def _of_left_out(batch: Batch, weights: Tensor, losses: Tensor, margin: float) -> Tensor:
    """Return what negatives of weight 0 add to the losses: 0, with a gradient in their weights.

    b_i e^(s_i + m) would join the sum in the loss, which is e^(s_chosen + L).
    """
    groups = batch.groups
    gaps = batch.flat - groups.spread(batch.flat[groups.starts])
    log_shares = gaps - groups.spread(losses.reshape(-1)) + margin
    most = math.log(torch.finfo(weights.dtype).max) - 1  # 0 * inf would be NaN
    shares = torch.exp(log_shares.clamp(max=most))
    added = torch.log1p(groups.sum(weights.reshape(-1) * shares))
    return added.reshape(losses.shape)


@documented
def swepo(
    policy_logps: Tensor,
    ref_logps: Tensor | None,
    rewards: Tensor,
    *,
    beta: float = 0.1,
    alpha: float = 1.0,
    positives: Positives = "mean",
    margin: float = 0.0,
    reward: Reward = "dpo",
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
    reduction: Reduction = "mean",
    backend: Backend = "auto",
    metrics: Metrics | None = None,
    validate: bool = True,
) -> Tensor:
    r"""SWEPO, the loss of AMPO: the good responses of a group against all, shifted by reward.

    .. math:: L = -\log\frac{\sum_{i \in P} e^{t_i}}
                            {\sum_{i \in P} e^{t_i} + e^m \sum_{i \notin P} e^{t_i}},
              \qquad t_i = s_i + \alpha (r_i - \bar r)

    with :math:`\bar r` the mean reward of the group. The positives P are all responses with
    :math:`r_i > \bar r`, or the one with the highest reward (of equals the first, which is the
    chosen one where that comes first). If all rewards of a group are equal, none is above the
    mean, and the top one is the positive in both cases. A group of one response has loss and
    gradient 0, and counts in the mean.

    Parameters
    ----------
    rewards : Tensor
        r_i, in the shape and on the device of `policy_logps`, in any scale and in a
        floating-point dtype of their own: they are compared in that one, or in the losses' if that
        is wider, and do not widen the result. They say which responses are good, wherever these
        stand; the metrics take the response of the highest reward (of equals the first) as the
        chosen one, and all others as its negatives.
    alpha : float
        Scale of the rewards, from 0 on.
    positives : {"mean", "top"}
        The responses above the mean reward (equation 4), or the best one only (algorithm 1).

    Notes
    -----
    AMPO, equation 4 and algorithm 1; Gupta et al., SWEPO, 2024. Subtracting the mean from the
    rewards moves all scores of a group alike, so that it changes P but neither L nor its gradient.
    Equation 4 has beta = 1; the experiments have length-normalised rewards, beta from 5 to 10 and a
    margin (SimPO's gamma) from 2 to 4.

    Examples
    --------
    >>> policy = torch.tensor([-12.0, -15.0, -14.0])
    >>> ref = torch.tensor([-13.0, -14.0, -14.0])
    >>> rewards = torch.tensor([0.9, 0.1, 0.8])
    >>> swepo(policy, ref, rewards, beta=1.0)  # the first and the last are above 0.6
    tensor(0.0446)
    >>> swepo(policy, ref, rewards, beta=1.0, positives="top")
    tensor(0.3319)
    """
    check_number("alpha", alpha, zero=True)
    check_number("margin", margin, signed=True)
    check_choice("positives", positives, ("mean", "top"))
    batch = Batch.of(
        policy_logps, ref_logps, beta, reward, lengths, offsets, validate, rewards=rewards
    )
    above, top = fused.above_mean(batch.wide(rewards), offsets, backend=backend)
    # The top one is above the mean wherever any is, so it only matters where all are equal.
    positive = top if positives == "top" else top | (above > 0)
    lift = (above * float(alpha)).to(batch.scores.dtype)
    return batch.contrast(
        metrics, reduction, margin, backend, positive=positive, lift=lift, ranked_by=rewards
    )
