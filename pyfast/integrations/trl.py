"""TRL's DPO trainer for groups of any size, with our losses, selectors and scoring.

`MultiPreferenceTrainer` changes four things of `trl.DPOTrainer`: how a row becomes tokens, how
rows become a batch, where log-probabilities come from, and the loss of a batch. All else -
arguments, adapters, reference models, checkpoints, logging, `accelerate` - is TRL's. `fast_head`
leaves a script as it is and replaces TRL's product with the head for a while.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object, is_peft_model
from datasets import Dataset, IterableDataset, concatenate_datasets
from datasets.fingerprint import Hasher
from torch import Tensor
from tqdm import tqdm
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.utils import use_adapter

from pyfast.integrations._groups import GroupCollator, Selector, prepare
from pyfast.integrations._reference import (
    check_adapters,
    check_reference,
    complete_copy,
    probe,
    starts_elsewhere,
    what_scores,
)
from pyfast.integrations._scoring import (
    Loss,
    LossAlone,
    ScoringForward,
    batch_loss,
    check_dispatch,
    check_noise,
    check_share,
    check_whole,
    loss_of,
    never_dispatch,
)
from pyfast.integrations._trl_head import fast_head

__all__ = ["MultiPreferenceTrainer", "fast_head", "loss_of"]

_UNREAD = {
    "loss_type": ["sigmoid"],
    "loss_weights": None,
    "label_smoothing": 0.0,
    "label_smoothing_factor": 0.0,
    "f_divergence_type": "reverse_kl",
    "ld_alpha": None,
    "use_weighting": False,
    "padding_free": False,
    "use_liger_loss": False,
    "use_liger_kernel": False,
}
"""Arguments of DPOConfig that speak of TRL's own loss or head, with their defaults."""


