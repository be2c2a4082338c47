"""Pools on disk: order, bits, resume, guards; and the pairs chosen from them."""

import errno
import json
import os
import shutil
import signal
from dataclasses import asdict

import numpy as np
import pytest
import torch

from pyfast import select, sketch
from pyfast.select import reference as select_reference
from pyfast.sketch import _guards, _pool, reference
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
        "fidelity.json", "lengths.npy", "logps.npy", "pool.json", "sketches.npy",
        "squared_norms.npy",
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


@pytest.mark.parametrize("stop", [1, 3])
def test_an_interrupted_run_goes_on_to_the_same_bits(tiny, tmp_path, monkeypatch, stop):
    collector = sketch.LoraGradients(tiny.lora(), 128)
    responses = tiny.responses(17)
    whole = sketch.collect(collector, responses, tmp_path / "a", max_tokens=60, progress=False)
    plain, runs = sketch.LoraGradients._sketch, []

    def interrupted(self, tokens, numbers, gradients):
        if len(runs) == stop:
            raise KeyboardInterrupt
        runs.append(numbers)
        return plain(self, tokens, numbers, gradients)

    monkeypatch.setattr(sketch.LoraGradients, "_sketch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sketch.collect(collector, responses, tmp_path / "b", max_tokens=60, progress=False)
    assert not (tmp_path / "b").exists()
    first = list(runs)

    def counted(self, tokens, numbers, gradients):
        runs.append(numbers)
        return plain(self, tokens, numbers, gradients)

    monkeypatch.setattr(sketch.LoraGradients, "_sketch", counted)
    pool = sketch.collect(collector, responses, tmp_path / "b", max_tokens=60, progress=False)
    assert runs == plan(responses, 60)
    assert runs[: len(first)] == first
    for name in ("sketches", "squared_norms", "logps", "lengths"):
        a, b = (tmp_path / folder / f"{name}.npy" for folder in "ab")
        assert a.read_bytes() == b.read_bytes()
    assert pool.info == whole.info
    assert pool.fidelity == whole.fidelity


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
    assert len(_pool._report_on(many, None, 1_000_000)) == 32
    assert len(_pool._report_on(many, None, 160_000_000)) == 6
    assert _pool._report_on(many, None, 600_000_000) == []
    for bad, error in ((-1, ValueError), (2.5, TypeError)):
        with pytest.raises(error, match="fidelity: expected"):
            sketch.collect(collector, responses, tmp_path / "bad", fidelity=bad, **some)
        assert not list(tmp_path.glob("*bad*"))


def test_a_killed_process_leaves_no_pool(tiny, tmp_path):
    child = os.fork()
    if child == 0:
        try:
            plain = _pool._write

            def write(*arguments):
                plain(*arguments)
                os.kill(os.getpid(), signal.SIGKILL)

            _pool._write = write
            collector = sketch.LoraGradients(tiny.lora(), 128)
            sketch.collect(
                collector, tiny.responses(9), tmp_path / "p", max_tokens=60, progress=False
            )
        finally:
            os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert not (tmp_path / "p").exists()
    done = np.load(tmp_path / ".p.partial" / "done.npy")
    assert 0 < done.sum() < 9
    collector = sketch.LoraGradients(tiny.lora(), 128)
    pool = sketch.collect(
        collector, tiny.responses(9), tmp_path / "p", max_tokens=60, progress=False
    )
    assert (pool.squared_norms > 0).all()


def test_what_is_left_must_be_of_the_same_call(tiny, tmp_path, monkeypatch):
    model, responses = tiny.lora(), tiny.responses(9)
    collector = sketch.LoraGradients(model, 128)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_pool, "_write", stop)
        with pytest.raises(KeyboardInterrupt):
            sketch.collect(collector, responses, tmp_path / "p", progress=False)
    message = "left by a call with other weights, tokens or settings.*resume=False"
    with pytest.raises(ValueError, match=message):
        sketch.collect(collector, responses[:-1], tmp_path / "p", progress=False)
    with pytest.raises(ValueError, match=message):
        sketch.collect(collector, responses, tmp_path / "p", max_tokens=60, progress=False)
    with torch.no_grad():
        collector.parts[0].weight[0, 0] += 1
    with pytest.raises(ValueError, match=message):
        sketch.collect(collector, responses, tmp_path / "p", progress=False)
    sketch.collect(collector, responses, tmp_path / "p", resume=False, progress=False)
    with pytest.raises(ValueError, match=r"p is there already; open it with SketchPool.open"):
        sketch.collect(collector, responses, tmp_path / "p", progress=False)


def scaled(model):
    for module in model.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling["default"] *= 4


def a_number(model):
    model.get_base_model().model.layers[1].mlp.gate_proj.base_layer.weight.data[5, 7] += 1


def half(model):
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.bfloat16()


def frozen(model):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_B" in name)


