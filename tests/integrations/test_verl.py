"""verl's own advantage and policy loss with our estimators: the gradient of our loss.

Needs verl and what it imports (``make test-verl``); it is no part of the test environment, because
it pins an older transformers.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("verl")

from verl.trainer.ppo import core_algos

from pyfast import losses
from pyfast.integrations import verl as ours

SIZES, LENGTH = [4, 3, 5], 6


def batch():
    draw = torch.Generator().manual_seed(0)
    total = sum(SIZES)
    lengths = torch.randint(1, LENGTH + 1, (total,), generator=draw)
    mask = (torch.arange(LENGTH) < lengths[:, None]).float()
    rewards = torch.zeros(total, LENGTH)
    rewards[torch.arange(total), lengths - 1] = torch.rand(total, generator=draw)
    uid = np.array([f"g{b}" for b, n in enumerate(SIZES) for _ in range(n)], dtype=object)
    order = torch.randperm(total, generator=draw)  # groups need not lie together
    return rewards[order], mask[order], uid[order.numpy()]


@pytest.mark.parametrize("name", sorted(ours.DEFAULTS))
def test_a_step_of_verl_is_a_step_on_the_loss(name):
    rewards, mask, uid = batch()
    estimator = core_algos.get_adv_estimator_fn(f"pyfast_{name}")
    advantages, returns = estimator(
        token_level_rewards=rewards, response_mask=mask, index=uid, config=None
    )
    assert torch.equal(advantages, returns)
    tokens = torch.randn(mask.shape, generator=torch.Generator().manual_seed(1))
    theirs = tokens.clone().requires_grad_()
    # verl's policy loss where the policy is the one that sampled
    ratio = torch.exp(theirs - tokens)
    loss = core_algos.agg_loss(
        loss_mat=-advantages * ratio, loss_mask=mask, loss_agg_mode="seq-mean-token-sum"
    )
    loss.backward()

    mine = tokens.clone().requires_grad_()
    logps, scores = (mine * mask).sum(1), rewards.sum(1)
    total = 0
    for group in sorted(set(uid)):
        places = torch.tensor(np.flatnonzero(uid == group))
        places = places[scores[places].argsort(descending=True)]
        given = {} if name == "plackett_luce_top1" else {"rewards": scores[places]}
        reference = logps[places].detach()  # the policy is its reference
        total = total + getattr(losses, name)(
            logps[places], reference, **given, **ours.DEFAULTS[name]
        ) * len(places) / len(uid)  # verl's mean is over responses
    total.backward()
    torch.testing.assert_close(theirs.grad, mine.grad, rtol=1e-5, atol=1e-7)
    assert theirs.grad.abs().sum() > 0


def test_groups_that_prefer_nothing_and_what_is_missing():
    rewards, mask, _ = batch()
    estimator = core_algos.get_adv_estimator_fn("pyfast_swepo")
    alone, _ = estimator(rewards, mask, index=np.arange(len(mask)), config=None)
    assert alone.abs().sum() == 0
    equal, _ = estimator(torch.zeros_like(rewards), mask, index=np.zeros(len(mask)))
    assert equal.abs().sum() == 0
    with pytest.raises(ValueError, match="index: expected the uid"):
        estimator(rewards, mask)
    with pytest.raises(ValueError, match="registered already"):
        ours.register("pyfast_swepo", "swepo")
    with pytest.raises(ValueError, match="loss: expected one of"):
        ours.register("mine", "best")


def test_verl_finds_them_by_the_entry_point(tmp_path):
    """As installed: verl's import loads the entry point, and keeps quiet where that fails."""
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    entries = re.findall(r'entry-points."verl.plugins"\]\n(\w+) = "([\w.]+)"', project)
    assert entries
    info = tmp_path / "pyfast_plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pyfast-plugin\nVersion: 1\n")
    listed = "".join(f"{name} = {value}\n" for name, value in entries)
    (info / "entry_points.txt").write_text(f"[verl.plugins]\n{listed}")
    code = (
        "import verl\nfrom verl.trainer.ppo import core_algos\n"
        "print(core_algos.get_adv_estimator_fn('pyfast_hps') is not None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("True")
