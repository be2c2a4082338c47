"""What trainers of groups share: losses by name, and scores through the model's own call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyfast import losses
from pyfast.models.shared_prompt import GroupScorer

Loss = Callable[..., Tensor]
KNOWN = ("rewards", "lengths", "beta", "metrics", "reduction")
"""What a batch knows beside log-probs."""
NAMED = sorted({*losses.__all__} - {"SequenceLogps", "advantages", "sequence_logps"})
"""Losses of groups; the others of that package are no losses."""


def loss_of(loss: str | Loss) -> tuple[Loss, list[str]]:
    """Return a loss, and the names of what it takes of all that a batch knows."""
    if isinstance(loss, str):
        if loss not in NAMED:
            raise ValueError(f"loss: expected one of {', '.join(NAMED)}; got {loss!r}")
        loss = getattr(losses, loss)
    if not callable(loss):
        raise TypeError(f"loss: expected a name or a function, got {type(loss).__name__}")
    parameters = inspect.signature(loss).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return loss, [name for name in KNOWN if anything or name in parameters]


def check_share(share: Any) -> Any:
    """Return `share` if it is a way to read prompts."""
    if share not in ("auto", True, False):
        raise ValueError(f"share: expected 'auto', True or False, got {share!r}")
    return share


def check_noise(args: Any, share: Any) -> None:
    """Refuse NEFTune's noise where prompts are shared: it is scaled by the length of a row.

    Raises
    ------
    ValueError
    """
    if getattr(args, "neftune_noise_alpha", None) is not None and share is not False:
        raise ValueError(
            "args.neftune_noise_alpha: expected None, or share=False: the noise shrinks with the "
            "length of a row, which is a whole group's where the prompt is shared; got "
            f"{args.neftune_noise_alpha!r}"
        )


def check_dispatch(args: Any) -> None:
    """Refuse that one process cuts batches for all: accelerate slices them as tensors.

    Raises
    ------
    ValueError
    """
    if getattr(getattr(args, "accelerator_config", None), "dispatch_batches", None):
        raise ValueError("args.accelerator_config: expected dispatch_batches=False for groups")


def never_dispatch(trainer: Any) -> None:
    """Have each process read its own batches, of streams too, whenever one is given."""
    trainer.args.accelerator_config.dispatch_batches = False
    trainer.accelerator.dataloader_config.dispatch_batches = False


def check_whole(trainer: type) -> None:
    """Stop where another package has taken TRL's trainer apart.

    Raises
    ------
    RuntimeError
        If the class has no ``__init__`` any more: what is built on it would be made by another.
    """
    if "__init__" not in vars(trainer):
        raise RuntimeError(
            f"{trainer.__module__}.{trainer.__qualname__} has no __init__ in this process, because "
            "ms-swift deletes it on import. Train without ms-swift, or let it train on files of "
            "`pyfast export --format swift`"
        )


class LossAlone:
    """A mixin for trainers that make no logits: they evaluate the loss, and log what it tells."""

    accelerator: Any
    compute_loss: Callable[..., Any]
    compute_loss_context_manager: Callable[[], Any]
    _prepare_inputs: Callable[[Any], Any]

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        """Return the loss alone: there are no logits."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss: Tensor = self.compute_loss(model, inputs)
            return loss.detach(), None, None

    def _keep(self, kept: dict[str, list[float]], metrics: Mapping[str, Any]) -> None:
        """Keep a batch's metrics until they are logged, as means over the processes."""
        for name, value in metrics.items():
            number = torch.as_tensor(value, dtype=torch.float32, device=self.accelerator.device)
            kept[name].append(self.accelerator.gather(number).mean().item())


class ScoringForward:
    """Scores groups through models' own calls: DDP and FSDP see what goes in there.

    Parameters
    ----------
    unwrap : callable
        Model -> the one that DDP, FSDP or a compiler has wrapped.
    share : {"auto", True, False}
        `GroupScorer`.
    """

    def __init__(self, unwrap: Callable[[Any], Any], share: Any = "auto") -> None:
        self._unwrap, self._share = unwrap, share
        self._scorers: dict[int, _Scoring] = {}

    def __call__(self, model: Any, groups: Sequence[Any]) -> Tensor:
        """Return log pi(y|x) of every response, those of the first group first."""
        bare = self._unwrap(model)
        if id(bare) not in self._scorers:
            self._scorers[id(bare)] = _Scoring(bare, GroupScorer(bare, share=self._share))
        with self._scorers[id(bare)]:
            logps: Tensor = model(groups=groups)
        return logps


class _Scoring:
    """While it is entered, the forward pass of a model scores groups.

    Not for longer: a model that keeps a function of its scorer cannot be pickled, and a deep copy
    of it would go on with the weights of what it is a copy of.
    """

    def __init__(self, model: Any, scorer: GroupScorer) -> None:
        self._model, self._scorer = model, scorer
        self._forward: Any = None
        self._own = False
        self._function = self._scored  # one and the same object: compilers compile it once

    def _scored(self, *args: Any, groups: Any = None, **kwargs: Any) -> Any:
        return self._forward(*args, **kwargs) if groups is None else self._scorer.logps(groups)

    def __enter__(self) -> None:
        self._own = "forward" in vars(self._model)
        self._forward = self._model.forward
        self._model.forward = self._function

    def __exit__(self, *error: object) -> None:
        if self._own:
            self._model.forward = self._forward
        else:
            del self._model.forward


def batch_loss(
    loss: Loss,
    takes: Sequence[str],
    inputs: Any,
    policy: Tensor,
    reference: Tensor | None,
    settings: dict[str, Any],
    **known: Any,
) -> Tensor:
    """Return the loss of a batch of `GroupCollator`, given what it takes of all that is known."""
    offsets = torch.nn.functional.pad(inputs["counts"].to(policy.device).cumsum(0), (1, 0))
    known["lengths"] = inputs["lengths"].to(policy.device)
    if inputs.get("scores") is not None:
        known["rewards"] = inputs["scores"].to(policy.device)
    elif "rewards" not in settings and _must_have(loss, "rewards"):
        raise ValueError("scores: expected in every row, because the loss takes rewards")
    given = {name: known[name] for name in takes if known.get(name) is not None}
    found: Tensor = loss(policy, reference, offsets=offsets, **(given | settings))
    return found


def _must_have(loss: Loss, name: str) -> bool:
    parameter = inspect.signature(loss).parameters.get(name)
    return parameter is not None and parameter.default is inspect.Parameter.empty
