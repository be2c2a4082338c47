"""The tiles of the language-model head: made, folded away, and made again for a trainable head.

Logits stay as they are made, capped where there is a softcap; the largest is subtracted before they
are divided by the temperature and raised, which keeps their digits. Powers are of 2: exp2 is the
cheaper function, and ``log2(e)`` goes with the temperature.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LOG2E = math.log2(math.e)
CPU_TOKENS, CPU_TILE = 512, 1 << 19  # rows, and numbers in a tile: 2 MB of float32 stay in cache
GPU_TOKENS, GPU_TILE = 2048, 1 << 24  # 64 MB, large enough for products at full speed
LEAST_WORDS, MOST_WORDS = 512, 1 << 14  # in a tile, however many tokens there are
LEAST_COPIED = 64  # words in a tile whose rows of W are copied or summed, however wide they are


def kernels_for(hidden: Tensor, weight: Tensor, backend: str) -> Any:
    """Return the Triton kernels if they are to be used, else None."""
    from pyfast.kernels import runtime

    reason = runtime.why_unusable()
    if reason is None and hidden.device.type == "cpu" and not runtime.interpreting():
        reason = "the hidden states are on the CPU"
    for what, tensor in (("hidden states are", hidden), ("head is", weight)):
        if reason is None and tensor.dtype == torch.float64:
            reason = f"the kernels accumulate in float32, the {what} float64"
    if reason is not None and backend == "triton":
        raise ValueError(f"backend triton cannot be used: {reason}")
    if reason is not None or (backend == "auto" and hidden.device.type == "cpu"):
        return None
    from pyfast.kernels import head

    return head


@dataclass(frozen=True, eq=False)
class Own:
    """What the labels' own rows of the head give: capped logits (n,), their slope in h (n, H)."""

    logit: Tensor
    slope: Tensor


@dataclass(eq=False)
class Running:
    """Sums over the vocabulary so far, relative to the largest capped logit so far.

    With e = exp((z - top) / temperature), ``mass`` is the sum of e, ``moment`` that of e (z - top),
    ``sum`` that of e f' W_v, where f' is the slope of the softcap. All but ``sum`` (n, H) are
    columns (n, 1).
    """

    top: Tensor
    mass: Tensor
    moment: Tensor | None
    sum: Tensor | None

    @classmethod
    def start(cls, like: Tensor, width: int, with_entropy: bool, keep_mean: bool) -> Running:
        """Begin with nothing, for tokens as many as in `like` (n,)."""
        column = like.new_zeros(like.shape[0], 1)
        return cls(
            top=torch.full_like(column, -torch.inf),
            mass=column,
            moment=torch.zeros_like(column) if with_entropy else None,
            sum=like.new_zeros(like.shape[0], width) if keep_mean else None,
        )

    def entropy(self, temperature: float) -> Tensor:
        """log(mass) - E[log e] in nats, (n,)."""
        assert self.moment is not None
        return (self.mass.log() - self.moment / (self.mass * temperature)).squeeze(1)

    def mean(self) -> Tensor:
        """E[f' W_v], (n, H)."""
        assert self.sum is not None
        return self.sum / self.mass


