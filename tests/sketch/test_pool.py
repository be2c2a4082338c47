"""Pools on disk: order, bits, resume, guards; and the pairs chosen from them."""

import contextlib
import errno
import json
import os
import shutil
import signal
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from pyfast import select, sketch
from pyfast.select import reference as select_reference
from pyfast.sketch import (
    _fingerprint,
    _finish,
    _guards,
    _job,
    _pool,
    _shards,
    _store,
    reference,
)  # fmt: skip
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


def content(folder):
    """All bytes of a pool."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def stopped(monkeypatch, after=0):
    """Interrupt `Store.write` after some passes."""
    plain, runs = _store.Store.write, []

    def write(self, *arguments):
        if len(runs) == after:
            raise KeyboardInterrupt
        runs.append(1)
        plain(self, *arguments)

    monkeypatch.setattr(_store.Store, "write", write)


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
    probe = runs.pop(len(first))  # whether the model is as it was
    assert runs == plan(responses, 60)
    assert runs[: len(first)] == first
    assert len(probe) == 1
    assert content(tmp_path / "a") == content(tmp_path / "b")
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
    assert len(_job.report_on(many, None, 1_000_000)) == 32
    assert len(_job.report_on(many, None, 160_000_000)) == 6
    assert _job.report_on(many, None, 600_000_000) == []
    for bad, error in ((-1, ValueError), (2.5, TypeError)):
        with pytest.raises(error, match="fidelity: expected"):
            sketch.collect(collector, responses, tmp_path / "bad", fidelity=bad, **some)
        assert not list(tmp_path.glob("*bad*"))


def test_a_killed_process_leaves_no_pool(tiny, tmp_path):
    child = os.fork()
    if child == 0:
        try:
            plain = _store.Store.write

            def write(*arguments):
                plain(*arguments)
                os.kill(os.getpid(), signal.SIGKILL)

            _store.Store.write = write
            collector = sketch.LoraGradients(tiny.lora(), 128)
            sketch.collect(
                collector, tiny.responses(9), tmp_path / "p", max_tokens=60, progress=False
            )
        finally:
            os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert not (tmp_path / "p").exists()
    assert 0 < len(_shards.Work(tmp_path / "p").done()) < 9
    collector = sketch.LoraGradients(tiny.lora(), 128)
    pool = sketch.collect(
        collector, tiny.responses(9), tmp_path / "p", max_tokens=60, progress=False
    )
    assert (pool.squared_norms > 0).all()


def test_what_is_left_must_be_of_the_same_call(tiny, tmp_path, monkeypatch):
    model, responses = tiny.lora(), tiny.responses(9)
    collector = sketch.LoraGradients(model, 128)

    def collect(responses=responses, **settings):
        return sketch.collect(collector, responses, tmp_path / "p", progress=False, **settings)

    with monkeypatch.context() as patch:
        stopped(patch)
        with pytest.raises(KeyboardInterrupt):
            collect()
    with pytest.raises(ValueError, match="responses were 9 and are 8; pass resume=False"):
        collect(responses[:-1])
    with pytest.raises(ValueError, match="1 of 9 responses are others: 4; pass resume=False"):
        collect([*responses[:4], ([1], [2]), *responses[5:]])
    with pytest.raises(ValueError, match="fidelity was of 9 responses and is of 2"):
        collect(fidelity=2)
    with pytest.raises(ValueError, match="dtype was 'float32' and is 'float16'"):
        collect(dtype="float16")
    for dim, seed, message in ((256, 0, "dim was 128 and is 256"), (128, 1, "seed was 0 and is 1")):
        other = sketch.LoraGradients(model, dim, seed)
        with pytest.raises(ValueError, match=message):
            sketch.collect(other, responses, tmp_path / "p", progress=False)
    with torch.no_grad():
        collector.parts[0].weight[0, 0] += 1
    with pytest.raises(ValueError, match=r"weights: .*q_proj.lora_A.*pass resume=False to start"):
        collect()
    collect(resume=False)
    before = content(tmp_path / "p")
    with pytest.raises(ValueError, match=r"p is there already, and resume=False removes no"):
        collect(resume=False)
    monkeypatch.setattr(_store.Store, "write", None)  # nothing is sketched again
    assert np.array_equal(collect().sketches, sketch.SketchPool.open(tmp_path / "p").sketches)
    with pytest.raises(ValueError, match="responses were 9 and are 8; give another folder"):
        collect(responses[:-1])
    with torch.no_grad():
        collector.parts[0].weight[0, 0] += 1
    with pytest.raises(ValueError, match=r"weights: .*q_proj.lora_A.*; give another folder"):
        collect()
    assert content(tmp_path / "p") == before


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


def configured(**changes):
    def change(model):
        model.config.update(changes)

    return change


def attention(model):
    model.set_attn_implementation("eager")


def epsilon(model):
    model.get_base_model().model.norm.variance_epsilon = 1e-4


def training(model):
    model.train()


def frequencies(model):
    model.get_base_model().model.rotary_emb.inv_freq *= 2


def a_hook(model):
    layer = model.get_base_model().model.layers[0].mlp
    layer.register_forward_hook(lambda _m, _i, output: output * 1.5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (scaled, r"adapter: .*q_proj was \['Linear', .*, \[2.0\]\] and is .*8.0.*11 more"),
        (a_number, r"weights: .*layers.1.mlp.gate_proj.base_layer.weight .float32 \[48, 32\] "),
        (half, r"weights: .*embed_tokens.weight .float32 .* before, .bfloat16"),
        (frozen, "names were 28 and are 14"),
        (embeddings, "weights: .*embed_tokens.weight"),
        (configured(rms_norm_eps=1e-5), r"model.config: rms_norm_eps was 1e-06 and is 1e-05;"),
        (configured(sliding_window=4), "model.config: sliding_window was absent and is 4;"),
        (
            configured(rope_parameters={"rope_theta": 5e5, "rope_type": "default"}),
            "model.config: rope_parameters.rope_theta was 10000.0 and is 500000.0;",
        ),
        (attention, "model.config: attn_implementation was 'sdpa' and is 'eager';"),
        (epsilon, r"modules: .*model.norm.variance_epsilon was \[1e-06\] and is \[0.0001\];"),
        (training, "model: training was False and is True;"),
        (frequencies, "buffers: .*rotary_emb.inv_freq"),
        (a_hook, r"model: the gradient of response \d is not what it was .*something else has ch"),
    ],
)  # fmt: skip
def test_what_is_left_must_be_of_the_same_model(tiny, tmp_path, monkeypatch, change, message):
    responses = tiny.responses(9)

    def collect(model):
        collector = sketch.LoraGradients(model, 128)
        return sketch.collect(collector, responses, tmp_path / "p", max_tokens=60, progress=False)

    with monkeypatch.context() as patch:
        stopped(patch, after=1)
        with pytest.raises(KeyboardInterrupt):
            collect(tiny.lora())
    model = tiny.lora()
    change(model)
    with pytest.raises(ValueError, match=message):
        collect(model)
    assert (collect(tiny.lora()).squared_norms > 0).all()


def test_a_fingerprint_looks_at_every_number(tiny):
    model = tiny.lora(tiny.model(vocab_size=40000), target_modules=["q_proj"])
    collector = sketch.LoraGradients(model, 128)
    weight = model.get_input_embeddings().weight.data
    assert weight.numel() > _fingerprint._WHOLE
    found = {json.dumps(_fingerprint.fingerprint(collector))}
    for number in range(1, 40000, 3001):
        weight[number, number % 32] += 1
        found.add(json.dumps(_fingerprint.fingerprint(collector)))
    weight[[11, 22]] = weight[[22, 11]]  # the same numbers elsewhere
    found.add(json.dumps(_fingerprint.fingerprint(collector)))
    assert len(found) == 2 + len(range(1, 40000, 3001))


def test_a_fingerprint_is_the_same_in_another_process(tiny, tmp_path):
    def written(path):
        collector = sketch.LoraGradients(tiny.lora(), 128)
        path.write_text(json.dumps(_fingerprint.fingerprint(collector)))

    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            written(tmp_path / "a")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    torch.set_num_threads(2)
    written(tmp_path / "b")
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()


@pytest.mark.parametrize("at", range(12))
def test_a_stop_while_finishing_loses_nothing(tiny, tmp_path, monkeypatch, at):
    collector, responses = sketch.LoraGradients(tiny.lora(), 128), tiny.responses(5)
    calls = []

    def counted(plain):
        def call(*arguments, **others):
            calls.append(plain)
            if len(calls) == at + 1:
                raise KeyboardInterrupt
            return plain(*arguments, **others)

        return call

    with monkeypatch.context() as patch:
        for name in ("save_array", "write_json", "clear", "fsync"):
            patch.setattr(_finish, name, counted(getattr(_finish, name)))
        patch.setattr(Path, "rename", counted(Path.rename))
        try:
            sketch.collect(collector, responses, tmp_path / "p", progress=False)
        except KeyboardInterrupt:
            assert at < len(calls)
    monkeypatch.setattr(_store.Store, "write", None)  # all work is done
    pool = sketch.collect(collector, responses, tmp_path / "p", progress=False)
    assert (pool.squared_norms > 0).all()
    assert sketch.SketchPool.open(tmp_path / "p").fidelity.responses == 5
    assert [path.name for path in tmp_path.iterdir()] == ["p"]
    assert not set(_store.PARTS) & {path.name for path in (tmp_path / "p").iterdir()}


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="cannot reserve room here")
def test_room_on_the_disk_is_taken_before_any_work(tiny, tmp_path, monkeypatch):
    collector, responses = sketch.LoraGradients(tiny.lora(), 4096), tiny.responses(9)

    def look(*_):
        names = {"sketches": 9 * 4096, "gradients": 9 * collector.size}
        taken = [
            (tmp_path / ".p.partial" / "0-of-1" / f"{name}.npy").stat().st_blocks * 512 >= count * 4
            for name, count in names.items()
        ]
        raise RuntimeError(f"taken: {all(taken)}")

    with monkeypatch.context() as patch:
        patch.setattr(_store.Store, "write", look)
        with pytest.raises(RuntimeError, match="taken: True"):
            sketch.collect(collector, responses, tmp_path / "p", progress=False)

    def full(*_):
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"no room; what is done is kept.*: .*\.npy"):
        sketch.collect(collector, responses, tmp_path / "p", resume=False, progress=False)
    assert [path.name for path in tmp_path.iterdir()] in ([], [".p.partial"])
    assert not list(tmp_path.glob("*/*"))


@pytest.mark.parametrize("what", ["write", "pwrite", "fsync"])
@pytest.mark.parametrize("at", [2, 5, 9, 14])
def test_a_full_disk_keeps_what_is_done(tiny, tmp_path, monkeypatch, what, at):
    collector, responses = sketch.LoraGradients(tiny.lora(), 128), tiny.responses(17)
    settings = {"max_tokens": 60, "progress": False}
    sketch.collect(collector, responses, tmp_path / "a", **settings)
    plain, calls, most = getattr(os, what), [], {"write": 6, "pwrite": 36, "fsync": 40}[what]

    def full(handle, *arguments):
        calls.append(1)
        if len(calls) < at:
            return plain(handle, *arguments)
        if what == "pwrite":  # half of it fits
            plain(handle, arguments[0][: len(arguments[0]) // 2], *arguments[1:])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, what, full)
        with contextlib.ExitStack() as expected:
            if at <= most:
                message = r"^.Errno 28. No space left on device(; what is done is kept, [^\n]*)?: "
                expected.enter_context(pytest.raises(OSError, match=message))
            sketch.collect(collector, responses, tmp_path / "b", **settings)
    sketch.collect(collector, responses, tmp_path / "b", **settings)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_what_cannot_be_removed_is_not_resumed(tiny, tmp_path, monkeypatch):
    collector = sketch.LoraGradients(tiny.lora(), 128)

    def unlink(path, missing_ok=False):
        if path.suffix == ".npy":
            raise PermissionError(f"{path} stays")

    with monkeypatch.context() as patch:
        stopped(patch)
        with pytest.raises(KeyboardInterrupt):
            sketch.collect(collector, tiny.responses(3), tmp_path / "p", progress=False)
    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(PermissionError, match="npy stays"):
        sketch.collect(collector, tiny.responses(3), tmp_path / "p", resume=False, progress=False)


def test_what_is_not_ours_stays(tiny, tmp_path, monkeypatch):
    collector, responses = sketch.LoraGradients(tiny.lora(), 128), tiny.responses(3)
    with monkeypatch.context() as patch:
        stopped(patch)
        with pytest.raises(KeyboardInterrupt):
            sketch.collect(collector, responses, tmp_path / "p", progress=False)
    precious = tmp_path / ".p.partial" / "0-of-1" / "precious.txt"
    precious.write_text("all")
    with pytest.raises(OSError, match="not empty"):
        sketch.collect(collector, responses, tmp_path / "p", resume=False, progress=False)
    assert precious.read_text() == "all"
    precious.rename(tmp_path / "precious.txt")
    shutil.rmtree(tmp_path / ".p.partial")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".p.partial").mkdir()
    (tmp_path / ".p.partial" / "0-of-1").symlink_to(tmp_path / "elsewhere")
    for resume in (True, False):
        with pytest.raises((OSError, ValueError), match="0-of-1"):
            sketch.collect(collector, responses, tmp_path / "p", resume=resume, progress=False)
    assert not list((tmp_path / "elsewhere").iterdir())
    (tmp_path / ".p.partial" / "0-of-1").unlink()
    (tmp_path / ".p.partial" / "0-of-1").mkdir()
    (tmp_path / ".p.partial" / "0-of-1" / "sketches.npy").symlink_to(tmp_path / "precious.txt")
    sketch.collect(collector, responses, tmp_path / "p", progress=False)  # the link alone goes
    assert (tmp_path / "precious.txt").read_text() == "all"


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
