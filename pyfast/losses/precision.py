"""Products in the number types that they are given, whatever `torch.autocast` is on around them.

Autocast lowers every product, ``linalg.vecdot`` included, to its own type, and leaves what is
written with ``out=`` or in place as it is: one half of a log-prob in bfloat16, the other in
float32. What says that it sums in float32 switches it off while it works.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

_DEVICES = ("cpu", "cuda", "xpu", "mps")

P = ParamSpec("P")
R = TypeVar("R")


def without_autocast() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which autocast is off, on every kind of device."""
    enabled = [device for device in _DEVICES if torch.is_autocast_enabled(device)]
    if not enabled:
        return contextlib.nullcontext()
    stack = contextlib.ExitStack()
    for device in enabled:
        stack.enter_context(torch.autocast(device, enabled=False))
    return stack


def as_given(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that takes its tensors as they are, inside autocast too.

    Of a `torch.autograd.Function` decorate both ways: backward runs in whatever is on then.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **named: P.kwargs) -> R:
        with without_autocast():
            return function(*args, **named)

    return wrapped


def product(left: Tensor, right: Tensor) -> Tensor:
    """Return the product of two matrices of one type, in that type both ways."""
    return _Product.apply(left, right)  # type: ignore[no-any-return, no-untyped-call]


class _Product(torch.autograd.Function):
    """A product whose gradients are products of the same kind, of any order."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, right)
        with without_autocast():
            return left @ right

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        left, right = ctx.saved_tensors
        return (
            product(grad, right.t()) if ctx.needs_input_grad[0] else None,
            product(left.t(), grad) if ctx.needs_input_grad[1] else None,
        )
