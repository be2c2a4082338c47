r"""The LSE family with its gradient in closed form: loss and slope from one pass over the scores.

:func:`contrast` and :func:`listwise` compute what the functions of the same names in
:mod:`pyfast.losses.reference` compute, through one of two backends: a Triton kernel, or numpy on
the CPU. Both return the loss of each group together with :math:`\partial L / \partial s`, so that
backward is one multiplication. A second derivative is taken through the reference.
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
_Floats: TypeAlias = NDArray[Any]


def contrast(
    scores: Tensor,
    positive: Tensor | None = None,
    log_weights: Tensor | None = None,
    offsets: Tensor | None = None,
    margin: float = 0.0,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Loss of each group, its positives against the weighted rest.

    Parameters
    ----------
    scores, positive, log_weights, offsets, margin
        As in :func:`pyfast.losses.reference.contrast`.
    backend : {"auto", "reference", "triton"}
        "auto" takes Triton for tensors on a GPU, the closed form in numpy on the CPU, and the
        reference inside torch.compile, which fuses it by itself, and where the weights need a
        gradient, which only the reference has.

    Returns
    -------
    Tensor
        () for one group, else (B,); float32, or float64 for float64 scores.

    Raises
    ------
    ValueError
        The backend is unknown or cannot be used here; the message says why.
    """
    if _use_reference(scores, backend, log_weights):
        return reference.contrast(scores, positive, log_weights, offsets, margin)
    return _Contrast.apply(  # type: ignore[no-any-return, no-untyped-call]
        scores, positive, log_weights, offsets, margin
    )


def listwise(
    scores: Tensor,
    offsets: Tensor | None = None,
    margin: float = 0.0,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Plackett-Luce loss of each whole ranking, best response first.

    Arguments as in :func:`pyfast.losses.reference.listwise`; `backend`, what is returned and what
    is raised as in :func:`contrast`.
    """
    if _use_reference(scores, backend, None):
        return reference.listwise(scores, offsets, margin)
    return _Listwise.apply(  # type: ignore[no-any-return, no-untyped-call]
        scores, offsets, margin
    )


def _use_reference(scores: Tensor, backend: str, log_weights: Tensor | None) -> bool:
    """Decide between reference and closed form; the device decides the rest."""
    check_choice("backend", backend, ("auto", "reference", "triton"))
    weights_need_grad = log_weights is not None and log_weights.requires_grad
    if backend == "triton":
        reason = _why_no_triton(scores)
        if reason is None and weights_need_grad:
            reason = "weights that need a gradient are known to the reference alone"
        if reason is not None:
            raise ValueError(f"backend triton cannot be used: {reason}")
        return False
    if backend == "reference" or weights_need_grad or torch.compiler.is_compiling():
        return True
    return scores.device.type != "cpu" and _why_no_triton(scores) is not None


def _why_no_triton(scores: Tensor) -> str | None:
    from pyfast.kernels import runtime

    reason: str | None = runtime.why_unusable()
    if reason is None and scores.device.type == "cpu" and not runtime.interpreting():
        reason = "the scores are on the CPU"
    if reason is None and scores.dtype == torch.float64:
        reason = "the kernels accumulate in float32, the scores are float64"
    return reason


def _forward(
    kernel: str, scores: Tensor, offsets: Tensor | None, margin: float, **more: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the groups' losses and the slope of the scores from the backend of their device."""
    from pyfast.kernels import runtime

    if scores.device.type == "cpu" and not runtime.interpreting():
        loss, slope = _on_cpu(kernel, scores, offsets, margin, **more)
    else:
        from pyfast.kernels import group_lse

        loss, slope = getattr(group_lse, kernel)(scores, offsets=offsets, margin=margin, **more)
    return loss.reshape(scores.shape[:-1]) if offsets is None else loss, slope


class _Contrast(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        positive: Tensor | None,
        log_weights: Tensor | None,
        offsets: Tensor | None,
        margin: float,
    ) -> Tensor:
        loss, slope = _forward(
            "contrast", scores, offsets, margin, positive=positive, log_weights=log_weights
        )
        ctx.margin = margin
        ctx.save_for_backward(slope, scores, positive, log_weights, offsets)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        slope, scores, positive, log_weights, offsets = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return _spread(slope, grad, scores.dtype, offsets), None, None, None, None
        with torch.enable_grad():  # a graph of this gradient is wanted, for a second derivative
            loss = reference.contrast(scores, positive, log_weights, offsets, ctx.margin)
            return _regraph(loss, scores, grad), None, None, None, None


class _Listwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, offsets: Tensor | None, margin: float) -> Tensor:
        loss, slope = _forward("listwise", scores, offsets, margin)
        ctx.margin = margin
        ctx.save_for_backward(slope, scores, offsets)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        slope, scores, offsets = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return _spread(slope, grad, scores.dtype, offsets), None, None
        with torch.enable_grad():
            loss = reference.listwise(scores, offsets, ctx.margin)
            return _regraph(loss, scores, grad), None, None


