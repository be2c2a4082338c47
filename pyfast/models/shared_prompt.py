"""Log-probabilities of groups of responses, each prompt read once.

The 1 + k responses of a group share their prompt, so a group is laid out as one row

    prompt r_0 r_1 ... r_k      positions 0 .. P-1, then P, P+1, ... anew for each response

in which a response sees the prompt and itself: P + (1+k) R tokens instead of (1+k) (P + R), with
the same log-probabilities. A model that cannot take such a row gets one row for each response.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from pyfast.models.causal_lm import CausalLM, in_evaluation
from pyfast.models.layout import (
    Group,
    Layout,
    block_mask,
    check_groups,
    check_integers,
    lay_out,
    visible,
)
from pyfast.models.length import find_regime, forget
from pyfast.models.limits import find_length, find_longest_row, find_window, special_tokens
from pyfast.models.parallel import refuse_outside_ddp
from pyfast.models.probe import Probe
from pyfast.models.shared_attention import SharedPromptMask

Features: TypeAlias = Literal["response", "all"]


class GroupScorer:
    """Log-probabilities of groups of responses under a causal language model.

    A log-probability is what the model gives when it reads this prompt and response alone. How
    groups may be fed to that end is tried out when a scorer is made, and again when the model's
    head, number type or attention has changed since.

    Parameters
    ----------
    model : transformers causal language model
        As it is, or in a peft model; its adapter counts as it stands, and so do its mode
        (training, evaluation), gradient checkpointing and autocast.
    share : {"auto", True, False}
        Read each prompt once. "auto" does so where the model can take it and else reads it with
        every response; ``True`` raises where it cannot.

    Attributes
    ----------
    lm : CausalLM
        The model's parts.
    why_not_shared : str or None
        Why prompts are never shared; None if they are, where a group allows it (`why_apart`).
    why_alone : str or None
        Why every response is fed in a call of its own, unpadded; None if they are fed together.

    Raises
    ------
    ValueError
        As `CausalLM`; if the model is not causal; or if `share` is ``True`` and the model cannot.
    """

    def __init__(self, model: Any, *, share: Literal["auto"] | bool = "auto") -> None:
        self.lm = CausalLM(model)
        self._must_share, self._may_share = share is True, share is not False
        self._try_out()

    def logps(self, groups: Sequence[Group]) -> Tensor:
        """Return log pi(y|x) of every response, those of the first group first.

        Parameters
        ----------
        groups : sequence of (prompt, responses)
            Tokens: of the prompt, and of each of its responses, end token included where it
            counts. Groups and responses may differ in size.

        Returns
        -------
        float32 tensor (responses of all groups,)
            Sums of log-probabilities at temperature 1, in nats; differentiable.

        Raises
        ------
        TypeError
            If a token is not an integer.
        ValueError
            If a group, a prompt or a response is empty, if a token is not one of the model's, if
            `share` is ``True`` and these groups cannot, or if the gradients would miss the DDP
            that the model is wrapped in.
        """
        (logps,) = self._each(groups, None)
        return logps

    def logps_and_features(
        self, groups: Sequence[Group], features: Features = "response"
    ) -> tuple[Tensor, Tensor]:
        """Return what `logps` returns, and a feature vector of every response by the same pass.

        Parameters
        ----------
        groups : sequence of (prompt, responses)
            As for `logps`.
        features : {"response", "all"}
            The mean of the last hidden states, after the model's final norm, at the response's
            own tokens, the last one included; or at these and those of the prompt. (The states
            that *predict* the response, one place earlier, are what log-probs are made of.)

        Returns
        -------
        logps : float32 tensor (responses of all groups,)
            As of `logps`.
        features : float tensor (responses of all groups, H)
            float32, or float64 from a model of that type; not scaled.

        Raises
        ------
        TypeError, ValueError
            As `logps`.

        Notes
        -----
        MASS-DPO, appendix B.3.
        """
        if features not in ("response", "all"):
            raise ValueError(f"features: expected 'response' or 'all', got {features!r}")
        logps, vectors = self._each(groups, features)
        return logps, vectors

    def _each(self, groups: Sequence[Group], features: Features | None) -> tuple[Tensor, ...]:
        """Return what `_score` finds of groups, in the order of their responses."""
        check_groups(groups)
        refuse_outside_ddp(self.lm.model)
        if self.lm.check():
            self._try_out()
        reason = self.why_apart(groups, whole=features is not None)
        self._refuse(reason)
        self._check_tokens(groups)
        found, order = [], []
        for numbers, part in self._calls(groups):
            found.append(self._score(part, reason is None, features))
            order += numbers
        places = torch.tensor(order, device=found[0][0].device).argsort()
        return tuple(torch.cat(parts).index_select(0, places) for parts in zip(*found, strict=True))

    def why_apart(self, groups: Sequence[Group], *, whole: bool = False) -> str | None:
        """Return why a prompt of these groups is read with every response; None if once.

        Parameters
        ----------
        groups : sequence of (prompt, responses)
            As for `logps`.
        whole : bool
            Whether the last token of each response is read too, as `logps_and_features` does.
        """
        if self.why_not_shared is not None:
            return self.why_not_shared
        longest = max((len(x) + max(map(len, ys), default=0) for x, ys in groups), default=0)
        if self._window is not None and longest > self._window:
            return f"{longest} tokens of a prompt and response exceed the window of {self._window}"
        last = 0 if whole else 1
        row = max((len(x) + sum(len(y) - last for y in ys) for x, ys in groups), default=0)
        if self._longest_row is not None and row > self._longest_row:
            return f"{row} tokens of a row exceed the {self._longest_row} that a layer's mask spans"
        return None

    def _refuse(self, reason: str | None) -> None:
        if self._must_share and reason is not None:
            raise ValueError(f"share: the prompt cannot be shared: {reason}")

    def _check_tokens(self, groups: Sequence[Group]) -> None:
        """Refuse tokens that the model does not have: the head would take another one's row."""
        read, scored = self._vocabularies()
        for g, (prompt, responses) in enumerate(groups):
            for tokens, end in ((prompt, read), *((y, min(read, scored)) for y in responses)):
                check_integers(tokens, g)
                if min(tokens) < 0 or max(tokens) >= end:
                    wrong = next(token for token in tokens if not 0 <= token < end)
                    raise ValueError(
                        f"groups: expected tokens from 0 to {end - 1}, got {wrong} in group {g}"
                    )

    def _vocabularies(self) -> tuple[int, int]:
        """Return how many tokens the model reads, and how many it scores."""
        read = self.lm.base.get_input_embeddings().weight.shape[0]
        return int(read), self.lm.vocabulary

    def _calls(self, groups: Sequence[Group]) -> Iterator[tuple[list[int], list[Group]]]:
        """Cut groups into what may stand in one call, with the numbers of its responses."""
        first, numbered = 0, []
        for prompt, responses in groups:
            numbers = range(first, first + len(responses))
            numbered.append((prompt, list(zip(numbers, responses, strict=True))))
            first += len(responses)
        if self.why_alone is not None:
            for prompt, ones in numbered:
                for number, y in ones:
                    yield [number], [(prompt, [y])]
            return
        if self._regime is None:
            yield list(range(first)), list(groups)
            return
        of = self._regime
        for regime in sorted({of(len(x) + len(y)) for x, ys in groups for y in ys}):
            numbers_of: list[int] = []
            part: list[Group] = []
            for prompt, ones in numbered:
                kept = [(i, y) for i, y in ones if of(len(prompt) + len(y)) == regime]
                if kept:
                    numbers_of += [i for i, _ in kept]
                    part.append((prompt, [y for _, y in kept]))
            yield numbers_of, part

    def _score(
        self, groups: Sequence[Group], share: bool, features: Features | None
    ) -> tuple[Tensor, ...]:
        """Return the log-probs, and features, of groups that may stand in one call."""
        if self.why_alone is not None:
            ((prompt, (response,)),) = groups
            states = self._alone(torch.tensor([[*prompt, *response]]))
            start, labels, counts = len(prompt), torch.tensor(response), [len(response)]
            hidden, own, before = states[start - 1 : -1], states[start:], [states[:start]]
        else:
            whole = features is not None or self._regime is not None
            layout = lay_out(groups, share=share, whole=whole)
            states, labels, counts = self._states(layout), layout.labels, layout.counts
            hidden = _at(states, layout.sources)
            if features is not None:
                assert layout.own is not None
                own = _at(states, layout.own)
                before = [states[start : start + count] for start, count in layout.prompts]
        logps = self.lm.logps(hidden, labels.to(hidden.device), counts)
        if features is None:
            return (logps,)
        return logps, _means(own, counts, before if features == "all" else None)

    def _alone(self, tokens: Tensor) -> Tensor:
        """Return the hidden states of one row (1, L), read as the model reads it by itself."""
        if self._regime is not None and self._regime(tokens.shape[1]):
            forget(self.lm.backbone, self.lm.device)
        with self.lm.autocast():
            output = self.lm.backbone(input_ids=tokens.to(self.lm.device), use_cache=False)
        return output.last_hidden_state[0]  # type: ignore[no-any-return]

    def _hidden(self, layout: Layout) -> Tensor:
        """Return the hidden states that predict the response tokens, (T, H)."""
        return _at(self._states(layout), layout.sources)

    def _states(self, layout: Layout) -> Tensor:
        """Return the hidden states of all places, (rows * L, H)."""
        device = self.lm.device
        if self._regime is not None and self._regime(int(layout.positions.max()) + 1):
            forget(self.lm.backbone, device)
        with self.lm.autocast():
            states: Tensor = self.lm.backbone(
                input_ids=layout.tokens.to(device),
                position_ids=layout.positions.to(device),
                attention_mask=self._mask(layout.segments.to(device)),
                use_cache=False,
            ).last_hidden_state
        return states.flatten(0, 1)

    def _mask(self, segments: Tensor) -> Any:
        """Return the attention mask of rows with these segments, as the model takes it."""
        implementation = self.lm.base.config._attn_implementation
        if segments.max() <= 1:  # rows of one response: causal, nothing hides but padding
            return (segments >= 0).long()
        if implementation == "flex_attention":
            return block_mask(segments)
        dtype = self.lm.base.get_input_embeddings().weight.dtype
        seen = visible(segments)[:, None]
        mask = torch.zeros_like(seen, dtype=dtype)
        mask.masked_fill_(~seen, torch.finfo(mask.dtype).min)
        if implementation == "sdpa" and mask.device.type == "cpu":
            return SharedPromptMask.of(mask, segments)
        return mask

    @torch.no_grad()
    def _try_out(self) -> None:
        """Find out how the model may be fed."""
        config = self.lm.base.config.get_text_config()
        self._regime = find_regime(self.lm.backbone, config)
        self._window = find_window(config)
        self._longest_row = find_longest_row(self.lm.backbone, config)
        limits = [limit for limit in (self._window, find_length(config)) if limit is not None]
        probe = Probe(
            self._alone,
            self._hidden,
            min(self._vocabularies()),
            special_tokens(config),
            min(limits, default=None),
            self._longest_row,
            compiled=self.lm.base.config._attn_implementation == "flex_attention",
        )
        half = self._computes_in_half()
        with in_evaluation(self.lm.base):  # dropout would differ
            ways = probe.find_ways(self._why_no_mask(), half)
        self.why_not_shared, self.why_alone = ways.not_shared, ways.not_together
        self._refuse(self.why_not_shared)

    def _why_no_mask(self) -> str | None:
        if not self._may_share:
            return "it was not asked for"
        implementation = self.lm.base.config._attn_implementation
        if implementation not in ("sdpa", "eager", "flex_attention"):
            return f"its attention, {implementation}, takes no block mask"
        return None

    def _computes_in_half(self) -> bool:
        halves = (torch.float16, torch.bfloat16)
        kind = self.lm.device.type
        if torch.is_autocast_enabled(kind) or self.lm.autocast_type is not None:
            return True
        return any(p.dtype in halves for p in self.lm.base.parameters())


