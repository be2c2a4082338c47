"""What a run reads, checked before anything heavy is imported or loaded."""

from __future__ import annotations

from dataclasses import dataclass

from pyfast.train import data, files, rewards
from pyfast.train.config import TrainConfig
from pyfast.train.errors import UserError


@dataclass(frozen=True)
class Inputs:
    """What a run reads, checked: the prompts, the reward and the files' hashes."""

    prompts: list[str]
    heldout: list[str]
    reward: rewards.Reward
    hashes: dict[str, str]


def read_inputs(config: TrainConfig) -> Inputs:
    """Read and check everything the user wrote, before any model is loaded."""
    if config.data.prompts is None:
        raise UserError("data.prompts: expected a prompts file")
    hashes = {}
    texts: dict[str, list[str]] = {"prompts": [], "heldout": []}
    for name, spec in (("prompts", config.data.prompts), ("heldout", config.data.heldout)):
        if spec is None:
            continue
        path = files.resolve(spec)
        if path is None:
            raise UserError(f"data.{name}: no such file: {spec}")
        texts[name] = data.read_prompts(path)
        hashes[name] = files.sha256(path)
    if config.data.heldout is not None:
        data.check_heldout(texts["prompts"], texts["heldout"], config.data.heldout)
    return Inputs(texts["prompts"], texts["heldout"], rewards.load(config.scoring.reward), hashes)
