"""Experimental: sketches of per-response gradients from their two factors, never written to memory.

Nothing calls it by itself, since it has not been timed on a GPU yet (`benchmarks/gpu_sketch.py`
does so). Its values are tested in the interpreter, and that it compiles without spilling for ranks
16, 64 and 128; at 32 float32 leaves 24 bytes on a stack on sm_90.

The gradient of a LoRA matrix for one response is sum_t wide_t narrow_t^T, laid out [d, r]
(docs/xor-stripes.md): for B, wide is the output's gradient and narrow the input; for A, the other
way round. A program owns some numbers of one response's sketch, w = r channel + rank. As r is a
power of two, w ^ X is an XOR of the channels and one of the ranks: it permutes what is loaded of
the factors, and their product comes out in the order of the sketch.

What is promised: the stripes, signs and order of adding are version 1's. The sums over tokens are
float32 sums in the order of `tl.dot`, without TF32: where they round otherwise than another
gradient's, so do the sketches; where they are exact, the bits are those of `sketch.add_sketch`.
"""

import torch
import triton
import triton.language as tl

from .runtime import launching_on
from .sketch import CHUNK, MOST_ROWS, _draw, signed

BLOCK = 512  # numbers of a sketch in one program, or more for a large rank
LEAST = 16  # channels, ranks and tokens of a product
TOKENS = 16  # at a time: with 32, products of float32 spill


@triton.jit
def add_outer_kernel(
    wide_ptr,
    narrow_ptr,
    offsets_ptr,
    y_ptr,
    squares_ptr,
    channels,
    wide_stride,
    narrow_stride,
    stripes,
    seed_low,
    seed_high,
    module,
    DIM: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """y[row, w] += the sketch of row's gradient, for BLOCK numbers w; their squares beside."""
    row = tl.program_id(1).to(tl.int64)
    first = tl.load(offsets_ptr + row)
    end = tl.load(offsets_ptr + row + 1)
    blocks: tl.constexpr = BLOCK // 128
    height: tl.constexpr = BLOCK // RANK  # channels of the product
    block = tl.program_id(0) * blocks + tl.arange(0, blocks)[:, None]
    within = tl.arange(0, 128)[None, :]
    word, bit = within >> 5, (within & 31).to(tl.uint32)
    lane = tl.program_id(0) * height + tl.arange(0, height)  # w // RANK
    rank = tl.arange(0, RANK)  # w % RANK
    places = y_ptr + row * DIM + block * 128 + within
    y = tl.load(places)
    squares = tl.zeros([blocks, 128], tl.float64)
    for start in range(0, stripes, CHUNK):
        chunk = tl.zeros([blocks, 128], tl.float32)
        for g in range(start, tl.minimum(start + CHUNK, stripes)):
            x_tile, minus = _draw(g, block, word, bit, module, seed_low, seed_high, DIM)
            x = tl.max(tl.max(x_tile, axis=1), axis=0)
            channel = g * (DIM // RANK) + (lane ^ (x // RANK))
            if tl.min(channel, axis=0) < channels:  # the padding of the last stripe has no numbers
                product = tl.zeros([height, RANK], tl.float32)
                for at in range(first, end, TOKENS):
                    token = at + tl.arange(0, TOKENS)
                    there = token < end
                    wide = tl.load(
                        wide_ptr + token[None, :] * wide_stride + channel[:, None],
                        mask=there[None, :] & (channel[:, None] < channels),
                        other=0.0,
                    )
                    narrow = tl.load(
                        narrow_ptr + token[:, None] * narrow_stride + (rank ^ (x % RANK))[None, :],
                        mask=there[:, None],
                        other=0.0,
                    )
                    product = tl.dot(wide, narrow, product, input_precision="ieee")
                value = tl.reshape(product, [blocks, 128])
                squares += value.to(tl.float64) * value.to(tl.float64)
                chunk += tl.where(minus, -value, value)
        y += chunk
    tl.store(places, y)
    total = tl.sum(tl.sum(squares, axis=1), axis=0)
    tl.store(squares_ptr + row * tl.num_programs(0) + tl.program_id(0), total)


def warps(block: int) -> int:
    """Return how many warps have registers enough for so many numbers of a sketch."""
    return 4 if block <= 1024 else 8


def why_not(rank: int, dim: int) -> str | None:
    """Return None if gradients of this rank can go to sketches of `dim` numbers, else why not."""
    if rank < LEAST or rank & (rank - 1):
        return f"expected a rank that is a power of two, {LEAST} or more, got {rank}"
    if dim < LEAST * rank:
        return f"expected dim of at least {LEAST} times the rank, got {dim} for rank {rank}"
    return None


def add_outer_sketch(
    wide: torch.Tensor,
    narrow: torch.Tensor,
    offsets: torch.Tensor,
    y: torch.Tensor,
    seed: int,
    module: int = 0,
) -> torch.Tensor:
    """Add the sketch of each response's sum of wide_t narrow_t^T to y, in place.

    Parameters
    ----------
    wide : float tensor, shape (N, d)
        The tokens of all responses, end to end. float16, bfloat16 or float32.
    narrow : float tensor, shape (N, r)
        Of the same dtype. r a power of two, at least 16.
    offsets : int64 tensor, shape (R + 1,)
        Response b owns the tokens offsets[b] .. offsets[b + 1] - 1; it may own none.
    y : float32 tensor, shape (R, dim), contiguous
        dim a power of two, at least 16 r, to 2^20.
    seed : int
        0 to 2^64 - 1: the key of the generator.
    module : int
        0 to 2^32 - 1.

    Returns
    -------
    float64 tensor, shape (R,)
        Squared lengths of the gradients.

    Raises
    ------
    ValueError
        If rank and dim do not fit (`why_not`), or the dtypes differ.
    """
    (_, channels), rank, (rows, dim) = wide.shape, narrow.shape[1], y.shape
    reason = why_not(rank, dim)
    if reason is not None:
        raise ValueError(f"narrow: {reason}")
    if wide.dtype != narrow.dtype:
        raise ValueError(f"narrow: expected {wide.dtype} as wide, got {narrow.dtype}")
    wide = wide if wide.stride(1) == 1 else wide.contiguous()
    narrow = narrow if narrow.stride(1) == 1 else narrow.contiguous()
    block = min(dim, max(BLOCK, LEAST * rank))
    squares = torch.empty(rows, dim // block, dtype=torch.float64, device=y.device)
    for first in range(0, rows, MOST_ROWS):
        last = min(first + MOST_ROWS, rows)
        with launching_on(wide):
            add_outer_kernel[(dim // block, last - first)](
                wide,
                narrow,
                offsets[first:],
                y[first:last],
                squares[first:last],
                channels,
                wide.stride(0),
                narrow.stride(0),
                triton.cdiv(channels * rank, dim),
                signed(seed & 0xFFFFFFFF),
                signed(seed >> 32),
                signed(module),
                DIM=dim,
                RANK=rank,
                BLOCK=block,
                CHUNK=CHUNK,
                TOKENS=TOKENS,
                num_warps=warps(block),
            )
    return squares.sum(dim=1)
