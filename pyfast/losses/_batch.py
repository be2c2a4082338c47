"""What every loss over groups does before and after its formula: checks, scores, reduction."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from pyfast.losses import fused
from pyfast.losses._checks import check_choice, check_groups, check_number, check_values
from pyfast.losses._describe import preference_metrics
from pyfast.losses.fused import REDUCTIONS, Backend, Reduction, reduced
from pyfast.losses.reference import Groups, widen

Reward: TypeAlias = Literal["dpo", "simpo", "length_normalized", "kto"]
Metrics: TypeAlias = MutableMapping[str, Tensor]

REWARDS = ("dpo", "simpo", "length_normalized", "kto")


@dataclass(frozen=True, eq=False)
class Batch:
    """Groups of responses whose arguments were checked, with the scores made of them.

    Attributes
    ----------
    policy_logps : Tensor
        As given.
    scores : Tensor
        s_i, the implicit rewards, in the shape of `policy_logps` and at least in float32.
    beta : float
        As given.
    offsets : Tensor or None
        As given.
    """

    policy_logps: Tensor
    scores: Tensor
    beta: float
    offsets: Tensor | None

    @classmethod
    def of(
        cls,
        policy_logps: Tensor,
        ref_logps: Tensor | None,
        beta: float,
        reward: Reward,
        lengths: Tensor | None,
        offsets: Tensor | None,
        validate: bool,
        *,
        size: int | None = None,
        **others: Tensor | None,
    ) -> Batch:
        """Check what the losses have in common, and `others` like the log-probs; then score."""
        check_number("beta", beta)
        check_choice("reward", reward, REWARDS)
        tensors = {"policy_logps": policy_logps}
        if reward != "simpo":
            if ref_logps is None:
                raise TypeError("ref_logps must be a torch.Tensor, got None: only simpo needs none")
            tensors["ref_logps"] = ref_logps
        beside = {name: tensor for name, tensor in others.items() if tensor is not None}
        positive: dict[str, Tensor] = {}
        if reward != "dpo":
            if lengths is None:
                raise TypeError(f"lengths must be a torch.Tensor for reward {reward}, got None")
            positive["lengths"] = lengths
        tensors.update(beside)  # torch 2.6 compiles no |=
        check_groups(tensors, positive, offsets, size)
        scores = _scores(policy_logps, tensors.get("ref_logps"), beta, reward, lengths)
        if validate:
            # A score is finite only where its log-probs are: those need no look of their own.
            sums = (scores, *beside.values(), *positive.values())
            check_values(tensors, positive, offsets, size, sums)
        return cls(policy_logps, scores, float(beta), offsets)

    @property
    def groups(self) -> Groups:
        """Which response belongs to which group; made anew at each call, so keep it."""
        return Groups.of(self.scores, self.offsets)

    @property
    def flat(self) -> Tensor:
        """The scores end to end, (T,)."""
        return self.scores.reshape(-1)

    def wide(self, tensor: Tensor) -> Tensor:
        """Return another argument in the losses' own precision, or its own if that is higher."""
        return tensor.to(torch.promote_types(tensor.dtype, self.scores.dtype))

    def describe(
        self,
        metrics: Metrics | None,
        added: Tensor | None = None,
        *,
        ranked_by: Tensor | None = None,
    ) -> None:
        """Write the metrics, if they are wanted.

        `added` is what the loss adds to the scores. The first response of a group is the chosen
        one, or with `ranked_by` the first of the highest there.
        """
        if metrics is None:
            return
        groups, scores, logps = self.groups, self.flat, self.policy_logps.reshape(-1)
        weighing = scores if added is None else scores + added.reshape(-1)
        if ranked_by is not None:
            order = groups.ranking(ranked_by.reshape(-1))
            scores, logps, weighing = scores[order], logps[order], weighing[order]
        metrics.update(preference_metrics(scores, logps, groups, weighing))

    def finish(
        self,
        losses: Tensor,
        metrics: Metrics | None,
        reduction: Reduction,
        *,
        ranked_by: Tensor | None = None,
    ) -> Tensor:
        """Write the metrics and reduce the losses of the groups, (B,)."""
        self.describe(metrics, ranked_by=ranked_by)
        return self.reduced(losses, reduction)

    def contrast(
        self,
        metrics: Metrics | None,
        reduction: Reduction,
        margin: float,
        backend: Backend,
        *,
        positive: Tensor | None = None,
        log_weights: Tensor | None = None,
        lift: Tensor | None = None,
        ranked_by: Tensor | None = None,
    ) -> Tensor:
        """Write the metrics and let the log-sum-exp core do the rest; `lift` joins the scores."""
        self.describe(metrics, log_weights if lift is None else lift, ranked_by=ranked_by)
        scores = self.scores if lift is None else self.scores + lift
        return fused.contrast(
            scores,
            positive,
            log_weights,
            self.offsets,
            margin,
            reduction=reduction,
            backend=backend,
        )

    def reduced(self, losses: Tensor, reduction: Reduction) -> Tensor:
        """Reduce the losses of the groups, (B,)."""
        check_choice("reduction", reduction, REDUCTIONS)
        shaped = losses.reshape(self.scores.shape[:-1]) if self.offsets is None else losses
        return reduced(shaped, reduction)


def _scores(
    policy_logps: Tensor,
    ref_logps: Tensor | None,
    beta: float,
    reward: Reward,
    lengths: Tensor | None,
) -> Tensor:
    """Return the implicit rewards, in the shape of the log-probs and at least in float32."""
    # Widened before they are subtracted: the ratio is small beside what it is the difference of.
    ratios = widen(policy_logps)
    if ref_logps is not None:
        ratios = ratios - widen(ref_logps)
    if lengths is not None and reward != "dpo":
        factors = lengths.to(ratios.dtype)
        ratios = ratios * factors if reward == "kto" else ratios / factors
    return ratios * float(beta)
