"""Listwise losses of HPS, appendix A.2, that are no likelihoods: SLiC-HF and LiPO-lambda."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyfast.losses._batch import Batch, Metrics, Reward
from pyfast.losses._checks import check_at_most, check_number, check_one_a_group
from pyfast.losses._pairs import Pairs, Weighting, choose_pairs, over_pairs
from pyfast.losses.fused import Reduction


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
    policy_logps, ref_logps, beta, reward, lengths, offsets, reduction, metrics, validate
        As for all losses: :mod:`pyfast.losses`. The chosen response comes first in its group.
    rewards, weighting, gamma, keep_ties
        Which pairs count: :mod:`pyfast.losses.pairs`.
    target_logps : Tensor, optional
        log pi(y_ref|x) under the policy, () for one group, else (B,), on the device of
        `policy_logps`; by default the chosen response's. Read only where `regularizer` is above 0.
    delta : float
        The margin of the hinge, above 0.
    regularizer : float
        lambda, from 0 on.
    regularizer_inside : bool
        Put the second term of each pair inside its max, as HPS prints it.

    Returns
    -------
    Tensor
        A scalar, or for "none" the loss of each group.

    Raises
    ------
    TypeError, ValueError
        As for all losses; "hps" without rewards; `target_logps` not of the groups' shape, or not
        finite.

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
    groups, pull = batch.groups, None
    if regularizer > 0:
        if target_logps is None:
            target_logps = policy_logps.reshape(-1)[groups.starts]
        else:
            shape = policy_logps.shape[:-1] if offsets is None else groups.starts.shape
            check_one_a_group("target_logps", target_logps, shape, policy_logps, values=validate)
        pull = float(regularizer) * batch.wide(target_logps).reshape(-1)

    def hinge(win: Tensor, lose: Tensor) -> Tensor:
        return torch.relu(delta - win + lose)

    handicap = -pull if pull is not None and regularizer_inside else None
    losses = over_pairs(batch, rewards, weighting, gamma, keep_ties, hinge, handicap)
    if pull is not None and not regularizer_inside:
        losses = losses - pull
    batch.describe(metrics)
    return batch.reduced(losses, reduction)


def lipo_lambda(
    policy_logps: Tensor,
    ref_logps: Tensor | None,
    rewards: Tensor,
    *,
    beta: float = 0.1,
    reward: Reward = "dpo",
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
    reduction: Reduction = "mean",
    metrics: Metrics | None = None,
    validate: bool = True,
) -> Tensor:
    r"""LiPO-lambda: all pairs of a list, weighted by how much swapping them would change its DCG.

    .. math:: L = \sum_{r_i > r_j} \Delta_{ij} \log(1 + e^{-(s_i - s_j)}), \qquad
              \Delta_{ij} = |2^{r_i} - 2^{r_j}|
              \Big|\frac{1}{\log(1 + \tau_i)} - \frac{1}{\log(1 + \tau_j)}\Big|

    with the rank tau of each response by its score s, from 1 and equals in the order given. The
    weights are constants to the gradient. Equal rewards make no pair.

    Parameters
    ----------
    policy_logps, ref_logps, beta, reward, lengths, offsets, reduction, metrics, validate
        As for all losses: :mod:`pyfast.losses`.
    rewards : Tensor
        r_i, in the shape of `policy_logps`; at most 100, as they are exponents. Usually in [0, 1].
        The metrics take the response of the highest (of equals the first) as the chosen one.

    Returns
    -------
    Tensor
        A scalar, or for "none" the loss of each group.

    Raises
    ------
    TypeError, ValueError
        As for all losses; a reward is above 100.

    Notes
    -----
    Liu et al., LiPO, 2024; HPS, equation 17.

    Examples
    --------
    >>> policy, ref = torch.tensor([-3.0, -5.0, -4.0]), torch.tensor([-4.0, -4.0, -4.0])
    >>> lipo_lambda(policy, ref, torch.tensor([1.0, 0.0, 0.5]), beta=1.0)
    tensor(0.2138)
    """
    batch = Batch.of(
        policy_logps, ref_logps, beta, reward, lengths, offsets, validate, rewards=rewards
    )
    check_at_most("rewards", rewards, 100, offsets, values=validate)
    groups, flat = batch.groups, batch.flat
    values = batch.wide(rewards.detach()).reshape(-1)
    by_score = groups.ranking(flat)
    places = torch.arange(flat.numel(), device=flat.device) - groups.starts[groups.ids] + 1
    rank = torch.empty_like(places).index_copy(0, by_score, places)
    discount = 1 / torch.log1p(rank.to(values.dtype))
    gain = torch.exp2(values)
    pairs = choose_pairs(groups, values, "pl", 0.0, flat.dtype)
    i, j = pairs.winner, pairs.loser
    weight = (gain[i] - gain[j]).abs() * (discount[i] - discount[j]).abs()
    pairs = Pairs(i, j, weight.to(flat.dtype))
    losses = pairs.total(groups, softplus(flat[j] - flat[i]))
    batch.describe(metrics, ranked_by=rewards)
    return batch.reduced(losses, reduction)
