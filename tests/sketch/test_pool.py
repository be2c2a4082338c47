"""Finished pools: what they hold, and what is refused when one is opened."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from pyfast import sketch
from pyfast.sketch import _job, _pool, reference
from pyfast.sketch._batches import plan


def test_a_pool_holds_what_the_collector_gives(tiny, tmp_path):
    collector = sketch.LoraGradients(tiny.lora(), 256, seed=3)
    responses = tiny.responses(17)
    pool = sketch.collect(collector, responses, tmp_path / "pool", max_tokens=60, progress=False)
    assert isinstance(pool.sketches, np.memmap)
    assert not pool.sketches.flags.writeable
    for numbers, batch in collector.stream(responses, 60):
        assert np.array_equal(pool.sketches[numbers], batch.sketches.numpy())
        assert np.array_equal(pool.squared_norms[numbers], batch.squared_norms)
        assert np.array_equal(pool.logps[numbers], batch.logps)
    assert pool.lengths.tolist() == [len(response) for _, response in responses]
    for number, response in enumerate(responses):  # one at a time: other arithmetic, same gradient
        alone = collector.responses([response]).sketches.numpy()[0]
        error = np.linalg.norm(pool.sketches[number] - alone) / np.linalg.norm(alone)
        assert error < 1e-5
    again = sketch.SketchPool.open(tmp_path / "pool")
    assert np.array_equal(again.sketches, pool.sketches)
    assert again.info == pool.info
    assert again.info["dim"] == 256
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pool"]
    assert sorted(p.name for p in (tmp_path / "pool").iterdir()) == [
        "checks.npy", "fidelity.json", "flags.npy", "lengths.npy", "logps.npy", "pool.json",
        "responses.npy", "sketches.npy", "squared_norms.npy",
    ]  # fmt: skip


def test_batches_keep_to_the_bound_and_hold_each_response_once(tiny):
    responses = tiny.responses(60, longest=40)
    sizes = [len(p) + len(r) for p, r in responses]
    batches = plan(responses, 100)
    assert sorted(n for numbers in batches for n in numbers) == list(range(60))
    assert all(len(numbers) * max(sizes[n] for n in numbers) <= 100 for numbers in batches)
    padded = sum(len(numbers) * max(sizes[n] for n in numbers) for numbers in batches)
    assert padded < 1.15 * sum(sizes)
    assert [sizes[numbers[0]] for numbers in batches] == sorted(
        (sizes[numbers[0]] for numbers in batches), reverse=True
    )
    with pytest.raises(ValueError, match=r"max_tokens: expected at least \d+, the tokens of resp"):
        plan(responses, 20)
    with pytest.raises(ValueError, match="max_tokens: expected at least 1, got 0"):
        plan(responses, 0)


def test_a_pool_reports_on_some_of_its_responses(tiny, tmp_path):
    collector = sketch.LoraGradients(tiny.lora(), 1024)
    responses = [([5], []), *tiny.responses(19), ([1, 2], [])]
    some = {"max_tokens": 60, "progress": False}
    pool = sketch.collect(collector, responses, tmp_path / "few", fidelity=6, **some)
    assert pool.info["report_on"] == [1, 4, 7, 10, 13, 16]
    alone = sketch.fidelity(collector, [responses[n] for n in pool.info["report_on"]])
    assert (pool.fidelity.responses, pool.fidelity.pairs) == (6, 15)
    ours, theirs = (list(asdict(report).values()) for report in (pool.fidelity, alone))
    assert ours[:-2] == pytest.approx(theirs[:-2], rel=1e-3)  # in other batches
    assert ours[-2:] == theirs[-2:] == [[], None]
    assert sketch.SketchPool.open(tmp_path / "few").fidelity == pool.fidelity

    pool = sketch.collect(collector, responses, tmp_path / "all", **some)
    assert pool.info["report_on"] == list(range(1, 20))
    unit = reference.lora_gradients(collector.model, responses[1:20], collector.names)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    above = np.triu_indices(19, 1)
    rows = pool.sketches[1:20] / np.sqrt(pool.squared_norms[1:20, None])
    error = (rows @ rows.T - unit @ unit.T)[above]
    assert pool.fidelity.rms_error == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-3)
    assert pool.fidelity.silent == []

    for folder, most, count in (("none", 0, 20), ("one", 32, 2), ("single", 1, 20)):
        pool = sketch.collect(
            collector, responses[:count], tmp_path / folder, fidelity=most, **some
        )
        assert pool.fidelity is None
        assert pool.info["report_on"] == []
        assert not (tmp_path / folder / "fidelity.json").exists()
    many = tiny.responses(40)
    assert len(_job.report_on(many, None, 1_000_000)) == 32
    assert len(_job.report_on(many, None, 160_000_000)) == 6
    assert _job.report_on(many, None, 600_000_000) == []
    for bad, error in ((-1, ValueError), (2.5, TypeError)):
        with pytest.raises(error, match="fidelity: expected"):
            sketch.collect(collector, responses, tmp_path / "bad", fidelity=bad, **some)
        assert not list(tmp_path.glob("*bad*"))


def test_responses_are_checked_before_any_work(tiny, tmp_path):
    collector, responses = sketch.LoraGradients(tiny.lora(), 128), tiny.responses(20)
    for bad, error, message in [
        (([], [1, 2]), ValueError, "expected a prompt of at least one token, at 13"),
        (([1, 2.5], [3]), TypeError, "expected integer token ids, got torch.float32 at 13"),
        (([1, 2], [3, 60]), ValueError, "0 to 59, got 60 at 13, token 1 of the response"),
        (([1, -100], [3]), ValueError, "0 to 59, got -100 at 13, token 1 of the prompt"),
    ]:
        responses[13] = bad
        with pytest.raises(error, match=message):
            sketch.collect(collector, responses, tmp_path / "p", max_tokens=60, progress=False)
        assert not list(tmp_path.iterdir())


def test_progress_is_shown(tiny, tmp_path, capsys):
    collector = sketch.LoraGradients(tiny.lora(), 128)
    sketch.collect(collector, tiny.responses(5), tmp_path / "p")
    assert "sketching: 100%" in capsys.readouterr().err


def test_broken_pools_are_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"expected a sketch pool at .*nothing"):
        sketch.SketchPool.open(tmp_path / "nothing")
    with pytest.raises(ValueError, match="responses: expected at least one"):
        sketch.collect(sketch.LoraGradients(tiny.lora(), 128), [], tmp_path / "p")
    sketch.collect(
        sketch.LoraGradients(tiny.lora(), 128), tiny.responses(5), tmp_path / "p", progress=False
    )
    path = tmp_path / "p" / "pool.json"
    text = path.read_text()
    info = json.loads(text)

    def refused(message, **changes):
        path.write_text(json.dumps(_pool.sealed({**info, **changes})))
        with pytest.raises(ValueError, match=message):
            sketch.SketchPool.open(tmp_path / "p")

    refused("folder: expected .*'version': 2", version=3)
    for count in (4, 6):
        refused(r"npy is not what was written", count=count)
    for count in (None, "5"):
        refused("folder: expected int count", count=count)
    refused("expected digests of", files={**info["files"], "../../etc/passwd": "0"})
    refused("logps.npy is not what was written", files={**info["files"], "logps.npy": "0"})
    for content in ("[]", "", "{"):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"folder: expected"):
            sketch.SketchPool.open(tmp_path / "p")
    path.write_text(text.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(ValueError, match=r"pool.json is not what was written"):
        sketch.SketchPool.open(tmp_path / "p")
    path.write_text(text)
    plain = np.load(tmp_path / "p" / "sketches.npy")
    np.save(tmp_path / "p" / "sketches.npy", plain.astype(np.int8))
    with pytest.raises(ValueError, match=r"sketches.npy"):
        sketch.SketchPool.open(tmp_path / "p")
    np.save(tmp_path / "p" / "sketches.npy", plain)
    logps = (tmp_path / "p" / "logps.npy").read_bytes()
    for content in (b"", b"PK\x05\x06" + 18 * b"\0", b"\x93NUMPY\x01\x00"):
        (tmp_path / "p" / "logps.npy").write_bytes(content)
        with pytest.raises(ValueError, match=r"logps.npy is not what was written"):
            sketch.SketchPool.open(tmp_path / "p")
    np.save(tmp_path / "p" / "logps.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"logps.npy is not what was written"):
        sketch.SketchPool.open(tmp_path / "p")
    (tmp_path / "p" / "logps.npy").write_bytes(logps)
    report = (tmp_path / "p" / "fidelity.json").read_text()
    for content in ("", "[]", "{}", '{"drift": 3}', report.replace("pairs", "paris")):
        (tmp_path / "p" / "fidelity.json").write_text(content)
        with pytest.raises(ValueError, match=r"fidelity.json"):
            sketch.SketchPool.open(tmp_path / "p")
    (tmp_path / "p" / "fidelity.json").unlink()
    with pytest.raises(ValueError, match=r"expected a sketch pool at .*fidelity.json"):
        sketch.SketchPool.open(tmp_path / "p")
    (tmp_path / "p" / "fidelity.json").write_text(report)
    assert sketch.SketchPool.open(tmp_path / "p").fidelity.responses == 5


def test_any_byte_that_changes_is_seen(tiny, tmp_path):
    collector = sketch.LoraGradients(tiny.lora(target_modules=["q_proj"]), 128)
    sketch.collect(collector, tiny.responses(4), tmp_path / "p", progress=False)
    generator = np.random.default_rng(0)
    for path in sorted((tmp_path / "p").iterdir()):
        content = path.read_bytes()
        for place in {0, len(content) - 1, *generator.integers(len(content), size=12).tolist()}:
            changed = bytearray(content)
            changed[place] ^= 1 << int(generator.integers(8))
            path.write_bytes(changed)
            with pytest.raises(ValueError, match=r"folder: |path: "):
                sketch.SketchPool.open(tmp_path / "p")
        for less in (2, len(content) // 2):
            path.write_bytes(content[:-less])
            with pytest.raises(ValueError, match=r"folder: |path: "):
                sketch.SketchPool.open(tmp_path / "p")
        path.write_bytes(content + b"\0" * 100)
        with pytest.raises(ValueError, match=r"folder: |path: "):
            sketch.SketchPool.open(tmp_path / "p")
        path.write_bytes(content)
    rows = tmp_path / "p" / "sketches.npy"
    changed = bytearray(rows.read_bytes())
    changed[-300] ^= 4
    rows.write_bytes(changed)
    with pytest.raises(ValueError, match=r"1 rows of .*sketches.npy are not .* differ\): 3"):
        sketch.SketchPool.open(tmp_path / "p")
    assert len(sketch.SketchPool.open(tmp_path / "p", verify=False)) == 4


def test_pools_of_version_1_open_and_say_what_they_lack(tiny, tmp_path):
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    (tmp_path / "p").mkdir()
    for name, array in (("sketches", rows), ("squared_norms", rows[:, 0].astype(np.float64)),
                        ("logps", np.zeros(3)), ("lengths", np.ones(3, np.int64))):  # fmt: skip
        np.save(tmp_path / "p" / f"{name}.npy", array)
    info = {**_pool.FORMAT, "version": 1, "count": 3, "dim": 2, "report_on": []}
    (tmp_path / "p" / "pool.json").write_text(json.dumps(info))
    with pytest.warns(UserWarning, match="version 1, which has no checksums"):
        pool = sketch.SketchPool.open(tmp_path / "p")
    assert np.array_equal(pool.sketches, rows)
    assert pool.flags.tolist() == [0, 0, 0]
    collector = sketch.LoraGradients(tiny.lora(), 128)
    with pytest.warns(UserWarning, match="version 1"), pytest.raises(ValueError, match="another f"):
        sketch.collect(collector, tiny.responses(3), tmp_path / "p", progress=False)
    (tmp_path / ".q.partial").mkdir()
    for name in ("done.npy", "sketches.npy", "pool.json"):
        (tmp_path / ".q.partial" / name).write_text("1")
    with pytest.raises(ValueError, match=r"q.partial was left by version 1; pass resume=False"):
        sketch.collect(collector, tiny.responses(3), tmp_path / "q", progress=False)
    sketch.collect(collector, tiny.responses(3), tmp_path / "q", resume=False, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p", "q"]