def _regraph(loss: Tensor, scores: Tensor, grad: Tensor) -> Tensor:
    return torch.autograd.grad(loss.reshape(-1), scores, grad, create_graph=True)[0]


def _spread(slope: Tensor, grad: Tensor, dtype: torch.dtype, offsets: Tensor | None) -> Tensor:
    """Multiply the slope of each response by the gradient of its group's loss."""
    if offsets is None:
        return (slope * grad.reshape(*slope.shape[:-1], 1)).to(dtype)
    sizes = offsets.diff().to(slope.device)
    return (slope * grad.repeat_interleave(sizes, output_size=slope.numel())).to(dtype)


# On the CPU ---------------------------------------------------------------------------------


def _on_cpu(
    kernel: str, scores: Tensor, offsets: Tensor | None, margin: float, **more: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run a closed form on the tensors' own memory.

    numpy's segmented reductions add each group in an order of its own, whatever the layout.
    """
    s = widen(scores.detach()).reshape(-1).numpy()
    if offsets is None:
        size = scores.shape[-1]
        starts = np.arange(0, s.size, size)
        sizes = np.full(starts.shape, size)
    else:
        ends = offsets.numpy()
        starts, sizes = ends[:-1], ends[1:] - ends[:-1]
    arrays = {
        name: None if tensor is None else widen(tensor.detach()).reshape(-1).numpy()
        for name, tensor in more.items()
    }
    compute = _contrast_arrays if kernel == "contrast" else _listwise_arrays
    loss, slope = compute(s, starts, sizes, margin, **arrays)
    return torch.from_numpy(loss), torch.from_numpy(slope).reshape(scores.shape)


def _contrast_arrays(
    s: _Floats,
    starts: _Floats,
    sizes: _Floats,
    margin: float,
    positive: _Floats | None = None,
    log_weights: _Floats | None = None,
) -> tuple[_Floats, _Floats]:
    low = s.dtype.type(-np.inf)
    shifted = s if log_weights is None else s + log_weights.astype(s.dtype, copy=False)
    if margin:
        shifted = shifted + s.dtype.type(margin)
    if positive is None:
        rest = np.array(shifted)
        rest[starts] = low
    else:
        rest = np.where(positive, low, shifted)
    top_rest = np.maximum.reduceat(rest, starts)
    top_rest[top_rest == low] = 0  # no rest: -inf - -inf would be NaN
    if positive is None:
        top, mass, share = s[starts], s.dtype.type(1), None
        rest = np.exp(rest - np.repeat(top_rest, sizes))
    else:
        top = np.maximum.reduceat(np.where(positive, s, low), starts)
        tops = np.where(positive, np.repeat(top, sizes), np.repeat(top_rest, sizes))
        mixed = np.exp(np.where(positive, s, shifted) - tops)
        share, rest = mixed * positive, mixed * ~positive
        mass = np.add.reduceat(share, starts)
    mass_rest = np.add.reduceat(rest, starts)

    alone = mass_rest == 0
    mass_rest[alone] = 1
    # Tops and masses are subtracted apart: added up first, scores of 1e4 would swallow the masses.
    deficit = (top_rest - top) + (np.log(mass_rest) - np.log(mass))
    deficit[alone] = low
    small = np.exp(-np.abs(deficit))
    loss = np.maximum(deficit, 0) + np.log1p(small)
    lost = np.where(deficit < 0, small, s.dtype.type(1)) / (1 + small)  # the sigmoid of deficit
    slope = rest * np.repeat(lost / mass_rest, sizes)
    if share is None:
        slope[starts] -= lost
    else:
        slope -= share * np.repeat(lost / mass, sizes)
    return loss, slope


def _listwise_arrays(
    s: _Floats, starts: _Floats, sizes: _Floats, margin: float
) -> tuple[_Floats, _Floats]:
    """Scan suffixes on a padded table in float64, where sums of exponentials of 1e4 keep digits."""
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
