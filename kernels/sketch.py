"""XOR stripes, version 1, over materialised gradients: the same bits as the CPU's.

docs/xor-stripes.md is the definition. A program owns 1024 numbers of one row's sketch; it walks
over all stripes, gathers from each the 1024 numbers that belong there (aligned groups of them lie
together), and adds in the defined order. Nothing is scattered, so nothing is atomic.
"""

import torch
import triton
import triton.language as tl

from .runtime import launching_on

BLOCK = 1024  # numbers of a sketch in one program; a multiple of 128
CHUNK = 64  # stripes whose sum starts from zero
MOST_ROWS = 65535  # of one launch, the limit of a grid's second axis


@triton.jit
def _philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10 of uint32 counters; returns the four words."""
    for _ in tl.static_range(10):
        low0, high0 = c0 * 0xD2511F53, tl.umulhi(c0, tl.full(c0.shape, 0xD2511F53, tl.uint32))
        low1, high1 = c2 * 0xCD9E8D57, tl.umulhi(c2, tl.full(c2.shape, 0xCD9E8D57, tl.uint32))
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def _draw(g, block, word, bit, module, k0, k1, DIM: tl.constexpr):
    """Draw what stripe g does to the numbers w = 128 block + 32 word + bit of a sketch.

    block (blocks, 1), word and bit (1, 128). Returns X (blocks, 1), all the same, and where to
    subtract (blocks, 128).
    """
    zero = tl.zeros(block.shape, tl.uint32)
    stripe = (zero.to(tl.int32) + g).to(tl.uint32)
    m = zero + module.to(tl.uint32)
    k0, k1 = zero + k0.to(tl.uint32), zero + k1.to(tl.uint32)
    x0, _, _, _ = _philox(stripe, zero, m, zero, k0, k1)
    s0, s1, s2, s3 = _philox(stripe, block.to(tl.uint32), m, zero + 1, k0, k1)
    words = tl.where(word < 2, tl.where(word == 0, s0, s1), tl.where(word == 2, s2, s3))
    return (x0 & (DIM - 1)).to(tl.int32), ((words >> bit) & 1) == 1


@triton.jit
def add_stripes_kernel(
    v_ptr,
    y_ptr,
    columns,
    row_stride,
    stripes,
    seed_low,
    seed_high,
    module,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """y[row, w] += the sketch of v[row], for one row and BLOCK numbers w."""
    row = tl.program_id(1).to(tl.int64)
    blocks: tl.constexpr = BLOCK // 128
    block = tl.program_id(0) * blocks + tl.arange(0, blocks)[:, None]  # (blocks, 1): w >> 7
    within = tl.arange(0, 128)[None, :]
    w = block * 128 + within
    word, bit = within >> 5, (within & 31).to(tl.uint32)
    y = tl.load(y_ptr + row * DIM + w)
    for start in range(0, stripes, CHUNK):
        chunk = tl.zeros([blocks, 128], tl.float32)
        for g in range(start, tl.minimum(start + CHUNK, stripes)):
            x, minus = _draw(g, block, word, bit, module, seed_low, seed_high, DIM)
            at = tl.full(x.shape, DIM, tl.int64) * g + (w ^ x)
            value = tl.load(v_ptr + row * row_stride + at, mask=at < columns, other=0.0)
            value = value.to(tl.float32)
            chunk += tl.where(minus, -value, value)
        y += chunk
    tl.store(y_ptr + row * DIM + w, y)


def add_sketch(v: torch.Tensor, y: torch.Tensor, seed: int, module: int = 0) -> None:
    """Add the sketch of each row of v to y, in place.

    Parameters
    ----------
    v : float tensor, shape (B, p)
        float16, bfloat16 or float32, with any distance between rows; other layouts and float64
        are copied to contiguous float32 first.
    y : float32 tensor, shape (B, dim), contiguous
        dim a power of two, 2^7 to 2^20.
    seed : int
        0 to 2^64 - 1: the key of the generator.
    module : int
        0 to 2^32 - 1.
    """
    if v.dtype == torch.float64:
        v = v.float()
    if v.stride(1) != 1:
        v = v.contiguous()
    columns, dim = v.shape[1], y.shape[1]
    block = min(dim, BLOCK)
    for first in range(0, len(v), MOST_ROWS):
        some, sums = v[first : first + MOST_ROWS], y[first : first + MOST_ROWS]
        with launching_on(v):
            add_stripes_kernel[(dim // block, len(some))](
                some,
                sums,
                columns,
                v.stride(0),
                triton.cdiv(columns, dim),
                signed(seed & 0xFFFFFFFF),
                signed(seed >> 32),
                signed(module),
                DIM=dim,
                BLOCK=block,
                CHUNK=CHUNK,
            )


def signed(word: int) -> int:
    """Return the int32 with the bits of a 32-bit word, so that all words are one type."""
    return word - (1 << 32) if word >= 1 << 31 else word
