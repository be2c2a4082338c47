"""Per-response gradients of LoRA matrices, caught on their way through one batched backward pass.

For y = W x over the tokens t of response b, the gradient of W is ``sum_t dy_t x_t^T`` over that
response's tokens alone: what is caught are its two factors. While a capture is entered, plain LoRA
layers run as `LoraLinear`, which tells them. In others a forward hook on A and B lets the output
pass through `_Tap`, which keeps the input for the backward pass, as autograd keeps any saved
tensor: gradient checkpointing of both kinds drops and recomputes it, and changing it in place is
an error.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyfast.models.lora import LoraLinear, is_plain
from pyfast.sketch._frozen import alias, unhook
from pyfast.sketch._layout import Layout
from pyfast.sketch._parts import Part, silent_parts


class _Tap(torch.autograd.Function):
    """The identity; tells the capture what passes through it backward."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, capture: Capture, number: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.capture, ctx.number, ctx.layout = capture, number, capture.layout
        ctx.of_a = capture.parts[number].transposed
        return alias(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        x, dy = ctx.saved_tensors[0], gradients[0]
        ctx.capture.add(ctx.number, ctx.layout, *((x, dy) if ctx.of_a else (dy, x)))
        return gradients[0], None, None, None


class Capture:
    """While entered, hands each part's factors, float32, to `sink`, once each.

    ``sink(number, wide, narrow)`` gets wide (R, T, long) and narrow (R, T, rank): response b's
    gradient is ``sum_t wide[b, t] narrow[b, t]^T``. Parts come in descending order, whole, whatever
    the order in which autograd brings them: one that is early, or that runs several times, waits.
    Those that are zero whatever the tokens, the A before a B of zeros, are left out, so that
    nothing is kept for them. ``layout`` says whose the tokens are that go through the model next.
    A part that should have run and did not is an error, unless `unused` names it or is None.
    """

    def __init__(
        self,
        parts: list[Part],
        sink: Callable[[int, Tensor, Tensor], None],
        *,
        unused: Collection[str] | None = (),
    ) -> None:
        self.layout = Layout.of_rows(0, 0)
        self.backward = False  # what runs forward now is a recomputation
        self.parts = parts
        self._sink, self._unused = sink, unused
        self._undo: list[Callable[[], None]] = []
        self._open = [0] * len(parts)  # runs whose gradient is still to come
        self._idle: set[int] = set()  # the parts that should run and have not yet
        self._waiting: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._next = len(parts) - 1

    def __enter__(self) -> Capture:
        try:
            self._replace_all()
        except BaseException:
            self.undo()
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.undo()
        if kind is None:
            if self._unused is not None:
                self._idle -= {n for n in self._idle if self.parts[n].name in self._unused}
            if self._idle and self._unused is not None:
                raise ValueError(
                    f"model: {self.parts[min(self._idle)].name} was not run in a pass, so that its "
                    f"gradient is not known ({len(self._idle)} of {len(self.parts)} matrices)"
                )
            self._hand_on(at_the_end=True)
        self._waiting.clear()

    def undo(self) -> None:
        """Leave the model as it was; a second call, after a Ctrl-C in the first, does the rest."""
        while self._undo:
            self._undo[-1]()
            self._undo.pop()

    def _replace_all(self) -> None:
        silent = silent_parts(self.parts)
        self._idle = set(range(len(self.parts))) - silent
        numbers: dict[tuple[int, str], dict[bool, int]] = {}  # of a layer, by whether they are of A
        for number, part in enumerate(self.parts):
            for site in part.sites:
                known = numbers.setdefault((id(site.layer), site.adapter), {})
                if number not in silent:
                    known[site.of_a] = number
        plain: dict[tuple[int, str], bool] = {}
        hooked: set[int] = set()
        for number, part in enumerate(self.parts):
            for site in part.sites:
                key = (id(site.layer), site.adapter)
                if key not in plain:
                    plain[key] = is_plain(site.layer, site.adapter, now=True)
                    if plain[key] and numbers[key]:
                        self._replace(site.layer, site.adapter, numbers[key])
                # A module that several layers share is hooked once.
                if not plain[key] and number not in silent and id(site.module) not in hooked:
                    hooked.add(id(site.module))
                    hook = self._hook(number)
                    self._undo.append(partial(unhook, site.module, hook))
                    site.module.register_forward_hook(hook)

    def _replace(self, layer: Any, adapter: str, numbers: dict[bool, int]) -> None:
        """Have a layer run as `LoraLinear` until the end."""
        before = layer.__dict__.get("forward")
        a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        base, scale = layer.base_layer, layer.scaling[adapter]
        wanted = (True in numbers, False in numbers)

        def forward(x: Tensor) -> Tensor:
            layout = self.layout
            for number in numbers.values():
                self._expect(number, x, x.requires_grad and torch.is_grad_enabled())

            def tell(of_a: bool, wide: Tensor, narrow: Tensor) -> None:
                self.add(numbers[of_a], layout, wide, narrow)

            return LoraLinear.apply(  # type: ignore[no-any-return, no-untyped-call]
                x, base.weight, base.bias, a, b, scale, tell, wanted
            )

        def undo() -> None:
            if layer.__dict__.get("forward") is not forward:
                return
            if before is None:
                del layer.forward
            else:
                layer.forward = before

        self._undo.append(undo)
        layer.forward = forward

    def _hook(self, number: int) -> Callable[..., Tensor]:
        def hook(_module: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            x = inputs[0]
            self._expect(number, x, output.requires_grad)
            if not output.requires_grad:  # DoRA's identity, or the first run of a checkpoint
                return output
            tapped: Tensor = _Tap.apply(output, x, self, number)  # type: ignore[no-untyped-call]
            return tapped

        return hook

    def _expect(self, number: int, x: Tensor, requires_grad: bool) -> None:
        """Note that a part runs on x; refuse tokens whose owners cannot be told."""
        fits = self.layout.fits(x)
        if fits and not self.backward:
            self._open[number] += 1
            self._idle.discard(number)
        if requires_grad and not fits:
            raise ValueError(
                f"model: {self.parts[number].name} saw an input of shape {tuple(x.shape)}, "
                f"expected {(*self.layout.shape, x.shape[-1])}: whose tokens these are cannot "
                "be told (a mixture of experts?)"
            )

    def add(self, number: int, layout: Layout, wide: Tensor, narrow: Tensor) -> None:
        """Take what one run of a part gives: for each token, (..., long) and (..., rank)."""
        if number > self._next:
            raise RuntimeError(f"{self.parts[number].name}: a gradient came after its turn")
        wide = layout.per_response(wide.detach()).float()
        narrow = layout.per_response(narrow.detach()).float()
        self._waiting.setdefault(number, []).append((wide, narrow))
        self._open[number] -= 1
        self._hand_on()

    def _hand_on(self, at_the_end: bool = False) -> None:
        while self._next >= 0 and (at_the_end or self._open[self._next] <= 0):
            runs = self._waiting.pop(self._next, [])
            if len(runs) == 1:
                self._sink(self._next, *runs[0])
            elif runs:  # their gradients add up: one sum over the tokens of all
                wide, narrow = (torch.cat(factor, dim=1) for factor in zip(*runs, strict=True))
                self._sink(self._next, wide, narrow)
            self._next -= 1
