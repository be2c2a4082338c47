r"""The LSE family with its gradient in closed form: loss and slope from one pass over the scores.

:func:`contrast` and :func:`listwise` compute what the functions of the same names in
:mod:`pyfast.losses.reference` compute, through one of two backends: a Triton kernel, or numpy on
the CPU. Both return the losses together with :math:`\partial L / \partial s`; what is kept is the
slope of the reduced loss, so that backward is one multiplication. A second derivative is taken
through the reference.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyfast.losses import reference
from pyfast.losses._checks import check_choice
from pyfast.losses.reference import widen

Backend: TypeAlias = Literal["auto", "reference", "triton"]
Reduction: TypeAlias = Literal["mean", "sum", "none"]
REDUCTIONS = ("mean", "sum", "none")
_Floats: TypeAlias = NDArray[Any]
LEAST_TABLE = 4096  # numbers: scanning a smaller table costs less than going about it twice


def contrast(
    scores: Tensor,
    positive: Tensor | None = None,
    log_weights: Tensor | None = None,
    offsets: Tensor | None = None,
    margin: float = 0.0,
    *,
    reduction: Reduction = "none",
    backend: Backend = "auto",
) -> Tensor:
    """Loss of each group, its positives against the weighted rest.

    Parameters
    ----------
    scores, positive, log_weights, offsets, margin
        As in :func:`pyfast.losses.reference.contrast`.
    reduction : {"mean", "sum", "none"}
        Over groups.
    backend : {"auto", "reference", "triton"}
        "auto" takes Triton for tensors on a GPU, the closed form in numpy on the CPU, and the
        reference inside torch.compile, which fuses it by itself, inside the transforms of
        torch.func, and where the weights need a gradient, which only the reference has. "triton"
        on the CPU needs Triton's interpreter.

    Returns
    -------
    Tensor
        A scalar, or for "none" () for one group, else (B,); float32, or float64 for float64 scores.

    Raises
    ------
    ValueError
        Reduction or backend are unknown, or the backend cannot be used here; the message says why.
    """
    return _loss(backend, "contrast", scores, offsets, margin, reduction, positive, log_weights)


def listwise(
    scores: Tensor,
    offsets: Tensor | None = None,
    margin: float = 0.0,
    *,
    reduction: Reduction = "none",
    backend: Backend = "auto",
) -> Tensor:
    """Plackett-Luce loss of each whole ranking, best response first.

    Arguments as in :func:`pyfast.losses.reference.listwise`; `reduction`, `backend`, what is
    returned and what is raised as in :func:`contrast`.
    """
    return _loss(backend, "listwise", scores, offsets, margin, reduction)


def above_mean(
    rewards: Tensor, offsets: Tensor | None = None, *, backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """How far each reward is above its group's mean, and whether it is the first of the highest.

    Arguments and results as in :func:`pyfast.losses.reference.above_mean`; numpy does it for
    tensors on the CPU that need no gradient, to the same bits.
    """
    by_torch = backend == "reference" or rewards.requires_grad or _transformed()
    if by_torch or rewards.device.type != "cpu":
        return reference.above_mean(rewards, offsets)
    r, (starts, sizes) = _array(rewards), _layout(rewards, offsets)
    total, top = np.zeros(starts.shape, r.dtype), np.zeros(r.shape, np.bool_)
    with np.errstate(invalid="ignore"):
        below_best = r - np.maximum.reduceat(r, starts).repeat(sizes)
        np.add.at(total, np.arange(starts.size).repeat(sizes), below_best)  # in order, as torch
        above = below_best - (total / np.asarray(sizes, r.dtype)).repeat(sizes)
        best = (~(below_best < 0)).nonzero()[0]
    top[best[best.searchsorted(starts)]] = True
    shape = rewards.shape
    return torch.from_numpy(above.reshape(shape)), torch.from_numpy(top.reshape(shape))


def reduced(losses: Tensor, reduction: Reduction) -> Tensor:
    """Reduce the losses of the groups."""
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()


def _loss(
    backend: Backend,
    name: str,
    scores: Tensor,
    offsets: Tensor | None,
    margin: float,
    reduction: Reduction,
    *more: Tensor | None,
) -> Tensor:
    """Take the reference or the closed form; `more` are arguments of this kernel alone."""
    check_choice("reduction", reduction, REDUCTIONS)
    way = _way(scores, backend, more)
    if way == "reference":
        return _by_reference(name, scores, offsets, margin, reduction, *more)
    return _Closed.apply(  # type: ignore[no-any-return, no-untyped-call]
        name, way == "triton", scores, offsets, margin, reduction, *more
    )


def _way(scores: Tensor, backend: str, more: tuple[Tensor | None, ...]) -> str:
    """Decide between "reference", "numpy" and "triton"; on the CPU, Triton only where asked."""
    check_choice("backend", backend, ("auto", "reference", "triton"))
    weights_need_grad = any(tensor is not None and tensor.requires_grad for tensor in more)
    if backend == "triton":
        reason = _why_no_triton(scores)
        if reason is None and weights_need_grad:
            reason = "weights that need a gradient are known to the reference alone"
        if reason is not None:
            raise ValueError(f"backend triton cannot be used: {reason}")
        return "triton"
    if backend == "reference" or weights_need_grad or _transformed():
        return "reference"
    if scores.device.type == "cpu":
        return "numpy"
    return "reference" if _why_no_triton(scores) is not None else "triton"


def _transformed() -> bool:
    """Tell whether a transform wants plain operations: torch.compile, or vmap, grad, jvp, ..."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def _why_no_triton(scores: Tensor) -> str | None:
    from pyfast.kernels import runtime

    reason: str | None = runtime.why_unusable()
    if reason is None and scores.device.type == "cpu" and not runtime.interpreting():
        reason = "the scores are on the CPU"
    if reason is None and scores.dtype == torch.float64:
        reason = "the kernels accumulate in float32, the scores are float64"
    return reason


