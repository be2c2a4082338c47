r"""Pairwise losses over groups: DPO-k, DMPO, IPO, EXO, SPPO, NCA and SLiC.

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

The rows of HPS, table 2, are these losses with "bt", "pl" and "hps"; but DPO, which is a likelihood
of all, has :func:`~pyfast.losses.plackett_luce` for its PL and :func:`~pyfast.losses.hps` for its
HPS.

The metrics take the first response of a group as the chosen one, whatever `rewards` rank first.
One negative makes all four the same. A group of one response has loss and gradient 0. The paper
does not spell out the last two for losses that are no likelihoods: both are our reading of it.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from pyfast.losses._batch import Batch, Metrics, Reward
from pyfast.losses._checks import check_number, check_one_a_group
from pyfast.losses._documented import documented
from pyfast.losses._pairs import Weighting, over_pairs
from pyfast.losses.fused import Reduction

# The formulas: losses of winners and losers by their scores s, which are beta h. ----------------


def _dpo(win: Tensor, lose: Tensor, margin: float) -> Tensor:
    return softplus(lose - win + margin)


def _ipo(win: Tensor, lose: Tensor, beta: float) -> Tensor:
    return ((win - lose) / beta - 1 / (2 * beta)) ** 2


def _exo(win: Tensor, lose: Tensor, smoothing: float) -> Tensor:
    gap = win - lose
    right = torch.sigmoid(gap) * (logsigmoid(gap) - math.log1p(-smoothing))
    return right + torch.sigmoid(-gap) * (logsigmoid(-gap) - math.log(smoothing))


def _sppo(win: Tensor, lose: Tensor, beta: float) -> Tensor:
    target = 1 / (2 * beta)
    return (win / beta - target) ** 2 + (lose / beta + target) ** 2


def _nca(win: Tensor, lose: Tensor) -> Tensor:
    return softplus(-win) + 0.5 * softplus(win) + 0.5 * softplus(lose)


def _hinge(win: Tensor, lose: Tensor, delta: float) -> Tensor:
    return torch.relu(delta - win + lose)


# The losses -----------------------------------------------------------------------------------


@documented
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
    formula = partial(_dpo, margin=margin)
    losses = over_pairs(batch, rewards, weighting, gamma, keep_ties, formula)
    return batch.finish(losses, metrics, reduction)


@documented
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
    return batch.finish(losses.masked_fill(negatives == 0, 0.0), metrics, reduction)


@documented
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
    formula = partial(_ipo, beta=batch.beta)
    losses = over_pairs(batch, rewards, weighting, gamma, keep_ties, formula)
    return batch.finish(losses, metrics, reduction)


@documented
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
    smoothing : float
        epsilon, between 0 and 1: the probability that the label is wrong.

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
    losses = over_pairs(
        batch, rewards, weighting, gamma, keep_ties, partial(_exo, smoothing=smoothing)
    )
    return batch.finish(losses, metrics, reduction)


@documented
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
    losses = over_pairs(
        batch, rewards, weighting, gamma, keep_ties, partial(_sppo, beta=batch.beta)
    )
    return batch.finish(losses, metrics, reduction)


@documented
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
    losses = over_pairs(batch, rewards, weighting, gamma, keep_ties, _nca)
    return batch.finish(losses, metrics, reduction)


@documented
def slic(
    policy_logps: Tensor,
    ref_logps: Tensor | None,
    rewards: Tensor | None = None,
    target_logps: Tensor | None = None,
    *,
    beta: float = 1.0,
    delta: float = 1.0,
    regularizer: float = 0.0,
    regularizer_inside: bool = False,
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
    r"""SLiC: a hinge on the gap of the implicit rewards, and a pull to a target sequence.

    .. math:: L = \sum_{(w, l)} \max(0, \delta - s_w + s_l) - \lambda \log\pi(y_{ref}|x)

    Parameters
    ----------
    target_logps : Tensor, optional
        log pi(y_ref|x) under the policy, () for one group, else (B,), on the device of
        `policy_logps`; by default the chosen response's. Read only where `regularizer` is above 0.
    delta : float
        The margin of the hinge, above 0.
    regularizer : float
        lambda, from 0 on.
    regularizer_inside : bool
        Put the second term of each pair inside its max, as HPS prints it.

    Notes
    -----
    Zhao et al., SLiC-HF, 2023: its scores are log-probabilities themselves, as with
    ``ref_logps`` of zeros and beta = 1; log-ratios make it TRL's "hinge". HPS, equation 16.

    Examples
    --------
    >>> policy, ref = torch.tensor([-3.0, -5.0, -4.0]), torch.tensor([-4.0, -4.0, -4.0])
    >>> slic(policy, ref)
    tensor(0.)
    """
    check_number("delta", delta)
    check_number("regularizer", regularizer, zero=True)
    batch = Batch.of(
        policy_logps, ref_logps, beta, reward, lengths, offsets, validate, rewards=rewards
    )
    pull = None
    if regularizer > 0:
        pull = float(regularizer) * _target(batch, target_logps, values=validate)
    handicap = -pull if pull is not None and regularizer_inside else None
    formula = partial(_hinge, delta=delta)
    losses = over_pairs(batch, rewards, weighting, gamma, keep_ties, formula, handicap)
    if pull is not None and not regularizer_inside:
        losses = losses - pull
    return batch.finish(losses, metrics, reduction)


def _target(batch: Batch, target_logps: Tensor | None, *, values: bool) -> Tensor:
    """Return the log-prob of each group's target sequence, (B,): by default the chosen one."""
    starts = batch.groups.starts
    if target_logps is None:
        return batch.wide(batch.policy_logps.reshape(-1)[starts])
    shape = batch.scores.shape[:-1] if batch.offsets is None else starts.shape
    check_one_a_group("target_logps", target_logps, shape, batch.policy_logps, values=values)
    return batch.wide(target_logps).reshape(-1)
