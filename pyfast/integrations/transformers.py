"""Groups of responses in Hugging Face's Trainer: a mixin in front of any `transformers.Trainer`.

``class MyTrainer(GroupTrainerMixin, Trainer): pass`` trains on rows of `tokenize_rows`; all else -
optimisers, schedules, checkpoints, logging, `accelerate` - stays the trainer's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor
from transformers import Trainer

from pyfast.integrations._groups import GroupCollator, Selector, prepare
from pyfast.integrations._scoring import (
    Loss,
    LossAlone,
    ScoringForward,
    batch_loss,
    check_dispatch,
    check_noise,
    check_share,
    loss_of,
    never_dispatch,
)
from pyfast.integrations._still import check_adapter_off
from pyfast.models.causal_lm import in_evaluation

__all__ = ["GroupCollator", "GroupTrainer", "GroupTrainerMixin", "tokenize_rows"]

_COLUMNS = ["prompt_ids", "response_ids", "scores", "ref_logps"]
_COUNT = "groups of a batch"
_Base: Any = Trainer if TYPE_CHECKING else object


def tokenize_rows(dataset: Any, tokenizer: Any, selector: Selector | None = None) -> Any:
    """Give a data set (`datasets`) the columns that `GroupTrainerMixin` reads.

    Parameters
    ----------
    dataset : Dataset or IterableDataset
        Rows in any of `pyfast.tables.FORMATS`.
    tokenizer : transformers tokenizer
        The model's.
    selector : callable, optional
        Row -> the responses to train on (`pyfast.integrations.trl.MultiPreferenceTrainer`).

    Returns
    -------
    Dataset or IterableDataset
        With ``prompt_ids``, ``response_ids`` and, where known, ``scores`` too.
    """
    return dataset.map(partial(prepare, tokenizer=tokenizer, selector=selector))


class GroupTrainerMixin(LossAlone, _Base):
    """The loss of groups of responses, for a `transformers.Trainer` behind it in the bases.

    Parameters
    ----------
    model, args, train_dataset, ...
        As for the trainer. Rows have ``prompt_ids`` and ``response_ids``, the chosen response
        first (`tokenize_rows`), for some losses ``scores``, and perhaps ``ref_logps``.
    loss : str or callable
        A loss of `pyfast.losses` by name, or a function ``(policy_logps, ref_logps, *, offsets,
        ...)`` -> scalar, a mean over groups. It is given those of ``rewards``, ``lengths``,
        ``metrics`` and ``reduction`` that it names.
    loss_kwargs : dict, optional
        More arguments of the loss, such as ``beta``.
    ref_model : causal language model, optional
        What log-ratios are taken to, in place of ``ref_logps`` in the rows. By default a peft
        model with its adapter off, as it is at the beginning. A loss with ``reward="simpo"`` needs
        none.
    share : {"auto", True, False}
        Read each prompt once for all its responses (`pyfast.models.shared_prompt.GroupScorer`).
    max_length : int, optional
        Longest prompt and response together; what is over is cut at the end.

    Raises
    ------
    ValueError
        If there is no reference, or training would change it, a collator or `compute_metrics` is
        given, labels are to be smoothed, one process has several GPUs (use ``torchrun``), or
        accelerate is told to dispatch batches, which tears groups. Later, if rows are not those of
        `tokenize_rows`, or lack scores that the loss needs.

    Notes
    -----
    The loss is the mean over the groups of a batch. With gradient accumulation and in several
    processes it is the mean over all groups if every batch has as many.

    Examples
    --------
    >>> class MyTrainer(GroupTrainerMixin, Trainer):                            # doctest: +SKIP
    ...     pass
    >>> MyTrainer(model, args, train_dataset=tokenize_rows(rows, tokenizer), loss="swepo",
    ...     loss_kwargs={"beta": 0.1}).train()                                  # doctest: +SKIP
    """

    loss_is_scaled_for_ga = False
    _signature_columns: list[str] | None

    def __init__(
        self,
        *args: Any,
        loss: str | Loss = "plackett_luce_top1",
        loss_kwargs: Mapping[str, Any] | None = None,
        ref_model: Any = None,
        share: Any = "auto",
        max_length: int | None = None,
        **others: Any,
    ) -> None:
        self._loss, self._loss_takes = loss_of(loss)
        self._loss_kwargs, self._share = dict(loss_kwargs or {}), check_share(share)
        for name in ("data_collator", "compute_metrics", "compute_loss_func"):
            if others.get(name) is not None:
                raise ValueError(f"{name}: expected None, because batches hold groups")
        others["data_collator"] = GroupCollator(max_length)
        check_dispatch(others.get("args", args[1] if len(args) > 1 else None))
        super().__init__(*args, **others)
        never_dispatch(self)
        if self.args.label_smoothing_factor:
            raise ValueError(
                "args.label_smoothing_factor: expected 0.0, got "
                f"{self.args.label_smoothing_factor!r}: the loss is set by `loss`"
            )
        check_noise(self.args, self._share)
        if self.args.n_gpu > 1:
            raise ValueError("args: expected one GPU a process (torchrun), because groups vary")
        self._group_metrics: dict[str, dict[str, list[float]]] = {
            mode: defaultdict(list) for mode in ("train", "eval")
        }
        unwrap: Callable[[Any], Any] = partial(
            self.accelerator.unwrap_model, keep_torch_compile=False
        )
        self._scoring = ScoringForward(unwrap, self._share)
        self.ref_model, self._reference_seen = ref_model, False
        if ref_model is not None:
            if ref_model is self.model:
                raise ValueError("ref_model: expected another model than the one that is trained")
            ref_model.requires_grad_(False).eval().to(self.accelerator.device)

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns = list(_COLUMNS)

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the mean loss of a batch of groups."""
        mode = "train" if model.training else "eval"
        with self.accelerator.autocast():
            policy = self._scoring(model, inputs["groups"])
            reference = self._reference(inputs)
        metrics: dict[str, Any] = {}
        loss = batch_loss(
            self._loss,
            self._loss_takes,
            inputs,
            policy,
            None if reference is None else reference.to(policy.device),
            self._loss_kwargs,
            metrics=metrics,
            reduction="mean",
        )
        self._keep(self._group_metrics[mode], metrics | {_COUNT: len(inputs["counts"])})
        return (loss, None) if return_outputs else loss

    def _reference(self, inputs: Any) -> Tensor | None:
        """Return the reference's log-probs of a batch."""
        if self._loss_kwargs.get("reward") == "simpo":
            return None
        if inputs.get("ref_logps") is not None:
            given: Tensor = inputs["ref_logps"]
            return given
        bare = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if self.ref_model is not None:
            with torch.no_grad():
                return self._scoring(self.ref_model, inputs["groups"])
        if is_peft_model(bare):
            self._see_reference(bare)
            with torch.no_grad(), in_evaluation(bare), bare.disable_adapter():
                return self._scoring(bare, inputs["groups"])
        raise ValueError(
            "ref_model: expected one, or ref_logps in the rows, because the model has no adapter "
            'to switch off (a loss with reward="simpo" needs neither)'
        )

    def _see_reference(self, bare: Any) -> None:
        """See to it, once, that the adapter off is a reference, and stays one."""
        if self._reference_seen or self.is_deepspeed_enabled or self.is_fsdp_enabled:
            return  # parts of it are with other processes
        check_adapter_off(bare)
        self._reference_seen = True

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Evaluate, with the loss's metrics of these rows beside the loss, by the same prefix."""
        found = self._group_metrics["eval"]
        found.clear()
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        means = _means(found)
        output.metrics.update({f"{metric_key_prefix}_{name}": v for name, v in means.items()})
        found.clear()
        return output

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the loss's metrics too, as means since they were logged last."""
        if self.model.training:
            found = self._group_metrics["train"]
            logs = logs | _means(found)
            found.clear()
        super().log(logs, *args, **kwargs)


class GroupTrainer(GroupTrainerMixin, Trainer):
    """`transformers.Trainer` for groups of responses."""


def _means(kept: Mapping[str, list[float]]) -> dict[str, float]:
    """Return means over the groups of batches, of which the last one may have fewer."""
    counts = kept.get(_COUNT, [])
    return {
        name: sum(v * n for v, n in zip(values, counts, strict=True)) / sum(counts)
        for name, values in kept.items()
        if name != _COUNT
    }
