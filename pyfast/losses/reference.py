r"""The LSE family of group losses in plain torch: slow enough to read, right enough to judge by.

A *group* is one prompt with its candidate responses. Every loss of the family is

.. math:: L = \log\sum_{i \in D} b_i e^{s_i} - \log\sum_{i \in P} a_i e^{s_i},
          \qquad \partial L / \partial s_i = \mathrm{softmax}_D(i) - \mathrm{softmax}_P(i),

where the denominator D holds the positives P with the weights they have in P, and a rest R beside
them: :math:`b = a + c` with :math:`c \ge 0` the weights of R. So the loss is
:math:`-\log\sigma(\mathrm{LSE}_P - \mathrm{LSE}_R)`, and that is how it is computed here. The
difference of two nearly equal logarithms would round a small loss, and the gradient of the
positives with it, to zero as soon as the positives clearly win.

This module knows torch only, and `product`, which autocast does not lower. It does not validate:
the named losses do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyfast.losses.precision import product


@dataclass(frozen=True, eq=False)
class Groups:
    """Which response of a flat array belongs to which group.

    Attributes
    ----------
    starts : Tensor
        (B,) int64, the flat index of the first response of each group.
    ids : Tensor
        (T,) int64, the group of each response.
    size : int or None
        The number of responses of every group, where all have the same.
    """

    starts: Tensor
    ids: Tensor
    size: int | None = None

    @classmethod
    def of(cls, responses: Tensor, offsets: Tensor | None = None) -> Groups:
        """Read off one group (n,), a batch (B, n), or ragged groups (T,) with offsets (B+1,)."""
        if offsets is None:
            size, device = responses.shape[-1], responses.device
            starts = torch.arange(0, responses.numel(), size, device=device)
            ids = torch.arange(starts.numel(), device=device)[:, None].expand(-1, size)
            return cls(starts, ids.reshape(-1), size)
        ends = offsets.to(device=responses.device, dtype=torch.int64)
        # A known output_size spares the device a round trip to the host.
        ids = torch.repeat_interleave(
            torch.arange(ends.numel() - 1, device=ends.device),
            ends.diff(),
            output_size=responses.numel(),
        )
        return cls(starts=ends[:-1], ids=ids)

    @property
    def sizes(self) -> Tensor:
        """(B,) int64, the number of responses of each group."""
        if self.size is not None:
            return torch.full_like(self.starts, self.size)
        return torch.diff(self.starts, append=self.starts.new_full((1,), self.ids.numel()))

    @property
    def chosen(self) -> Tensor:
        """(T,) bool, True at the first response of each group."""
        mask = torch.zeros(self.ids.shape, dtype=torch.bool, device=self.ids.device)
        return mask.index_fill(0, self.starts, True)

    def sum(self, values: Tensor) -> Tensor:
        """Sum flat values (T,) by group, giving (B,)."""
        return values.new_zeros(self.starts.shape).index_add(0, self.ids, values)

    def mean(self, values: Tensor) -> Tensor:
        """Average flat values (T,) by group, giving (B,)."""
        return self.sum(values) / self.sizes.to(values.dtype)

    def max(self, values: Tensor) -> Tensor:
        """Take the largest of flat values (T,) in each group, giving (B,)."""
        if self.size is not None:
            return values.reshape(-1, self.size).amax(1)
        lowest = values.new_full(self.starts.shape, -torch.inf)
        return lowest.scatter_reduce(0, self.ids, values, "amax")

    def spread(self, values: Tensor) -> Tensor:
        """Give every response the value (B,) of its group, making (T,)."""
        if self.size is not None:
            return values[:, None].expand(-1, self.size).reshape(-1)
        return values.index_select(0, self.ids)

    def ranking(self, values: Tensor) -> Tensor:
        """List the flat indices group by group, the largest value first and equals in order."""
        order = torch.argsort(values.detach(), descending=True, stable=True)
        return order[torch.argsort(self.ids[order], stable=True)]

    def first(self, mask: Tensor) -> Tensor:
        """Keep the first True of a flat mask (T,) in each group; every group must have one."""
        if self.size is not None:
            places = mask.reshape(-1, self.size).byte().argmax(1)  # the first, torch says
            return torch.zeros_like(mask).index_fill(0, self.starts + places, True)
        index = torch.arange(mask.numel(), device=mask.device)
        index = index.masked_fill(~mask, mask.numel())
        none = index.new_full(self.starts.shape, mask.numel())
        kept = none.scatter_reduce(0, self.ids, index, "amin")
        return torch.zeros_like(mask).index_fill(0, kept, True)


def widen(values: Tensor) -> Tensor:
    """Turn float16 and bfloat16 into float32, in which sums are taken; leave the others alone."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def lse_loss(
    scores: Tensor,
    log_positive: Tensor,
    log_rest: Tensor,
    offsets: Tensor | None = None,
    margin: float = 0.0,
) -> Tensor:
    r"""Loss of each group: log-sum-exp over positives and rest, minus that over the positives.

    .. math:: L = \log\Big(\sum_i (a_i + e^m c_i) e^{s_i}\Big) - \log\Big(\sum_i a_i e^{s_i}\Big)

    A log-weight of -inf leaves a response out of a set. Finite, with finite gradients, for any
    finite scores whose gaps fit the dtype. A group without a rest has loss 0 and gradient 0.

    Parameters
    ----------
    scores : Tensor
        The s_i: one group (n,), a batch of equal groups (B, n), or ragged groups laid end to end
        (T,) with `offsets`. float16 and bfloat16 are widened to float32.
    log_positive : Tensor
        log a_i, in the shape of `scores`; at least one finite value in every group.
    log_rest : Tensor
        log c_i, in the shape of `scores`.
    offsets : Tensor, optional
        (B+1,) integers; group g holds responses offsets[g] up to, not including, offsets[g+1].
    margin : float
        The m by which the positives have to win.

    Returns
    -------
    Tensor
        The loss of each group, () for one group and (B,) otherwise; float32 or float64.

    Examples
    --------
    >>> out = float("-inf")
    >>> scores = torch.tensor([1.0, 0.0])
    >>> lse_loss(scores, torch.tensor([0.0, out]), torch.tensor([out, 0.0]))  # -log sigmoid(1)
    tensor(0.3133)
    """
    groups = Groups.of(scores, offsets)
    flat = widen(scores).reshape(-1)
    top_positive, mass_positive = _log_mass(flat + log_positive.reshape(-1), groups)
    top_rest, mass_rest = _log_mass(flat + log_rest.reshape(-1), groups)
    # Tops are subtracted apart: added up first, scores of 1e4 would swallow masses and margin.
    lead = (top_positive - top_rest) - margin + (mass_positive - mass_rest)
    losses = 0.0 - logsigmoid(lead)  # 0 - x, so that no group reports a loss of -0
    return losses.reshape(scores.shape[:-1]) if offsets is None else losses


