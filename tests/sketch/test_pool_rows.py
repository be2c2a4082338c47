"""Rows of a pool: gradients that are zero, equal or not finite, and half precision."""

import warnings

import numpy as np
import pytest
import torch

from pyfast import select, sketch
from pyfast.sketch import _guards, _pool, reference


def test_gradients_of_zero_are_named(tiny):
    model = tiny.lora()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.zeros_(parameter)  # A = B = 0: no gradient at all
    with pytest.raises(ValueError, match=r"gradient of response 1 \(2 tokens\) is zero in all 28"):
        sketch.LoraGradients(model, 128).responses([([1], []), ([2], [3, 4])])


def test_a_bad_gradient_costs_its_own_row_only(tiny, tmp_path):
    """Not finite, zero and empty among others, whose rows are those of a pool without them."""
    model = tiny.lora()
    model.get_base_model().model.embed_tokens.weight.data[59] = torch.nan
    responses = [([1, 2], [3] * (i + 1)) for i in range(9)]
    responses[5], responses[7] = ([1, 59], [3] * 6), ([4], [])
    collector = sketch.LoraGradients(model, 128)
    with pytest.raises(ValueError, match=r"gradient of response 5 is not finite in .*layers.1.mlp"):
        list(collector.stream(responses, 30))
    with pytest.warns(UserWarning, match=r"gradients of 1 of 9 responses are not finite .*: 5$"):
        pool = sketch.collect(collector, responses, tmp_path / "p", max_tokens=30, progress=False)
    assert pool.flags.tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 0]
    assert pool.fidelity.responses == 7
    assert pool.info["report_on"] == [0, 1, 2, 3, 4, 6, 8]
    good = [n for n in range(9) if n not in (5, 7)]
    exact = reference.lora_gradients(model, [responses[n] for n in good], collector.names)
    want = sum(
        sketch.project(exact[:, place], 128, module=m) for m, place in enumerate(collector.places)
    )
    assert np.abs(pool.sketches[good] - want).max() < 1e-4 * np.abs(want).max()
    assert np.isnan(pool.sketches[5]).all()
    assert not pool.sketches[7].any()
    pairs = sketch.response_pairs([0, 3, 6, 9])
    with pytest.raises(ValueError, match="sketches: expected a finite number, got nan at row 5"):
        select.active_dpo(pool.sketches, pairs, k=2)
    kept = sketch.response_pairs([0, 3, 6, 9], leave_out=pool.flags)
    assert kept.tolist() == [p for p in pairs.tolist() if 5 not in p]
    chosen = select.active_dpo(pool.sketches, kept, k=len(kept))
    finite = np.nan_to_num(pool.sketches)
    assert chosen.indices.tolist() == select.active_dpo(finite, kept, k=7).indices.tolist()
    for bad, error in (([1, 2], ValueError), (np.zeros(9), TypeError)):
        with pytest.raises(error, match="leave_out: expected"):
            sketch.response_pairs([0, 3, 6, 9], leave_out=bad)


def test_gradients_that_are_zero_are_flagged(tiny, tmp_path):
    model = tiny.lora()
    model.get_base_model().lm_head.weight.data[:] = 1  # every token as likely, whatever came before
    collector = sketch.LoraGradients(model, 128)
    with pytest.warns(UserWarning, match=r"exactly zero in all matrices .*: 0, 1, 2$"):
        pool = sketch.collect(collector, tiny.responses(3), tmp_path / "p", progress=False)
    assert pool.flags.tolist() == [1, 1, 1]
    assert not pool.sketches.any()
    assert pool.fidelity is None


def test_equal_responses_are_no_error(tiny, tmp_path):
    collector = sketch.LoraGradients(tiny.lora(), 128)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pool = sketch.collect(collector, [([1, 2], [3, 4])] * 4, tmp_path / "p", progress=False)
    assert (pool.sketches == pool.sketches[0]).all()
    rows, tokens = np.ones((3, 128), np.float32), [([1], [2]), ([1], [3]), ([1], [4])]
    _guards.check_distinct(rows, tokens[:1] * 3)
    with pytest.raises(ValueError, match="gradients of 3 different responses are all the same"):
        _guards.check_distinct(rows, tokens)
    rows[2, 5] = 2
    _guards.check_distinct(rows, tokens)


def test_different_responses_of_equal_gradients_are_told(tiny, tmp_path, monkeypatch):
    collector, plain = sketch.LoraGradients(tiny.lora(), 128), sketch.LoraGradients.sketch_numbers

    def same(self, responses, numbers, gradients):
        batch = plain(self, responses, numbers, gradients)
        batch.sketches[:] = torch.arange(128)
        return batch

    monkeypatch.setattr(sketch.LoraGradients, "sketch_numbers", same)
    with pytest.warns(UserWarning, match="gradients of all 4 responses are equal, although"):
        sketch.collect(collector, tiny.responses(4), tmp_path / "p", progress=False)


@pytest.mark.parametrize("size", [1, 1e-12])
def test_half_precision_keeps_rows_of_any_length(tiny, tmp_path, size):
    model = tiny.lora()
    for layer in model.modules():
        if isinstance(getattr(layer, "scaling", None), dict):
            layer.scaling["default"] *= size
    model.get_base_model().lm_head.weight.data[:] *= size
    collector, responses = sketch.LoraGradients(model, 512), tiny.responses(9)
    pools = [
        sketch.collect(collector, responses, tmp_path / dtype, dtype=dtype, progress=False)
        for dtype in ("float32", "float16")
    ]
    exact, rounded = (np.array(pool.sketches, np.float64) for pool in pools)
    lengths = np.linalg.norm(exact, axis=1)
    errors = np.linalg.norm(rounded - exact, axis=1) / lengths
    assert (errors < 2**-11).all()
    assert (errors > 0).all()
    assert pools[1].stored.dtype == np.float16
    largest = np.abs(pools[1].stored.astype(np.float64)).max(axis=1)
    assert ((largest >= 2**14) & (largest <= 2**15)).all()
    assert not pools[1].sketches.flags.writeable
    assert np.array_equal(pools[1].rows([3, 5]), pools[1].sketches[[3, 5]])
    assert np.array_equal(pools[0].squared_norms, pools[1].squared_norms)
    sizes = [(tmp_path / d / "sketches.npy").stat().st_size for d in ("float32", "float16")]
    assert sizes == [128 + 9 * 512 * 4, 128 + 9 * 512 * 2]
    rows = rounded / np.sqrt(pools[1].squared_norms)[:, None]
    above = np.triu_indices(9, 1)
    unit = reference.lora_gradients(model, responses, collector.names).astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    error = (rows @ rows.T - unit @ unit.T)[above]
    assert pools[1].fidelity.rms_error == pytest.approx(np.sqrt(np.mean(error**2)), rel=2e-3)


@pytest.mark.parametrize("size", [1e-37, 1e-20, 1.0, 1e20, 3e37])
def test_half_precision_of_rows_that_float16_does_not_hold(size):
    rows = np.random.default_rng(0).uniform(-1, 1, (4, 256)).astype(np.float32) * np.float32(size)
    rows[1] = 0
    rows[2] = np.nan
    back = _pool.decode(*_pool.encode(rows, "float16"), "float16", 256)
    assert np.abs(back - rows)[[0, 3]].max() <= 2**-11 * np.abs(rows[[0, 3]]).max()
    assert not back[1].any()
    assert np.isnan(back[2]).all()
