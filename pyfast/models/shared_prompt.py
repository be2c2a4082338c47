"""Log-probabilities of groups of responses, each prompt read once.

The 1 + k responses of a group share their prompt, so a group is laid out as one row

    prompt r_0 r_1 ... r_k      positions 0 .. P-1, then P, P+1, ... anew for each response

in which a response sees the prompt and itself: P + (1+k) R tokens instead of (1+k) (P + R), with
the same log-probabilities. A model that cannot take such a row gets one row for each response.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pyfast.models.causal_lm import CausalLM, in_evaluation
from pyfast.models.shared_attention import SharedPromptMask

Group = tuple[Sequence[int], Sequence[Sequence[int]]]
"""The tokens of a prompt, and those of each of its responses."""


@dataclass(frozen=True)
class Layout:
    """Tokens as a model reads them, and where the predictions of the response tokens come out.

    Attributes
    ----------
    tokens, positions : int64 tensors (rows, L)
    segments : int64 tensor (rows, L)
        0 for the prompt, 1, 2, ... for the responses of a row, -1 for padding.
    sources : int64 tensor (T,)
        For each of all T response tokens, the place (in rows * L) of the one before it, whose
        hidden state predicts it.
    labels : int64 tensor (T,)
        The response tokens, group by group, response by response.
    counts : list of int
        Tokens of each response; they add up to T.
    """

    tokens: Tensor
    positions: Tensor
    segments: Tensor
    sources: Tensor
    labels: Tensor
    counts: list[int]


def lay_out(groups: Sequence[Group], *, share: bool = True) -> Layout:
    """Lay out groups, one row for each (`share`) or one row for each response.

    The last token of a response predicts nothing and is left out.

    Raises
    ------
    ValueError
        If there is no group, no response in one, or an empty prompt or response.
    """
    _check_groups(groups)
    if not share:
        groups_of_rows: list[Group] = [(x, [y]) for x, responses in groups for y in responses]
    else:
        groups_of_rows = list(groups)
    rows, sources, counts = [], [], []
    labels: list[int] = []
    for row, (prompt, responses) in enumerate(groups_of_rows):
        read, at = list(prompt), list(range(len(prompt)))
        whose = [0] * len(prompt)
        for segment, response in enumerate(responses, 1):
            first, rest = len(read), len(response) - 1
            sources += [(row, place) for place in (len(prompt) - 1, *range(first, first + rest))]
            read += response[:-1]
            at += range(len(prompt), len(prompt) + rest)
            whose += [segment] * rest
            labels += response
            counts.append(len(response))
        rows.append((read, at, whose))
    length = max(len(read) for read, _, _ in rows)
    tokens, positions, segments = (
        torch.tensor([row[i] + [fill] * (length - len(row[i])) for row in rows])
        for i, fill in enumerate((0, 0, -1))
    )
    flat = torch.tensor([row * length + place for row, place in sources])
    return Layout(tokens, positions, segments, flat, torch.tensor(labels), counts)


def _check_groups(groups: Sequence[Group]) -> None:
    if len(groups) == 0:
        raise ValueError("groups: expected at least one")
    for g, (prompt, responses) in enumerate(groups):
        if len(prompt) == 0:
            raise ValueError(f"groups: expected at least one token in the prompt of group {g}")
        if len(responses) == 0 or min(len(response) for response in responses) == 0:
            raise ValueError(
                f"groups: expected at least one response in group {g}, each of at least one token"
            )


def visible(segments: Tensor) -> Tensor:
    """Return who sees whom: bool (rows, L, L), ``[r, a, b]`` true where a attends to b.

    A token sees the prompt and its own response up to itself; padding sees itself alone, because
    a softmax over nothing is not a number.
    """
    mine, theirs = segments[:, :, None], segments[:, None, :]
    order = torch.arange(segments.shape[1], device=segments.device)
    earlier = order[:, None] >= order[None, :]
    same = (mine == theirs) & (mine >= 0)
    prompt = (theirs == 0) & (mine >= 0)
    return ((same | prompt) & earlier) | (order[:, None] == order[None, :])


def block_mask(segments: Tensor) -> Any:
    """Return `visible` as FlexAttention's BlockMask, which stores and reads blocks alone."""
    from torch.nn.attention.flex_attention import create_block_mask

    def see(row: Tensor, head: Tensor, a: Tensor, b: Tensor) -> Tensor:
        mine, theirs = segments[row, a], segments[row, b]
        earlier = (a >= b) & (mine >= 0)
        return ((mine == theirs) | (theirs == 0)) & earlier | (a == b)

    rows, length = segments.shape
    return create_block_mask(see, rows, None, length, length, device=str(segments.device))