@dataclass(frozen=True, eq=False)
class Head:
    """A language-model head W, b with its temperature and softcap."""

    weight: Tensor
    bias: Tensor | None
    temperature: float
    softcap: float | None
    kernels: Any

    def dtype(self, rows: Tensor) -> torch.dtype:
        """Return what sums are taken in."""
        wide = torch.float64 in (rows.dtype, self.weight.dtype)
        return torch.float64 if wide else torch.float32

    def empty(self, rows: Tensor, *shape: int) -> Tensor:
        """Return memory of the summing dtype."""
        return torch.empty(shape, dtype=self.dtype(rows), device=rows.device)

    def token_tiles(self, count: int) -> Iterator[slice]:
        """Cut `count` tokens into tiles of nearly equal length."""
        most = GPU_TOKENS if self.weight.device.type != "cpu" else CPU_TOKENS
        pieces = max(1, -(-count // most))
        length = -(-count // pieces)
        return (slice(i, min(i + length, count)) for i in range(0, count, max(length, 1)))

    def vocabulary_tiles(self, tokens: int, *, with_words: bool) -> Iterator[slice]:
        """Cut the vocabulary, so that a tile has about as many numbers as the device likes.

        So have the words' rows of W, if `with_words` says that memory is taken for these too.
        """
        numbers = GPU_TILE if self.weight.device.type != "cpu" else CPU_TILE
        width = min(max(numbers // max(tokens, 1), LEAST_WORDS), MOST_WORDS)
        if with_words:
            width = min(width, max(numbers // self.weight.shape[1], LEAST_COPIED))
        size = self.weight.shape[0]
        return (slice(i, min(i + width, size)) for i in range(0, size, width))

    def own(self, rows: Tensor, labels: Tensor) -> Own:
        """Compute the labels' own logits from their rows of W, and the slopes."""
        dtype = self.dtype(rows)
        slope = self.weight.detach()[labels].to(dtype)
        logit = torch.linalg.vecdot(rows.to(dtype), slope)
        if self.bias is not None:
            logit = logit + self.bias.detach()[labels].to(dtype)
        if self.softcap is not None:
            bent = torch.tanh(logit / self.softcap)
            logit = self.softcap * bent
            slope = slope * (1 - bent * bent)[:, None]
        return Own(logit, slope)

    def fold(self, rows: Tensor, running: Running) -> None:
        """Go through the vocabulary once, adding every tile to the running sums."""
        product = _Product(self, rows, _Scratch())
        for part in self.vocabulary_tiles(rows.shape[0], with_words=product.widens):
            tile, weight = product.logits(part)
            if self.kernels is None:
                tile = _fold_in_torch(self, tile, running).to(weight.dtype)
            else:
                tile = _fold_in_triton(self, tile, running, weight.dtype)
            if running.sum is not None:
                _add_product(running.sum, tile, weight)

    def gradients(
        self,
        rows: Tensor,
        labels: Tensor,
        top: Tensor,
        mass: Tensor,
        grad: Tensor,
        wanted: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Make the tiles again, and from them the gradients of hidden states, W and b."""
        need_rows, need_weight, need_bias = wanted
        dtype = self.dtype(rows)
        grad_rows = torch.zeros(rows.shape, dtype=dtype, device=rows.device) if need_rows else None
        grad_weight = torch.empty_like(self.weight) if need_weight else None
        grad_bias = torch.empty_like(self.bias) if need_bias and self.bias is not None else None
        tokens = list(self.token_tiles(rows.shape[0]))
        longest = max((part.stop - part.start for part in tokens), default=1)
        scratch = _Scratch()
        products = [_Product(self, rows[part], scratch) for part in tokens]
        with_words = need_weight or any(product.widens for product in products)
        for words in self.vocabulary_tiles(longest, with_words=with_words):
            width = words.stop - words.start
            sums = self.empty(rows, width, rows.shape[1]).zero_() if need_weight else None
            column = self.empty(rows, width).zero_() if need_bias else None
            for part, product in zip(tokens, products, strict=True):
                tile, weight = product.logits(words)
                local = labels[part] - words.start
                slope = self._slope(tile, top[part], mass[part], grad[part], local, weight.dtype)
                if grad_rows is not None:
                    _add_product(grad_rows[part], slope, weight)
                if sums is not None:
                    _add_product(sums, slope.t(), product.plain)
                if column is not None:
                    column += slope.sum(0, dtype=dtype)
            if grad_weight is not None and sums is not None:
                grad_weight[words] = sums.to(grad_weight.dtype)
            if grad_bias is not None and column is not None:
                grad_bias[words] = column.to(grad_bias.dtype)
        return None if grad_rows is None else grad_rows.to(rows.dtype), grad_weight, grad_bias

    def _slope(
        self,
        tile: Tensor,
        top: Tensor,
        mass: Tensor,
        grad: Tensor,
        local: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        """Turn a tile of logits into the loss's gradient in W h + b."""
        if self.kernels is not None:
            out = torch.empty_like(tile, dtype=dtype)
            self.kernels.slope(tile, out, top, mass, grad, local, self.temperature, self.softcap)
            return out
        bend = _bend(self, tile)
        slope = tile.sub_(top).mul_(LOG2E / self.temperature).exp2_().div_(mass).neg_()
        inside = (local >= 0) & (local < tile.shape[1])
        row = inside.nonzero().squeeze(1)
        slope[row, local[row]] += 1
        slope.mul_((grad / self.temperature)[:, None])
        slope = slope if bend is None else slope.mul_(bend)
        return slope.to(dtype)


class _Scratch:
    """Memory for a tile, used again for the next."""

    def __init__(self) -> None:
        self.numbers: Tensor | None = None

    def tile(self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return contiguous memory of this shape, with anything in it."""
        size = shape[0] * shape[1]
        if self.numbers is None or self.numbers.numel() < size:
            self.numbers = torch.empty(size, dtype=dtype, device=device)
        return self.numbers[:size].view(shape)


class _Product:
    """The products of some rows with tiles of W."""

    def __init__(self, head: Head, rows: Tensor, scratch: _Scratch) -> None:
        self.head, self.scratch = head, scratch
        self.as_is = _multiplied_as_is(rows, head.weight)
        self.sums = head.dtype(rows)
        self.widens = not self.as_is and head.weight.dtype != self.sums
        self.plain = rows if self.as_is else rows.to(self.sums)

    def logits(self, words: slice) -> tuple[Tensor, Tensor]:
        """Return the logits (n, v) of some words, to be overwritten, and their rows of W."""
        weight = self.head.weight.detach()[words]
        weight = weight if self.as_is else weight.to(self.sums)
        tile = self.scratch.tile((len(self.plain), len(weight)), self.sums, weight.device)
        _product(self.plain, weight, tile)
        if self.head.bias is not None:
            tile += self.head.bias.detach()[words].to(self.sums)
        return tile, weight


def _multiplied_as_is(rows: Tensor, weight: Tensor) -> bool:
    """Tell whether half types are multiplied as they are: a GPU sums them in float32 anyway."""
    half = rows.dtype == weight.dtype and rows.dtype in (torch.float16, torch.bfloat16)
    return half and rows.device.type != "cpu"


def _product(rows: Tensor, weight: Tensor, out: Tensor) -> None:
    """Write rows weight^T, in float32 for half types where torch can."""
    if rows.dtype == out.dtype:
        torch.mm(rows, weight.t(), out=out)
    elif _has_out_dtype():
        torch.mm(rows, weight.t(), out_dtype=out.dtype, out=out)
    else:
        out.copy_(torch.mm(rows, weight.t()))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Total += left right, summed in the dtype of total."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif _has_out_dtype():
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total += torch.mm(left, right)


def _has_out_dtype() -> bool:
    """Tell whether torch can multiply half types into float32: from 2.8 on, with CUDA."""
    major, minor = torch.__version__.split(".")[:2]
    return (int(major), int(minor)) >= (2, 8) and torch.version.cuda is not None


def _bend(head: Head, tile: Tensor) -> Tensor | None:
    """Apply the softcap, if any, to a tile in place, and return its slope."""
    if head.softcap is None:
        return None
    bent = tile.div_(head.softcap).tanh_()
    slope = torch.square(bent).neg_().add_(1)
    bent.mul_(head.softcap)
    return slope


def _fold_in_torch(head: Head, tile: Tensor, running: Running) -> Tensor:
    """Add a tile of logits to the sums, and leave e f' in its place."""
    bend, unit = _bend(head, tile), LOG2E / head.temperature
    top = torch.maximum(running.top, tile.amax(1, keepdim=True))
    shift = torch.where(top == -torch.inf, 0.0, top)  # -inf - -inf would be NaN
    shrink = torch.exp2((running.top - shift) * unit)
    below = tile.sub_(shift)
    if running.moment is not None:
        # Moving the top by d changes the sum of e (z - top) by -d times the mass.
        step = torch.where(running.mass > 0, running.top - shift, 0.0)
        running.moment += step * running.mass
        running.moment *= shrink
        shares = torch.exp2(below * unit)
        below.clamp_(min=-200.0 / unit)  # 0 * -inf would be NaN
        running.moment += torch.linalg.vecdot(shares, below).unsqueeze(1)
        tile = shares
    else:
        tile = below.mul_(unit).exp2_()
    running.mass *= shrink
    running.mass += tile.sum(1, keepdim=True)
    running.top = top
    if running.sum is not None:
        running.sum *= shrink
    return tile if bend is None else tile.mul_(bend)


def _fold_in_triton(head: Head, tile: Tensor, running: Running, dtype: torch.dtype) -> Tensor:
    shares = None if running.sum is None else torch.empty_like(tile, dtype=dtype)
    shrink = torch.empty_like(running.top)
    head.kernels.fold(
        tile,
        shares,
        running.top,
        running.mass,
        running.moment,
        shrink,
        head.temperature,
        head.softcap,
    )
    if running.sum is not None:
        running.sum *= shrink
    return tile if shares is None else shares
