"""Pools that are interrupted: stops, kills, full disks, and what goes on from them."""

import contextlib
import errno
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from sketch_pools import content, stopped

from pyfast import sketch
from pyfast.sketch import _finish, _shards, _store
from pyfast.sketch._batches import plan


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