class GroupScorer:
    """Log-probabilities of groups of responses under a causal language model.

    Parameters
    ----------
    model : transformers causal language model
        As it is, or in a peft model; its adapter counts as it stands, and so do its mode
        (training, evaluation) and gradient checkpointing.
    share : {"auto", True, False}
        Read each prompt once. "auto" does so where the model can take it and else reads it with
        every response; ``True`` raises where it cannot.

    Attributes
    ----------
    lm : CausalLM
        The model's parts.
    why_not_shared : str or None
        Why prompts are never shared; None if they are, where a group allows it (`why_apart`).

    Raises
    ------
    ValueError
        If the model has no head or no hidden states, if its logits are more than one times the
        other, capped and scaled, if its adapter is virtual tokens (prompt tuning and its kin), or
        if `share` is ``True`` and the model cannot.
    """

    def __init__(self, model: Any, *, share: Literal["auto"] | bool = "auto") -> None:
        self.lm = CausalLM(model)
        self._must_share = share is True
        with in_evaluation(self.lm.base):  # dropout would differ
            self.why_not_shared = "it was not asked for" if share is False else self._find_reason()
        self._refuse(self.why_not_shared)
        self._longest_row = self._find_longest_row()

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
        ValueError
            If a group, a prompt or a response is empty, if a token is not one of the model's, or
            if `share` is ``True`` and these groups cannot.
        """
        reason = self.why_apart(groups)
        self._refuse(reason)
        layout = lay_out(groups, share=reason is None)
        self._check_tokens(groups)
        hidden = self._hidden(layout)
        return self.lm.logps(hidden, layout.labels.to(hidden.device), layout.counts)

    def why_apart(self, groups: Sequence[Group]) -> str | None:
        """Return why `logps` reads a prompt of these groups with every response; None if once."""
        if self.why_not_shared is not None:
            return self.why_not_shared
        window = self._window()
        longest = max((len(x) + max(map(len, ys), default=0) for x, ys in groups), default=0)
        if window is not None and longest > window:
            return f"{longest} tokens of a prompt and response exceed the window of {window}"
        row = max((len(x) + sum(len(y) - 1 for y in ys) for x, ys in groups), default=0)
        if self._longest_row is not None and row > self._longest_row:
            return f"{row} tokens of a row exceed the {self._longest_row} that a layer's mask spans"
        return None

    def _refuse(self, reason: str | None) -> None:
        if self._must_share and reason is not None:
            raise ValueError(f"share: the prompt cannot be shared: {reason}")

    def _check_tokens(self, groups: Sequence[Group]) -> None:
        """Refuse tokens that the model does not have: the head would take another one's row."""
        read, scored = (
            part.weight.shape[0] for part in (self.lm.base.get_input_embeddings(), self.lm.head)
        )
        for g, (prompt, responses) in enumerate(groups):
            for tokens, end in ((prompt, read), *((y, scored) for y in responses)):
                if min(tokens) < 0 or max(tokens) >= end:
                    wrong = next(token for token in tokens if not 0 <= token < end)
                    raise ValueError(
                        f"groups: expected tokens from 0 to {end - 1}, got {wrong} in group {g}"
                    )

    def _hidden(self, layout: Layout) -> Tensor:
        """Return the hidden states that predict the response tokens, (T, H)."""
        weight = self.lm.head.weight
        segments = layout.segments.to(weight.device)
        implementation = self.lm.base.config._attn_implementation
        mask: Any
        if layout.segments.max() <= 1:  # rows of one response: causal, nothing hides but padding
            mask = (segments >= 0).long()
        elif implementation == "flex_attention":
            mask = block_mask(segments)
        else:
            seen = visible(segments)[:, None]
            mask = torch.zeros_like(seen, dtype=weight.dtype)
            mask.masked_fill_(~seen, torch.finfo(weight.dtype).min)
            if implementation == "sdpa" and mask.device.type == "cpu":
                mask = SharedPromptMask.of(mask, segments)
        states = self.lm.backbone(
            input_ids=layout.tokens.to(weight.device),
            position_ids=layout.positions.to(weight.device),
            attention_mask=mask,
            use_cache=False,
        ).last_hidden_state
        return states.flatten(0, 1)[layout.sources.to(weight.device)]  # type: ignore[no-any-return]

    def _window(self) -> int | None:
        """Return how far back some layer sees, if it is not all the way."""
        config = self.lm.base.config.get_text_config()
        sliding = getattr(config, "use_sliding_window", True)
        names = (*(["sliding_window"] if sliding else []), "attention_chunk_size")
        windows = (getattr(config, name, None) for name in names)
        return min((window for window in windows if window is not None), default=None)

    def _find_longest_row(self) -> int | None:
        """Return the length up to which a row hides nothing more than its mask does.

        Some models (GPT-Neo) keep a causal mask of their own, by places in the row instead of
        positions; it ends somewhere, and of a layer with a window it is a band.
        """
        window = getattr(self.lm.base.config.get_text_config(), "window_size", None)
        spans = [] if window is None else [int(window)]
        for buffer in self.lm.backbone.buffers():
            square = buffer.ndim >= 2 and buffer.shape[-1] == buffer.shape[-2] > 1
            if square and not buffer[..., 0, 1:].any():  # the first sees nothing that follows
                spans.append(int((buffer[..., -1, :] != 0).sum(-1).min()))
        return min(spans, default=None)

    @torch.no_grad()
    def _find_reason(self) -> str | None:
        """Try a small group both ways: whatever a model does with masks and positions shows."""
        implementation = self.lm.base.config._attn_implementation
        if implementation not in ("sdpa", "eager", "flex_attention"):
            return f"its attention, {implementation}, takes no block mask"
        try:
            groups: list[Group] = [([1, 2, 0], [[1, 0], [2, 2, 1]])]
            apart, shared = (self._hidden(lay_out(groups, share=s)).float() for s in (False, True))
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            return f"the model does not take a block mask ({reason})"
        difference = float((shared - apart).norm() / apart.norm())
        rounding = torch.finfo(self.lm.head.weight.dtype).eps ** 0.5  # and far above it
        if not difference <= rounding:
            return f"hidden states in a shared row differ by {difference:.1e} of their length"
        return None
