"""Our head in TRL's own trainers: the one function that makes log-probabilities there, replaced."""

from __future__ import annotations

import contextlib
import math
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
    The entropy comes without a gradient, which no part of DPO asks for.

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
    theirs = getattr(utils, _FUNCTION, None)
    if theirs is None:
        raise RuntimeError(
            f"fast_head: TRL {trl.__version__} has no fused head here (it needs Triton)"
        )
    changed: dict[str, Any] = {_FUNCTION: _Head(theirs)}
    if hasattr(utils, _COMPACT):
        changed[_COMPACT] = _scored_only
    before = {name: getattr(utils, name) for name in changed}
    for name, value in changed.items():
        setattr(utils, name, value)
    try:
        yield
    finally:
        for name, value in changed.items():
            if getattr(utils, name) is value:
                setattr(utils, name, before[name])


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
            logps, entropy = found.logps, found.entropy[:, 0]
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
