"""Our group losses in TRL's GRPO trainer: on policy, with its sampling, rewards and servers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import use_adapter

from pyfast import losses
from pyfast.integrations._reference import check_reference, complete_copy, probe
from pyfast.integrations._scoring import check_whole, loss_of
from pyfast.integrations._still import refuse_taken_weights
from pyfast.models.shared_prompt import GroupScorer

_SETTINGS = {
    "loss_type": "dr_grpo",
    "temperature": 1.0,
    "importance_sampling_level": "token",
    "mask_truncated_completions": False,
    "top_entropy_quantile": 1.0,
}
"""What makes the policy gradient the loss's gradient: a constant factor before every token."""


class GroupLossGRPOTrainer(GRPOTrainer):
    """GRPOTrainer that takes steps on a group loss: its advantages are the loss's slopes.

    The completions of a prompt are a group, the one of the highest reward its chosen response;
    ``a_i = -dL/dlog pi(y_i)`` (`pyfast.losses.advantages`) stand in for normalised rewards. Groups
    of equal rewards prefer nothing and give no gradient.

    Parameters
    ----------
    model, reward_funcs, args, ...
        As for `trl.GRPOTrainer`. `args` must have ``loss_type="dr_grpo"``, ``temperature=1``,
        token-level importance sampling and no masked completions: with these the update is the
        loss's own. ``args.beta`` is still TRL's KL term, ``args.entropy_coef`` its bonus for
        entropy; both stand beside the loss.
    loss : str or callable
        As for `pyfast.integrations.trl.MultiPreferenceTrainer`; ``beta`` goes into `loss_kwargs`.
    loss_kwargs : dict, optional
        More arguments of the loss.
    reference_model : causal language model, optional
        What log-ratios are taken to. By default the model without its adapter; without an
        adapter, the model that TRL keeps where ``args.beta`` is not 0, with an adapter that was
        given a copy of it then. Losses with ``reward="simpo"`` need none. One that is not the model
        as it was given, or that training would change, is refused.

    Notes
    -----
    Exact while the policy is the one that sampled: one step for each generation
    (``steps_per_generation == gradient_accumulation_steps``, ``num_iterations=1``, the defaults).
    Later steps reuse the slopes of the old policy, clipped as GRPO clips.
    """

    def __init__(
        self,
        *args: Any,
        loss: str | Callable[..., Tensor] = "plackett_luce_top1",
        loss_kwargs: dict[str, Any] | None = None,
        reference_model: Any = None,
        **others: Any,
    ) -> None:
        check_whole(GRPOTrainer)
        self._loss, self._loss_takes = loss_of(loss)
        self._loss_kwargs = dict(loss_kwargs or {})
        own = reference_model is None and self._loss_kwargs.get("reward") != "simpo"
        model = args[0] if args else others.get("model")
        given = probe(model) if own else None
        had_adapter = isinstance(model, torch.nn.Module) and is_peft_model(model)
        super().__init__(*args, **others)
        for name, wanted in _SETTINGS.items():
            value = getattr(self.args, name, wanted)
            if value != wanted:
                raise ValueError(f"args.{name}: expected {wanted!r}, got {value!r}")
        bare = self.accelerator.unwrap_model(self.model)
        self._policy_scorer = GroupScorer(bare)
        self._reference_scorer = None
        if reference_model is None:
            reference_model = self.ref_model
        if reference_model is not None:
            reference_model = self.accelerator.unwrap_model(reference_model)
            self._reference_scorer = GroupScorer(reference_model)
        elif not is_peft_model(self.model) and self._loss_kwargs.get("reward") != "simpo":
            raise ValueError(
                "reference_model: expected one: the model has no adapter to switch off, and TRL "
                "keeps no reference where args.beta is 0"
            )
        complete_copy(bare)
        if own and not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            if had_adapter and "ref" not in bare.peft_config:
                given = None  # the reference is the model without it
                if reference_model is None:
                    refuse_taken_weights(bare)
            half = self.args.bf16 or self.args.fp16 or bare.dtype != torch.float32
            check_reference(bare, reference_model, given, half=half)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        """Remember the rewards of all processes, (completions, functions)."""
        rewards: Tensor = super()._calculate_rewards(*args, **kwargs)
        weights = self.reward_weights.to(rewards.device)
        unknown = torch.isnan(rewards).all(dim=1)
        self._rewards = (rewards * weights).nansum(dim=1).masked_fill(unknown, torch.nan)
        return rewards

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        output = super()._generate_and_score_completions(inputs)
        if "tool_mask" in output:
            raise ValueError("tools: expected none: what a tool wrote is not the policy's")
        groups = _groups(output)
        with torch.no_grad(), self.accelerator.autocast():
            policy = self._policy_scorer.logps(groups)
            reference = self._reference_logps(groups)
        policy = self.accelerator.gather(policy)
        reference = None if reference is None else self.accelerator.gather(reference)
        lengths = torch.tensor([len(y) for _, ys in groups for y in ys], device=policy.device)
        found = self._slopes(policy, reference, self.accelerator.gather(lengths))
        own = len(lengths) * self.accelerator.process_index
        output["advantages"] = found[own : own + len(lengths)]
        return output

    def _reference_logps(self, groups: Any) -> Tensor | None:
        if self._loss_kwargs.get("reward") == "simpo":
            return None
        if self._reference_scorer is not None:
            return self._reference_scorer.logps(groups)
        bare = self.accelerator.unwrap_model(self.model)
        with use_adapter(bare, adapter_name="ref" if "ref" in bare.peft_config else None):
            return self._policy_scorer.logps(groups)

    def _slopes(self, policy: Tensor, reference: Tensor | None, lengths: Tensor) -> Tensor:
        """Return the advantages of all completions, in the scale of Dr. GRPO's mean."""
        training = self.model.training
        size = self.num_generations if training else self.num_generations_eval
        order, offsets = [], [0]
        rewards = self._rewards.tolist()
        for start in range(0, len(rewards), size):
            group = [i for i in range(start, start + size) if not math.isnan(rewards[i])]
            if len({rewards[i] for i in group}) > 1:  # equals prefer nothing
                order += sorted(group, key=lambda i: -rewards[i])  # the chosen one first
                offsets.append(len(order))
        found = torch.zeros_like(policy)
        if not order:
            return found
        index = torch.tensor(order, device=policy.device)
        known = {"rewards": self._rewards.to(policy.dtype)[index], "lengths": lengths[index]}
        given = {name: known[name] for name in self._loss_takes if name in known}
        found[index] = losses.advantages(
            self._loss,
            policy[index],
            None if reference is None else reference[index],
            offsets=torch.tensor(offsets, device=policy.device),
            **(given | self._loss_kwargs),
        )
        # Dr. GRPO divides by the completions and their longest length; a mean, by the groups.
        scaled: Tensor = found * (size * self.max_completion_length)
        return scaled


def _groups(output: Any) -> list[tuple[list[int], list[list[int]]]]:
    """Return a generation batch as groups of neighbours that share their prompt."""
    groups: list[tuple[list[int], list[list[int]]]] = []
    for prompt, seen, completion, kept in zip(
        *(
            output[f"{part}_{what}"]
            for part in ("prompt", "completion")
            for what in ("ids", "mask")
        ),
        strict=True,
    ):
        tokens = prompt[seen.bool()].tolist()
        response = completion[kept.bool()].tolist()
        if groups and groups[-1][0] == tokens:
            groups[-1][1].append(response)
        else:
            groups.append((tokens, [response]))
    return groups
