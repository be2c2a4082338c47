r"""Pairwise losses over groups: DPO-k, DMPO, IPO, EXO, SPPO and NCA.

A pairwise loss l(w, l) is defined for a winner w and a loser l. Over a group with its chosen
response c and N negatives, `weighting` says which pairs count (HPS, table 2):

- "mean": c against each negative, the mean of the N losses
- "bt": c against the worst response alone: the lowest of `rewards`, of equals the last, or without
  `rewards` the last of the group (Bradley-Terry; HPS, section 3)
- "hps": c against each negative, weighted by :math:`q_i \propto e^{\gamma r_i}` (HPS, equation 9).
  One negative drawn from q gives this in expectation, which is how the paper trains. Responses
  whose reward is that of c are no negatives here, unless `keep_ties` says so
- "pl": each response in turn against all below it in the ranking, the mean over those below,
  summed over the ranks (as equation 4 does for Plackett-Luce)

The metrics take the first response of a group as the chosen one, whatever `rewards` rank first.
One negative makes all four the same. A group of one response has loss and gradient 0. The paper
does not spell out the last two for losses that are no likelihoods: both are our reading of it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from pyfast.losses._batch import Batch, Metrics, Reward
from pyfast.losses._checks import check_number
from pyfast.losses._pairs import Weighting, over_pairs
from pyfast.losses.fused import Reduction


def dpo_k(
    policy_logps: Tensor,
    ref_logps: Tensor | None,
    rewards: Tensor | None = None,
    *,
    beta: float = 0.1,
    margin: float = 0.0,
    weighting: Weighting = "mean",
    gamma: float = 1.0,
    keep_ties: bool = False,
    reward: Reward = "dpo",
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
    reduction: Reduction = "mean",
    metrics: Metrics | None = None,
    validate: bool = True,
) -> Tensor:
    r"""DPO-k: the mean of the pairwise DPO losses against each negative.

    .. math:: l(w, l) = -\log\sigma(s_w - s_l - m)

    Parameters
    ----------
    policy_logps, ref_logps, beta, reward, lengths, offsets, reduction, metrics, validate
        As for all losses: :mod:`pyfast.losses`. The chosen response comes first in its group.
    rewards, weighting, gamma, keep_ties
        Which pairs count: :mod:`pyfast.losses.pairs`.
    margin : float
        The m above, any finite number.

    Returns
    -------
    Tensor
        A scalar, or for "none" the loss of each group.

    Raises
    ------
    TypeError, ValueError
        As for all losses; "hps" without rewards.

    Notes
    -----
    MASS-DPO, section 6, as a baseline. ``weighting="hps"`` with one negative drawn beforehand is
    what the authors of HPS run.

    Examples
    --------
    >>> policy, ref = torch.tensor([-3.0, -5.0, -4.0]), torch.tensor([-4.0, -4.0, -4.0])
    >>> dpo_k(policy, ref, beta=1.0)
    tensor(0.2201)
    """
    check_number("margin", margin, signed=True)
    batch = Batch.of(
        policy_logps, ref_logps, beta, reward, lengths, offsets, validate, rewards=rewards
    )
    losses = over_pairs(
        batch, rewards, weighting, gamma, keep_ties, lambda win, lose: softplus(lose - win + margin)
    )
    batch.describe(metrics)
    return batch.reduced(losses, reduction)


def dmpo(
    policy_logps: Tensor,
    ref_logps: Tensor | None,
    *,
    beta: float = 0.1,
    margin: float = 0.0,
    reward: Reward = "dpo",
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
    reduction: Reduction = "mean",
    metrics: Metrics | None = None,
    validate: bool = True,
) -> Tensor:
    r"""DMPO: the chosen response against the mean score of its negatives.

    .. math:: L = -\log\sigma\Big(s_c - \frac1N \sum_{i \ne c} s_i - m\Big)

    A group of one response has loss and gradient 0, and counts in the mean.

    Parameters
    ----------
    policy_logps, ref_logps, beta, reward, lengths, offsets, reduction, metrics, validate
        As for all losses: :mod:`pyfast.losses`. The chosen response comes first in its group.
    margin : float
        The m above, any finite number.

    Returns
    -------
    Tensor
        A scalar, or for "none" the loss of each group.

    Raises
    ------
    TypeError, ValueError
        As for all losses.

    Notes
    -----
    Bai et al., Finetuning Large Language Model for Personalized Ranking (DMPO), 2024; a baseline of
    MASS-DPO, section 6.

    Examples
    --------
    >>> policy, ref = torch.tensor([-3.0, -5.0, -4.0]), torch.tensor([-4.0, -4.0, -4.0])
    >>> dmpo(policy, ref, beta=1.0)
    tensor(0.2014)
    """
    check_number("margin", margin, signed=True)
    batch = Batch.of(policy_logps, ref_logps, beta, reward, lengths, offsets, validate)
    groups = batch.groups
    negatives = groups.sizes - 1
    rest = groups.sum(batch.flat.masked_fill(groups.chosen, 0.0)) / negatives.clamp(min=1)
    losses = softplus(rest - batch.flat[groups.starts] + margin)
    batch.describe(metrics)
    return batch.reduced(losses.masked_fill(negatives == 0, 0.0), reduction)


def ipo(
    policy_logps: Tensor,
    ref_logps: Tensor | None,
    rewards: Tensor | None = None,
    *,
    beta: float = 0.1,
    weighting: Weighting = "mean",
    gamma: float = 1.0,
    keep_ties: bool = False,
    reward: Reward = "dpo",
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
    reduction: Reduction = "mean",
    metrics: Metrics | None = None,
    validate: bool = True,
) -> Tensor:
    r"""IPO: the gap of the log-ratios is drawn to 1 / (2 beta).

    .. math:: l(w, l) = \Big(h_w - h_l - \frac{1}{2 \beta}\Big)^2

    Parameters
    ----------
    policy_logps, ref_logps, beta, reward, lengths, offsets, reduction, metrics, validate
        As for all losses: :mod:`pyfast.losses`. The chosen response comes first in its group.
    rewards, weighting, gamma, keep_ties
        Which pairs count: :mod:`pyfast.losses.pairs`.

    Returns
    -------
    Tensor
        A scalar, or for "none" the loss of each group.

    Raises
    ------
    TypeError, ValueError
        As for all losses; "hps" without rewards.

    Notes
    -----
    Azar et al., A General Theoretical Paradigm to Understand Learning from Human Preferences,
    2023, equation 17, whose tau is our beta; h = s / beta. As TRL's authors were told by IPO's, the
    published results divide h by the length: ``reward="length_normalized"``.

    Examples
    --------
    >>> policy, ref = torch.tensor([-3.0, -5.0, -4.0]), torch.tensor([-4.0, -4.0, -4.0])
    >>> ipo(policy, ref, beta=1.0)
    tensor(1.2500)
    """
    batch = Batch.of(
        policy_logps, ref_logps, beta, reward, lengths, offsets, validate, rewards=rewards
    )
    target = 1 / (2 * batch.beta)
    losses = over_pairs(
        batch,
        rewards,
        weighting,
        gamma,
        keep_ties,
        lambda win, lose: ((win - lose) / batch.beta - target) ** 2,
    )
    batch.describe(metrics)
    return batch.reduced(losses, reduction)


def exo(
    policy_logps: Tensor,
    ref_logps: Tensor | None,
    rewards: Tensor | None = None,
    *,
    beta: float = 0.1,
    smoothing: float = 1e-3,
    weighting: Weighting = "mean",
    gamma: float = 1.0,
    keep_ties: bool = False,
    reward: Reward = "dpo",
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
    reduction: Reduction = "mean",
    metrics: Metrics | None = None,
    validate: bool = True,
) -> Tensor:
    r"""EXO: the policy's preference is matched to a smoothed label by reverse KL.

    .. math:: l(w, l) = p \log\frac{p}{1 - \epsilon} + (1 - p) \log\frac{1 - p}{\epsilon},
              \qquad p = \sigma(s_w - s_l)

    Parameters
    ----------
    policy_logps, ref_logps, beta, reward, lengths, offsets, reduction, metrics, validate
        As for all losses: :mod:`pyfast.losses`. The chosen response comes first in its group.
    rewards, weighting, gamma, keep_ties
        Which pairs count: :mod:`pyfast.losses.pairs`.
    smoothing : float
        epsilon, between 0 and 1: the probability that the label is wrong.

    Returns
    -------
    Tensor
        A scalar, or for "none" the loss of each group.

    Raises
    ------
    TypeError, ValueError
        As for all losses; "hps" without rewards.

    Notes
    -----
    Ji et al., Towards Efficient and Exact Optimization of Language Model Alignment, 2024,
    equation 16, for K = 2.

    Examples
    --------
    >>> policy, ref = torch.tensor([-3.0, -5.0, -4.0]), torch.tensor([-4.0, -4.0, -4.0])
    >>> exo(policy, ref, beta=1.0)
    tensor(0.8676)
    """
    check_number("smoothing", smoothing, below=1.0)
    batch = Batch.of(
        policy_logps, ref_logps, beta, reward, lengths, offsets, validate, rewards=rewards
    )
    log_right, log_wrong = math.log1p(-smoothing), math.log(smoothing)

    def loss(win: Tensor, lose: Tensor) -> Tensor:
        gap = win - lose
        right = torch.sigmoid(gap) * (logsigmoid(gap) - log_right)
        return right + torch.sigmoid(-gap) * (logsigmoid(-gap) - log_wrong)

    losses = over_pairs(batch, rewards, weighting, gamma, keep_ties, loss)
    batch.describe(metrics)
    return batch.reduced(losses, reduction)


def sppo(
    policy_logps: Tensor,
    ref_logps: Tensor | None,
    rewards: Tensor | None = None,
    *,
    beta: float = 0.1,
    weighting: Weighting = "mean",
    gamma: float = 1.0,
    keep_ties: bool = False,
    reward: Reward = "dpo",
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
    reduction: Reduction = "mean",
    metrics: Metrics | None = None,
    validate: bool = True,
) -> Tensor:
    r"""SPPO: the winner's log-ratio is drawn to 1 / (2 beta), the loser's to -1 / (2 beta).

    .. math:: l(w, l) = \Big(h_w - \frac{1}{2 \beta}\Big)^2 + \Big(h_l + \frac{1}{2 \beta}\Big)^2

    Parameters
    ----------
    policy_logps, ref_logps, beta, reward, lengths, offsets, reduction, metrics, validate
        As for all losses: :mod:`pyfast.losses`. The chosen response comes first in its group.
    rewards, weighting, gamma, keep_ties
        Which pairs count: :mod:`pyfast.losses.pairs`.

    Returns
    -------
    Tensor
        A scalar, or for "none" the loss of each group.

    Raises
    ------
    TypeError, ValueError
        As for all losses; "hps" without rewards.

    Notes
    -----
    Wu et al., Self-Play Preference Optimization, 2024, equation 4.7 with the hard probabilities 1
    and 0 for winner and loser; its eta is 1 / beta and h = s / beta.

    Examples
    --------
    >>> policy, ref = torch.tensor([-3.0, -5.0, -4.0]), torch.tensor([-4.0, -4.0, -4.0])
    >>> sppo(policy, ref, beta=1.0)
    tensor(0.5000)
    """
    batch = Batch.of(
        policy_logps, ref_logps, beta, reward, lengths, offsets, validate, rewards=rewards
    )
    target = 1 / (2 * batch.beta)
    losses = over_pairs(
        batch,
        rewards,
        weighting,
        gamma,
        keep_ties,
        lambda win, lose: (win / batch.beta - target) ** 2 + (lose / batch.beta + target) ** 2,
    )
    batch.describe(metrics)
    return batch.reduced(losses, reduction)


def nca(
    policy_logps: Tensor,
    ref_logps: Tensor | None,
    rewards: Tensor | None = None,
    *,
    beta: float = 0.1,
    weighting: Weighting = "mean",
    gamma: float = 1.0,
    keep_ties: bool = False,
    reward: Reward = "dpo",
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
    reduction: Reduction = "mean",
    metrics: Metrics | None = None,
    validate: bool = True,
) -> Tensor:
    r"""NCA: each response's own reward is judged, the winner's as real and both as noise.

    .. math:: l(w, l) = -\log\sigma(s_w) - \tfrac12 \log\sigma(-s_w) - \tfrac12 \log\sigma(-s_l)

    Parameters
    ----------
    policy_logps, ref_logps, beta, reward, lengths, offsets, reduction, metrics, validate
        As for all losses: :mod:`pyfast.losses`. The chosen response comes first in its group.
    rewards, weighting, gamma, keep_ties
        Which pairs count: :mod:`pyfast.losses.pairs`.

    Returns
    -------
    Tensor
        A scalar, or for "none" the loss of each group.

    Raises
    ------
    TypeError, ValueError
        As for all losses; "hps" without rewards.

    Notes
    -----
    Chen et al., Noise Contrastive Alignment of Language Models with Explicit Rewards, 2024, its
    pairwise form.

    Examples
    --------
    >>> policy, ref = torch.tensor([-3.0, -5.0, -4.0]), torch.tensor([-4.0, -4.0, -4.0])
    >>> nca(policy, ref, beta=1.0)
    tensor(1.2215)
    """
    batch = Batch.of(
        policy_logps, ref_logps, beta, reward, lengths, offsets, validate, rewards=rewards
    )
    losses = over_pairs(
        batch,
        rewards,
        weighting,
        gamma,
        keep_ties,
        lambda win, lose: softplus(-win) + 0.5 * softplus(win) + 0.5 * softplus(lose),
    )
    batch.describe(metrics)
    return batch.reduced(losses, reduction)
