"""Losses of a whole ranking: listwise Plackett-Luce and LiPO-lambda."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyfast.losses import fused
from pyfast.losses._batch import Batch, Metrics, Reward
from pyfast.losses._checks import check_at_most, check_number
from pyfast.losses._documented import documented
from pyfast.losses._pairs import Pairs, choose_pairs
from pyfast.losses.fused import Backend, Reduction


@documented
def plackett_luce(
    policy_logps: Tensor,
    ref_logps: Tensor | None,
    rewards: Tensor | None = None,
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
    r"""Listwise Plackett-Luce: the whole ranking, each response against all below it.

    .. math:: L = \sum_{j=1}^n \Big(\log\sum_{i \ge j} e^{s_i} - s_j\Big)

    over the responses from best to worst. Two responses make it :func:`dpo`.

    Parameters
    ----------
    rewards : Tensor, optional
        Scores to rank by, the highest first and equals in the order given; in the shape of
        `policy_logps`. They rank and do nothing else: no gradient flows to them. The metrics take
        the first of the ranking as the chosen response. By default groups are given from best to
        worst.
    margin : float
        By how much each response has to win over those below it together.

    Notes
    -----
    HPS, equations 4 and 5.

    Examples
    --------
    >>> policy, ref = torch.tensor([-3.0, -5.0, -4.0]), torch.tensor([-4.0, -4.0, -4.0])
    >>> plackett_luce(policy, ref, beta=1.0)
    tensor(1.7209)
    >>> plackett_luce(policy, ref, torch.tensor([3.0, 1.0, 2.0]), beta=1.0)
    tensor(0.7209)
    """
    check_number("margin", margin, signed=True)
    batch = Batch.of(
        policy_logps, ref_logps, beta, reward, lengths, offsets, validate, rewards=rewards
    )
    scores = batch.scores
    if rewards is not None:
        order = batch.groups.ranking(rewards.reshape(-1))
        scores = batch.flat[order].reshape(scores.shape)
    batch.describe(metrics, ranked_by=rewards)
    return fused.listwise(scores, offsets, margin, reduction=reduction, backend=backend)


@documented
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
    rewards : Tensor
        r_i, in the shape of `policy_logps`; at most 100, as they are exponents. Usually in [0, 1].
        They alone rank, wherever a response stands. The metrics take the response of the highest
        (of equals the first) as the chosen one.

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
    return batch.finish(losses, metrics, reduction, ranked_by=rewards)