def embeddings(model):
    model.get_input_embeddings().weight.data.mul_(1.5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", [scaled, a_number, half, frozen, embeddings])
def test_what_is_left_must_be_of_the_same_model(tiny, tmp_path, monkeypatch, change):
    responses = tiny.responses(9)

    def stop(*_):
        raise KeyboardInterrupt

    def collect(model):
        collector = sketch.LoraGradients(model, 128)
        return sketch.collect(collector, responses, tmp_path / "p", progress=False)

    with monkeypatch.context() as patch:
        patch.setattr(_pool, "_write", stop)
        with pytest.raises(KeyboardInterrupt):
            collect(tiny.lora())
    model = tiny.lora()
    change(model)
    with pytest.raises(ValueError, match="left by a call with other weights, tokens or settings"):
        collect(model)
    assert (collect(tiny.lora()).squared_norms > 0).all()


def test_a_fingerprint_looks_into_every_column_of_a_large_parameter(tiny):
    model = tiny.lora(tiny.model(vocab_size=16384), target_modules=["q_proj"])
    collector, responses = sketch.LoraGradients(model, 128), tiny.responses(3)
    found = {_pool._fingerprint(collector, responses, 100)}
    weight = model.get_input_embeddings().weight.data
    assert weight.numel() > 4 * _pool._SAMPLE
    for column in range(32):
        weight[:, column] += 1
        found.add(_pool._fingerprint(collector, responses, 100))
    assert len(found) == 33


def test_a_fingerprint_is_the_same_in_another_process(tiny):
    def digest():
        collector = sketch.LoraGradients(tiny.lora(), 128)
        return _pool._fingerprint(collector, tiny.responses(3), 100)

    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            os.write(into, digest().encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    torch.set_num_threads(2)
    assert os.read(out, 100).decode() == digest()
    os.close(out)
    os.close(into)


@pytest.mark.parametrize("at", [1, 4, 7])
def test_a_stop_while_finishing_loses_nothing(tiny, tmp_path, monkeypatch, at):
    collector, responses = sketch.LoraGradients(tiny.lora(), 128), tiny.responses(9)
    plain, calls = _pool.fsync, []

    def stop(path):
        calls.append(path)
        if len(calls) == at:
            raise KeyboardInterrupt
        plain(path)

    monkeypatch.setattr(_pool, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        sketch.collect(collector, responses, tmp_path / "p", progress=False)
    monkeypatch.setattr(_pool, "_write", None)  # all work is done
    pool = sketch.collect(collector, responses, tmp_path / "p", progress=False)
    assert (pool.squared_norms > 0).all()


def test_a_stop_after_the_rename_leaves_the_pool(tiny, tmp_path, monkeypatch):
    collector, responses = sketch.LoraGradients(tiny.lora(), 128), tiny.responses(9)
    plain = _pool.fsync

    def stop(path):
        plain(path)
        if path == tmp_path:
            raise KeyboardInterrupt

    monkeypatch.setattr(_pool, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        sketch.collect(collector, responses, tmp_path / "p", progress=False)
    assert (sketch.SketchPool.open(tmp_path / "p").squared_norms > 0).all()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="cannot reserve room here")
def test_room_on_the_disk_is_taken_before_any_work(tiny, tmp_path, monkeypatch):
    collector, responses = sketch.LoraGradients(tiny.lora(), 4096), tiny.responses(9)

    def look(*_):
        names = {"sketches": 9 * 4096, "gradients": 9 * collector.size}
        taken = [
            (tmp_path / ".p.partial" / f"{name}.npy").stat().st_blocks * 512 >= count * 4
            for name, count in names.items()
        ]
        raise RuntimeError(f"taken: {all(taken)}")

    with monkeypatch.context() as patch:
        patch.setattr(_pool, "_write", look)
        with pytest.raises(RuntimeError, match="taken: True"):
            sketch.collect(collector, responses, tmp_path / "p", progress=False)

    def full(*_):
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"no room: .*\.npy"):
        sketch.collect(collector, responses, tmp_path / "p", resume=False, progress=False)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_removed_is_not_resumed(tiny, tmp_path, monkeypatch):
    def rmtree(path, ignore_errors=False):
        if not ignore_errors:
            raise PermissionError(f"{path} stays")

    def stop(*_):
        raise KeyboardInterrupt

    collector = sketch.LoraGradients(tiny.lora(), 128)
    with monkeypatch.context() as patch:
        patch.setattr(_pool, "_write", stop)
        with pytest.raises(KeyboardInterrupt):
            sketch.collect(collector, tiny.responses(3), tmp_path / "p", progress=False)
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    with pytest.raises(PermissionError, match="partial stays"):
        sketch.collect(collector, tiny.responses(3), tmp_path / "p", resume=False, progress=False)


def test_responses_are_checked_before_any_work(tiny, tmp_path):
    collector, responses = sketch.LoraGradients(tiny.lora(), 128), tiny.responses(20)
    for bad, error, message in [
        (([], [1, 2]), ValueError, "expected a prompt of at least one token, at 13"),
        (([1, 2.5], [3]), TypeError, "expected integer token ids, got torch.float32 at 13"),
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
    info = json.loads((tmp_path / "p" / "pool.json").read_text())
    (tmp_path / "p" / "pool.json").write_text(json.dumps({**info, "version": 2}))
    with pytest.raises(ValueError, match=r"folder: expected .*'version': 1"):
        sketch.SketchPool.open(tmp_path / "p")
    (tmp_path / "p" / "pool.json").write_text(json.dumps({**info, "count": 4}))
    with pytest.raises(ValueError, match=r"do not have the shapes of pool.json"):
        sketch.SketchPool.open(tmp_path / "p")
    (tmp_path / "p" / "pool.json").write_text(json.dumps({**info, "count": None}))
    with pytest.raises(ValueError, match=r"do not have the shapes of pool.json"):
        sketch.SketchPool.open(tmp_path / "p")
    del (fewer := dict(info))["count"]
    (tmp_path / "p" / "pool.json").write_text(json.dumps(fewer))
    with pytest.raises(ValueError, match=r"do not have the shapes of pool.json"):
        sketch.SketchPool.open(tmp_path / "p")
    (tmp_path / "p" / "pool.json").write_text("[]")
    with pytest.raises(ValueError, match=r"folder: expected .*'version': 1"):
        sketch.SketchPool.open(tmp_path / "p")
    (tmp_path / "p" / "pool.json").write_text(json.dumps(info))
    plain = np.load(tmp_path / "p" / "sketches.npy")
    np.save(tmp_path / "p" / "sketches.npy", plain.astype(np.int8))
    with pytest.raises(ValueError, match=r"expected float32 \(5, 128\) in sketches, got int8"):
        sketch.SketchPool.open(tmp_path / "p")
    np.save(tmp_path / "p" / "sketches.npy", plain)
    for content in (b"", b"PK\x05\x06" + 18 * b"\0", b"\x93NUMPY\x01\x00"):
        (tmp_path / "p" / "logps.npy").write_bytes(content)
        with pytest.raises(ValueError, match=r"expected a sketch pool at "):
            sketch.SketchPool.open(tmp_path / "p")
    (tmp_path / "p" / "fidelity.json").rename(tmp_path / "report.json")
    np.save(tmp_path / "p" / "logps.npy", np.zeros(5))
    for content in ("", "[]", "{}", '{"drift": 3}'):
        (tmp_path / "p" / "fidelity.json").write_text(content)
        with pytest.raises(ValueError, match=r"expected a fidelity report at .*fidelity.json"):
            sketch.SketchPool.open(tmp_path / "p")
    (tmp_path / "p" / "fidelity.json").unlink()
    with pytest.raises(ValueError, match=r"expected a fidelity report at .*fidelity.json"):
        sketch.SketchPool.open(tmp_path / "p")
    (tmp_path / "report.json").rename(tmp_path / "p" / "fidelity.json")
    assert sketch.SketchPool.open(tmp_path / "p").fidelity.responses == 5
    np.save(tmp_path / "p" / "logps.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"expected a sketch pool at .*Python objects"):
        sketch.SketchPool.open(tmp_path / "p")


def test_gradients_of_zero_are_named(tiny):
    model = tiny.lora()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.zeros_(parameter)  # A = B = 0: no gradient at all
    with pytest.raises(ValueError, match=r"gradient of response 1 \(2 tokens\) is zero in all 28"):
        sketch.LoraGradients(model, 128).responses([([1], []), ([2], [3, 4])])


def test_a_gradient_that_is_not_finite_is_named_by_its_number(tiny, tmp_path):
    model = tiny.lora()
    model.get_base_model().model.embed_tokens.weight.data[59] = torch.nan
    responses = [([1, 2], [3] * (i + 1)) for i in range(8)]
    responses[5] = ([1, 59], [3] * 6)
    with pytest.raises(ValueError, match=r"gradient of response 5 is not finite in .*layers.1.mlp"):
        sketch.collect(
            sketch.LoraGradients(model, 128), responses, tmp_path / "p", max_tokens=30,
            progress=False,
        )  # fmt: skip


def test_gradients_that_are_all_equal_are_refused(tiny, tmp_path):
    collector = sketch.LoraGradients(tiny.lora(), 128)
    same = [([1, 2], [3, 4])] * 4
    with pytest.raises(ValueError, match="gradients of all 4 responses equal that of response 0"):
        sketch.collect(collector, same, tmp_path / "p", progress=False)
    rows = np.ones((3, 128), np.float32)
    _guards.check_distinct(rows[:2], np.ones(2), np.ones(2, np.int64))
    _guards.check_distinct(rows, np.ones(3), np.array([1, 1, 0]))
    rows[2, 5] = 2
    _guards.check_distinct(rows, np.ones(3), np.ones(3, np.int64))


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
