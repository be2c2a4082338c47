"""Sampling responses: the N responses to one prompt share its keys and values.

A prompt goes through the model once. Its keys and values are repeated for the N rows, with several
prompts padded on the left, where a mask hides the padding. A model that does not take this is
sampled by a slower way (`decoding`). The results are those of one response at a time.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyfast.models.causal_lm import CausalLM
from pyfast.train.errors import DivergedError
from pyfast.train.policy import decoding

GREEDY_BELOW = 1e-6
"""Temperatures below this are 0: rounding of the logits alone would decide between the best."""


@dataclass(frozen=True)
class Samples:
    """Responses as they were sampled.

    Attributes
    ----------
    token_ids : list of N lists of int
        The end token included, where the response has one.
    texts : list of str, length N
        Decoded without special tokens.
    finished : list of bool, length N
        False where the response was cut at the longest allowed length: it has no end token.
    """

    token_ids: list[list[int]]
    texts: list[str]
    finished: list[bool]


class Sampler:
    """Draws responses from a causal language model as it stands.

    Parameters
    ----------
    lm : CausalLM
    tokenizer : transformers tokenizer
    ends : set of int
        Tokens that end a response (`tokens.end_ids`).

    Attributes
    ----------
    why_slower : str or None
        Which slower way is gone, and why not all prompts are sampled together with a cache; None if
        they are, or before the first use.
    """

    def __init__(self, lm: CausalLM, tokenizer: Any, ends: frozenset[int]) -> None:
        self.lm, self.tokenizer, self.ends = lm, tokenizer, ends
        self.why_slower: str | None = None
        self._way: decoding.Way | None = None
        self._told: set[str] = set()

    def __call__(
        self,
        prompts: list[list[int]],
        n: int,
        *,
        max_new_tokens: int,
        temperature: float,
        seeds: list[int],
    ) -> list[Samples]:
        """Sample N responses to each of several prompts.

        Parameters
        ----------
        prompts : list of non-empty lists of int
            Tokens of the prompts (`tokens.prompt_tokens`).
        n : int
            Responses to draw for each.
        max_new_tokens : int
            Tokens after which a response is cut.
        temperature : float
            The next token has probability softmax(logits / temperature). At 0, and below
            `GREEDY_BELOW`, it is the one of the largest logit, the first of equals.
        seeds : list of int
            One a prompt. The same seed, prompt and weights give the same responses.

        Returns
        -------
        list of Samples
            One a prompt.

        Raises
        ------
        ValueError
            If a prompt is empty or has a token that the model has not, or a number is bad.
        DivergedError
            If logits are not finite.
        """
        self._check(prompts, n, max_new_tokens, temperature, seeds)
        way = self._way_for(max(map(len, prompts)) + max_new_tokens)
        settings = (n, max_new_tokens, temperature)
        if not way.alone:
            return self._sample(way, prompts, seeds, 0, *settings)
        return [
            self._sample(way, [prompt], [seed], i, *settings)[0]
            for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
        ]

    def _check(
        self, prompts: list[list[int]], n: int, length: int, temperature: float, seeds: list[int]
    ) -> None:
        if not prompts or len(seeds) != len(prompts):
            raise ValueError(
                f"seeds: expected one for each of at least one prompt, got {len(seeds)} "
                f"for {len(prompts)}"
            )
        if n < 1 or length < 1:
            raise ValueError(f"n, max_new_tokens: expected at least 1, got {n}, {length}")
        if not (math.isfinite(temperature) and temperature >= 0):
            raise ValueError(f"temperature: expected a finite number >= 0, got {temperature}")
        rows = self.lm.base.get_input_embeddings().weight.shape[0]
        for i, prompt in enumerate(prompts):
            if len(prompt) == 0:
                raise ValueError(f"prompts: expected at least one token in prompt {i}")
            if min(prompt) < 0 or max(prompt) >= rows:
                wrong = next(token for token in prompt if not 0 <= token < rows)
                raise ValueError(
                    f"prompts: expected tokens below {rows}, got {wrong} in prompt {i}"
                )

    def _way_for(self, longest: int) -> decoding.Way:
        """Return the way of sampling rows of up to this length; tell once if it is a slower one."""
        if self._way is None:
            self._way, self.why_slower = decoding.choose(self.lm)
        way, reason = self._way, self.why_slower
        if decoding.regime_of(self.lm)(longest) != 0 and way is not decoding.WAYS[-1]:
            way = decoding.WITHOUT_CACHE
            reason = f"{way.what}: its rotary embeddings change in rows as long as {longest}"
            self.why_slower = self.why_slower or reason
        if reason is not None and way.what not in self._told:
            self._told.add(way.what)
            sys.stderr.write(f"pyfast: sampling {reason}\n")
        return way

    @torch.no_grad()
    def _sample(
        self,
        way: decoding.Way,
        prompts: list[list[int]],
        seeds: list[int],
        first: int,
        n: int,
        max_new_tokens: int,
        temperature: float,
    ) -> list[Samples]:
        """Sample prompts, of which the first is number `first`, all together."""
        device = self.lm.device
        # One uniform number for each row and position, drawn beforehand: neither the other prompts
        # nor the rows that have ended change the numbers of a row.
        uniform = torch.cat([_uniform(seed, n, max_new_tokens) for seed in seeds]).to(device)
        ends = torch.tensor(sorted(self.ends), device=device)
        token_ids: list[list[int]] = [[] for _ in uniform]
        finished = [False] * len(token_ids)

        state = way.make(self.lm)
        hidden = state.start(prompts, n)
        rows = torch.arange(len(token_ids), device=device)  # the responses that go on
        for position in range(max_new_tokens):
            logits = self.lm.logits(hidden)
            # NaN is the largest of all numbers here; a token that cannot be, -inf, is none's error
            if (bad := ~torch.isfinite(logits.amax(-1))).any():
                prompt, response = divmod(int(rows[bad.nonzero()[0, 0]]), n)
                raise DivergedError(
                    "sampling: the model has diverged: its logits are not finite at token "
                    f"{position} of response {response} to prompt {first + prompt}"
                )
            tokens = _draw(logits, temperature, uniform[rows, position])
            ended = torch.isin(tokens, ends)
            for row, token, end in zip(rows.tolist(), tokens.tolist(), ended.tolist(), strict=True):
                token_ids[row].append(token)
                finished[row] = end
            if position == max_new_tokens - 1 or ended.all():
                break
            if ended.any():  # rows that have ended cost no more work
                going = (~ended).nonzero().squeeze(1)
                rows, tokens = rows[going], tokens[going]
                state.keep(going)
            hidden = state.step(tokens)
        texts = self.tokenizer.batch_decode(token_ids, skip_special_tokens=True)
        return [
            Samples(token_ids[i : i + n], texts[i : i + n], finished[i : i + n])
            for i in range(0, len(token_ids), n)
        ]


def _uniform(seed: int, n: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, length, 1, generator=generator, dtype=torch.float64)


def _draw(logits: Tensor, temperature: float, uniform: Tensor) -> Tensor:
    """Sample one token a row by inverting the cumulative distribution, in float64.

    Parameters
    ----------
    logits : float tensor (n, V)
        Finite, or -inf for tokens that cannot be.
    temperature : float
    uniform : float64 tensor (n, 1) in [0, 1)

    Returns
    -------
    int64 tensor (n,)
    """
    if temperature < GREEDY_BELOW:
        best = logits == logits.amax(dim=-1, keepdim=True)
        return best.int().argmax(dim=-1)  # the first of equals, which argmax of floats need not be
    cumulative = torch.softmax(logits / temperature, dim=-1).double().cumsum(dim=-1)
    # right=True skips tokens of probability zero, also at uniform = 0
    tokens = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    return tokens.squeeze(1).clamp(max=logits.shape[1] - 1)
