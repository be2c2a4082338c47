"""Parity with TRL: its trainer's own loss function, on log-probs that we hand to it."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from pyfast import losses

trainer = pytest.importorskip("trl.trainer.dpo_trainer")

BETA, PAIRS, TOKENS = 0.3, 6, 9


def of_trl(loss_type, per_token, mask, ref, smoothing=0.0):
    """Run DPOTrainer._compute_loss on a stand-in for a model that returns `per_token`."""
    outputs = SimpleNamespace(
        log_probs=per_token,
        entropy=torch.zeros_like(per_token),
        mean_logits=torch.zeros_like(per_token),
        is_top1=torch.zeros_like(per_token, dtype=torch.bool),
    )

    class Model:
        training = False

        def __call__(self, **kwargs):
            return outputs

    accelerator = SimpleNamespace(
        device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x
    )
    stand_in = SimpleNamespace(
        model=Model(),
        accelerator=accelerator,
        beta=BETA,
        loss_types=[loss_type],
        loss_weights=[1.0],
        label_smoothing=smoothing,
        f_divergence_type="reverse_kl",
        precompute_ref_logps=True,
        aux_loss_enabled=False,
        ld_alpha=None,
        use_weighting=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
    )
    inputs = {
        "input_ids": torch.zeros(mask.shape, dtype=torch.int64),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": ref[:PAIRS],
        "ref_rejected_logps": ref[PAIRS:],
    }
    loss = trainer.DPOTrainer._compute_loss(stand_in, Model(), inputs, False)
    return loss, {name: value[0] for name, value in stand_in._metrics["eval"].items() if value}


@pytest.fixture
def case():
    torch.manual_seed(0)
    counts = torch.randint(2, TOKENS, (2 * PAIRS,))
    mask = (torch.arange(TOKENS + 1) >= TOKENS + 1 - counts[:, None]).long()
    per_token = -3 * torch.rand(2 * PAIRS, TOKENS) * mask[:, 1:]
    ref = per_token.sum(1) + torch.randn(2 * PAIRS)
    return per_token, mask, ref, counts


def in_pairs(values):
    """TRL's [all chosen, all rejected] as our (B, 2)."""
    return torch.stack([values[:PAIRS], values[PAIRS:]], 1)


@pytest.mark.parametrize(
    ("loss_type", "ours", "normalized"),
    [
        ("sigmoid", losses.dpo, False),
        ("sigmoid", losses.plackett_luce_top1, False),
        ("sigmoid", losses.plackett_luce, False),
        ("sigmoid", losses.dpo_k, False),
        ("sigmoid", losses.dmpo, False),
        ("sigmoid_norm", losses.dpo, True),
        ("hinge", losses.slic, False),
        ("ipo", losses.ipo, True),
        ("exo_pair", losses.exo, False),
        ("nca_pair", losses.nca, False),
        ("sppo_hard", losses.sppo, False),
    ],
)
def test_value_and_gradient_are_those_of_trl(case, loss_type, ours, normalized):
    per_token, mask, ref, counts = case
    theirs = per_token.clone().requires_grad_()
    expected, _ = of_trl(loss_type, theirs, mask, ref, smoothing=1e-3)
    expected.backward()

    mine = per_token.clone().requires_grad_()
    arguments = {"lengths": in_pairs(counts), "reward": "length_normalized"} if normalized else {}
    loss = ours(in_pairs(mine.sum(1)), in_pairs(ref), beta=BETA, **arguments)
    loss.backward()
    scale = max(1.0, float(expected.detach().abs()))
    assert abs(loss.item() - expected.item()) <= 1e-6 * scale
    assert (mine.grad - theirs.grad).abs().max() <= 1e-6 * scale
    assert theirs.grad.abs().max() > 1e-4


def test_metrics_are_those_of_trl(case):
    per_token, mask, ref, _ = case
    _, expected = of_trl("sigmoid", per_token, mask, ref)
    found = {}
    losses.dpo(in_pairs(per_token.sum(1)), in_pairs(ref), beta=BETA, metrics=found)
    shared = set(found) & set(expected)
    assert shared == set(found) - {"negatives/effective"}
    for name in shared:
        assert found[name].item() == pytest.approx(expected[name], rel=1e-5), name
