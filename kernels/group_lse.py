"""Group losses of the log-sum-exp family: loss and slope of every group in one launch.

The mathematics is that of ``contrast`` and ``listwise`` in pyfast.losses.reference. Scores may be
float32, bfloat16 or float16; sums are float32. Tops and masses (a sum is mass e^top) are kept apart
throughout, so that scores of 1e4 do not swallow the masses.
"""

import torch
import triton
import triton.language as tl

from .runtime import launching_on

LARGEST_RANKING = 16384


@triton.jit
def _softplus(d, small):
    """log(1 + e^d), with small = e^-|d|; log1p by Kahan's correction, exact where 1 + small = 1."""
    u = 1.0 + small
    log1p = tl.where(u == 1.0, small, tl.log(u) * (small / tl.where(u == 1.0, 1.0, u - 1.0)))
    return tl.maximum(d, 0.0) + log1p


@triton.jit
def _sigmoid(d, small):
    return tl.where(d < 0, small, 1.0) / (1.0 + small)


@triton.jit
def _finite(top):
    """0 for the top of an empty set: -inf - -inf would be NaN."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
def _bounds(offsets, group, size, HAS_OFFSETS: tl.constexpr):
    if HAS_OFFSETS:
        start = tl.load(offsets + group).to(tl.int64)
        end = tl.load(offsets + group + 1).to(tl.int64)
    else:
        start = group.to(tl.int64) * size
        end = start + size
    return start, end


@triton.jit
def _two_sets(
    scores,
    positive,
    log_weights,
    at,
    start,
    end,
    HAS_POSITIVE: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
):
    """Load a block: scores among the positives, and weighted scores among the rest; else -inf."""
    inside = at < end
    s = tl.load(scores + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_POSITIVE:
        chosen = tl.load(positive + at, mask=inside, other=0) != 0
    else:
        chosen = at == start
    rest = s
    if HAS_WEIGHTS:
        rest += tl.load(log_weights + at, mask=inside, other=0.0).to(tl.float32)
    low = float("-inf")
    return tl.where(inside & chosen, s, low), tl.where(inside & (chosen == 0), rest, low), inside


@triton.jit
def _add(top, mass, values):
    """Add a block of values to a running sum."""
    new = tl.maximum(top, tl.max(values, axis=0))
    shift = _finite(new)
    return new, mass * tl.exp(top - shift) + tl.sum(tl.exp(values - shift), axis=0)


@triton.jit
def contrast_kernel(
    scores,
    positive,
    log_weights,
    offsets,
    loss,
    slope,
    size,
    margin,
    HAS_OFFSETS: tl.constexpr,
    HAS_POSITIVE: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Positives against the rest. Each block of threads owns one group, and walks it twice."""
    group = tl.program_id(0)
    start, end = _bounds(offsets, group, size, HAS_OFFSETS)
    lanes = tl.arange(0, BLOCK)

    top_p = float("-inf")
    top_r = float("-inf")
    mass_p = 0.0
    mass_r = 0.0
    for base in range(start, end, BLOCK):
        chosen, rest, inside = _two_sets(
            scores,
            positive,
            log_weights,
            base + lanes,
            start,
            end,
            HAS_POSITIVE,
            HAS_WEIGHTS,
        )
        top_p, mass_p = _add(top_p, mass_p, chosen)
        top_r, mass_r = _add(top_r, mass_r, rest)

    some = mass_r > 0
    mass_r = tl.where(some, mass_r, 1.0)
    # The margin joins what is left of the tops: scores of 1e4 would swallow it.
    deficit = (_finite(top_r) - top_p) + margin + (tl.log(mass_r) - tl.log(mass_p))
    deficit = tl.where(some, deficit, float("-inf"))
    small = tl.exp(-tl.abs(deficit))
    tl.store(loss + group, _softplus(deficit, small))

    lost = _sigmoid(deficit, small)
    for base in range(start, end, BLOCK):
        chosen, rest, inside = _two_sets(
            scores,
            positive,
            log_weights,
            base + lanes,
            start,
            end,
            HAS_POSITIVE,
            HAS_WEIGHTS,
        )
        up = tl.exp(rest - _finite(top_r)) * (lost / mass_r)
        down = tl.exp(chosen - top_p) * (lost / mass_p)
        tl.store(slope + base + lanes, up - down, mask=inside)


@triton.jit
def _join(top_a, mass_a, top_b, mass_b):
    """Add two sums given as top and mass."""
    top = tl.maximum(top_a, top_b)
    shift = _finite(top)
    return top, mass_a * tl.exp(top_a - shift) + mass_b * tl.exp(top_b - shift)


