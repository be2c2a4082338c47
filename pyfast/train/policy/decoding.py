"""Running rows of tokens one token on, by the fastest way that gives what the model says.

Not every model keeps a cache, not every cache can be copied for many responses, and not every model
leaves padding out. So the ways are tried, fast ones first, against the model's plain forward pass
of one row without padding or cache.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from pyfast.models.causal_lm import CausalLM, in_evaluation
from pyfast.models.length import Regime, find_regime, forget
from pyfast.train.errors import DivergedError, UserError
from pyfast.train.policy import closeness

_WINDOW = 256
"""Windows of attention up to this length are tried out."""


class Rows(Protocol):
    """Rows of tokens under way."""

    def start(self, prompts: list[list[int]], n: int) -> Tensor:
        """Read prompts, n rows each; return the last hidden states (rows, H)."""

    def keep(self, going: Tensor) -> None:
        """Go on with these rows alone, int64 (going,)."""

    def step(self, tokens: Tensor) -> Tensor:
        """Read a token of each row, (rows,); return the last hidden states (rows, H)."""


class Cached:
    """Rows whose keys, values and states are kept; prompts of unlike lengths padded on the left.

    Parameters
    ----------
    lm : CausalLM
    copies : bool
        Read a prompt once and copy its cache; else read it for each row, and go on with all rows
        to the end, for caches that can be neither copied nor cut.
    """

    def __init__(self, lm: CausalLM, *, copies: bool = True) -> None:
        self.lm, self.copies = lm, copies
        accepted = inspect.signature(lm.backbone.forward).parameters
        anything = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
        names = [name for name in ("past_key_values", "cache_params") if name in accepted]
        if not names and not anything:
            raise TypeError("it takes no cache")
        self._name = [*names, "past_key_values"][0]
        self._positions = anything or "position_ids" in accepted

    def start(self, prompts: list[list[int]], n: int) -> Tensor:
        """Read prompts, n rows each; return the last hidden states (rows, H)."""
        if not self.copies:
            prompts = [prompt for prompt in prompts for _ in range(n)]
        longest = max(len(prompt) for prompt in prompts)
        tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, prompt in enumerate(prompts):
            tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        device = self.lm.device
        self._mask = mask.to(device)
        positions = (self._mask.cumsum(dim=1) - 1).clamp(min=0)
        self._cache = None
        hidden = self._run(tokens.to(device), positions)
        self._going = torch.arange(len(prompts) * (n if self.copies else 1), device=device)
        if self.copies:
            self._cache.batch_repeat_interleave(n)  # type: ignore[attr-defined]
            hidden = hidden.repeat_interleave(n, dim=0)
            self._mask = self._mask.repeat_interleave(n, dim=0)
        return hidden

    def keep(self, going: Tensor) -> None:
        """Go on with these rows alone, int64 (going,)."""
        if self.copies:
            self._mask = self._mask[going]
            self._cache.batch_select_indices(going)  # type: ignore[attr-defined]
        else:
            self._going = self._going[going]

    def step(self, tokens: Tensor) -> Tensor:
        """Read a token of each row, (rows,); return the last hidden states (rows, H)."""
        if not self.copies:  # rows that have ended read anything
            read = tokens.new_zeros(len(self._mask))
            read[self._going] = tokens
            tokens = read
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=1)
        hidden = self._run(tokens[:, None], self._mask.sum(dim=1, keepdim=True) - 1)
        return hidden if self.copies else hidden[self._going]

    def _run(self, tokens: Tensor, positions: Tensor) -> Tensor:
        given: dict[str, Any] = {"position_ids": positions} if self._positions else {}
        if self._cache is not None:
            given[self._name] = self._cache
        out = self.lm.backbone(input_ids=tokens, attention_mask=self._mask, use_cache=True, **given)
        self._cache = getattr(out, self._name, None)
        if self._cache is None:
            raise TypeError("it keeps no cache")
        return out.last_hidden_state[:, -1]  # type: ignore[no-any-return]


class Recomputed:
    """Rows that are read anew for each token, without padding: slow, and right for any model.

    Parameters
    ----------
    lm : CausalLM
    together : bool
        Read rows of one length in one batch.
    """

    def __init__(self, lm: CausalLM, *, together: bool = True) -> None:
        self.lm, self.together = lm, together
        accepted = inspect.signature(lm.backbone.forward).parameters
        self._given = {"use_cache": False} if "use_cache" in accepted else {}
        self._regime = regime_of(lm)

    def start(self, prompts: list[list[int]], n: int) -> Tensor:
        """Read prompts, n rows each; return the last hidden states (rows, H)."""
        self._rows = [list(prompt) for prompt in prompts]
        hidden = self._run().repeat_interleave(n, dim=0)
        self._rows = [list(prompt) for prompt in prompts for _ in range(n)]
        return hidden

    def keep(self, going: Tensor) -> None:
        """Go on with these rows alone, int64 (going,)."""
        self._rows = [self._rows[i] for i in going.tolist()]

    def step(self, tokens: Tensor) -> Tensor:
        """Read a token of each row, (rows,); return the last hidden states (rows, H)."""
        for row, token in zip(self._rows, tokens.tolist(), strict=True):
            row.append(token)
        return self._run()

    def _run(self) -> Tensor:
        alike: dict[int, list[int]] = {}
        for i, row in enumerate(self._rows):
            alike.setdefault(len(row) if self.together else -1 - i, []).append(i)
        found: dict[int, Tensor] = {}
        for indices in alike.values():
            tokens = torch.tensor([self._rows[i] for i in indices])
            if self._regime(tokens.shape[1]):  # as if it had read nothing longer before
                forget(self.lm.backbone, self.lm.device)
            out = self.lm.backbone(input_ids=tokens.to(self.lm.device), **self._given)
            found |= dict(zip(indices, out.last_hidden_state[:, -1], strict=True))
        return torch.stack([found[i] for i in range(len(self._rows))])


class Way:
    """One way of running rows.

    Attributes
    ----------
    what : str
        In words.
    make : callable
        Makes the rows of a `CausalLM`.
    alone : bool
        Whether each prompt has to be run by itself.
    """

    def __init__(self, what: str, make: Callable[[CausalLM], Rows], alone: bool = False) -> None:
        self.what, self.make, self.alone = what, make, alone


FAST = Way("all prompts together, with a cache", Cached)
WITHOUT_CACHE = Way("without a cache", Recomputed)
WAYS = (
    FAST,
    Way("one prompt after the other, with a cache", Cached, alone=True),
    Way(
        "one prompt after the other, with a cache for each response",
        lambda lm: Cached(lm, copies=False),
        alone=True,
    ),
    WITHOUT_CACHE,
    Way("without a cache, one response after the other", lambda lm: Recomputed(lm, together=False)),
)


@torch.no_grad()
def choose(lm: CausalLM) -> tuple[Way, str | None]:
    """Return the first of `WAYS` that a model takes, and why not the first of all.

    Raises
    ------
    UserError
        If not even the last gives what the model's plain forward pass does.
    DivergedError
        If that gives numbers that are not finite.
    """
    with in_evaluation(lm.base):
        prompts, forced = _problem(lm)
        forget(lm.backbone, lm.device)  # what was read before, if it is remembered
        rows = [p + f for p, f in zip(_twice(prompts), forced, strict=True)]
        truth = [_plain(lm, row)[-6:-1] for row in rows]  # what predicts the five forced tokens
        if not all(torch.isfinite(logits.amax(-1)).all() for logits in truth):
            raise DivergedError("sampling: the model has diverged: its logits are not finite")
        reasons: list[str] = []
        for way in WAYS:
            reason = _try(lm, way, prompts, forced, truth)
            if reason is None:
                again = closeness.differences(_plain(lm, rows[0])[None, -6:-1], truth[0][None])
                close, by = closeness.agree(again, lm.base)
                if close:
                    return way, f"{way.what}: {FAST.what}, {reasons[0]}" if reasons else None
                reason = f"the model remembers what it read before ({by:.1e})"
            reasons.append(reason)
    raise UserError(f"sampling: the model cannot be sampled: {reasons[-1]}")


def regime_of(lm: CausalLM) -> Regime:
    """Return the regime of a row's length; 0 is one in which a cache holds what a plain pass reads.

    Rotary embeddings that are scaled by the length of what is read (dynamic, longrope) change with
    one more token, of the keys that a cache holds, too.
    """
    found = find_regime(lm.backbone, lm.base.config.get_text_config())
    return found if found is not None else lambda length: 0


def _twice(prompts: list[list[int]]) -> list[list[int]]:
    return [prompt for prompt in prompts for _ in range(2)]


def _problem(lm: CausalLM) -> tuple[list[list[int]], list[list[int]]]:
    """Return prompts, one shorter and one longer than a window of attention, and what follows.

    Returns the prompts and, for two rows of each, five tokens.
    """
    config = lm.base.config.get_text_config()
    names = ("sliding_window", "attention_chunk_size", "window_size", "attention_window_size")
    windows = [getattr(config, name, None) for name in names]
    window = min((w for w in windows if isinstance(w, int) and 1 < w <= _WINDOW), default=16)
    most = getattr(config, "max_position_embeddings", None) or 10**9
    regime = regime_of(lm)  # of one regime, so that one forward pass tells of all lengths
    lengths = [min(max(length, 1), max(1, most - 5)) for length in (window - 2, window + 5, 2)]
    lengths = [
        max((n for n in range(1, length + 1) if regime(n + 5) == 0), default=1)
        for length in lengths
    ]
    rows = min(part.weight.shape[0] for part in (lm.base.get_input_embeddings(), lm.head))
    padding = getattr(config, "pad_token_id", None)
    ids = [i for i in range(min(rows, 4096)) if i != padding] or [0]
    generator = torch.Generator().manual_seed(0)

    def some(count: int) -> list[int]:
        return [ids[int(i)] for i in torch.randint(len(ids), (count,), generator=generator)]

    return [some(length) for length in lengths], [some(5) for _ in range(2 * len(lengths))]


def _plain(lm: CausalLM, row: list[int]) -> Tensor:
    tokens = torch.tensor([row], device=lm.device)
    return lm.base(input_ids=tokens).logits[0].float()  # type: ignore[no-any-return]


def _try(
    lm: CausalLM,
    way: Way,
    prompts: list[list[int]],
    forced: list[list[int]],
    truth: list[Tensor],
) -> str | None:
    """Return why a way cannot be gone, or None."""
    try:
        ours = _run(lm, way, prompts, forced)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"it fails ({reason})"
    except AssertionError as error:
        return f"it fails ({type(error).__name__})"
    for mine, plain in zip(ours, truth, strict=True):
        close, by = closeness.agree(closeness.differences(mine, plain[: len(mine)])[None], lm.base)
        if not close:
            return f"the logits differ by {by:.1e} of their length"
    return None


def _run(lm: CausalLM, way: Way, prompts: list[list[int]], forced: list[list[int]]) -> list[Tensor]:
    """Return each row's logits at each token, (tokens, V); a row of each two ends after two."""
    device = lm.device
    found: list[list[Tensor]] = [[] for _ in forced]
    parts = [[i] for i in range(len(prompts))] if way.alone else [list(range(len(prompts)))]
    for part in parts:
        state = way.make(lm)
        going = [2 * i + j for i in part for j in (0, 1)]
        hidden = state.start([prompts[i] for i in part], 2)
        for position in range(5):
            for row, logits in zip(going, lm.logits(hidden), strict=True):
                found[row].append(logits)
            if position == 4:
                break
            if position == 1:
                kept = [k for k, row in enumerate(going) if row % 2 == 0]
                going = [going[k] for k in kept]
                state.keep(torch.tensor(kept, device=device))
            tokens = torch.tensor([forced[row][position] for row in going], device=device)
            hidden = state.step(tokens)
    return [torch.stack(logits) for logits in found]
