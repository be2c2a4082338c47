"""Hard preference sampling: negatives weighted, or drawn, by a tilt of their scores."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from pyfast.losses import fused
from pyfast.losses._batch import Batch, Metrics, Reward
from pyfast.losses._checks import check_choice, check_number, check_valid
from pyfast.losses._describe import preference_metrics
from pyfast.losses._documented import documented
from pyfast.losses._pairs import negatives, tilt
from pyfast.losses.fused import Backend, Reduction
from pyfast.losses.reference import Groups, suffixes

Importance: TypeAlias = bool | Literal["q"]
Normalize: TypeAlias = Literal["mean", "sum"]


@documented
def hps(
    policy_logps: Tensor,
    ref_logps: Tensor | None,
    rewards: Tensor,
    *,
    gamma: float = 1.0,
    draws: int | None = None,
    generator: torch.Generator | None = None,
    importance: Importance = True,
    normalize: Normalize = "mean",
    keep_ties: bool = False,
    valid: Tensor | None = None,
    valid_weight: float = 1.0,
    valid_as_negatives: bool = False,
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
    r"""Hard preference sampling: the chosen response against the harder negatives.

    .. math:: L = -\log\frac{e^{s_c}}{e^{s_c} + e^m \sum_{i \ne c} b_i e^{s_i}}, \qquad
              q_i = \frac{e^{\gamma r_i}}{\sum_{j \ne c} e^{\gamma r_j}}

    over a group's N negatives, where :math:`b_i = N q_i`. With `draws` = m, negatives are drawn
    from q with replacement, and :math:`b_i = (N / m)` times how often i was drawn. gamma = 0 makes
    the full loss :func:`~pyfast.losses.plackett_luce_top1`. Responses whose reward is that of the
    chosen one are as good as it, and no negatives. A group without a negative has loss and gradient
    0, and counts in the mean.

    With several `valid` responses in a group, :math:`L = L_1 + \lambda (L_2 + \dots)`: each in turn
    is the chosen one, and the other valid ones are left out of its negatives, of q and of N.

    Parameters
    ----------
    rewards : Tensor
        r_i, the estimated rewards, in the shape and on the device of `policy_logps`.
    gamma : float
        Any finite number: above 0 the high-scored negatives weigh more. The paper lets it grow from
        -5 to 5 in training: :func:`pyfast.select.hard_preference_gamma`.
    draws : int, optional
        m, at least 1. By default nothing is drawn and every negative counts by its weight.
    generator : torch.Generator, optional
        Where the draws take their random numbers from, on the device of the log-probs.
    importance : bool or "q"
        False gives each drawn negative the weight 1 instead of N/m. With ``draws=1`` that is what
        the authors' code does: plain DPO against one drawn negative. "q" gives it N q_i / m:
        equation 10 read literally, with y drawn from q.
    normalize : {"mean", "sum"}
        Whether the weights are 1 in the mean (N q_i) or sum to 1 (q_i: equation 10 as printed; with
        m draws, 1/m each).
    keep_ties : bool
        Whether responses that tie with the chosen one's reward are negatives all the same.
    valid : Tensor, optional
        bool, in the shape of `policy_logps`: which responses are valid. By default the first of
        each group; that one always has to be. The metrics are those of L_1.
    valid_weight : float
        lambda, from 0 on: the weight of all valid responses but the first.
    valid_as_negatives : bool
        Appendix E as printed: a valid response has those that come after it, valid or not, among
        its negatives (but not those before it).

    Notes
    -----
    HPS, equations 8 to 10 and appendix E. Equation 8 has :math:`N E_q[e^s] = N \sum_i q_i e^{s_i}`,
    and equation 10 as printed loses the N; with it gamma = 0 gives equation 6 exactly (of rewards
    that do not tie with the chosen one's). As gamma grows, q goes to the negative of the highest
    *estimated* reward, not of the highest implicit one: theorem 2, that the loss tends to its
    supremum over distributions of negatives, holds only where both are the same response.

    Examples
    --------
    >>> policy, ref = torch.tensor([-3.0, -5.0, -4.0]), torch.tensor([-4.0, -4.0, -4.0])
    >>> rewards = torch.tensor([2.0, 0.0, 1.0])
    >>> hps(policy, ref, rewards, gamma=0.0, beta=1.0)
    tensor(0.4076)
    >>> hps(policy, ref, rewards, gamma=5.0, beta=1.0)  # nearly all weight on the last
    tensor(0.5496)
    """
    check_number("gamma", gamma, signed=True)
    check_number("margin", margin, signed=True)
    check_number("valid_weight", valid_weight, zero=True)
    check_choice("normalize", normalize, ("mean", "sum"))
    _check_draws(draws, importance, normalize)
    batch = Batch.of(
        policy_logps, ref_logps, beta, reward, lengths, offsets, validate, rewards=rewards
    )
    groups, ends = batch.groups, offsets
    scores, estimates = batch.scores, batch.wide(rewards)
    heads = None
    if valid is not None:
        check_valid(valid, policy_logps, groups.starts, values=validate)
        marked = valid.reshape(-1)
        heads = marked.nonzero().squeeze(1)
        members, ends = _one_group_a_head(groups, heads, marked, keep=valid_as_negatives)
        scores, estimates = batch.flat[members], estimates.reshape(-1)[members]

    drawn_from = groups if heads is None else Groups.of(scores, ends)
    estimates = estimates.reshape(-1)
    negative = negatives(drawn_from, estimates, keep_ties)
    tilted = tilt(drawn_from, estimates, float(gamma), negative)
    count = drawn_from.sum(negative.to(tilted.dtype)).clamp(min=1)
    log_weights = _log_weights(tilted, drawn_from, count, draws, importance, normalize, generator)
    log_weights = log_weights.to(scores.dtype).reshape(scores.shape)
    if heads is None:
        return batch.contrast(metrics, reduction, margin, backend, log_weights=log_weights)
    losses = fused.contrast(scores, None, log_weights, ends, margin, backend=backend)
    first = heads == groups.starts[groups.ids[heads]]
    weighted = torch.where(first, losses, losses * float(valid_weight))
    per_group = weighted.new_zeros(groups.starts.shape).index_add(0, groups.ids[heads], weighted)
    if metrics is not None:  # of L_1: another valid response is not rejected
        logps = policy_logps.reshape(-1)[members]
        values = (scores, logps, scores + log_weights)
        metrics.update(_metrics_of_some(drawn_from, first, *values))
    return batch.reduced(per_group, reduction)


def _metrics_of_some(
    groups: Groups, some: Tensor, scores: Tensor, logps: Tensor, weighing: Tensor
) -> dict[str, Tensor]:
    """Describe the groups that are marked, (B,)."""
    kept, sizes = groups.spread(some), groups.sizes[some]
    ends = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    marked = Groups.of(scores[kept], ends)
    return preference_metrics(scores[kept], logps[kept], marked, weighing[kept])


def _check_draws(draws: int | None, importance: Importance, normalize: Normalize) -> None:
    if not isinstance(importance, bool) and importance != "q":
        raise ValueError(f"importance must be True, False or 'q', got {importance!r}")
    if draws is None:
        if importance is not True:
            raise ValueError(
                f"importance={importance!r} needs draws: without them nothing is drawn"
            )
    elif isinstance(draws, bool) or not isinstance(draws, int):
        raise TypeError(f"draws must be a whole number, got {type(draws).__name__}")
    elif draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    elif draws > 1 and not importance and normalize == "sum":
        raise ValueError(
            "importance=False gives each draw the weight 1, normalize='sum' 1 / draws: "
            f"leave out one of them, got both with {draws} draws"
        )


def _one_group_a_head(
    groups: Groups, heads: Tensor, valid: Tensor, *, keep: bool
) -> tuple[Tensor, Tensor]:
    """List each valid response and its negatives as a group: flat indices, and offsets."""
    if keep:
        return suffixes(groups, heads)
    sizes = groups.sizes[groups.ids[heads]]
    head = torch.repeat_interleave(torch.arange(heads.numel(), device=heads.device), sizes)
    ends = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    place = torch.arange(head.numel(), device=heads.device) - ends[head]
    # The head goes first; those before it in the group move up by one.
    own = (heads - groups.starts[groups.ids[heads]])[head]
    place = torch.where(place == 0, own, place - (place <= own).to(place.dtype))
    members = groups.starts[groups.ids[heads]][head] + place
    kept = ~valid[members] | (members == heads[head])
    counts = torch.zeros_like(sizes).index_add(0, head, kept.to(sizes.dtype))
    return members[kept], torch.cat([sizes.new_zeros(1), counts.cumsum(0)])


def _log_weights(
    tilted: Tensor,
    groups: Groups,
    count: Tensor,
    draws: int | None,
    importance: Importance,
    normalize: Normalize,
    generator: torch.Generator | None,
) -> Tensor:
    """Return log b_i of every negative, (T,); -inf for the others.

    `tilted` is 0 at most, and `count` (B,) the number N of each group's negatives, or 1.
    """
    count = groups.spread(count)
    if draws is None:
        log_q = _log_q(tilted, groups)
        return log_q if normalize == "sum" else log_q + count.log()
    times = _draw(tilted.detach(), groups, draws, generator)
    if normalize == "sum":
        times = times / draws
    elif importance:
        times = times * (count / draws)
    return times.log() + _log_q(tilted, groups) if importance == "q" else times.log()


def _log_q(tilted: Tensor, groups: Groups) -> Tensor:
    mass = groups.sum(torch.exp(tilted))
    return tilted - groups.spread(torch.where(mass > 0, mass, 1.0).log())


def _draw(tilted: Tensor, groups: Groups, draws: int, generator: torch.Generator | None) -> Tensor:
    """Count how often each response comes in `draws` draws by softmax(tilted), (T,).

    The largest of them plus Gumbel noise is distributed so; one pass over the responses a draw.
    """
    times = torch.zeros_like(tilted)
    for _ in range(draws):
        noise = torch.empty_like(tilted).exponential_(generator=generator).log()
        noisy = tilted - noise
        best = noisy == groups.spread(groups.max(noisy))
        times += groups.first(best) & (tilted > -torch.inf)
    return times
