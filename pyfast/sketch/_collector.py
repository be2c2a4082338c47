"""`LoraGradients`: the sketch of every response's gradient in one forward and backward pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyfast import _arguments as args
from pyfast._threads import get_num_threads
from pyfast.losses import sequence_logps
from pyfast.sketch._batches import Response, pad, plan
from pyfast.sketch._capture import Capture
from pyfast.sketch._guards import check_finite, check_not_zero
from pyfast.sketch._layout import Layout, Tokens, check_tokens
from pyfast.sketch._parts import Frozen, check_ready, find_parts
from pyfast.sketch._products import add_products, products
from pyfast.sketch._project import check_dim


@dataclass(frozen=True)
class GradientBatch:
    """What one pass gives for its R responses.

    Attributes
    ----------
    sketches : float32 tensor, shape (R, dim)
        Sketches of the gradients of log pi(y|x), on the model's device; not normalised.
    squared_norms : float64 array, shape (R,)
        Exact squared lengths of the gradients.
    part_norms : float64 array, shape (R, parts)
        The same for each LoRA matrix; the columns are `LoraGradients.names`.
    logps : float64 array, shape (R,)
        log pi(y|x), summed over the response tokens, in nats.
    lengths : int64 array, shape (R,)
        Response tokens. A response without any has a sketch of zeros.
    """

    sketches: Tensor
    squared_norms: NDArray[np.float64]
    part_norms: NDArray[np.float64]
    logps: NDArray[np.float64]
    lengths: NDArray[np.int64]


class LoraGradients:
    """Sketches of ``grad log pi(y|x)`` with respect to a model's LoRA weights, one per response.

    log pi(y|x) is summed over the response tokens. The gradients with respect to A and B of every
    adapted linear layer are projected to `dim` numbers as they appear, and dropped (XOR stripes,
    version 1; docs/xor-stripes.md): a whole batch costs one forward and backward pass.

    Parameters
    ----------
    model : peft model, or transformers causal language model with peft's LoRA layers in it
        float32, bfloat16 or float16; plain LoRA, rsLoRA or DoRA (A and B, not the magnitudes).
        Weights that do not require grad are frozen: they are not in the sketch. Other trainable
        parameters are not either; a warning and ``left_out`` name them.
    dim : int
        Numbers in a sketch: a power of two, 2^7 to 2^20.
    seed : int
        0 to 2^64 - 1. Only sketches of one seed, dim and set of parts can be compared.

    Attributes
    ----------
    names : list of str
        The sketched matrices, in the order of their module numbers.
    size : int
        p, the numbers in a gradient.
    places : list of slice
        Where each of the matrices lies in a gradient.
    left_out : list of str
        Trainable parameters that are not sketched.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of its range or type, or the model has no trainable LoRA weights.

    Notes
    -----
    The model stays as it is: in training or evaluation mode, its weights trainable or not, no
    ``.grad`` touched. Never put several responses behind one shared prompt: prompt tokens would
    mix their gradients. Memory beyond a pass with frozen weights: the inputs of the adapted
    layers (gradient checkpointing drops them too) and R x dim floats.

    Examples
    --------
    >>> collector = LoraGradients(model)                                        # doctest: +SKIP
    >>> collector.responses([(prompt_ids, answer_ids), ...]).sketches.shape     # doctest: +SKIP
    torch.Size([2, 65536])
    """

    def __init__(self, model: Any, dim: int = 65536, seed: int = 0) -> None:
        self.dim = check_dim(dim)
        self.seed = args.check_seed(seed)
        self.model = model
        self.parts, self.left_out = find_parts(model)
        check_ready(model, self.parts)
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._backbone = base.base_model
        self._head = base.get_output_embeddings()
        if self._head is None or self._backbone is base:
            raise TypeError(f"model: expected a causal language model, got {type(base).__name__}")
        self._check_head(base)

    @property
    def names(self) -> list[str]:
        """The sketched matrices."""
        return [part.name for part in self.parts]

    @property
    def size(self) -> int:
        """Numbers in a gradient, p."""
        return sum(part.size for part in self.parts)

    @property
    def places(self) -> list[slice]:
        """Where each of the sketched matrices lies in a gradient."""
        ends = np.cumsum([part.size for part in self.parts]).tolist()
        return [slice(end - part.size, end) for end, part in zip(ends, self.parts, strict=True)]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device  # type: ignore[no-any-return]

    def responses(self, responses: Sequence[Response]) -> GradientBatch:
        """Sketch responses given as token ids; shorter ones are padded on the right.

        Parameters
        ----------
        responses : sequence of (prompt_ids, response_ids)
            Lists of token ids. The end token belongs to the response. A prompt has at least one
            token; a response may be empty.

        Returns
        -------
        GradientBatch
            In the order given.
        """
        return self.batch(*pad(responses))

    def batch(
        self,
        input_ids: Any,
        response_mask: Any,
        attention_mask: Any = None,
        position_ids: Any = None,
        segments: Any = None,
    ) -> GradientBatch:
        """Sketch a batch of rows, one response each, or of packed rows.

        Parameters
        ----------
        input_ids : int tensor, shape (rows, T)
            Prompts and responses, padded on either side.
        response_mask : 0/1 tensor, shape (rows, T)
            1 at the tokens of the response.
        attention_mask : 0/1 tensor, shape (rows, T), optional
            0 at padding, which may not come just before a token of the response. Padding on the
            right may do without.
        position_ids : int tensor, shape (rows, T), optional
            By default positions count the tokens that are not padding.
        segments : int tensor, shape (rows, T), optional
            For packed rows, the number 0 .. R - 1 of the response that each token, prompts
            included, belongs to, -1 for padding; `position_ids` restart in each. The model must
            keep segments apart by these positions, as transformers' attention masks do.

        Returns
        -------
        GradientBatch
            One line a row, or a segment.

        Raises
        ------
        ValueError, TypeError
            If an argument is out of shape or type, the model's adapter is off or its dropout on,
            or a gradient is not finite; the message says where.
        """
        tokens = check_tokens(
            input_ids, response_mask, attention_mask, position_ids, segments, self.device
        )
        return self._checked(self._sketch(tokens, range(tokens.responses), {}))

    def stream(
        self,
        responses: Sequence[Response],
        max_tokens: int = 4096,
        *,
        skip: Collection[int] = (),
        gradients: Mapping[int, NDArray[np.float32]] | None = None,
    ) -> Iterator[tuple[list[int], GradientBatch]]:
        """Sketch many responses, batch by batch, those of like lengths together.

        Parameters
        ----------
        responses : sequence of (prompt_ids, response_ids)
            As for :meth:`responses`.
        max_tokens : int
            Tokens of a batch, padding included: the bound on memory.
        skip : collection of int
            Numbers of responses that are there already. The batches stay the same; one of which
            all are there is left out.
        gradients : mapping of int to float32 array, shape (p,)
            Filled, in the same pass, with the whole gradients of the responses of these numbers,
            laid out as :meth:`gradients` says.

        Yields
        ------
        list of int, GradientBatch
            The numbers of the batch's responses, and what they give. The longest come first, so
            that what does not fit into memory fails at once.

        Raises
        ------
        ValueError, TypeError
            As :meth:`batch`, or if a response has more than `max_tokens` or an array of `gradients`
            another dtype or shape.
        """
        gradients = gradients or {}
        for numbers in plan(responses, max_tokens):
            if not all(number in skip for number in numbers):
                batch = self.sketch_numbers(responses, numbers, gradients)
                yield numbers, self._checked(batch, numbers)

    def sketch_numbers(
        self,
        responses: Sequence[Response],
        numbers: Sequence[int],
        gradients: Mapping[int, NDArray[np.float32]],
    ) -> GradientBatch:
        """Sketch the responses of these numbers in one pass, as `stream` does.

        Gradients that are zero or not finite are handed on as they are: the caller looks.
        """
        for number, gradient in gradients.items():
            if gradient.shape != (self.size,) or gradient.dtype != np.float32:
                raise ValueError(
                    f"gradients: expected float32 ({self.size},) at {number}, got "
                    f"{gradient.dtype} {gradient.shape}"
                )
        batch = pad([responses[number] for number in numbers])
        tokens = check_tokens(*batch, None, None, self.device)
        return self._sketch(tokens, numbers, gradients)

    def _checked(self, batch: GradientBatch, numbers: Sequence[int] | None = None) -> GradientBatch:
        """Refuse gradients that are zero or not finite; `numbers` name the batch's responses."""
        numbers = range(len(batch.lengths)) if numbers is None else numbers
        check_finite(batch.part_norms, self.names, numbers)
        check_not_zero(batch.part_norms, batch.lengths, self.names, numbers)
        return batch

    def _sketch(
        self,
        tokens: Tokens,
        numbers: Sequence[int],
        gradients: Mapping[int, NDArray[np.float32]],
    ) -> GradientBatch:
        """Sketch a batch of checked tokens; `numbers` name its responses in `gradients`."""
        sketches = torch.zeros(tokens.responses, self.dim, device=self.device)
        norms = np.zeros((tokens.responses, len(self.parts)))
        whole = [(row, gradients[n]) for row, n in enumerate(numbers) if n in gradients]
        for _, gradient in whole:
            gradient[:] = 0  # the matrices that no pass hands on
        places, threads = self.places, get_num_threads()

        def sink(number: int, wide: Tensor, narrow: Tensor) -> None:
            norms[:, number] = add_products(wide, narrow, sketches, self.seed, number, threads)
            for row, gradient in whole:
                tile = products(wide[row : row + 1], narrow[row : row + 1], threads)
                gradient[places[number]] = tile.view(-1).cpu().numpy()

        logps = self._run(tokens, sink)
        lengths = tokens.counts.cpu().numpy()
        return GradientBatch(sketches, norms.sum(axis=1), norms, logps, lengths)

    def gradients(
        self,
        input_ids: Any,
        response_mask: Any,
        attention_mask: Any = None,
        position_ids: Any = None,
        segments: Any = None,
    ) -> Tensor:
        """Return the gradients themselves, float32 (R, p): for checks, or another projection.

        Parameters
        ----------
        input_ids, response_mask, attention_mask, position_ids, segments
            As for :meth:`batch`.

        Returns
        -------
        float32 tensor, shape (R, p)
            The matrices of ``names`` side by side, A transposed: [d_in, r], B as it is: [d_out, r].
            R p 4 bytes of memory.
        """
        tokens = check_tokens(
            input_ids, response_mask, attention_mask, position_ids, segments, self.device
        )
        out = torch.zeros(tokens.responses, self.size, device=self.device)
        places, threads = self.places, get_num_threads()

        def sink(number: int, wide: Tensor, narrow: Tensor) -> None:
            tile = products(wide, narrow, threads)
            out[:, places[number]] = tile.view(tokens.responses, -1)

        self._run(tokens, sink)
        return out

    def _run(
        self, tokens: Tokens, sink: Callable[[int, Tensor, Tensor], None]
    ) -> NDArray[np.float64]:
        """Run forward and backward once; return log pi of each response."""
        check_ready(self.model, self.parts)
        if torch.is_inference_mode_enabled():
            raise ValueError(
                "model: no gradients under torch.inference_mode(); use torch.no_grad()"
            )
        logps = torch.zeros(tokens.responses, dtype=torch.float64, device=self.device)
        if not bool(tokens.response_mask.any()):
            return logps.cpu().numpy()
        frozen, capture = Frozen(self.model), Capture(self.parts, sink)
        try:
            with torch.enable_grad(), frozen, capture:
                capture.layout = tokens.layout
                hidden = self._backbone(
                    input_ids=tokens.input_ids,
                    attention_mask=tokens.attention_mask,
                    position_ids=tokens.position_ids,
                    use_cache=False,
                ).last_hidden_state
                gradient = self._run_head(hidden, tokens, capture, logps)
                capture.backward = True
                torch.autograd.backward(hidden, gradient)
        finally:  # what a Ctrl-C at the beginning of an __exit__ skipped
            capture.undo()
            frozen.undo()
        return logps.cpu().numpy()

    def _run_head(self, hidden: Tensor, tokens: Tokens, capture: Capture, logps: Tensor) -> Tensor:
        """Add log pi to `logps`, and return its gradient with respect to `hidden`.

        The head sees the places that predict response tokens, and what it makes is dropped before
        the backward pass through the layers begins.
        """
        row, column = tokens.response_mask.nonzero(as_tuple=True)
        owners, targets = tokens.owners[row, column], tokens.input_ids[row, column]
        place = hidden.detach()[row, column - 1].requires_grad_()
        capture.layout = Layout.of_owners(owners, tokens.responses)
        token_logps = self._token_logps(place, targets)
        gradient = torch.zeros_like(hidden)
        gradient[row, column - 1] = torch.autograd.grad(token_logps.sum(), place)[0]
        logps.index_add_(0, owners, token_logps.detach().double())
        capture.layout = tokens.layout
        return gradient

    def _token_logps(self, place: Tensor, targets: Tensor) -> Tensor:
        """Return log pi of each target, (n,), from the hidden state (n, H) that predicts it."""
        if type(self._head) is torch.nn.Linear:  # in tiles: no logits
            weight, bias = self._head.weight, self._head.bias
            return sequence_logps(place[:, None], weight, targets[:, None], head_bias=bias)
        logits = self._head(place).float()  # a head with parts in it, for example
        return -torch.nn.functional.cross_entropy(logits, targets, reduction="none")

    @torch.no_grad()
    def _check_head(self, base: Any) -> None:
        """Refuse a model whose logits are more than its head times its hidden states."""
        ids = torch.tensor([[0, 1]], device=self.device)
        hidden = self._backbone(input_ids=ids, use_cache=False).last_hidden_state
        theirs = base(input_ids=ids, use_cache=False).logits.float()
        if not bool(torch.isfinite(theirs).all()):
            bad = [n for n, p in self.model.named_parameters() if not torch.isfinite(p).all()]
            raise ValueError(
                "model: its logits for the tokens 0, 1 are not finite"
                + (f"; the first of its parameters that is not is {bad[0]}" if bad else "")
            )
        if not torch.allclose(self._head(hidden).float(), theirs, rtol=1e-3, atol=1e-3):
            raise ValueError(
                f"model: {type(base).__name__} changes its logits after the head (scaling or "
                "soft-capping), which is not supported"
            )
