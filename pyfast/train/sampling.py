"""Sampling responses: the N responses to one prompt share its keys and values.

A prompt goes through the model once. Its keys and values are repeated for the N rows, with several
prompts padded on the left, where a mask hides the padding. The results are those of one response
at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyfast.models.causal_lm import CausalLM
from pyfast.train.errors import UserError


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
        Tokens that end a response (`end_ids`).
    """

    def __init__(self, lm: CausalLM, tokenizer: Any, ends: frozenset[int]) -> None:
        self.lm, self.tokenizer, self.ends = lm, tokenizer, ends

    @torch.no_grad()
    def __call__(
        self,
        prompts: list[list[int]],
        n: int,
        *,
        max_new_tokens: int,
        temperature: float,
        seeds: list[int],
    ) -> list[Samples]:
        """Sample N responses to each of several prompts, all together.

        Parameters
        ----------
        prompts : list of lists of int
            Tokens of the prompts (`prompt_ids`); shorter ones are padded on the left.
        n : int
            Responses to draw for each.
        max_new_tokens : int
            Tokens after which a response is cut.
        temperature : float
            The next token has probability softmax(logits / temperature).
        seeds : list of int
            One a prompt. The same seed, prompt and weights give the same responses.

        Returns
        -------
        list of Samples
            One a prompt.
        """
        device = self.lm.head.weight.device
        # One uniform number for each row and position, drawn beforehand: neither the other prompts
        # nor the rows that have ended change the numbers of a row.
        uniform = torch.cat([_uniform(seed, n, max_new_tokens) for seed in seeds]).to(device)
        ends = torch.tensor(sorted(self.ends), device=device)
        token_ids: list[list[int]] = [[] for _ in uniform]
        finished = [False] * len(token_ids)

        cache, hidden, mask = self._prefill(prompts)
        cache.batch_repeat_interleave(n)
        hidden, mask = hidden.repeat_interleave(n, dim=0), mask.repeat_interleave(n, dim=0)
        rows = torch.arange(len(token_ids), device=device)  # the responses that go on
        for position in range(max_new_tokens):
            logits = self.lm.logits(hidden) / temperature
            tokens = _draw(logits, uniform[rows, position])
            ended = torch.isin(tokens, ends)
            for row, token, end in zip(rows.tolist(), tokens.tolist(), ended.tolist(), strict=True):
                token_ids[row].append(token)
                finished[row] = end
            if position == max_new_tokens - 1 or ended.all():
                break
            if ended.any():  # rows that have ended cost no more work
                going = (~ended).nonzero().squeeze(1)
                rows, tokens, mask = rows[going], tokens[going], mask[going]
                cache.batch_select_indices(going)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            hidden = self.lm.backbone(
                input_ids=tokens[:, None],
                attention_mask=mask,
                position_ids=mask.sum(dim=1, keepdim=True) - 1,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, -1]
        texts = self.tokenizer.batch_decode(token_ids, skip_special_tokens=True)
        return [
            Samples(token_ids[i : i + n], texts[i : i + n], finished[i : i + n])
            for i in range(0, len(token_ids), n)
        ]

    def _prefill(self, prompts: list[list[int]]) -> tuple[Any, Tensor, Tensor]:
        """Run B prompts once, padded on the left.

        Returns their keys and values, their last hidden states (B, H) and the mask of their real
        tokens (B, longest).
        """
        longest = max(len(prompt) for prompt in prompts)
        tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, prompt in enumerate(prompts):
            tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        device = self.lm.head.weight.device
        mask = mask.to(device)
        out = self.lm.backbone(
            input_ids=tokens.to(device),
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
            use_cache=True,
        )
        return out.past_key_values, out.last_hidden_state[:, -1], mask


def _uniform(seed: int, n: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, length, 1, generator=generator, dtype=torch.float64)


def _draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Sample one token a row by inverting the cumulative distribution, in float64.

    Parameters
    ----------
    logits : float tensor (n, V)
    uniform : float64 tensor (n, 1) in [0, 1)

    Returns
    -------
    int64 tensor (n,)
    """
    cumulative = torch.softmax(logits, dim=-1).double().cumsum(dim=-1)
    # right=True skips tokens of probability zero, also at uniform = 0
    tokens = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    return tokens.squeeze(1).clamp(max=logits.shape[1] - 1)


def end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the tokens that end a response, by the generation settings and the tokenizer."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    found = frozenset(int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None)
    if not found:
        raise UserError("policy.model: its tokenizer has no end-of-sequence token")
    return found