def contrast(
    scores: Tensor,
    positive: Tensor | None = None,
    log_weights: Tensor | None = None,
    offsets: Tensor | None = None,
    margin: float = 0.0,
) -> Tensor:
    r"""Loss of each group: its positives, of weight 1, against the weighted rest.

    .. math:: L = \log\Big(\sum_{i \in P} e^{s_i} + e^m \sum_{i \notin P} b_i e^{s_i}\Big)
                  - \log\sum_{i \in P} e^{s_i}

    Parameters
    ----------
    scores : Tensor
        The s_i, in a layout of :func:`lse_loss`.
    positive : Tensor, optional
        bool, the set P, in the shape of `scores`; by default the first response of each group.
    log_weights : Tensor, optional
        log b_i, in the shape of `scores`, 0 by default. Those of the positives are not read. They
        are taken in the dtype of the scores, at least float32.
    offsets : Tensor, optional
        As in :func:`lse_loss`.
    margin : float
        The m by which the positives have to win.

    Returns
    -------
    Tensor
        As in :func:`lse_loss`.

    Examples
    --------
    >>> contrast(torch.tensor([1.0, 0.0, 0.0]))
    tensor(0.5514)
    """
    if positive is None:
        positive = Groups.of(scores, offsets).chosen.reshape(scores.shape)
    zeros = torch.zeros_like(widen(scores))
    log_rest = zeros if log_weights is None else log_weights.to(zeros.dtype)
    return lse_loss(
        scores,
        zeros.masked_fill(~positive, -torch.inf),
        log_rest.masked_fill(positive, -torch.inf),
        offsets,
        margin,
    )