def _by_reference(
    name: str,
    scores: Tensor,
    offsets: Tensor | None,
    margin: float,
    reduction: Reduction,
    *more: Tensor | None,
) -> Tensor:
    loss = getattr(reference, name)(scores, *more, offsets=offsets, margin=margin)
    return reduced(loss, reduction)


class _Closed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        name: str,
        by_kernel: bool,
        scores: Tensor,
        offsets: Tensor | None,
        margin: float,
        reduction: Reduction,
        *more: Tensor | None,
    ) -> Tensor:
        if not by_kernel:
            loss, slope = _on_cpu(name, scores, offsets, margin, reduction, *more)
        else:
            from pyfast.kernels import group_lse

            loss, slope = getattr(group_lse, name)(scores, *more, offsets=offsets, margin=margin)
            slope = slope / loss.numel() if reduction == "mean" else slope
            loss = loss if offsets is not None else loss.reshape(scores.shape[:-1])
            loss = reduced(loss, reduction)
        ctx.how = (name, margin, reduction)
        ctx.save_for_backward(slope, scores, offsets, *more)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        slope, scores, offsets, *more = ctx.saved_tensors
        name, margin, reduction = ctx.how
        if torch.is_grad_enabled():  # a graph of this gradient is wanted, for a second derivative
            loss = _by_reference(name, scores, offsets, margin, reduction, *more)
            (slope,) = torch.autograd.grad(loss, scores, grad, create_graph=True)
        else:  # autograd rounds to half types where the scores are such
            slope = slope * (_spread(grad, slope, offsets) if reduction == "none" else grad)
        return None, None, slope, None, None, None, *(None for _ in more)


def _spread(grad: Tensor, slope: Tensor, offsets: Tensor | None) -> Tensor:
    """Give each response the gradient of its group's loss."""
    if offsets is None:
        return grad.unsqueeze(-1)
    sizes = offsets.diff().to(slope.device)
    return grad.repeat_interleave(sizes, output_size=slope.numel())


# On the CPU ---------------------------------------------------------------------------------


