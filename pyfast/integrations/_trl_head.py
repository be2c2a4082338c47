"""Our head in TRL's own trainers: the one function that makes log-probabilities there, replaced."""

from __future__ import annotations

import contextlib
import math
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import trl
from packaging.version import Version
from torch import Tensor
from trl.trainer import utils

from pyfast.losses import sequence_logps

KNOWN = ("1.15", "1.16")
"""Versions of TRL whose trainers go through a function that this replaces."""

_FUNCTION, _COMPACT = "_ChunkedLogProbFunction", "_use_triton"
_SURE = math.log(0.5) + 1e-3
"""A token of more than this log-probability is the likeliest of all."""
_TILE = 4096


@contextlib.contextmanager
def fast_head() -> Iterator[None]:
    """Let TRL's trainers make log-probabilities by `pyfast.losses.sequence_logps` for a while.

    For scripts of pairs that are to stay as they are: ``with fast_head(): trainer.train()`` with a
    stock `trl.DPOTrainer`. Losses, gradients and metrics are TRL's within rounding; nothing but the
    product with the head, and what is made of it, is done otherwise. What was changed is put back
    at the end, after an error too. It holds for the whole process, and so for all its threads.
    Where a loss has the entropy in it (GRPO's ``entropy_coef``), the entropy's gradient is made by
    TRL's own function.

    Raises
    ------
    RuntimeError
        Of a version of TRL that is not one of `KNOWN`, or that is not as it was released.

    Warns
    -----
    UserWarning
        Where something is asked for that only TRL's own function makes (``use_weighting``): that
        call is TRL's then.
    """
    version = Version(trl.__version__)
    if f"{version.major}.{version.minor}" not in KNOWN:
        raise RuntimeError(
            f"fast_head: expected TRL {' or '.join(KNOWN)}, got {trl.__version__}; "
            "MultiPreferenceTrainer works with more versions"
        )
    if getattr(utils, _FUNCTION, None) is None:
        raise RuntimeError(
            f"fast_head: TRL {trl.__version__} has no fused head here (it needs Triton)"
        )
    _enter()
    try:
        yield
    finally:
        _leave()


_lock = threading.Lock()
_within = 0
_changed: dict[str, tuple[Any, Any]] = {}
"""What is replaced, by name: what it was, and what it is."""


def _enter() -> None:
    """Replace TRL's functions, if no other `fast_head` has done so: they need not end in order."""
    global _within
    with _lock:
        if _within == 0:
            theirs = getattr(utils, _FUNCTION)
            _changed[_FUNCTION] = (theirs, _Head(theirs))
            if hasattr(utils, _COMPACT):
                _changed[_COMPACT] = (getattr(utils, _COMPACT), _scored_only)
            for name, (_, ours) in _changed.items():
                setattr(utils, name, ours)
        _within += 1


def _leave() -> None:
    """Put TRL's functions back when the last `fast_head` ends, where they are still ours."""
    global _within
    with _lock:
        _within -= 1
        if _within == 0:
            for name, (theirs, ours) in _changed.items():
                if getattr(utils, name) is ours:
                    setattr(utils, name, theirs)
            _changed.clear()


def _scored_only(device: Any) -> bool:
    """Have only scored positions given to the head, on every device."""
    return True


