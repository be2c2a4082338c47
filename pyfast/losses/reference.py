r"""The LSE family of group losses in plain torch: slow enough to read, right enough to judge by.

A *group* is one prompt with its candidate responses. Every loss of the family is

.. math:: L = \log\sum_{i \in D} b_i e^{s_i} - \log\sum_{i \in P} a_i e^{s_i},
          \qquad \partial L / \partial s_i = \mathrm{softmax}_D(i) - \mathrm{softmax}_P(i),

where the denominator D holds the positives P with the weights they have in P, and a rest R beside
them: :math:`b = a + c` with :math:`c \ge 0` the weights of R. So the loss is
:math:`-\log\sigma(\mathrm{LSE}_P - \mathrm{LSE}_R)`, and that is how it is computed here. The
difference of two nearly equal logarithms would round a small loss, and the gradient of the
positives with it, to zero as soon as the positives clearly win.

This module knows torch only. It does not validate: the named losses do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


@dataclass(frozen=True, eq=False)
class Groups:
    """Which response of a flat array belongs to which group.

    Attributes
    ----------
    starts : Tensor
        (B,) int64, the flat index of the first response of each group.
    ids : Tensor
        (T,) int64, the group of each response.
    """

    starts: Tensor
    ids: Tensor

    @classmethod
    def of(cls, responses: Tensor, offsets: Tensor | None = None) -> Groups:
        """Read off one group (n,), a batch (B, n), or ragged groups (T,) with offsets (B+1,)."""
        if offsets is None:
            size = responses.shape[-1]
            ends = torch.arange(responses.numel() // size + 1, device=responses.device) * size
        else:
            ends = offsets.to(device=responses.device, dtype=torch.int64)
        # A known output_size spares the device a round trip to the host.
        ids = torch.repeat_interleave(
            torch.arange(ends.numel() - 1, device=ends.device),
            ends.diff(),
            output_size=responses.numel(),
        )
        return cls(starts=ends[:-1], ids=ids)

    def sum(self, values: Tensor) -> Tensor:
        """Sum flat values (T,) by group, giving (B,)."""
        return values.new_zeros(self.starts.shape).index_add(0, self.ids, values)

    def mean(self, values: Tensor) -> Tensor:
        """Average flat values (T,) by group, giving (B,)."""
        return self.sum(values) / self.sum(torch.ones_like(values))

    def max(self, values: Tensor) -> Tensor:
        """Take the largest of flat values (T,) in each group, giving (B,)."""
        lowest = values.new_full(self.starts.shape, -torch.inf)
        return lowest.scatter_reduce(0, self.ids, values, "amax")

    def spread(self, values: Tensor) -> Tensor:
        """Give every response the value (B,) of its group, making (T,)."""
        return values.index_select(0, self.ids)

    def first(self, mask: Tensor) -> Tensor:
        """Keep the first True of a flat mask (T,) in each group; every group must have one."""
        index = torch.arange(mask.numel(), device=mask.device)
        index = index.masked_fill(~mask, mask.numel())
        none = index.new_full(self.starts.shape, mask.numel())
        kept = none.scatter_reduce(0, self.ids, index, "amin")
        return torch.zeros_like(mask).index_fill(0, kept, True)


def widen(values: Tensor) -> Tensor:
    """Turn float16 and bfloat16 into float32, in which sums are taken; leave the others alone."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def lse_loss(
    scores: Tensor, log_positive: Tensor, log_rest: Tensor, offsets: Tensor | None = None
) -> Tensor:
    r"""Loss of each group: log-sum-exp over positives and rest, minus that over the positives.

    .. math:: L = \log\Big(\sum_i (a_i + c_i) e^{s_i}\Big) - \log\Big(\sum_i a_i e^{s_i}\Big)

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
    # Tops and masses are subtracted apart: added up first, scores of 1e4 would swallow the masses.
    margin = (top_positive - top_rest) + (mass_positive - mass_rest)
    losses = 0.0 - logsigmoid(margin)  # 0 - x, so that no group reports a loss of -0
    return losses.reshape(scores.shape[:-1]) if offsets is None else losses


def _log_mass(values: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
    """Split each group's log-sum-exp into its top and log(sum(exp(value - top))).

    The top is a constant to autograd: the sum of both does not depend on it, so the second part
    alone carries the whole gradient. An empty set gives -inf and 0, and no gradient.
    """
    top = groups.max(values.detach())
    shift = torch.where(top == -torch.inf, 0.0, top)  # -inf - -inf would be NaN
    mass = groups.sum(torch.exp(values - groups.spread(shift)))
    return top, torch.log(torch.where(mass > 0, mass, 1.0))
