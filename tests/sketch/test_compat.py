"""The signatures and files that users of TRAK and LESS know."""

import copy
import enum

import numpy as np
import pytest
import torch

from pyfast import sketch
from pyfast.sketch._batches import pad
from pyfast.sketch.compat import TrakProjector, write_less


class ProjectionType(str, enum.Enum):
    rademacher = "rademacher"


def test_traks_signature():
    grads = torch.randn(3, 700)
    projector = TrakProjector(
        grad_dim=700,
        proj_dim=256,
        seed=4,
        proj_type=ProjectionType.rademacher,
        device="cpu",
        dtype=torch.float16,
        block_size=128,
        max_batch_size=16,
    )
    assert torch.equal(projector.project(grads, model_id=0), sketch.project(grads, 256, 4))
    other = projector.project(grads, model_id=1)
    assert torch.equal(other, sketch.project(grads, 256, 4, module=1))
    parts = {"a": grads[:, :300].view(3, 10, 30), "b": grads[:, 300:]}
    assert torch.equal(projector.project(parts, model_id=1), other)
    assert projector.project(grads.half(), model_id=0).dtype == torch.float16
    projector.free_memory()
    with pytest.raises(ValueError, match=r"grads: expected shape \(B, 700\), got \(3, 600\)"):
        projector.project(grads[:, :600], 0)
    with pytest.raises(ValueError, match="proj_type: expected 'rademacher' or 'normal', got 'fft'"):
        TrakProjector(700, 256, 0, "fft", "cpu")
    with pytest.raises(ValueError, match="dim: expected a power of two"):
        TrakProjector(700, 300, 0, "normal", "cpu")


def test_less_layout(tiny, tmp_path):
    collector = sketch.LoraGradients(tiny.lora(), 512)
    responses = [*tiny.responses(5), ([3], [])]
    pool = sketch.collect(collector, responses, tmp_path / "pool", progress=False)
    folder = write_less(pool, tmp_path / "grads")
    assert folder == tmp_path / "grads" / "dim512"
    rows = torch.load(folder / "all_unormalized.pt", weights_only=True)
    unit = torch.load(folder / "all_orig.pt", weights_only=True)
    lengths = np.maximum(pool.lengths, 1)[:, None]
    np.testing.assert_allclose(rows.numpy(), -pool.sketches / lengths, rtol=1e-6)
    np.testing.assert_allclose(unit.norm(dim=1).numpy(), [1] * 5 + [0], rtol=1e-6)
    assert sorted(p.name for p in (tmp_path / "grads").iterdir()) == ["dim512"]
    with pytest.raises(ValueError, match=r"folder: .*dim512 is there already"):
        write_less(pool, tmp_path / "grads")


def test_less_gets_zeros_for_what_is_not_finite(tiny, tmp_path):
    model = tiny.lora()
    model.get_base_model().model.embed_tokens.weight.data[59] = torch.nan
    collector = sketch.LoraGradients(model, 128)
    responses = [([1], [2, 3]), ([59], [2, 3]), ([4], [5])]
    with pytest.warns(UserWarning, match="are not finite"):
        pool = sketch.collect(collector, responses, tmp_path / "pool", progress=False)
    with pytest.warns(UserWarning, match="gradients of 1 responses are not finite.*: 1$"):
        folder = write_less(pool, tmp_path / "grads")
    for name in ("all_orig.pt", "all_unormalized.pt"):
        rows = torch.load(folder / name, weights_only=True)
        assert rows.isfinite().all()
        assert rows.any(dim=1).tolist() == [True, False, True]


def test_less_gradients_that_adam_has_scaled(tiny):
    """What docs/sketch-pools.md says of LESS's main variant, against a step of torch's Adam."""
    model, responses = tiny.lora(), tiny.responses(3)
    collector = sketch.LoraGradients(model, 256)
    named = dict(model.named_parameters())
    weights = [named[f"{name}.weight"] for name in collector.names]

    def step(optimizer, prompt, response):
        optimizer.zero_grad()
        ids = torch.tensor([[*prompt, *response]])
        labels = torch.tensor([[-100] * len(prompt) + list(response)])
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()

    adam = torch.optim.Adam(weights, lr=0.0)
    for prompt, response in tiny.responses(3, seed=1):
        step(adam, prompt, response)
    before = copy.deepcopy(adam.state_dict())

    def laid_out(optimizer, key):
        found = (optimizer.state[weight][key] for weight in weights)
        return torch.cat([
            (x.T if ".lora_A." in name else x).reshape(-1)
            for name, x in zip(collector.names, found, strict=True)
        ])  # fmt: skip

    m, v = laid_out(adam, "exp_avg"), laid_out(adam, "exp_avg_sq")
    lengths = torch.tensor([len(response) for _, response in responses])
    g = -collector.gradients(*pad(responses)) / lengths[:, None]
    scaled = (0.9 * m + 0.1 * g) / ((0.999 * v + 0.001 * g**2).sqrt() + 1e-8)
    for row, (prompt, response) in zip(scaled, responses, strict=True):
        adam.load_state_dict(copy.deepcopy(before))
        step(adam, prompt, response)
        want = laid_out(adam, "exp_avg") / (laid_out(adam, "exp_avg_sq").sqrt() + 1e-8)
        assert (row - want).norm() <= 1e-4 * want.norm()
    assert sketch.project(scaled, dim=256).shape == (3, 256)
