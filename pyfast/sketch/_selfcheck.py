"""Before a model's gradients are trusted: a few made-up responses, in a batch and one at a time.

A layer that sees its tokens in another order, rows that see each other, padding that is seen,
segments that are not kept apart, noise: each shows in some LoRA matrix's gradient as a difference
between the batch and the response alone, far above what rounding does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pyfast.sketch._gradients import Passes, Sink
from pyfast.sketch._layout import Layout, Row, Tokens, join
from pyfast.sketch._parts import silent_parts
from pyfast.sketch._products import products

Way = Literal["together", "equal", "alone"]

_LENGTHS = (13, 7, 4)  # of the made-up responses, prompts included
LONGEST = _LENGTHS[0]
_SEEN = 1 << 16  # of a matrix's gradient, at most so many numbers are compared
_FAILURES = (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError)


@dataclass(frozen=True)
class Verdict:
    """What a check came to.

    Attributes
    ----------
    way : {"together", "equal", "alone"}
        How responses may share a pass: as rows of any lengths, of equal lengths, not at all.
    why : str or None
        What differed, unless they may share it freely.
    unused : frozenset of int
        The parts that no response ran.
    """

    way: Way
    why: str | None = None
    unused: frozenset[int] = frozenset()


class SelfCheck:
    """The made-up responses of one model in one mode, and their gradients alone.

    Raises
    ------
    ValueError
        If a response's gradient differs from one pass to the next, or none is finite.
    """

    def __init__(self, passes: Passes) -> None:
        self._passes = passes
        self._device = passes.embeddings.weight.device
        self._eps = _eps(passes)
        self._unused: frozenset[int] = frozenset()
        for seed in range(4):  # the next, if one of these tokens gives no number
            self._rows = self._make_rows(seed, _LENGTHS)
            self._alone = [self._gradients(join([row]))[0] for row in self._rows]
            if all(bool(torch.isfinite(g).all()) for found in self._alone for g in found):
                break
        else:
            number = next(
                n for found in self._alone for n, g in enumerate(found) if not g.isfinite().all()
            )
            name = passes.parts[number].name
            raise ValueError(f"model: gradients of made-up responses are not finite in {name}")
        self._scales = [_scales(found) for found in self._alone]
        self._noise = self._measure_noise()
        self._refuse_change()

    def rows(self) -> Verdict:
        """Check rows of unequal lengths, padded on the right; if need be, of equal lengths."""
        why = self._passes.why_not_together
        if why is None:
            why = self._compare(self._rows, join(self._rows))
            if why is None:
                return Verdict("together", unused=self._unused)
            if self._holds_for_equal_lengths():
                return Verdict("equal", why, self._unused)
        return Verdict("alone", why)

    def padded(self) -> Verdict:
        """Check rows that are padded on the left."""
        why = self._compare(self._rows, self._padded_on_the_left())
        return Verdict("together" if why is None else "equal", why)

    def packed(self) -> Verdict:
        """Check rows that hold several responses."""
        why = self._compare(self._rows, self._packed())
        return Verdict("together" if why is None else "equal", why)

    def _holds_for_equal_lengths(self) -> bool:
        rows = [self._rows[1], *self._make_rows(7, (_LENGTHS[1],))]
        alone, scales = self._alone, self._scales
        try:
            self._alone = [alone[1], self._gradients(join(rows[1:]))[0]]
            self._scales = [_scales(found) for found in self._alone]
            return self._compare(rows, join(rows)) is None
        finally:
            self._alone, self._scales = alone, scales

    def _compare(self, rows: list[Row], tokens: Tokens) -> str | None:
        """Return how the gradients in a batch differ from those alone; None if they do not."""
        try:
            found = self._gradients(tokens)
            moved = self._moved(tokens)
        except torch.OutOfMemoryError:
            raise
        except _FAILURES as error:
            return (str(error).strip() or type(error).__name__).splitlines()[0]
        for number in range(len(rows)):
            why = self._differ(self._alone[number], found[number], self._scales[number], 0)
            if why is not None:
                return why
        # What only the neighbours' tokens change shows without the rounding of another shape.
        return self._differ(found[0], moved, self._scales[0], 1)

    def _moved(self, tokens: Tokens) -> list[Tensor]:
        """Return the first response's gradient beside other tokens, of finite gradients if any."""
        for shift in range(1, 4):
            found = self._gradients(_with_other_neighbours(tokens, self._rows, shift))
            if all(bool(torch.isfinite(g).all()) for others in found for g in others):
                break
        return found[0]

    def _differ(
        self, want: list[Tensor], got: list[Tensor], scales: list[float], neighbours: int
    ) -> str | None:
        worst, where = 0.0, 0
        for number, (a, b) in enumerate(zip(want, got, strict=True)):
            error = float((a - b).norm()) / scales[number]
            allowed = self._allowed(number, bool(neighbours))
            if not error <= allowed and not error / allowed <= worst:
                worst, where = error / allowed, number
        if worst == 0:
            return None
        error = float((want[where] - got[where]).norm()) / scales[where]
        allowed = self._allowed(where, bool(neighbours))
        what = "changes with the other responses" if neighbours else "differs from that alone"
        return (
            f"a response's gradient of {self._passes.parts[where].name} {what}, by {error:.1e} of "
            f"its length ({allowed:.1e} allowed)"
        )

    def _allowed(self, number: int, neighbours: bool) -> float:
        """Return the difference that rounding may make in a part, relative to its gradient."""
        floor = (8 if neighbours else 1024) * self._eps
        return min(0.3, max(min(0.125, floor), 8 * self._noise[number]))

    def _measure_noise(self) -> list[float]:
        """Return how far each part's gradient moves if the embeddings do by one rounding."""
        generator = torch.Generator().manual_seed(0)
        eps = self._eps

        def shake(output: Tensor) -> Tensor:
            signs = torch.randint(0, 2, output.shape, generator=generator) * 2 - 1
            return output * (1 + eps * signs.to(output.device, torch.float64)).to(output.dtype)

        shaken = _Compared(self._passes, 1)
        self._passes.alone(join(self._rows[:1]), shaken, shake)
        return [
            float((a - b).norm()) / scale
            for a, b, scale in zip(self._alone[0], shaken.rows()[0], self._scales[0], strict=True)
        ]

    def _refuse_change(self) -> None:
        """Refuse a model that gives another gradient the second time."""
        again = self._gradients(join(self._rows[:1]))[0]
        exact = self._device.type == "cpu"
        for number, (a, b) in enumerate(zip(self._alone[0], again, strict=True)):
            error = float((a - b).norm()) / self._scales[0][number]
            if not error <= (0 if exact else self._allowed(number, True)):
                raise ValueError(
                    f"model: the gradient of {self._passes.parts[number].name} differs from one "
                    f"pass to the next by {error:.1e} of its length (noise in the forward pass, or "
                    "a state that it keeps?)"
                )

    def _gradients(self, tokens: Tokens) -> list[list[Tensor]]:
        """Return what is compared of the gradients, response by response, part by part."""
        compared = _Compared(self._passes, tokens.responses)
        if tokens.responses == 1:
            self._passes.alone(tokens, compared)
        else:
            self._passes.together(tokens, compared, unused=None)
            self._unused = compared.missing - silent_parts(self._passes.parts)
        return compared.rows()

    def _make_rows(self, seed: int, lengths: tuple[int, ...]) -> list[Row]:
        """Return responses of tokens from all over the vocabulary, so that routers differ."""
        base = self._passes.lm.base
        known = min(self._passes.vocabulary)
        special = {
            value
            for name, value in vars(base.config.get_text_config()).items()
            if name.endswith(("_token_id", "_token_index")) and isinstance(value, int)
        }
        usual = np.array([t for t in range(min(known, 1 << 20)) if t not in special] or [0])
        generator = np.random.default_rng(seed)
        longest = getattr(base.config.get_text_config(), "max_position_embeddings", None) or 64
        regime = self._passes.regime
        if regime is not None:  # longer rows keep apart from these
            longest = next(n for n in range(LONGEST, 0, -1) if regime(n) == regime(1))
        rows = []
        for length in lengths:
            length = max(2, min(length, int(longest)))
            ids = torch.from_numpy(generator.choice(usual, length)).to(self._device)
            mask = torch.arange(length, device=self._device) >= max(1, length // 3)
            rows.append(Row(ids, mask, None))
        return rows

    def _padded_on_the_left(self) -> Tokens:
        rows, length = self._rows, max(map(len, self._rows)) + 2
        right = join(rows)
        ids, mask, real = (
            torch.zeros(len(rows), length, dtype=kind, device=self._device)
            for kind in (torch.long, torch.bool, torch.long)
        )
        for number, row in enumerate(rows):
            ids[number, length - len(row) :] = row.ids
            mask[number, length - len(row) :] = row.mask
            real[number, length - len(row) :] = 1
        positions = (real.cumsum(1) - 1).clamp(min=0)
        owners = right.owners[:, :1].expand(len(rows), length)
        layout = Layout.of_rows(len(rows), length)
        return Tokens(ids, mask, real, positions, owners, len(rows), layout)

    def _packed(self) -> Tokens:
        """Return the first response behind the second, and the third on its own, then padding."""
        rows = self._rows
        lines = [[1, 0], [2]]
        length = max(sum(len(rows[n]) for n in line) for line in lines)
        ids, mask, positions = (
            torch.zeros(2, length, dtype=kind, device=self._device)
            for kind in (torch.long, torch.bool, torch.long)
        )
        owners = torch.full_like(ids, -1)
        for number, line in enumerate(lines):
            at = 0
            for n in line:
                place = slice(at, at + len(rows[n]))
                ids[number, place], mask[number, place] = rows[n].ids, rows[n].mask
                positions[number, place] = torch.arange(len(rows[n]), device=self._device)
                owners[number, place] = n
                at += len(rows[n])
        layout = Layout.of_owners(owners, len(rows))
        return Tokens(ids, mask, None, positions, owners, len(rows), layout)


class Spot:
    """A sink that hands everything on and looks at one response of a real batch.

    What depends on the length of a batch's rows does not show in short made-up ones.
    """

    def __init__(self, passes: Passes, sink: Sink, row: int) -> None:
        self._passes, self._sink, self._row = passes, sink, row
        self._seen = _Compared(passes, 1)

    def factors(self, number: int, wide: Tensor, narrow: Tensor) -> None:
        """Hand on, and keep of this response's."""
        self._sink.factors(number, wide, narrow)
        row = slice(self._row, self._row + 1)
        self._seen.factors(number, wide[row], narrow[row])

    def whole(self, number: int, gradient: Tensor) -> None:
        """Hand on."""
        self._sink.whole(number, gradient)

    def compare(self, tokens: Tokens) -> None:
        """Refuse the batch if the response alone has another gradient."""
        alone = _Compared(self._passes, 1)
        self._passes.alone(join([tokens.apart()[self._row]]), alone)
        pairs = list(zip(alone.rows()[0], self._seen.rows()[0], strict=True))
        lengths = [float(want.norm()) for want, _ in pairs]
        errors = [float((want - got).norm()) for want, got in pairs]
        error = float(np.linalg.norm(errors) / max(np.linalg.norm(lengths), 1e-30))
        allowed = min(0.3, 2.0**17 * _eps(self._passes))  # of a real model's rounding
        if np.isfinite(lengths).all() and not error <= allowed:
            worst = self._passes.parts[int(np.argmax(errors))].name
            raise ValueError(
                f"model: the gradient of response {self._row} of a batch differs from that of the "
                f"response alone by {error:.1e} of its length, most in {worst}: does something in "
                "it depend on the batch's longest row? Use batching='equal' or 'alone'"
            )


class _Compared:
    """A sink that keeps some of each gradient: rows from all over it."""

    def __init__(self, passes: Passes, responses: int) -> None:
        self._parts, self._responses = passes.parts, responses
        self._found: dict[int, Tensor] = {}

    def factors(self, number: int, wide: Tensor, narrow: Tensor) -> None:
        self._found[number] = products(wide[..., self._rows(number)], narrow, 1).flatten(1)

    def whole(self, number: int, gradient: Tensor) -> None:
        self._found[number] = gradient[self._rows(number)].reshape(1, -1)

    @property
    def missing(self) -> frozenset[int]:
        """The parts of which nothing came."""
        return frozenset(range(len(self._parts))) - self._found.keys()

    def rows(self) -> list[list[Tensor]]:
        """Return, response by response, the numbers of each part; zeros for one that is silent."""
        like = next(iter(self._found.values()), torch.zeros(1))
        zero = like.new_zeros(self._responses, 1)
        found = [self._found.get(number, zero) for number in range(len(self._parts))]
        return [[part[b] for part in found] for b in range(self._responses)]

    def _rows(self, number: int) -> slice:
        return slice(None, None, -(-self._parts[number].size // _SEEN))


def _scales(found: list[Tensor]) -> list[float]:
    """Return the length of each part, or a thousandth of a usual one where it is shorter."""
    lengths = [float(g.norm()) for g in found]
    usual = float(np.sqrt(np.mean(np.square(lengths))))
    return [max(length, 1e-3 * usual, 1e-30) for length in lengths]


def _eps(passes: Passes) -> float:
    """Return the rounding of the least exact numbers that the model computes with."""
    dtypes = {p.dtype for p in passes.model.parameters() if p.dtype.is_floating_point}
    device = passes.embeddings.weight.device.type
    with passes.lm.autocast():
        if torch.is_autocast_enabled(device):
            dtypes.add(torch.get_autocast_dtype(device))
    usual = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    # What is caught is float32, whatever the model.
    known = [torch.finfo(d).eps for d in dtypes | {torch.float32} if d in usual]
    narrow = any(d not in usual for d in dtypes)  # quantised: what it computes in is not told
    return max([torch.finfo(torch.bfloat16).eps] if narrow else [], default=max(known))


def _with_other_neighbours(tokens: Tokens, rows: list[Row], shift: int) -> Tokens:
    """Return the same batch with other tokens of `rows` in all responses but the first."""
    pool = torch.cat([row.ids for row in rows])
    others = pool.roll(shift).repeat(tokens.input_ids.numel() // len(pool) + 1)
    others = others[: tokens.input_ids.numel()].view_as(tokens.input_ids)
    ids = torch.where(tokens.owners == 0, tokens.input_ids, others)
    return replace(tokens, input_ids=ids)
