"""Per-response gradients of LoRA matrices, caught on their way through one batched backward pass.

For y = W x over the tokens t of response b, the gradient of W is ``sum_t dy_t x_t^T`` over that
response's tokens alone. A forward hook lets the output pass through `_Tap`, which keeps the input
for the backward pass, as autograd keeps any saved tensor: gradient checkpointing of both kinds
drops and recomputes it, and changing it in place is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyfast.sketch._layout import Layout
from pyfast.sketch._parts import Part, silent_parts


class _Tap(torch.autograd.Function):
    """The identity; tells the capture what passes through it backward."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, capture: Capture, number: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.capture, ctx.number, ctx.layout = capture, number, capture.layout
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        ctx.capture.add(ctx.number, ctx.layout, ctx.saved_tensors[0], gradients[0])
        return gradients[0], None, None, None


class Capture:
    """While entered, hands each part's gradients (R, long, rank), float32, to `sink`, once each.

    Parts come in descending order, whole, whatever the order in which autograd brings them: one
    that is early, or that runs several times, waits. Those that are zero whatever the tokens, the A
    before a B of zeros, are left out, so that nothing is kept for them. ``layout`` says whose the
    tokens are that go through the model next.
    """

    def __init__(self, parts: list[Part], sink: Callable[[int, Tensor], None]) -> None:
        self.layout = Layout.of_rows(0, 0)
        self.backward = False  # what runs forward now is a recomputation
        self._parts = parts
        self._sink = sink
        self._hooks: list[Any] = []
        self._open = [0] * len(parts)  # runs whose gradient is still to come
        self._waiting: dict[int, Tensor] = {}
        self._next = len(parts) - 1

    def __enter__(self) -> Capture:
        silent = silent_parts(self._parts)
        for number, part in enumerate(self._parts):
            if number in silent:
                continue
            self._hooks.append(part.module.register_forward_hook(self._hook(number)))
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        if kind is None:
            self._hand_on(at_the_end=True)
        self._waiting.clear()

    def _hook(self, number: int) -> Callable[..., Tensor]:
        def hook(_module: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            x = inputs[0]
            fits = self.layout.fits(x)
            if fits and not self.backward:
                self._open[number] += 1
            if not output.requires_grad:  # DoRA's identity, or the first run of a checkpoint
                return output
            if not fits:
                raise ValueError(
                    f"model: {self._parts[number].name} saw an input of shape {tuple(x.shape)}, "
                    f"expected {(*self.layout.shape, x.shape[-1])}: whose tokens these are cannot "
                    "be told (a mixture of experts?)"
                )
            tapped: Tensor = _Tap.apply(output, x, self, number)  # type: ignore[no-untyped-call]
            return tapped

        return hook

    def add(self, number: int, layout: Layout, x: Tensor, gradient: Tensor) -> None:
        """Take what one run of a part gives: its input and the gradient of its output."""
        if number > self._next:
            raise RuntimeError(f"{self._parts[number].name}: a gradient came after its turn")
        x = layout.per_response(x.detach()).float()
        dy = layout.per_response(gradient.detach()).float()
        if self._parts[number].transposed:
            tile = torch.bmm(x.transpose(1, 2), dy)
        else:
            tile = torch.bmm(dy.transpose(1, 2), x)
        if number in self._waiting:
            self._waiting[number] += tile
        else:
            self._waiting[number] = tile
        self._open[number] -= 1
        self._hand_on()

    def _hand_on(self, at_the_end: bool = False) -> None:
        while self._next >= 0 and (at_the_end or self._open[self._next] <= 0):
            tile = self._waiting.pop(self._next, None)
            if tile is not None:
                self._sink(self._next, tile)
            self._next -= 1