def _on_cpu(
    name: str,
    scores: Tensor,
    offsets: Tensor | None,
    margin: float,
    reduction: Reduction,
    *more: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Run a closed form on the tensors' own memory: the reduced loss, and its slope.

    numpy's segmented reductions add each group in an order of its own, whatever the layout.
    """
    arrays = (None if tensor is None else _array(tensor) for tensor in more)
    compute = _contrast_arrays if name == "contrast" else _listwise_arrays
    with np.errstate(invalid="ignore"):  # a NaN that nobody wanted to know of stays a NaN
        loss, slope = compute(_array(scores), *_layout(scores, offsets), margin, *arrays)
    if reduction != "none":  # here, for a small call of torch costs ten times as much
        count = loss.size if reduction == "mean" else 1
        loss = (loss.sum(keepdims=True) / count).reshape(())
        slope /= count
    elif offsets is None:
        loss = loss.reshape(scores.shape[:-1])
    return torch.from_numpy(loss), torch.from_numpy(slope.reshape(scores.shape))


def _layout(values: Tensor, offsets: Tensor | None) -> tuple[_Floats, _Floats | int]:
    """Return where the groups start, and their sizes: one number where all are the same."""
    if offsets is None:
        return np.arange(0, values.numel(), values.shape[-1]), values.shape[-1]
    ends = offsets.numpy()
    return ends[:-1], ends[1:] - ends[:-1]


def _array(values: Tensor) -> _Floats:
    """View a tensor end to end; a copy where its layout or its dtype asks for one."""
    flat: _Floats = widen(values.detach()).numpy().reshape(-1)
    return flat


def _contrast_arrays(
    s: _Floats,
    starts: _Floats,
    sizes: _Floats | int,
    margin: float,
    positive: _Floats | None = None,
    log_weights: _Floats | None = None,
) -> tuple[_Floats, _Floats]:
    if log_weights is not None and positive is not None:
        log_weights = np.where(positive, 0, log_weights)  # those of the positives may be NaN
    shifted = s if log_weights is None else s + log_weights.astype(s.dtype, copy=False)
    infinity = s.dtype.type(np.inf)
    if positive is None:
        top, log_mass = s[starts], s.dtype.type(0)
        rest = np.array(shifted)
        rest[starts] = -infinity
    else:
        most = (positive - s.dtype.type(0.5)) * infinity  # where() would guess, and guess wrong
        share = np.minimum(s, most)
        top = np.maximum.reduceat(share, starts)
        share -= top.repeat(sizes)
        np.exp(share, out=share)
        mass = np.add.reduceat(share, starts)
        log_mass = np.log(mass)
        rest = np.minimum(shifted, -most)
    top_rest = np.maximum.reduceat(rest, starts)
    rest -= np.maximum(top_rest, np.finfo(s.dtype).min).repeat(sizes)  # -inf - -inf would be NaN
    np.exp(rest, out=rest)
    mass_rest = np.maximum(np.add.reduceat(rest, starts), 1)  # 0 where there is no rest

    # Tops are subtracted apart: added up first, scores of 1e4 would swallow masses and margin.
    lead = top_rest - top
    if margin:
        lead += s.dtype.type(margin)
    loss = np.logaddexp(0, lead + (np.log(mass_rest) - log_mass))
    lost = -np.expm1(-loss)
    rest *= (lost / mass_rest).repeat(sizes)
    if positive is None:
        rest[starts] -= lost
    else:
        rest -= np.multiply(share, (lost / mass).repeat(sizes), out=share)
    return loss, rest


def _listwise_arrays(
    s: _Floats, starts: _Floats, sizes: _Floats | int, margin: float
) -> tuple[_Floats, _Floats]:
    """Scan suffixes in float64, where sums of exponentials of 1e4 keep digits.

    Groups are scanned side by side in a table as wide as the longest of them: all at once, or
    where that would be mostly padding, those of like size (1, 2, 3 to 4, 5 to 8, ...) together.
    """
    many = np.broadcast_to(sizes, starts.shape)
    if starts.size * many.max() <= max(2 * s.size, LEAST_TABLE):
        return _scanned(s, many, margin)
    losses, slope = np.empty(starts.shape, s.dtype), np.empty_like(s)
    like = np.frexp(many - 1)[1]
    likes = like.repeat(many)
    for each in np.unique(like):
        group = (like == each).nonzero()[0]
        place = (likes == each).nonzero()[0]
        losses[group], slope[place] = _scanned(s[place], many[group], margin)
    return losses, slope


def _scanned(s: _Floats, sizes: _Floats, margin: float) -> tuple[_Floats, _Floats]:
    """Loss and slope of each ranking, scanned in one table."""
    table, kept = _padded(s.astype(np.float64), sizes)
    low = -np.inf
    after = np.full_like(table, low)  # log sum of e^s over all that come after
    backwards = np.logaddexp.accumulate(table[:, ::-1], axis=1)[:, ::-1]
    after[:, :-1] = backwards[:, 1:] + margin
    deficit = np.where(kept & (after > low), after - np.where(kept, table, 0), low)
    losses = np.logaddexp(deficit, 0)
    lost = np.exp(deficit - losses)

    # Response i is in the rest of every j before it, with a share of e^(s_i + m - L_j).
    beaten = np.where(kept, -np.logaddexp(table, after), low)
    before = np.full_like(table, low)
    before[:, 1:] = np.logaddexp.accumulate(beaten, axis=1)[:, :-1] + margin
    share = np.exp(np.where(kept, table, low) + before)
    loss = losses.sum(axis=1).astype(s.dtype)
    return loss, (share - lost)[kept].astype(s.dtype)


def _padded(s: _Floats, sizes: _Floats) -> tuple[_Floats, _Floats]:
    """Lay groups in rows, filled up with -inf; and mark what is kept."""
    kept = np.arange(sizes.max()) < sizes[:, None]
    table = np.full(kept.shape, -np.inf)
    table[kept] = s
    return table, kept