def listwise(scores: Tensor, offsets: Tensor | None = None, margin: float = 0.0) -> Tensor:
    r"""Plackett-Luce loss of each whole ranking: every response against all that come after it.

    .. math:: L = \sum_j \Big(\log\sum_{i \ge j} e^{s_i} - s_j\Big)

    with the rest of each term shifted by the margin, as in :func:`contrast`. Each term is written
    out as a group of its own, so that n responses make n (n + 1) / 2.

    Parameters
    ----------
    scores : Tensor
        The s_i from the best-ranked response to the worst, in a layout of :func:`lse_loss`.
    offsets : Tensor, optional
        As in :func:`lse_loss`.
    margin : float
        The m by which each response has to win over the rest.

    Returns
    -------
    Tensor
        As in :func:`lse_loss`.

    Examples
    --------
    >>> listwise(torch.zeros(3))  # log(3) + log(2) + log(1)
    tensor(1.7918)
    """
    groups = Groups.of(scores, offsets)
    members, ends = suffixes(groups, torch.arange(scores.numel(), device=scores.device))
    terms = contrast(scores.reshape(-1)[members], offsets=ends, margin=margin)
    losses = groups.sum(terms)
    return losses.reshape(scores.shape[:-1]) if offsets is None else losses


def suffixes(groups: Groups, heads: Tensor) -> tuple[Tensor, Tensor]:
    """List each head and all that follow it in its group: their flat indices, and offsets."""
    group_ends = groups.starts + groups.sizes
    sizes = group_ends[groups.ids[heads]] - heads
    ends = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    members = torch.arange(int(ends[-1]), device=heads.device)
    return members + torch.repeat_interleave(heads - ends[:-1], sizes), ends


def above_mean(rewards: Tensor, offsets: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """How far each reward is above its group's mean, and whether it is the first of the highest.

    Parameters
    ----------
    rewards : Tensor
        In a layout of :func:`lse_loss`.
    offsets : Tensor, optional
        As in :func:`lse_loss`.

    Returns
    -------
    tuple of Tensor
        The distances, at least float32, and bool, one True in each group; in the shape of
        `rewards`.

    Examples
    --------
    >>> above_mean(torch.tensor([1.0, 3.0, 2.0, 2.0]))
    (tensor([-1.,  1.,  0.,  0.]), tensor([False,  True, False, False]))
    """
    groups = Groups.of(rewards, offsets)
    flat = widen(rewards).reshape(-1)
    # Measured from the highest, equal rewards differ from their mean by exactly 0.
    below_best = flat - groups.spread(groups.max(flat.detach()))
    above = below_best - groups.spread(groups.mean(below_best))
    top = groups.first(~(below_best < 0))  # a NaN too, so that every group has one
    return above.reshape(rewards.shape), top.reshape(rewards.shape)


def token_logps(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    temperature: float = 1.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-prob of each label and entropy of each distribution in nats, from all logits at once.

    Parameters
    ----------
    rows : Tensor
        (n, H) hidden states.
    weight, bias : Tensor
        (V, H) and (V,) or None, of the language-model head.
    labels : Tensor
        (n,) int64.
    temperature, softcap : float
        As in :func:`pyfast.losses.sequence_logps`.

    Returns
    -------
    tuple of Tensor
        Two of (n,), float32 or wider.
    """
    wide = torch.promote_types(widen(rows).dtype, widen(weight).dtype)
    logits = product(rows.to(wide), weight.to(wide).t())
    if bias is not None:
        logits = logits + bias.to(wide)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logps = torch.log_softmax(logits / temperature, dim=-1)
    entropy = torch.special.entr(logps.exp()).sum(-1)
    return logps.gather(1, labels[:, None]).squeeze(1), entropy


def _log_mass(values: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
    """Split each group's log-sum-exp into its top and log(sum(exp(value - top))).

    The top is a constant to autograd: the sum of both does not depend on it, so the second part
    alone carries the whole gradient. An empty set gives -inf and 0, and no gradient.
    """
    top = groups.max(values.detach())
    shift = torch.where(top == -torch.inf, 0.0, top)  # -inf - -inf would be NaN
    mass = groups.sum(torch.exp(values - groups.spread(shift)))
    return top, torch.log(torch.where(mass > 0, mass, 1.0))
