"""The report against numbers worked out here, and its guards."""

import json

import numpy as np
import pytest
import torch

from pyfast import sketch
from pyfast.sketch import reference


def test_the_report_tells_the_errors_of_the_gram_matrix(tiny):
    model, responses = tiny.lora(), tiny.responses(12)
    collector = sketch.LoraGradients(model, 1024)
    report = sketch.fidelity(collector, [*responses, ([5], [])], max_tokens=60)
    exact = reference.lora_gradients(model, responses, collector.names).astype(np.float64)
    unit = exact / np.linalg.norm(exact, axis=1, keepdims=True)
    rows = np.concatenate([collector.responses([r]).sketches.numpy() for r in responses])
    rows = rows.astype(np.float64) / np.linalg.norm(exact, axis=1, keepdims=True)
    above = np.triu_indices(12, 1)
    cosines = (unit @ unit.T)[above]
    error = (rows @ rows.T)[above] - cosines
    assert (report.responses, report.pairs) == (12, 66)
    assert (report.size, report.dim) == (collector.size, 1024)
    assert report.rms_error == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-3)
    assert report.largest_error == pytest.approx(np.abs(error).max(), rel=1e-3)
    assert report.theory == pytest.approx(np.sqrt(np.mean(1 + cosines**2) / 1024), rel=1e-4)
    assert report.least_cosine == pytest.approx(cosines.min(), abs=1e-5)
    norm_errors = np.abs(np.linalg.norm(rows, axis=1) - 1)
    assert report.largest_norm_error == pytest.approx(norm_errors.max(), rel=1e-3)
    assert report.rms_error < 1.5 * report.theory
    assert report.silent == []
    assert report.drift is None
    assert "12 responses, 66 pairs" in str(report)


def test_fresh_adapters_have_silent_matrices_and_reports_are_saved(tiny, tmp_path):
    collector = sketch.LoraGradients(tiny.lora(fresh=True), 1024)
    report = sketch.fidelity(collector, tiny.responses(6))
    assert report.silent == collector.names[0::2]
    report.save(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["responses"] == 6
    assert sketch.FidelityReport.load(tmp_path / "report.json") == report


def test_drift_of_bfloat16(tiny, tmp_path):
    exact = sketch.LoraGradients(tiny.lora(), 128)
    same = sketch.fidelity(exact, tiny.responses(6), against=exact).drift
    assert same.largest_relative_error == 0
    assert same.least_cosine == pytest.approx(1)
    rounded = sketch.LoraGradients(tiny.lora().to(torch.bfloat16), 128)
    report = sketch.fidelity(rounded, tiny.responses(6), against=exact)
    assert 1e-4 < report.drift.largest_relative_error < 0.2
    assert 0.98 < report.drift.least_cosine <= report.drift.mean_cosine < 1
    assert "drift" in str(report)
    report.save(tmp_path / "report.json")
    assert sketch.FidelityReport.load(tmp_path / "report.json") == report
    for other in (tiny.lora(target_modules=["q_proj"]), tiny.lora(rank=8)):
        with pytest.raises(ValueError, match="against: expected the same LoRA matrices"):
            sketch.fidelity(rounded, tiny.responses(6), against=sketch.LoraGradients(other, 128))


def test_another_model_that_is_not_finite_is_refused(tiny):
    exact, other = (sketch.LoraGradients(tiny.lora(), 128) for _ in range(2))
    other.model.get_base_model().model.embed_tokens.weight.data[9] = torch.nan
    responses = [([5], []), ([1, 2], [3]), ([1, 9], [3]), ([4], [3])]
    with pytest.raises(ValueError, match=r"against: gradient of response 2 is not finite in .*lay"):
        sketch.fidelity(exact, responses, against=other)
    other = sketch.LoraGradients(tiny.lora(), 128)
    for part in other.parts:
        torch.nn.init.zeros_(part.weight)
    with pytest.raises(ValueError, match=r"against: gradient of response 1 .* is zero in all 28"):
        sketch.fidelity(exact, responses, against=other)


def test_guards(tiny):
    collector = sketch.LoraGradients(tiny.lora(), 128)
    with pytest.raises(ValueError, match="expected at least two that have tokens"):
        sketch.fidelity(collector, [([1], [2]), ([1], [])])
    assert sketch.fidelity(collector, [([1, 2], [3])] * 3).least_cosine == pytest.approx(1)
    collector.model.get_base_model().model.embed_tokens.weight.data[9] = torch.inf
    with pytest.raises(ValueError, match=r"gradient of response 1 is not finite in .*layers"):
        sketch.fidelity(collector, [([1, 2], [3]), ([1, 9], [3]), ([4], [3])])
    with pytest.raises(ValueError, match=r"gradient of response 3 is not finite in .*layers"):
        sketch.fidelity(collector, [([5], []), ([6], []), ([1, 2], [3]), ([1, 9], [3]), ([4], [3])])


def test_responses_without_tokens_change_nothing(tiny):
    collector, responses = sketch.LoraGradients(tiny.lora(), 256), tiny.responses(6)
    want = sketch.fidelity(collector, responses, against=collector)
    padded = [([1], []), *responses[:2], ([2, 3], []), *responses[2:], ([4], [])]
    assert sketch.fidelity(collector, padded, against=collector) == want
