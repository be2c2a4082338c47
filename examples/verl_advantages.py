"""What verl's trainer does with rewards, with one of our losses as its advantage estimator.

pip install . verl
python examples/verl_advantages.py

In a run of verl's: ``algorithm.adv_estimator=pyfast_swepo`` and
``actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum``.
"""

import numpy as np
import torch
import verl  # noqa: F401  (loads what is installed beside it, by entry points)
from verl.trainer.ppo import core_algos


def main():
    """Print the advantages of two groups of responses."""
    rewards = torch.tensor([[0, 0.9], [0, 0.1], [0, 0.4], [0, 0.2], [0.8, 0]])
    mask = torch.tensor([[1, 1], [1, 1], [1, 1], [1, 1], [1, 0]])  # the last one ends early
    uid = np.array(["a", "a", "a", "b", "b"], dtype=object)
    estimator = core_algos.get_adv_estimator_fn("pyfast_swepo")
    advantages, _ = estimator(token_level_rewards=rewards, response_mask=mask, index=uid)
    for name, row in zip(uid, advantages.tolist(), strict=True):
        print(name, *(f"{value:+.3f}" for value in row))


if __name__ == "__main__":
    main()
