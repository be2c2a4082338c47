r"""Preference losses over groups of responses, each a few lines on the LSE core.

All of them take the log-probabilities of responses under the policy and under the reference, in
one of three layouts: one group (n,), a batch of equal groups (B, n), or ragged groups laid end to
end (T,) with `offsets` (B+1,). With the log-ratio
:math:`h_i = \log\pi(y_i|x) - \log\pi_{ref}(y_i|x)` a loss names its scores s_i, its positives and
the rest of the group; :mod:`pyfast.losses.reference` does the arithmetic.

Gradients flow to every argument that requires them, the reference log-probs included: nothing is
detached on the way, so compute those under ``torch.no_grad()`` if the reference is frozen.

Inputs are checked at each call. All checks of values together wait for the device once.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from pyfast.losses._checks import check_choice, check_groups, check_number
from pyfast.losses.reference import Groups, lse_loss, widen

Reduction: TypeAlias = Literal["mean", "sum", "none"]
Positives: TypeAlias = Literal["mean", "top"]


def dpo(
    policy_logps: Tensor,
    ref_logps: Tensor,
    *,
    beta: float = 0.1,
    offsets: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Direct preference optimisation: a chosen response against one rejected response.

    .. math:: L = -\log\sigma(\beta h_{chosen} - \beta h_{rejected})

    Parameters
    ----------
    policy_logps : Tensor
        log pi(y|x) of each response, summed over its tokens. Pairs (2,), (B, 2), or flat (T,)
        with `offsets`; the chosen response comes first. float16 and bfloat16 are computed in
        float32, float64 in float64.
    ref_logps : Tensor
        log pi_ref(y|x), in the shape and on the device of `policy_logps`.
    beta : float
        Scale of the log-ratios, above 0.
    offsets : Tensor, optional
        (B+1,) int32 or int64, from 0 to T; pair g starts at offsets[g]. On the CPU or with the
        log-probs.
    reduction : {"mean", "sum", "none"}
        Over groups.

    Returns
    -------
    Tensor
        A scalar, or for "none" the loss of each group: () for one group, else (B,). float32, or
        float64 where a log-prob is float64.

    Raises
    ------
    TypeError
        An argument is not a tensor, of the wrong dtype, or not a number.
    ValueError
        Shapes, devices or offsets do not fit, a group does not have exactly two responses, a
        value is not finite or out of range, or a name is unknown.

    Notes
    -----
    Rafailov et al., Direct Preference Optimization, 2023, equation 7.

    Examples
    --------
    >>> policy = torch.tensor([-12.0, -15.0])
    >>> ref = torch.tensor([-13.0, -14.0])
    >>> dpo(policy, ref, beta=0.5)  # -log sigmoid(0.5 * (1 - -1))
    tensor(0.3133)
    """
    check_number("beta", beta)
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    check_groups({"policy_logps": policy_logps, "ref_logps": ref_logps}, offsets, size=2)
    return _reduce(_chosen_against_rest(policy_logps, ref_logps, beta, offsets), reduction)


