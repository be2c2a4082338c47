"""`LoraGradients`: the sketch of every response's gradient in one forward and backward pass."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyfast import _arguments as args
from pyfast.models.causal_lm import base_of
from pyfast.sketch._batches import GradientBatch, Response, pad, plan
from pyfast.sketch._gradients import Passes, Sink
from pyfast.sketch._guards import check_finite, check_not_zero
from pyfast.sketch._layout import Tokens, Vocabulary, check_tokens, join
from pyfast.sketch._mode import mode
from pyfast.sketch._parts import check_ready, find_parts, silent_parts
from pyfast.sketch._project import check_dim
from pyfast.sketch._recognised import causal_lm, check_kind
from pyfast.sketch._selfcheck import LONGEST, SelfCheck, Spot, Verdict
from pyfast.sketch._sharing import share_out
from pyfast.sketch._sinks import Sketches, Whole
from pyfast.sketch._unwrap import unwrap

_MODES = 32  # of the model, and kinds of rows in it, that are remembered


class LoraGradients:
    """Sketches of ``grad log pi(y|x)`` with respect to a model's LoRA weights, one per response.

    log pi(y|x) is summed over the response tokens. The gradients with respect to A and B of every
    adapted linear layer are projected to `dim` numbers as they appear, and dropped (XOR stripes,
    version 1; docs/xor-stripes.md): a whole batch costs one forward and backward pass.

    Parameters
    ----------
    model : peft model, or transformers causal language model with peft's LoRA layers in it
        float32, bfloat16 or float16; plain LoRA, rsLoRA or DoRA (A and B, not the magnitudes), on
        linear layers, embeddings, or parameters such as fused experts (peft's
        ``target_parameters``). Weights that do not require grad are frozen: they are not in the
        sketch. Other trainable parameters are not either; a warning and ``left_out`` name them.
    dim : int
        Numbers in a sketch: a power of two, 2^7 to 2^20.
    seed : int
        0 to 2^64 - 1. Only sketches of one seed, dim and set of parts can be compared.

    batching : {"auto", "equal", "alone"}
        Which responses may share a pass: "auto" finds out; or those of equal lengths, or none.

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
    batching : {"together", "equal", "alone"}
        How responses share a pass of the model in its present mode: of any lengths, of equal
        lengths, or each one alone.
    unused : list of str
        Matrices that the model never runs: their gradient is zero.
    differs : dict of str to str
        For ways of laying responses out (``"rows"``, ``"padded rows"``, ``"packed rows"``) that
        were tried and do not give each response its own gradient: what differed. Such batches are
        laid out anew.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of its range or type, the model has no trainable LoRA weights, draws
        random numbers, or its weights are not all at hand (sharded, offloaded).

    Notes
    -----
    The model stays as it is: in training or evaluation mode, its weights trainable or not, no
    ``.grad`` touched. Whether a batch gives every response the gradient that it has alone is tried
    on made-up responses when a collector is made, and again when the model's mode (training, hooks,
    number types, attention, which B are zero) or the layout of the rows is new; where it does not,
    responses of equal lengths share a pass, or none do, and a warning says why.

    Never put several responses behind one shared prompt: prompt tokens would mix their gradients.
    Memory beyond a pass with frozen weights: the inputs of the adapted layers (gradient
    checkpointing drops them too) and R x dim floats; one response at a time, p floats.

    Examples
    --------
    >>> collector = LoraGradients(model)                                        # doctest: +SKIP
    >>> collector.responses([(prompt_ids, answer_ids), ...]).sketches.shape     # doctest: +SKIP
    torch.Size([2, 65536])
    """

    def __init__(
        self,
        model: Any,
        dim: int = 65536,
        seed: int = 0,
        *,
        batching: Literal["auto", "equal", "alone"] = "auto",
    ) -> None:
        if batching not in ("auto", "equal", "alone"):
            raise ValueError(f"batching: expected 'auto', 'equal' or 'alone', got {batching!r}")
        self._asked = batching
        self.dim = check_dim(dim)
        self.seed = args.check_seed(seed)
        self.model = unwrap(model)
        self.parts, self.left_out = find_parts(self.model)
        self.differs: dict[str, str] = {}
        self._base = base_of(self.model)
        check_kind(self._base)
        self._mode: Hashable = None
        self._verdicts: dict[tuple[Hashable, str], Verdict] = {}
        self._checked_length: dict[tuple[Hashable, str], int] = {}
        self._passes = self._now()
        self.unused = [self.parts[number].name for number in sorted(self._verdict("rows").unused)]
        if self.unused:
            warnings.warn(
                f"{len(self.unused)} LoRA matrices are never run, so that their gradient is zero: "
                + ", ".join(self.unused[:3]),
                stacklevel=2,
            )

    @property
    def batching(self) -> str:
        """How responses share a pass."""
        return self._verdict("rows").way

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
    def vocabulary(self) -> Vocabulary:
        """How many tokens the embeddings know, and the head."""
        return self._passes.vocabulary

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._passes.embeddings.weight.device  # type: ignore[no-any-return]

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the autocast that passes run in: the model's own, as accelerate gives it."""
        return self._passes.lm.autocast()

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
        return self.batch(*pad(responses, self._passes.vocabulary))

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
        tokens = self._check(input_ids, response_mask, attention_mask, position_ids, segments)
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
        for numbers in plan(responses, max_tokens, self._passes.vocabulary):
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
        tokens = self._check(*batch, None, None)
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
        whole = {row: gradients[n] for row, n in enumerate(numbers) if n in gradients}
        for gradient in whole.values():
            gradient[:] = 0  # the matrices that no pass hands on
        places = self.places
        logps = self._run(
            tokens, lambda rows: Sketches(places, self.seed, rows, sketches, norms, whole)
        )
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
        tokens = self._check(input_ids, response_mask, attention_mask, position_ids, segments)
        out = torch.zeros(tokens.responses, self.size, device=self.device)
        self._run(tokens, lambda rows: Whole(self.places, rows, out))
        return out

    def _check(
        self, ids: Any, response: Any, attention: Any, positions: Any, segments: Any
    ) -> Tokens:
        vocabulary = self._passes.vocabulary
        return check_tokens(ids, response, attention, positions, segments, self.device, vocabulary)

    def _now(self) -> Passes:
        """Return how to go through the model in its present mode; refuse what cannot be."""
        check_ready(self.model, self.parts)
        if torch.is_inference_mode_enabled():
            raise ValueError(
                "model: no gradients under torch.inference_mode(); use torch.no_grad()"
            )
        now = mode(self.model, self._base, silent_parts(self.parts))
        if now != self._mode:
            self._passes = Passes(self.model, causal_lm(self.model, self._base), self.parts)
            self._mode = now
        return self._passes

    def _verdict(self, kind: str) -> Verdict:
        """Return how responses in rows of this kind may share a pass, tried once in each mode."""
        key = (self._mode, kind)
        if key not in self._verdicts:
            if len(self._verdicts) > _MODES:
                self._verdicts.clear()
                self._checked_length.clear()
            check = SelfCheck(self._passes)
            tries = {"rows": check.rows, "padded rows": check.padded, "packed rows": check.packed}
            found = tries[kind]()
            if self._asked == "alone" or (self._asked == "equal" and found.way == "together"):
                found = replace(found, way=self._asked)
            self._verdicts[key] = found
            if found.why is not None:
                self._tell(kind, found)
        return self._verdicts[key]

    def _tell(self, kind: str, found: Verdict) -> None:
        """Warn, once for each kind of rows, that they are not sketched as they come."""
        if kind not in self.differs:
            instead = {
                "equal": "rows of equal lengths" if kind == "rows" else "rows laid out anew",
                "alone": "one response at a time",
            }
            warnings.warn(f"{kind}: {found.why}; sketching {instead[found.way]}", stacklevel=5)
        self.differs[kind] = str(found.why)

    def _run(self, tokens: Tokens, sink: Callable[[list[int]], Sink]) -> NDArray[np.float64]:
        """Run forward and backward; return log pi of each response.

        ``sink(rows)`` makes what takes the gradients of these responses, which share a pass.
        """
        passes = self._now()
        logps = np.zeros(tokens.responses)
        if not bool(tokens.response_mask.any()):
            return logps
        everything = list(range(tokens.responses))
        for rows, piece in self._pieces(tokens):
            some = everything if rows is None else rows
            if piece.responses == 1 and self._verdict("rows").way == "alone":
                logps[some] = passes.alone(piece, sink(some))
            else:
                logps[some] = self._together(piece, sink(some))
        return logps

    def _together(self, tokens: Tokens, sink: Sink) -> NDArray[np.float64]:
        """Run a batch; one of rows twice as long as any before is held to a response alone."""
        lengths = np.bincount(tokens.owners[tokens.owners >= 0].cpu(), minlength=tokens.responses)
        counts = tokens.counts.cpu().numpy()
        key, longest = (self._mode, tokens.kind), int(lengths.max())
        if tokens.responses == 1 or longest <= 2 * self._checked_length.get(key, LONGEST):
            return self._passes.together(tokens, sink, unused=self.unused)
        row = int(np.where(counts > 0, counts, longest + 1).argmin())
        spot = Spot(self._passes, sink, row)
        logps = self._passes.together(tokens, spot, unused=self.unused)
        spot.compare(tokens)
        self._checked_length[key] = longest
        return logps

    def _pieces(self, tokens: Tokens) -> Iterator[tuple[list[int] | None, Tokens]]:
        """Share a batch out to passes: which responses (None for all, as they are), and tokens."""
        way, regime = self._verdict("rows").way, self._passes.regime
        fits = way == "together" and (
            tokens.kind == "rows" or self._verdict(tokens.kind).way == "together"
        )
        if fits and regime is None:
            yield None, tokens
            return
        rows = tokens.apart()
        lengths = np.array([len(row) for row in rows])
        if fits and regime is not None:
            regimes = {regime(int(length)) for length in lengths if length}
            if tokens.position_ids is None:  # positions go to the end of the padding
                regimes.add(regime(tokens.input_ids.shape[1]))
            if len(regimes) == 1:
                yield None, tokens
                return
        for numbers in share_out(lengths, tokens.input_ids.numel(), way, regime):
            yield numbers, join([rows[number] for number in numbers])
