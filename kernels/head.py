"""Between the products of a language-model head: fold a tile of logits away, or make it slopes.

A tile is (n, v): logits of n tokens for v words, float32, bfloat16 or float16, contiguous. Sums are
float32. z is the capped logit, e = 2^(unit (z - top)) with unit = log2(e) / temperature.
"""

import math

import triton
import triton.language as tl

from .runtime import launching_on

LOG2E = math.log2(math.e)


@triton.jit
def _capped(z, cap, rate, HAS_CAP: tl.constexpr):
    """Return the capped logit and the slope; tanh from 2^(rate |z|) = e^(-2 |z| / cap)."""
    slope = 1.0
    if HAS_CAP:
        small = tl.exp2(tl.abs(z) * rate)
        bent = (1.0 - small) / (1.0 + small)
        bent = tl.where(z < 0, -bent, bent)
        slope = 1.0 - bent * bent
        z = cap * bent
    return z, slope


@triton.jit
def fold_kernel(
    tile,
    shares,
    top,
    mass,
    moment,
    shrink,
    width,
    unit,
    cap,
    rate,
    HAS_CAP: tl.constexpr,
    HAS_SHARES: tl.constexpr,
    HAS_MOMENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add a tile to the running sums. Each block of threads owns one token, and walks it twice."""
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    low = float("-inf")

    best = tl.full((BLOCK,), low, tl.float32)
    for base in range(0, width, BLOCK):
        inside = base + lanes < width
        z = tl.load(tile + row * width + base + lanes, mask=inside, other=0.0).to(tl.float32)
        z, _ = _capped(z, cap, rate, HAS_CAP)
        best = tl.maximum(best, tl.where(inside, z, low))
    old = tl.load(top + row)
    new = tl.maximum(old, tl.max(best, axis=0))
    shift = tl.where(new == low, 0.0, new)
    shrunk = tl.exp2((old - shift) * unit)

    sums = tl.zeros((BLOCK,), tl.float32)
    moments = tl.zeros((BLOCK,), tl.float32)
    for base in range(0, width, BLOCK):
        inside = base + lanes < width
        z = tl.load(tile + row * width + base + lanes, mask=inside, other=0.0).to(tl.float32)
        z, slope = _capped(z, cap, rate, HAS_CAP)
        below = tl.where(inside, z - shift, low)
        e = tl.exp2(below * unit)
        sums += e
        if HAS_MOMENT:
            moments += e * tl.maximum(below, -200.0 / unit)  # 0 * -inf would be NaN
        if HAS_SHARES:
            share = (e * slope).to(shares.dtype.element_ty)
            tl.store(shares + row * width + base + lanes, share, mask=inside)

    before = tl.load(mass + row)
    if HAS_MOMENT:
        # Moving the top by d changes the sum of e (z - top) by -d times the mass.
        step = tl.where(before > 0, old - shift, 0.0)
        found = (tl.load(moment + row) + step * before) * shrunk
        tl.store(moment + row, found + tl.sum(moments, axis=0))
    tl.store(mass + row, before * shrunk + tl.sum(sums, axis=0))
    tl.store(top + row, new)
    tl.store(shrink + row, shrunk)


@triton.jit
def slope_kernel(
    tile,
    out,
    top,
    mass,
    grad,
    labels,
    width,
    unit,
    cap,
    rate,
    HAS_CAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradient in the raw logits. Each block of threads owns BLOCK words of one token."""
    row = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = word < width
    z = tl.load(tile + row * width + word, mask=inside, other=0.0).to(tl.float32)
    z, slope = _capped(z, cap, rate, HAS_CAP)
    p = tl.exp2((z - tl.load(top + row)) * unit) / tl.load(mass + row)
    own = tl.where(word == tl.load(labels + row), 1.0, 0.0)
    found = (own - p) * slope * tl.load(grad + row)
    tl.store(out + row * width + word, found.to(out.dtype.element_ty), mask=inside)


def fold(tile, shares, top, mass, moment, shrink, temperature, softcap):
    """Add a tile of raw logits to the sums over the vocabulary; see pyfast.losses._tiles.Running.

    Parameters
    ----------
    tile : Tensor
        (n, v) raw logits; not changed.
    shares : Tensor or None
        (n, v), written: e times the slope of the cap.
    top, mass, moment : Tensor
        (n, 1) float32, updated; `moment` may be None.
    shrink : Tensor
        (n, 1) float32, written: what older shares have to be multiplied by.
    temperature, softcap : float
        As in the loss; `softcap` may be None.
    """
    rows, width = tile.shape
    with launching_on(tile):
        fold_kernel[(rows,)](
            tile,
            tile if shares is None else shares,
            top,
            mass,
            mass if moment is None else moment,
            shrink,
            width,
            LOG2E / temperature,
            1.0 if softcap is None else softcap,
            -2.0 if softcap is None else -2.0 * LOG2E / softcap,
            HAS_CAP=softcap is not None,
            HAS_SHARES=shares is not None,
            HAS_MOMENT=moment is not None,
            BLOCK=_block(width),
            num_warps=_warps(width),
        )


def slope(tile, out, top, mass, grad, labels, temperature, softcap):
    """Write the gradient of sum(grad * logp) in a tile of raw logits.

    Parameters
    ----------
    tile : Tensor
        (n, v) raw logits; not changed.
    out : Tensor
        (n, v), written.
    top, mass : Tensor
        (n, 1) float32, of the whole vocabulary, as :func:`fold` left them.
    grad : Tensor
        (n,) float32, the gradient in the logps.
    labels : Tensor
        (n,) integers: labels counted from the tile's first word, outside it where below 0 or not
        below v.
    temperature, softcap : float
        As in the loss; `softcap` may be None.
    """
    rows, width = tile.shape
    block = _block(width)
    with launching_on(tile):
        slope_kernel[(rows, triton.cdiv(width, block))](
            tile,
            out,
            top,
            mass,
            grad / temperature,
            labels,
            width,
            LOG2E / temperature,
            1.0 if softcap is None else softcap,
            -2.0 if softcap is None else -2.0 * LOG2E / softcap,
            HAS_CAP=softcap is not None,
            BLOCK=block,
            num_warps=_warps(width),
        )


def _block(width):
    return min(max(triton.next_power_of_2(width), 16), 1024)


def _warps(width):
    return 4 if width > 256 else 1