@triton.jit
def listwise_kernel(
    scores, offsets, loss, slope, size, margin, HAS_OFFSETS: tl.constexpr, BLOCK: tl.constexpr
):
    """Whole rankings, by three scans. Each block of threads owns one group, one response a lane.

    A response's rest is the scan over the scores one place on; the sum e^L of the response before
    it is the scan over the scores in place, joined with the score one place back. The third scan
    collects, for each response, the shares 1 / e^L of all before it.
    """
    group = tl.program_id(0)
    start, end = _bounds(offsets, group, size, HAS_OFFSETS)
    lanes = tl.arange(0, BLOCK)
    at = start + lanes
    inside = at < end
    low = float("-inf")
    s = tl.load(scores + at, mask=inside, other=0.0).to(tl.float32)
    s = tl.where(inside, s, low)
    after = tl.load(scores + at + 1, mask=at + 1 < end, other=0.0).to(tl.float32)
    after = tl.where(at + 1 < end, after, low)
    follows = inside & (lanes > 0)
    before = tl.load(scores + at - 1, mask=follows, other=0.0).to(tl.float32)
    one = tl.full((BLOCK,), 1.0, tl.float32)

    top_r, mass_r = tl.associative_scan(
        (after, tl.where(at + 1 < end, one, 0.0)), 0, _join, reverse=True
    )
    some = inside & (top_r > low)
    deficit = (tl.where(some, top_r, 0.0) - tl.where(some, s, 0.0)) + (
        tl.log(tl.where(some, mass_r, 1.0)) + margin
    )
    deficit = tl.where(some, deficit, low)
    small = tl.exp(-tl.abs(deficit))
    tl.store(loss + group, tl.sum(_softplus(deficit, small), axis=0))

    top, mass = tl.associative_scan((s, tl.where(inside, one, 0.0)), 0, _join, reverse=True)
    top, mass = _join(tl.where(follows, before, low), one, top + margin, mass)
    top_c, mass_c = tl.associative_scan(
        (
            tl.where(follows, -top, low),
            tl.where(follows, 1.0 / tl.where(follows, mass, 1.0), 0.0),
        ),
        0,
        _join,
    )
    reached = follows & (top_c > low)
    share = mass_c * tl.exp(tl.where(reached, s + margin + top_c, low))
    tl.store(slope + at, tl.where(reached, share, 0.0) - _sigmoid(deficit, small), mask=inside)


def contrast(scores, positive=None, log_weights=None, *, offsets=None, margin=0.0):
    """Return the loss (B,) and its slope in each score, both float32; the shape of the scores.

    Parameters
    ----------
    scores : Tensor
        (n,), (B, n), or (T,) with `offsets`; float32, bfloat16 or float16.
    positive : Tensor, optional
        bool, as scores; by default the first of each group.
    log_weights : Tensor, optional
        As scores, added to those of the rest.
    offsets : Tensor, optional
        (B+1,) integers.
    margin : float
        Added to the scores of the rest.
    """
    s, offsets, size, groups = _laid_out(scores, offsets)
    loss, slope = _outputs(scores, groups)
    block = 128 if offsets is not None else min(triton.next_power_of_2(size), 1024)
    with launching_on(s):
        contrast_kernel[(groups,)](
            s,
            s if positive is None else positive.contiguous().view(torch.uint8),
            s if log_weights is None else log_weights.contiguous(),
            s if offsets is None else offsets,
            loss,
            slope,
            size,
            margin,
            HAS_OFFSETS=offsets is not None,
            HAS_POSITIVE=positive is not None,
            HAS_WEIGHTS=log_weights is not None,
            BLOCK=max(block, 16),
            num_warps=1 if block <= 128 else 4,
        )
    return loss, slope


def listwise(scores, *, offsets=None, margin=0.0):
    """Return the loss (B,) of each ranking and its slope in each score, as :func:`contrast` does.

    Raises
    ------
    ValueError
        A group has more than 16384 responses: one does not fit a block of threads.
    """
    s, offsets, size, groups = _laid_out(scores, offsets)
    if offsets is not None:
        size = int(offsets.diff().max())
    if size > LARGEST_RANKING:
        raise ValueError(
            f"the listwise kernel takes groups of up to {LARGEST_RANKING} responses, got {size}"
        )
    loss, slope = _outputs(scores, groups)
    block = max(triton.next_power_of_2(size), 16)
    with launching_on(s):
        listwise_kernel[(groups,)](
            s,
            s if offsets is None else offsets,
            loss,
            slope,
            size,
            margin,
            HAS_OFFSETS=offsets is not None,
            BLOCK=block,
            num_warps=1 if block <= 128 else (4 if block <= 2048 else 16),
        )
    return loss, slope


def _laid_out(scores, offsets):
    """Contiguous scores, offsets on their device, the size of equal groups, how many groups."""
    s = scores.detach().contiguous()
    if offsets is None:
        size = scores.shape[-1]
        return s, None, size, s.numel() // size
    return s, offsets.to(s.device).contiguous(), 0, offsets.numel() - 1


def _outputs(scores, groups):
    loss = torch.empty(groups, dtype=torch.float32, device=scores.device)
    return loss, torch.empty(scores.shape, dtype=torch.float32, device=scores.device)
