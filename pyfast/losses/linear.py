r"""From hidden states to sequence log-probabilities, without the logits ever existing.

With :math:`z_{tv} = W_v \cdot h_t` the log-prob of a label is
:math:`\log\pi(y_t) = z_{t y_t} - \log\sum_v e^{z_{tv}}`. The logits are made tile by tile over
tokens and vocabulary, folded into a running log-sum-exp and overwritten. Only scored tokens take
part.

*Frozen head.* :math:`\partial \log\pi(y_t) / \partial h_t = W_{y_t} - E_{v \sim \pi}[W_v]` does not
depend on what is done with the log-probs, so the forward pass accumulates the expectation from the
same tiles (two products a tile), and backward is one multiplication. *Trainable head.* Backward
makes the tiles anew (one product forward, three backward).

No tile is left out of the expectation. Of what SmolLM2-135M writes, no block of even 128 words
holds less than float32's share of a token's probability (2^-24, over the number of blocks): half of
the tokens need 38,000 of 49,152 words for that. Only the coarser limit of a bfloat16 gradient has
tails to skip.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from torch import Tensor

from pyfast._results import ByValue
from pyfast.losses import _tiles, reference
from pyfast.losses._checks import check_choice, check_number
from pyfast.losses._tokens import ScoredTokens, check_head, scored_tokens
from pyfast.losses.fused import Backend
from pyfast.losses.precision import as_given


@dataclass(frozen=True, eq=False)
class SequenceLogps(ByValue):
    """What :func:`sequence_logps` found out.

    Attributes
    ----------
    logps : Tensor
        log pi of each sequence in nats, () or (B,).
    token_logps : Tensor
        log pi of each label in the shape of `labels`, 0 where not scored.
    entropy : Tensor
        Entropy in nats of the distribution at each scored token, likewise; without gradient.
    lengths : Tensor
        int64, the number of scored tokens of each sequence, () or (B,).
    """

    logps: Tensor
    token_logps: Tensor
    entropy: Tensor
    lengths: Tensor


@overload
def sequence_logps(
    hidden: Tensor,
    head_weight: Tensor,
    labels: Tensor,
    mask: Tensor | None = ...,
    *,
    head_bias: Tensor | None = ...,
    temperature: float = ...,
    softcap: float | None = ...,
    offsets: Tensor | None = ...,
    details: Literal[False] = ...,
    backend: Backend = ...,
    validate: bool = ...,
) -> Tensor: ...


@overload
def sequence_logps(
    hidden: Tensor,
    head_weight: Tensor,
    labels: Tensor,
    mask: Tensor | None = ...,
    *,
    head_bias: Tensor | None = ...,
    temperature: float = ...,
    softcap: float | None = ...,
    offsets: Tensor | None = ...,
    details: Literal[True],
    backend: Backend = ...,
    validate: bool = ...,
) -> SequenceLogps: ...


def sequence_logps(
    hidden: Tensor,
    head_weight: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    head_bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    offsets: Tensor | None = None,
    details: bool = False,
    backend: Backend = "auto",
    validate: bool = True,
) -> Tensor | SequenceLogps:
    r"""Log-probability of each sequence from the hidden states below the language-model head.

    .. math:: \log\pi(y|x) = \sum_{t\ \text{scored}} \log\mathrm{softmax}(z_t)_{y_t}, \qquad
              z_t = \frac{c}{\tau} \tanh\Big(\frac{W h_t + b}{c}\Big)

    with temperature tau and softcap c; without softcap, :math:`z_t = (W h_t + b) / \tau`.

    Parameters
    ----------
    hidden : Tensor
        Hidden states, each the one that predicts the label at its place (for a model that reads
        `ids`: ``hidden[:, :-1]`` and ``labels = ids[:, 1:]``). A batch (B, L, H), one sequence
        (L, H), or sequences end to end (T, H) with `offsets`. float16, bfloat16, float32, float64.
    head_weight : Tensor
        W, (V, H), on the device of `hidden`. Where neither it nor `head_bias` requires a gradient,
        the head counts as frozen.
    labels : Tensor
        int64 token ids in the shape of `hidden` without H, from 0 to V - 1 where scored.
    mask : Tensor, optional
        bool, or integers of which 0 is unscored, in the shape of `labels`. By default every label
        but -100 is scored.
    head_bias : Tensor, optional
        b, (V,).
    temperature : float
        tau, above 0.
    softcap : float, optional
        c, above 0.
    offsets : Tensor, optional
        (B+1,) int32 or int64, from 0 to T; sequence g starts at offsets[g], and may be empty.
    details : bool
        Return log-probs and entropy of every token too.
    backend : {"auto", "reference", "triton"}
        "auto" works in tiles: with Triton kernels between the products on a GPU, in torch
        elsewhere. "reference" makes all logits at once.
    validate : bool
        Whether to look at labels and offsets; the host waits for the device then.

    Returns
    -------
    Tensor or SequenceLogps
        log pi(y|x) in nats: () for one sequence, else (B,); float32, or float64 where `hidden` or
        the head is float64. A sequence without scored tokens has 0.

    Raises
    ------
    TypeError, ValueError
        Dtypes, shapes, devices or offsets do not fit, a scored label is outside the vocabulary, a
        number is out of range, or the backend is unknown or cannot be used, and why.

    Notes
    -----
    Float16 and bfloat16 are summed in float32, inside `torch.autocast` too. Beside inputs and
    gradients a call holds:

    - the hidden states of the scored tokens; with a frozen head as many numbers again, which alone
      are kept for backward. A trainable head keeps the states; its backward has them and their
      gradients in float32
    - a tile of logits: up to 2 MB of float32 on the CPU, 64 MB on a GPU (twice that in float64).
      A softcap and the entropy take one more each, and so do, on a GPU, the slopes
    - the tile's rows of W, of no more numbers than that (but 64 rows at least), where they have to
      be widened, as half types on the CPU, and in the backward pass of a trainable head
    - a few rows of H numbers for each of the tokens at work: 512 on the CPU, 2048 on a GPU

    A second derivative is refused.

    Examples
    --------
    >>> hidden, head = torch.zeros(1, 3, 4), torch.ones(8, 4)
    >>> labels = torch.tensor([[-100, 5, 7]])
    >>> sequence_logps(hidden, head, labels)  # -2 log(8)
    tensor([-4.1589])
    """
    check_number("temperature", temperature)
    if softcap is not None:
        check_number("softcap", softcap)
    check_choice("backend", backend, ("auto", "reference", "triton"))
    check_head(hidden, head_weight, head_bias, labels, mask)
    tokens = scored_tokens(labels, mask, offsets, head_weight.shape[0], validate=validate)
    rows = hidden.reshape(-1, hidden.shape[-1]).index_select(0, tokens.index)
    head = (rows, head_weight, head_bias, tokens.labels)
    how = (float(temperature), None if softcap is None else float(softcap))
    if backend == "reference":
        logps, entropy = reference.token_logps(*head, *how)
    else:
        kernels = _tiles.kernels_for(hidden, head_weight, backend)
        logps, entropy = _HeadLogps.apply(  # type: ignore[no-untyped-call]
            *head, *how, details, kernels
        )
    return _gathered(tokens, logps, entropy) if details else tokens.total(logps)


def _gathered(tokens: ScoredTokens, logps: Tensor, entropy: Tensor) -> SequenceLogps:
    return SequenceLogps(
        logps=tokens.total(logps),
        token_logps=tokens.place(logps),
        entropy=tokens.place(entropy.detach()),
        lengths=tokens.total(torch.ones_like(tokens.labels)),
    )


class _HeadLogps(torch.autograd.Function):
    @staticmethod
    @as_given
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        temperature: float,
        softcap: float | None,
        with_entropy: bool,
        kernels: Any,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        frozen = not (weight.requires_grad or (bias is not None and bias.requires_grad))
        head = _tiles.Head(weight, bias, temperature, softcap, kernels)
        keep_mean = frozen and rows.requires_grad
        top, mass = head.empty(rows, rows.shape[0], 1), head.empty(rows, rows.shape[0], 1)
        logps = head.empty(rows, rows.shape[0])
        entropy = torch.empty_like(logps) if with_entropy else None
        slope = torch.empty_like(rows) if keep_mean else None
        for part in head.token_tiles(rows.shape[0]):
            running = _tiles.Running.start(logps[part], rows.shape[1], with_entropy, keep_mean)
            head.fold(rows[part], running)
            own = head.own(rows[part], labels[part])
            top[part], mass[part] = running.top, running.mass
            # Tops and masses are subtracted apart, or logits of 1e4 would swallow the masses.
            below = own.logit - running.top.squeeze(1)
            found = below / temperature - running.mass.squeeze(1).log()
            # The label's logit was rounded in another product: a log-prob of 0 may come out above.
            logps[part] = found.clamp_(max=0)
            if entropy is not None:
                entropy[part] = running.entropy(temperature)
            if slope is not None:
                slope[part] = (own.slope - running.mean()).mul_(1 / temperature)
        ctx.frozen = frozen
        if frozen:
            ctx.save_for_backward(slope)
        else:
            ctx.head = head
            ctx.save_for_backward(rows, weight, bias, labels, top, mass)
        if entropy is not None:
            ctx.mark_non_differentiable(entropy)
        return logps, entropy

    @staticmethod
    @as_given
    def backward(ctx: Any, grad: Tensor | None, _: Any = None) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "sequence_logps has no second derivative in tiles: leave create_graph=True out, "
                "or use backend='reference'"
            )
        nothing = (None,) * 5
        if grad is None:
            return None, None, None, *nothing
        if ctx.frozen:
            (slope,) = ctx.saved_tensors
            scaled = torch.mul(slope, grad[:, None], out=torch.empty_like(slope))
            return scaled, None, None, *nothing
        rows, _, _, labels, top, mass = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        return *ctx.head.gradients(rows, labels, top, mass, grad, wanted), *nothing