def plackett_luce_top1(
    policy_logps: Tensor,
    ref_logps: Tensor,
    *,
    beta: float = 0.1,
    offsets: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Plackett-Luce top choice: the chosen response against all others of its group.

    .. math:: L = -\log\frac{e^{\beta h_{chosen}}}{\sum_i e^{\beta h_i}}
                = -\log\sigma\Big(-\log\sum_{i \ne chosen} e^{\beta (h_i - h_{chosen})}\Big)

    This is the loss of S-DPO and MASS-DPO. One negative makes it :func:`dpo`. A group of one
    response has no negative: its loss and gradient are 0, and it counts in the mean.

    Parameters
    ----------
    policy_logps : Tensor
        log pi(y|x) of each response, summed over its tokens. One group (n,), a batch (B, n), or
        flat (T,) with `offsets`; the chosen response comes first in its group. float16 and
        bfloat16 are computed in float32, float64 in float64.
    ref_logps : Tensor
        log pi_ref(y|x), in the shape and on the device of `policy_logps`.
    beta : float
        Scale of the log-ratios, above 0.
    offsets : Tensor, optional
        (B+1,) int32 or int64, from 0 to T; group g starts at offsets[g]. On the CPU or with the
        log-probs.
    reduction : {"mean", "sum", "none"}
        Over groups.

    Returns
    -------
    Tensor
        A scalar, or for "none" the loss of each group: () for one group, else (B,). float32, or
        float64 where a log-prob is float64.

    Raises
    ------
    TypeError
        An argument is not a tensor, of the wrong dtype, or not a number.
    ValueError
        Shapes, devices or offsets do not fit, a group is empty, a value is not finite or out of
        range, or a name is unknown.

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
    check_number("beta", beta)
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    check_groups({"policy_logps": policy_logps, "ref_logps": ref_logps}, offsets)
    return _reduce(_chosen_against_rest(policy_logps, ref_logps, beta, offsets), reduction)


def swepo(
    policy_logps: Tensor,
    ref_logps: Tensor,
    rewards: Tensor,
    *,
    beta: float = 0.1,
    alpha: float = 1.0,
    positives: Positives = "mean",
    offsets: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""SWEPO, the loss of AMPO: the good responses of a group against all, shifted by reward.

    .. math:: L = -\log\frac{\sum_{i \in P} e^{s_i}}{\sum_i e^{s_i}},
              \qquad s_i = \beta h_i + \alpha (r_i - \bar r)

    with :math:`\bar r` the mean reward of the group. The positives P are all responses with
    :math:`r_i > \bar r`, or the one with the highest reward (of equals the first, which is the
    chosen one where that comes first). If all rewards of a group are equal, none is above the
    mean, and the top one is the positive in both cases. A group of one response has loss and
    gradient 0, and counts in the mean.

    Parameters
    ----------
    policy_logps : Tensor
        log pi(y|x) of each response, summed over its tokens. One group (n,), a batch (B, n), or
        flat (T,) with `offsets`. float16 and bfloat16 are computed in float32, float64 in
        float64.
    ref_logps : Tensor
        log pi_ref(y|x), in the shape and on the device of `policy_logps`.
    rewards : Tensor
        r_i, in the shape and on the device of `policy_logps`, in any scale and in a
        floating-point dtype of their own: they are compared in that one, at least float32, and
        do not widen the result.
    beta : float
        Scale of the log-ratios, above 0. The paper has 1.
    alpha : float
        Scale of the rewards, from 0 on.
    positives : {"mean", "top"}
        The responses above the mean reward (equation 4), or the best one only (algorithm 1).
    offsets : Tensor, optional
        (B+1,) int32 or int64, from 0 to T; group g starts at offsets[g]. On the CPU or with the
        log-probs.
    reduction : {"mean", "sum", "none"}
        Over groups.

    Returns
    -------
    Tensor
        A scalar, or for "none" the loss of each group: () for one group, else (B,). float32, or
        float64 where a log-prob is float64.

    Raises
    ------
    TypeError
        An argument is not a tensor, of the wrong dtype, or not a number.
    ValueError
        Shapes, devices or offsets do not fit, a group is empty, a value is not finite or out of
        range, or a name is unknown.

    Notes
    -----
    AMPO, equation 4 and algorithm 1; Gupta et al., SWEPO, 2024. Subtracting the mean from the
    rewards moves all scores of a group alike, so that it changes P but neither L nor its gradient.

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
    check_number("beta", beta)
    check_number("alpha", alpha, zero=True)
    check_choice("positives", positives, ("mean", "top"))
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    check_groups(
        {"policy_logps": policy_logps, "ref_logps": ref_logps, "rewards": rewards}, offsets
    )
    groups = Groups.of(rewards, offsets)
    flat = widen(rewards).reshape(-1)
    # Measured from the highest, equal rewards differ from their mean by exactly 0.
    below_best = flat - groups.spread(groups.max(flat.detach()))
    above_mean = below_best - groups.spread(groups.mean(below_best))
    positive = _positives(below_best, above_mean, groups, positives).reshape(rewards.shape)

    scores = _scaled_log_ratios(policy_logps, ref_logps, beta)
    scores = scores + (above_mean * float(alpha)).to(scores.dtype).reshape(scores.shape)
    return _reduce(_positive_against_rest(scores, positive, offsets), reduction)


def _positives(below_best: Tensor, above_mean: Tensor, groups: Groups, which: Positives) -> Tensor:
    """Mark the positives of each flat group; never none, whatever ties and rounding do."""
    top = groups.first(below_best == 0)
    # The top one is above the mean wherever any is, so it only matters where all are equal.
    return top if which == "top" else top | (above_mean > 0)


def _chosen_against_rest(
    policy_logps: Tensor, ref_logps: Tensor, beta: float, offsets: Tensor | None
) -> Tensor:
    """Loss of each group with the first response as the positive and beta h as the scores."""
    scores = _scaled_log_ratios(policy_logps, ref_logps, beta)
    chosen = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    chosen = chosen.index_fill(0, Groups.of(scores, offsets).starts, True)
    return _positive_against_rest(scores, chosen.reshape(scores.shape), offsets)


def _positive_against_rest(scores: Tensor, positive: Tensor, offsets: Tensor | None) -> Tensor:
    """Loss of each group with all weights 1: what is not positive is the rest."""
    zeros = torch.zeros_like(scores)
    log_positive = zeros.masked_fill(~positive, -torch.inf)
    log_rest = zeros.masked_fill(positive, -torch.inf)
    return lse_loss(scores, log_positive, log_rest, offsets)


def _scaled_log_ratios(policy_logps: Tensor, ref_logps: Tensor, beta: float) -> Tensor:
    """Return beta h, in the shape of the log-probs and at least in float32."""
    # Widened before they are subtracted: the ratio is small beside what it is the difference of.
    return (widen(policy_logps) - widen(ref_logps)) * float(beta)


def _reduce(losses: Tensor, reduction: Reduction) -> Tensor:
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()
