"""The signatures and files that users of TRAK and LESS know."""

import enum

import numpy as np
import pytest
import torch

from pyfast import sketch
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
