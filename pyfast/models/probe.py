"""How a model may be fed so that a log-probability is that of the model called on it alone.

Tried on made-up tokens, with the model in evaluation mode: each response in a call of its own, as
nothing else can disturb it (*alone*); padded side by side (*together*); behind one shared prompt
(*shared*). Half types are computed in float32 (`wide`), where what a model does is not hidden by
what it rounds, and then once as they are, where sharing may not add to the error that the type
itself makes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyfast.losses.precision import without_autocast
from pyfast.models.layout import Group, Layout, lay_out
from pyfast.models.wide import InFloat32

PROMPT, RESPONSES = 24, (96, 2, 61, 17)  # tokens: offsets in a shared row beyond 100
FEW = (96, 17)  # where every shape is compiled anew
ALLOWED = 3e-5  # of a hidden state's length; beside NOISE times what padding alone does to it
NOISE = 10.0
MOST_ALLOWED = 3e-4
MORE = 3.0  # times the error of its own type that sharing may have
FAILURES = (TypeError, ValueError, RuntimeError, IndexError, AttributeError, NotImplementedError)

Run = Callable[[Layout], Tensor]


@dataclass(frozen=True)
class Ways:
    """What a model can take; each a reason, or None where it can.

    Attributes
    ----------
    not_shared : str or None
        Why a prompt cannot be read once for several responses.
    not_together : str or None
        Why responses cannot lie in one padded batch: each is fed in a call of its own.
    """

    not_shared: str | None
    not_together: str | None


class Probe:
    """A model on made-up groups.

    Parameters
    ----------
    alone : callable
        Tokens (1, L) -> all their hidden states (L, H), as the model itself would.
    together : callable
        A layout -> the hidden states that predict its response tokens, (T, H).
    vocabulary : int
        Tokens that model and head both have.
    special : set of int
        Tokens that mean something else than text, such as padding; not used.
    longest : int or None
        Tokens of a prompt and response that the model takes.
    longest_row : int or None
        Tokens of a row.
    compiled : bool
        Whether the model is compiled for every shape: fewer are tried then.
    """

    def __init__(
        self,
        alone: Callable[[Tensor], Tensor],
        together: Run,
        vocabulary: int,
        special: set[int],
        longest: int | None,
        longest_row: int | None,
        *,
        compiled: bool,
    ) -> None:
        wanted = FEW if compiled else RESPONSES
        self._alone, self._together = alone, together
        part = 1.0
        if longest is not None:
            part = min(part, longest / (PROMPT + max(RESPONSES)))
        if longest_row is not None:
            part = min(part, longest_row / (PROMPT + sum(wanted)))
        self._sizes = [max(1, int(part * size)) for size in wanted]
        self._prompt_size = max(1, int(part * PROMPT))
        usable = [token for token in range(vocabulary) if token not in special]
        self._usable = torch.tensor(usable or [0])
        self._generator = torch.Generator().manual_seed(1)
        self._group: Group = (
            self._draw(self._prompt_size),
            [self._draw(size) for size in self._sizes],
        )

    def find_ways(self, why_no_mask: str | None, half: bool) -> Ways:
        """Try out what the model can take.

        Parameters
        ----------
        why_no_mask : str or None
            Why sharing need not be tried.
        half : bool
            Whether the model computes in float16 or bfloat16.

        Raises
        ------
        ValueError
            If the model is not causal.
        """
        wide = half and _runs(lambda: self._each_alone(wide=True))
        truth, before = self._each_alone(wide=wide)
        allowed = ALLOWED if wide or not half else 4 * torch.finfo(torch.bfloat16).eps
        if not _near(
            before[1:],
            before[:1] * (len(before) - 1),
            MOST_ALLOWED if wide or not half else allowed,
        ):
            self._check_causal(wide)
            return Ways(alone := "its hidden states depend on the length of what follows", alone)
        found, reason = _tried(lambda: self._run(share=False, wide=wide))
        if found is None:
            return Ways(f"the model does not take padded rows ({reason})", reason)
        noise = _distance(found, truth)
        if not noise <= (MOST_ALLOWED if wide or not half else allowed):
            text = f"hidden states of padded rows differ by {noise:.1e} of their length"
            return Ways(text, text)
        if why_no_mask is not None:
            return Ways(why_no_mask, None)
        shared, reason = _tried(lambda: self._run(share=True, wide=wide))
        if shared is None:
            return Ways(f"the model does not take a block mask ({reason})", None)
        difference = _distance(shared, truth)
        if not difference <= min(max(allowed, NOISE * noise), max(allowed, MOST_ALLOWED)):
            return Ways(
                f"hidden states in a shared row differ by {difference:.1e} of their length", None
            )
        return Ways(self._why_rounding(truth) if wide else None, None)

    def _why_rounding(self, truth: Tensor) -> str | None:
        """Compare the errors of the type itself, as float32 of the same weights tells them."""
        apart = [self._each_alone(wide=False)[0], self._run(share=False, wide=False)]
        allowed = max(_error(states, truth) for states in apart)
        shared = _error(self._run(share=True, wide=False), truth)
        if shared <= MORE * allowed + ALLOWED:
            return None
        return (
            f"rounding in a shared row is {shared:.1e} of the hidden states' length, "
            f"{allowed:.1e} in rows of one response"
        )

    def _check_causal(self, wide: bool) -> None:
        """Refuse a model in which a token changes the states before it."""
        prompt, responses = self._group
        other = self._draw(len(responses[0]))
        with _in(wide):
            one, two = (
                self._alone(torch.tensor([[*prompt, *y]]))[: len(prompt)]
                for y in (responses[0], other)
            )
        if not _distance(two, one) <= MOST_ALLOWED:
            raise ValueError(
                "model: it is not causal: its hidden states depend on tokens that come after them"
            )

    def _each_alone(self, *, wide: bool) -> tuple[Tensor, list[Tensor]]:
        """Return the predicting states of every response, and those of the prompt in each call."""
        prompt, responses = self._group
        states, before = [], []
        for response in responses:
            with _in(wide):
                found = self._alone(torch.tensor([[*prompt, *response]]))
            states.append(found[len(prompt) - 1 : -1])
            before.append(found[: len(prompt)])
        return torch.cat(states), before

    def _run(self, *, share: bool, wide: bool) -> Tensor:
        with _in(wide):
            return self._together(lay_out([self._group], share=share))

    def _draw(self, count: int) -> list[int]:
        places = torch.randint(len(self._usable), (count,), generator=self._generator)
        found: list[int] = self._usable[places].tolist()
        return found


@contextlib.contextmanager
def _in(wide: bool) -> Iterator[None]:
    if not wide:
        yield
        return
    with without_autocast(), InFloat32():  # type: ignore[no-untyped-call]
        yield


def _runs(call: Callable[[], Any]) -> bool:
    return _tried(call)[0] is not None


def _tried(call: Callable[[], Any]) -> tuple[Any, str]:
    """Return what a call gives, or None and why it fails."""
    try:
        return call(), ""
    except FAILURES as error:
        return None, (str(error).strip() or type(error).__name__).splitlines()[0]


def _near(states: list[Tensor], others: list[Tensor], allowed: float) -> bool:
    return all(_distance(one, other) <= allowed for one, other in zip(states, others, strict=True))


def _distance(one: Tensor, other: Tensor) -> float:
    """Return the most by which a token's state is apart, as a part of its length."""
    wide = other.double()
    apart = (one.double() - wide).norm(dim=-1) / wide.norm(dim=-1).clamp(min=1e-300)
    return float(apart.max())


def _error(one: Tensor, truth: Tensor) -> float:
    """Return by how much states are apart in the mean, as a part of their length."""
    wide = truth.double()
    return float((one.double() - wide).norm() / wide.norm().clamp(min=1e-300))