class MultiPreferenceTrainer(LossAlone, DPOTrainer):
    """DPOTrainer for a chosen response and any number set against it.

    Parameters
    ----------
    model, ref_model, args, train_dataset, eval_dataset, processing_class, callbacks, optimizers, \
quantization_config, peft_config
        As for `trl.DPOTrainer`. Rows may be in any of `pyfast.tables.FORMATS`; prompts and
        responses are texts or chat messages. Arguments that speak of TRL's own losses are refused.
    loss : str or callable
        A loss of `pyfast.losses` by name, or a function ``(policy_logps, ref_logps, *, offsets,
        ...)`` -> scalar. Of ``rewards`` (the rows' scores), ``lengths`` (tokens), ``beta``
        (``args.beta``), ``metrics`` and ``reduction`` it is given those that it names.
    loss_kwargs : dict, optional
        More arguments of the loss, such as ``gamma`` or ``reward="simpo"``.
    selector : callable, optional
        Row -> the responses to train on, as a result of `pyfast.select` or as positions, the chosen
        one first. By default all.
    share : {"auto", True, False}
        Read each prompt once for all its responses (`pyfast.models.shared_prompt.GroupScorer`).

    Notes
    -----
    With one rejected response and ``loss="dpo"`` it is `trl.DPOTrainer`: loss, metrics and
    gradients agree within rounding. The logits are never made, so ``logits/*``, ``entropy`` and
    ``mean_token_accuracy`` are not logged, and `compute_metrics` is refused. With gradient
    accumulation the loss is the mean over prompts if every batch has as many.

    Without `ref_model` the reference is the model as it was given, its adapter included. Where what
    TRL keeps is something else (one row's logits tell), or shares what is trained (LoRA's
    ``bias``), that is a ValueError.

    Several processes (DDP) train as one with batches as large together. As in TRL, an evaluation
    whose rows do not divide among them counts some rows twice, because accelerate fills up the last
    batches.

    Examples
    --------
    >>> trainer = MultiPreferenceTrainer(                                       # doctest: +SKIP
    ...     model, args=DPOConfig("out"), train_dataset=rows, processing_class=tokenizer,
    ...     loss="swepo", selector=lambda row: select.opt_select(
    ...         row["embeddings"], row["scores"], k=7),
    ... )
    """

    loss_is_scaled_for_ga = False
    _signature_columns: list[str] | None

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: Any = None,
        *,
        loss: str | Loss = "plackett_luce_top1",
        loss_kwargs: dict[str, Any] | None = None,
        selector: Selector | None = None,
        share: Any = "auto",
        data_collator: Any = None,
        **others: Any,
    ) -> None:
        check_whole(DPOTrainer)
        self._loss, self._loss_takes = loss_of(loss)
        self._loss_kwargs = dict(loss_kwargs or {})
        self._selector, self._share = selector, check_share(share)
        self._needs_reference = self._loss_kwargs.get("reward") != "simpo"
        if args is not None:
            _refuse_unread(args)
            check_noise(args, share)
            check_dispatch(args)
        if others.get("compute_metrics") is not None:
            raise ValueError("compute_metrics: expected None, because no logits are made")
        if data_collator is None:
            length = getattr(args, "max_length", 1024)
            keep = getattr(args, "truncation_mode", "keep_start").removeprefix("keep_")
            data_collator = GroupCollator(length, keep)
        self._given: Tensor | None = None
        self._reference_unseen = ref_model is None and self._needs_reference
        self._starts_elsewhere = starts_elsewhere(others.get("peft_config"))
        if self._reference_unseen:
            check_adapters(model)
            self._given = probe(model)
        own = {id(m) for m in _causal(model, ref_model) if "forward" in vars(m)}
        super().__init__(model, ref_model, args, data_collator=data_collator, **others)
        never_dispatch(self)
        for module in _causal(self.model, self.ref_model):
            if id(module) not in own:
                _give_forward_back(module)
        if getattr(self, "aux_loss_enabled", False):
            raise ValueError(
                "args.router_aux_loss_coef: expected 0, because the router's loss is not computed"
            )
        self._see_reference()

    def _see_reference(self) -> None:
        """See to it, once, that the reference that TRL made is the model as it was given."""
        if not self._reference_unseen:
            return
        self._reference_unseen = False
        bare = self.accelerator.unwrap_model(self.model)
        complete_copy(bare)
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            return  # the parts of a reference are with other processes
        reference = self.ref_model
        if reference is None and not is_peft_model(bare):
            return  # it is precomputed
        if reference is not None:
            reference = self.accelerator.unwrap_model(reference)
        given, self._given = self._given, None
        if given is None and not self._starts_elsewhere:
            given = probe(bare)  # it was given as a path
        half = self.args.bf16 or self.args.fp16 or bare.dtype in (torch.bfloat16, torch.float16)
        check_reference(bare, reference, given, half=half)

    # --- rows ------------------------------------------------------------------------------------

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, name: str) -> Any:
        """Select and tokenize, in place of TRL's pairs."""
        more: dict[str, Any] = {}
        if isinstance(dataset, Dataset):
            more = {"num_proc": args.dataset_num_proc, "desc": f"Preparing {name} dataset"}
        work = partial(prepare, tokenizer=processing_class, selector=self._selector)
        dataset = dataset.map(work, **more)
        if args.max_length is None or args.truncation_mode != "keep_start":
            return dataset
        if more:
            more["desc"] = f"Dropping prompts of {args.max_length} tokens from {name} dataset"
        return dataset.filter(partial(_has_room, length=args.max_length), **more)

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns = ["prompt_ids", "response_ids", "scores", "ref_logps"]

    # --- log-probabilities -----------------------------------------------------------------------

    def _logps(self, model: Any, groups: Sequence[Any]) -> Tensor:
        if not hasattr(self, "_scoring"):
            unwrap = partial(self.accelerator.unwrap_model, keep_torch_compile=False)
            self._scoring = ScoringForward(unwrap, self._share)
        return self._scoring(model, groups)

    def _reference_logps(self, groups: Sequence[Any]) -> Tensor:
        checkpointing = disable_gradient_checkpointing(
            self.model, self.args.gradient_checkpointing_kwargs
        )
        with torch.no_grad(), checkpointing, self.accelerator.autocast():
            if self.ref_model is not None:
                return self._logps(self.ref_model, groups)
            if not is_peft_model(self.model):  # precomputed before the first step
                return self._logps(self.model, groups)
            bare = self.accelerator.unwrap_model(self.model)
            with use_adapter(bare, adapter_name="ref" if "ref" in bare.peft_config else None):
                return self._logps(self.model, groups)

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """Add the column ``ref_logps``, from the data set's cache where it is there."""
        if isinstance(dataset, IterableDataset):
            raise ValueError("precompute_ref_log_probs: expected False for an IterableDataset")
        if not self._needs_reference:
            return dataset
        self._see_reference()
        whole = not (self.is_deepspeed_enabled or self.is_fsdp_enabled)
        with self.accelerator.autocast():
            model = what_scores(self.ref_model or self.model, self.data_collator, logits=whole)
        fingerprint = [Hasher.hash((dataset._fingerprint, model, repr(self._share)))]
        broadcast_object_list(fingerprint)  # one cache, whatever a process hashes
        cache = dataset._get_cache_file_path(fingerprint[0])
        # of a data set in memory each process has a folder of its own; nodes may share no disk
        if all(gather_object([os.path.exists(cache)])):
            return concatenate_datasets([dataset, Dataset.from_file(cache)], axis=1)
        rows = Dataset.from_dict({"ref_logps": self._reference_column(dataset, name, batch_size)})
        if self.accelerator.is_main_process:
            rows.map(_as_it_is, batched=True, cache_file_name=cache)
        self.accelerator.wait_for_everyone()
        return concatenate_datasets([dataset, rows], axis=1)

    def _reference_column(self, dataset: Dataset, name: str, batch_size: int) -> list[list[float]]:
        """Score all rows, a share in each process."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        mine = range(rank, len(dataset), world)
        found: list[tuple[int, list[float]]] = []
        shown = self.accelerator.is_main_process
        for start in tqdm(
            range(0, len(mine), batch_size), f"Reference log-probs of {name}", disable=not shown
        ):
            numbers = list(mine[start : start + batch_size])
            batch = self.data_collator([dataset[number] for number in numbers])
            logps = self._reference_logps(batch["groups"]).float().cpu()
            parts = torch.split(logps, batch["counts"].tolist())
            found += [(n, part.tolist()) for n, part in zip(numbers, parts, strict=True)]
        rows = dict(gather_object(found))
        return [rows[number] for number in range(len(dataset))]

    # --- the loss --------------------------------------------------------------------------------

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
        mode = "train" if self.model.training else "eval"
        policy = self._logps(model, inputs["groups"])
        reference = None
        if self._needs_reference:
            if self.precompute_ref_logps:
                reference = inputs["ref_logps"].to(policy.device)
            else:
                reference = self._reference_logps(inputs["groups"]).detach()
        metrics: dict[str, Any] = {}
        loss = batch_loss(
            self._loss,
            self._loss_takes,
            inputs,
            policy,
            reference,
            self._loss_kwargs,
            beta=self.beta,
            metrics=metrics,
            reduction="mean",
        )
        self._record(mode, metrics, inputs)
        return (loss, None) if return_outputs else loss

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate, without metrics that a `predict` has left."""
        self._metrics["eval"].clear()
        return super().evaluation_loop(*args, **kwargs)

    def _record(self, mode: str, metrics: dict[str, Any], inputs: Any) -> None:
        """Keep what is logged, as means over the processes."""
        self._keep(self._metrics[mode], metrics)
        if mode == "train":
            size = torch.tensor(inputs["input_ids"].numel(), device=self.accelerator.device)
            self._total_train_tokens += self.accelerator.gather(size).sum().item()
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]


def _causal(*models: Any) -> list[torch.nn.Module]:
    """Return what TRL gives its head to, of what is loaded: the model inside a peft model."""
    loaded: list[Any] = [m for m in models if isinstance(m, torch.nn.Module)]
    return [m.get_base_model() if is_peft_model(m) else m for m in loaded]


def _give_forward_back(model: Any) -> None:
    """Take TRL's head out of a model: it is not used here, and deep copies would share it."""
    others = ("_hf_hook", "_original_forward")  # of accelerate
    if "forward" in vars(model) and not any(hasattr(model, name) for name in others):
        del model.forward


def _as_it_is(rows: Any) -> Any:
    return rows


def _has_room(row: Any, length: int) -> bool:
    return len(row["prompt_ids"]) < length


def _refuse_unread(args: Any) -> None:
    for name, default in _UNREAD.items():
        value = getattr(args, name, default)
        value = [value] if name == "loss_type" and isinstance(value, str) else value
        if value != default and not (name == "loss_weights" and value == [1.0]):
            raise ValueError(
                f"args.{name}: expected {default!r}, got {value!r}: the loss is set by `loss`"
            )
