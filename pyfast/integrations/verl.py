"""Our group losses as advantage estimators of verl: rewards become the slopes of a loss.

Importing this registers them (verl does so by itself, through the entry point ``verl.plugins``):
``algorithm.adv_estimator=pyfast_swepo`` and ``actor.loss_agg_mode=seq-mean-token-sum``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, register_adv_est

from pyfast import losses
from pyfast.integrations._scoring import loss_of

PREFIX = "pyfast_"
DEFAULTS: dict[str, dict[str, Any]] = {
    "swepo": {},
    "plackett_luce_top1": {},
    "plackett_luce": {},
    "hps": {"gamma": 1.0},
    "lipo_lambda": {},
}
"""Losses that are registered at import, with their arguments."""


def register(name: str, loss: str | Callable[..., Tensor], **settings: Any) -> None:
    """Register a loss as the advantage estimator of this name.

    Parameters
    ----------
    name : str
        What ``algorithm.adv_estimator`` is set to.
    loss : str or callable
        A loss of `pyfast.losses` by name, or a function as these are.
    **settings
        Its arguments, such as ``beta``.

    Raises
    ------
    ValueError
        If the name is taken, or there is no such loss.
    """
    found, takes = loss_of(loss)
    if name in ADV_ESTIMATOR_REGISTRY:
        raise ValueError(f"name: {name!r} is registered already")
    register_adv_est(name)(partial(_advantages, found, "rewards" in takes, settings))


def _advantages(
    loss: Callable[..., Tensor],
    takes_rewards: bool,
    settings: dict[str, Any],
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Any = None,
    config: Any = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Return advantages and returns (responses, tokens), as verl takes them.

    verl tells an estimator rewards alone, so log-ratios to the reference are taken as 0: the slopes
    are those of the loss while the policy is its reference. They are times the group's size, so
    that ``seq-mean-token-sum`` is the mean over groups. Equal rewards prefer nothing.
    """
    if index is None:
        raise ValueError("index: expected the uid of each response's prompt")
    rewards = token_level_rewards.sum(dim=-1).detach()
    groups: dict[Hashable, list[int]] = {}
    for place, uid in enumerate(index):
        groups.setdefault(uid, []).append(place)
    found = torch.zeros_like(rewards)
    for places in groups.values():
        own = rewards[places]
        if len(places) < 2 or bool((own == own[0]).all()):
            continue
        order = [places[i] for i in (-own).argsort(stable=True).tolist()]  # the chosen one first
        nothing = torch.zeros(len(order), dtype=torch.float32, device=rewards.device)
        given = {"rewards": rewards[order].float()} if takes_rewards else {}
        slopes = losses.advantages(loss, nothing, nothing, **given, **settings)
        found[order] = slopes.to(found.dtype) * len(order)
    spread = found.unsqueeze(-1) * response_mask
    return spread, spread


for _name, _settings in DEFAULTS.items():
    if PREFIX + _name not in ADV_ESTIMATOR_REGISTRY:
        register(PREFIX + _name, _name, **_settings)