def _at(states: Tensor, places: Tensor) -> Tensor:
    """Return the states at places.

    Not by [...]: several responses start from one state, and the backward pass of that adds their
    gradients in the order in which threads come by.
    """
    return states.index_select(0, places.to(states.device))


def _means(own: Tensor, counts: list[int], before: list[Tensor] | None) -> Tensor:
    """Return the mean of each response's states, and of those before it; in float32 or wider."""
    wide = torch.promote_types(own.dtype, torch.float32)
    sums = [part.sum(0, dtype=wide) for part in torch.split(own, counts)]
    if before is not None:
        sums = [x + part.sum(0, dtype=wide) for x, part in zip(sums, before, strict=True)]
        counts = [count + len(part) for count, part in zip(counts, before, strict=True)]
    return torch.stack([x / count for x, count in zip(sums, counts, strict=True)])


class GroupScorerModule(torch.nn.Module):
    """A module whose forward pass scores groups: what DDP and FSDP have to be wrapped around.

    They see what goes through the forward pass of what they wrap, and nothing else: gradients of a
    `GroupScorer` over ``ddp.module`` are never averaged.

    Parameters
    ----------
    model, share
        As for `GroupScorer`.

    Attributes
    ----------
    model : module
        As given.
    scorer : GroupScorer
        Of this model.

    Examples
    --------
    >>> module = DistributedDataParallel(GroupScorerModule(model))              # doctest: +SKIP
    >>> logps = module([(prompt_ids, [chosen_ids, rejected_ids])])              # doctest: +SKIP
    """

    def __init__(self, model: Any, *, share: Literal["auto"] | bool = "auto") -> None:
        super().__init__()
        self.model = model
        self.scorer = GroupScorer(model, share=share)

    def forward(self, groups: Sequence[Group]) -> Tensor:
        """Return what `GroupScorer.logps` returns."""
        return self.scorer.logps(groups)