class _Head:
    """Stands in for TRL's autograd function."""

    def __init__(self, theirs: Any) -> None:
        self.theirs = theirs

    def apply(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
        softcap: float | None = None,
        scale: float = 1.0,
        outputs: tuple[str, ...] = (),
    ) -> Any:
        """Return log-probs, entropy, nothing, mean logits and whether a target is the likeliest."""
        asked = (hidden, weight, bias, targets, temperature, chunk_size, softcap, scale, outputs)
        unknown = set(outputs) - {"log_probs", "entropy", "mean_logits", "is_top1"}
        if unknown or len(hidden) == 0 or not scale > 0:
            if unknown:
                warnings.warn(
                    f"fast_head: TRL's own head makes {', '.join(sorted(unknown))}", stacklevel=2
                )
            return self.theirs.apply(*asked)
        kind = hidden.device.type
        if torch.is_autocast_enabled(kind):
            half = torch.get_autocast_dtype(kind)
            hidden, weight = hidden.to(half), weight.to(half)
            bias = None if bias is None else bias.to(half)
        if softcap is None:  # (W h + b) scale / temperature
            rows, shift, divisor = hidden, bias, temperature / scale
        else:
            rows, shift = hidden * scale, None if bias is None else bias * scale
            divisor = temperature
        how: dict[str, Any] = {"head_bias": shift, "temperature": divisor, "softcap": softcap}
        each = (rows[:, None], weight, targets[:, None])
        entropy = None
        if "entropy" in outputs:
            found = sequence_logps(*each, details=True, validate=False, **how)
            logps = found.logps
            entropy = _Entropy.apply(  # type: ignore[no-untyped-call]
                found.entropy[:, 0], self.theirs, *asked[:-1]
            )
        else:
            logps = sequence_logps(*each, validate=False, **how)
        with torch.no_grad():
            mean = top = None
            seen = _Logits(rows, weight, shift, softcap)
            if "mean_logits" in outputs:
                mean = seen.mean() / divisor
            if "is_top1" in outputs:
                top = logps > _SURE
                doubtful = (~top).nonzero()[:, 0]
                top[doubtful] = seen.likeliest(doubtful) == targets[doubtful]
        return logps, entropy, None, mean, top


class _Entropy(torch.autograd.Function):
    """An entropy that is known, with TRL's own gradient: most losses never ask for it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, theirs: Any, *asked: Any) -> Tensor:
        """Return the entropy, and keep what its gradient is made of."""
        hidden, weight, bias, targets, *ctx.how = asked
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.theirs = theirs
        kind = hidden.device.type
        half = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        ctx.autocast = {"device_type": kind, "dtype": half, "enabled": half is not None}
        return value.detach()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        """Return the gradients of hidden, weight and bias."""
        *inputs, targets = ctx.saved_tensors
        wanted = (*ctx.needs_input_grad[2:5],)
        found: list[Tensor | None] = [None, None, None]
        with torch.enable_grad(), torch.autocast(**ctx.autocast):
            own = [
                x if x is None else x.detach().requires_grad_(w)
                for x, w in zip(inputs, wanted, strict=True)
            ]
            _, entropy, *_ = ctx.theirs.apply(*own, targets, *ctx.how, ("entropy",))
        places = [i for i, w in enumerate(wanted) if w]
        asked: Any = [own[i] for i in places]
        slopes = torch.autograd.grad(entropy, asked, slope, allow_unused=True)
        for i, gradient in zip(places, slopes, strict=True):
            found[i] = gradient
        return (None, None, *found, *(None for _ in (targets, *ctx.how)))


class _Logits:
    """What metrics ask of the logits, tile by tile."""

    def __init__(
        self, rows: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None
    ) -> None:
        self.rows, self.weight, self.bias = rows.detach(), weight.detach(), bias
        self.softcap = softcap

    def mean(self) -> Tensor:
        """Return the mean logit of each row."""
        if self.softcap is None:
            mean = self.rows.float() @ self.weight.mean(0, dtype=torch.float32)
            return mean if self.bias is None else mean + self.bias.float().mean()
        total = self.rows.new_zeros(len(self.rows), dtype=torch.float32)
        for _, tile in self._tiles(self.rows):
            total += tile.sum(1)
        return total / len(self.weight)

    def likeliest(self, places: Tensor) -> Tensor:
        """Return the token of the largest logit of some rows, the first of equals."""
        rows = self.rows[places]
        best = rows.new_full((len(rows),), -torch.inf, dtype=torch.float32)
        where = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
        for start, tile in self._tiles(rows):
            largest = tile.amax(1)
            first = (tile == largest[:, None]).int().argmax(1) + start
            where = torch.where(largest > best, first, where)
            best = torch.maximum(best, largest)
        return where

    def _tiles(self, rows: Tensor) -> Iterator[tuple[int, Tensor]]:
        for start in range(0, len(self.weight), _TILE):
            tile = (rows @ self.weight[start : start + _TILE].T).float()
            if self.bias is not None:
                tile += self.bias[start : start + _TILE].float()
            if self.softcap is not None:
                tile = (tile / self.softcap).tanh_() * self.softcap
            yield start, tile
