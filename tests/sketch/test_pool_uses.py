"""What a pool is for: pairs chosen from it, and scores against another."""

import numpy as np
import pytest
import torch

from pyfast import select, sketch
from pyfast.select import reference as select_reference
from pyfast.sketch import _pool, reference


def test_pairs_of_a_pool_are_chosen_over_rounds(tiny, tmp_path):
    collector = sketch.LoraGradients(tiny.lora(), 512)
    pool = sketch.collect(collector, tiny.responses(12), tmp_path / "p", progress=False)
    pairs = sketch.response_pairs([0, 3, 6, 9, 12])
    assert len(pairs) == 12
    first = select.active_dpo(pool.sketches, pairs, k=3)
    rest = np.delete(pairs, first.indices, axis=0)
    second = select.active_dpo(pool.sketches, rest, k=3, state=first.state)
    both = select.active_dpo(pool.sketches, pairs, k=6)
    chosen = np.concatenate([pairs[first.indices], rest[second.indices]])
    assert np.array_equal(chosen, pairs[both.indices])
    unit = np.array(pool.sketches, np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    phi = unit[pairs[:, 0]] - unit[pairs[:, 1]]
    assert both.indices.tolist() == select_reference.logdet(phi, 6, 1.0)[0]


def test_response_pairs_refuses_bad_offsets():
    assert sketch.response_pairs([0, 1, 3]).tolist() == [[1, 2]]
    with pytest.raises(ValueError, match="offsets: group 1 is empty"):
        sketch.response_pairs([0, 2, 2])
    with pytest.raises(ValueError, match="offsets: expected shape"):
        sketch.response_pairs(np.zeros(0, int))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_scores_compare_each_with_each(tiny, tmp_path, monkeypatch, dtype):
    collector = sketch.LoraGradients(tiny.lora(), 256)
    responses = [*tiny.responses(11), ([3], [])]
    settings = {"progress": False, "dtype": dtype}
    pool = sketch.collect(collector, responses, tmp_path / "p", **settings)
    other = sketch.collect(collector, responses[3:8], tmp_path / "q", **settings)
    monkeypatch.setattr(_pool, "_BLOCK", 3 * 256)
    products, cosines = pool.scores(other, normalize=False), pool.scores(other)
    assert products.shape == cosines.shape == (5, 12)
    rows, others = (np.array(p.sketches, np.float64) for p in (pool, other))
    np.testing.assert_allclose(products, others @ rows.T, rtol=1e-12)
    for i in range(5):
        for j in range(12):
            lengths = np.sqrt(other.squared_norms[i] * pool.squared_norms[j])
            want = others[i] @ rows[j] / lengths if lengths else 0
            assert cosines[i, j] == pytest.approx(want, rel=1e-12)
    exact = reference.lora_gradients(collector.model, responses[:11], collector.names)
    exact = exact / np.linalg.norm(exact, axis=1, keepdims=True)
    error = cosines[:, :11] - exact[3:8] @ exact.T
    assert np.sqrt(np.mean(error**2)) < 2 / np.sqrt(256)
    for dim, seed, name in ((128, 0, "dim"), (256, 1, "seed")):
        there = sketch.collect(
            sketch.LoraGradients(tiny.lora(), dim, seed), responses, tmp_path / name, progress=False
        )
        with pytest.raises(ValueError, match=f"other: its {name} is not that of this pool"):
            pool.scores(there)
    fewer = sketch.LoraGradients(tiny.lora(target_modules=["q_proj"]), 256)
    there = sketch.collect(fewer, responses, tmp_path / "fewer", progress=False)
    with pytest.raises(ValueError, match="other: its names is not that of this pool: got 4 of"):
        pool.scores(there)
    with pytest.raises(TypeError, match="other: expected a SketchPool, got ndarray"):
        pool.scores(rows)


def test_scores_of_what_is_not_finite_are_not_numbers(tiny, tmp_path):
    model = tiny.lora()
    model.get_base_model().model.embed_tokens.weight.data[59] = torch.nan
    collector = sketch.LoraGradients(model, 128)
    with pytest.warns(UserWarning, match="are not finite"):
        pool = sketch.collect(
            collector, [([1], [2, 3]), ([59], [2, 3]), ([4], [5])], tmp_path / "p", progress=False
        )
    assert np.isnan(pool.scores(pool)).tolist() == [
        [False, True, False], [True, True, True], [False, True, False],
    ]  # fmt: skip
