"""Several processes and one pool: locks, shares, merging, kills; and pools that grow."""

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from pyfast import sketch
from pyfast._files import locked
from pyfast.sketch import _shards, _store
from pyfast.sketch._batches import plan

SETTINGS = {"max_tokens": 60, "progress": False}


def content(folder):
    """All bytes of a pool."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def collector(tiny):
    return sketch.LoraGradients(tiny.lora(), 128)


@pytest.fixture
def whole(tiny, collector, tmp_path):
    """What one process makes of 17 responses."""
    sketch.collect(collector, tiny.responses(17), tmp_path / "whole", **SETTINGS)
    return content(tmp_path / "whole")


def test_a_second_process_is_told_and_takes_nothing(tiny, collector, tmp_path, monkeypatch):
    responses, plain = tiny.responses(9), _store.Store.write
    tried = []

    def write(self, *arguments):
        plain(self, *arguments)
        before = content(self.folder)
        for others in ({}, {"resume": False}, {"shard": (0, 2)}) if not tried else ():
            with pytest.raises(BlockingIOError, match=r"another process is sketching .*/p'"):
                sketch.collect(collector, responses, tmp_path / "p", **SETTINGS, **others)
        assert content(self.folder) == before
        tried.append(1)

    monkeypatch.setattr(_store.Store, "write", write)
    sketch.collect(collector, responses, tmp_path / "p", **SETTINGS)
    assert tried
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


@pytest.mark.parametrize("world", [1, 2, 3, 30])
def test_ranks_make_the_pool_of_one_process(tiny, collector, tmp_path, whole, world):
    responses = tiny.responses(17)
    assert 3 < len(plan(responses, 60)) < 30
    found = [
        sketch.collect(collector, responses, tmp_path / "p", **SETTINGS, shard=(rank, world))
        for rank in reversed(range(world))
    ]
    assert found[:-1] == [None] * (world - 1)
    assert content(tmp_path / "p") == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p", "whole"]
    late = sketch.collect(collector, responses, tmp_path / "p", **SETTINGS, shard=(0, world))
    assert np.array_equal(late.sketches, found[-1].sketches)


def test_what_is_missing_is_told_and_can_be_done_by_others(tiny, collector, tmp_path, whole):
    responses = tiny.responses(17)
    with pytest.raises(ValueError, match=r"expected a sketch pool at .*/p \(.*No such file"):
        sketch.SketchPool.open(tmp_path / "p")
    assert sketch.collect(collector, responses, tmp_path / "p", **SETTINGS, shard=(1, 3)) is None
    message = r"it is unfinished: \d of 17 responses are sketched; of 3 ranks 0, 2 have not begun"
    with pytest.raises(ValueError, match=message):
        sketch.SketchPool.open(tmp_path / "p")
    with pytest.raises(ValueError, match="resume: expected True beside shard"):
        sketch.collect(collector, responses, tmp_path / "p", **SETTINGS, shard=(0, 3), resume=False)
    assert sketch.collect(collector, responses, tmp_path / "p", **SETTINGS, shard=(0, 2)) is None
    sketch.collect(collector, responses, tmp_path / "p", **SETTINGS)
    assert content(tmp_path / "p") == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p", "whole"]


def test_a_killed_rank_is_told_and_goes_on(tiny, collector, tmp_path, whole, monkeypatch):
    responses, plain = tiny.responses(17), _store.Store.write

    def stop(self, *arguments):
        plain(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_store.Store, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            sketch.collect(collector, responses, tmp_path / "p", **SETTINGS, shard=(0, 2))
    sketch.collect(collector, responses, tmp_path / "p", **SETTINGS, shard=(1, 2))
    with pytest.raises(ValueError, match=r"responses are sketched; rank 0 of 2 has \d of its \d+"):
        sketch.SketchPool.open(tmp_path / "p")
    sketch.collect(collector, responses, tmp_path / "p", **SETTINGS, shard=(0, 2))
    assert content(tmp_path / "p") == whole


def test_ranks_must_be_of_one_call(tiny, collector, tmp_path):
    responses = tiny.responses(17)
    sketch.collect(collector, responses, tmp_path / "p", **SETTINGS, shard=(0, 2))
    other = sketch.LoraGradients(tiny.lora(rank=8), 128)
    with pytest.raises(ValueError, match=r"sizes.0. was 128 and is 256, adapter: .* more; pass"):
        sketch.collect(other, responses, tmp_path / "p", **SETTINGS, shard=(1, 2))
    held = locked(_shards.Work(tmp_path / "p").rank_lock(1, 2))
    with held, pytest.raises(BlockingIOError, match="p as rank 1 of 2"):
        sketch.collect(collector, responses, tmp_path / "p", **SETTINGS, shard=(1, 2))
    for shard, error in (((2, 2), ValueError), ((0, 0), ValueError), (1, TypeError),
                         ((0.5, 2), TypeError), ((0, 2, 1), TypeError)):  # fmt: skip
        with pytest.raises(error, match="shard"):
            sketch.collect(collector, responses, tmp_path / "p", **SETTINGS, shard=shard)


def test_what_was_damaged_is_made_again(tiny, collector, tmp_path, whole, monkeypatch):
    responses = tiny.responses(17)

    def stop(*_):
        raise KeyboardInterrupt

    def interrupted(folder):
        with monkeypatch.context() as patch:
            patch.setattr(sketch._collect, "finish", stop)
            with pytest.raises(KeyboardInterrupt):
                sketch.collect(collector, responses, folder, **SETTINGS)

    store = _shards.Work(tmp_path / "p").store()
    for name in ("sketches.npy", "gradients.npy"):
        interrupted(tmp_path / "p")
        with (store / name).open("r+b") as file:
            file.seek(-700, 2)
            byte = file.read(1)
            file.seek(-700, 2)
            file.write(bytes([byte[0] ^ 1]))
        with pytest.warns(UserWarning, match="damaged on the disk and are made again: "):
            sketch.collect(collector, responses, tmp_path / "p", **SETTINGS)
        assert content(tmp_path / "p") == whole
        (tmp_path / "p").rename(tmp_path / name)
    interrupted(tmp_path / "p")
    os.truncate(store / "sketches.npy", 2000)
    with pytest.warns(UserWarning, match=r"the rows of 1\d responses were damaged"):
        sketch.collect(collector, responses, tmp_path / "p", **SETTINGS)
    assert content(tmp_path / "p") == whole
    (tmp_path / "p").rename(tmp_path / "truncated")
    for name, change in (
        ("journal.jsonl", lambda text: text[: len(text) * 2 // 3]),
        ("journal.jsonl", lambda text: text.replace(b'"lengths": [', b'"lengths": [1', 1)),
        ("info.json", lambda text: text[:100]),
        ("sketches.npy", lambda text: b"x" * 128 + text[128:]),
    ):
        interrupted(tmp_path / "p")
        (store / name).write_bytes(change((store / name).read_bytes()))
        sketch.collect(collector, responses, tmp_path / "p", **SETTINGS)
        made = content(tmp_path / "p")
        assert made["sketches.npy"] == whole["sketches.npy"]
        assert made["fidelity.json"] == whole["fidelity.json"]
        assert made["lengths.npy"] == whole["lengths.npy"]
        (tmp_path / "p").rename(tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}")


def test_fewer_tokens_a_batch_keep_what_is_done(tiny, collector, tmp_path, monkeypatch):
    responses, plain = tiny.responses(17), sketch.LoraGradients.sketch_numbers
    runs = []

    def interrupted(most):
        def run(self, responses, numbers, gradients):
            if len(runs) == most:
                raise MemoryError
            runs.append(numbers)
            return plain(self, responses, numbers, gradients)

        monkeypatch.setattr(sketch.LoraGradients, "sketch_numbers", run)

    for folder, stops in (("a", (2, 5, 99)), ("b", (2, 6, 8, 99))):
        runs.clear()
        for stop, most_tokens in zip(stops, (80, 25, 25, 25), strict=False):
            interrupted(stop)
            try:
                pool = sketch.collect(
                    collector, responses, tmp_path / folder, max_tokens=most_tokens, progress=False
                )
            except MemoryError:
                assert stop < 99
        assert runs[:2] == plan(responses, 80)[:2]
        assert all(
            len(run) * max(len(responses[n][0]) + len(responses[n][1]) for n in run) <= 25
            for run in runs[2:]
        )
        assert (pool.squared_norms > 0).all()
        assert [session["max_tokens"] for session in pool.info["made_with"]] == [80, 25]
    assert content(tmp_path / "a") == content(tmp_path / "b")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_pools_grow_without_sketching_again(tiny, collector, tmp_path, monkeypatch, dtype):
    responses, plain = tiny.responses(25), sketch.LoraGradients.sketch_numbers
    settings = {**SETTINGS, "dtype": dtype}
    first = sketch.collect(collector, responses[:17], tmp_path / "p", **settings)
    before = content(tmp_path / "p")
    runs = []

    def counted(self, responses, numbers, gradients):
        runs.append(numbers)
        return plain(self, responses, numbers, gradients)

    monkeypatch.setattr(sketch.LoraGradients, "sketch_numbers", counted)
    elsewhere = sketch.collect(
        collector, responses, tmp_path / "q", **settings, base=tmp_path / "p"
    )
    assert content(tmp_path / "p") == before
    probe, *rest = runs
    assert len(probe) == 1
    assert sorted(n for run in rest for n in run) == list(range(17, 25))
    assert np.array_equal(elsewhere.sketches[:17], first.sketches)
    assert elsewhere.fidelity == first.fidelity
    alone = sketch.collect(collector, responses[17:], tmp_path / "r", **settings)
    assert np.array_equal(elsewhere.sketches[17:], alone.sketches)
    sketch.collect(collector, responses, tmp_path / "p", **settings)  # in place
    assert content(tmp_path / "p") == content(tmp_path / "q")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p", "q", "r"]
    for rank in (0, 1):
        sketch.collect(
            collector, responses, tmp_path / "s", **settings, base=elsewhere, shard=(rank, 2)
        )
    assert content(tmp_path / "s") == content(tmp_path / "q")
    with pytest.raises(ValueError, match="1 of 25 responses are others: 0; give another folder"):
        sketch.collect(collector, [([1], [2]), *responses[1:], ([1], [2])], tmp_path / "p",
                       **settings)  # fmt: skip


def test_an_unfinished_pool_grows(tiny, collector, tmp_path, monkeypatch):
    responses, plain = tiny.responses(25), _store.Store.write

    def stop(self, *arguments):
        plain(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_store.Store, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            sketch.collect(collector, responses[:17], tmp_path / "p", **SETTINGS)
    pool = sketch.collect(collector, responses, tmp_path / "p", **SETTINGS)
    sketch.collect(collector, responses[:17], tmp_path / "q", **SETTINGS)
    grown = sketch.collect(collector, responses, tmp_path / "q", **SETTINGS)
    assert np.array_equal(pool.sketches, grown.sketches)
    assert pool.fidelity == grown.fidelity


@pytest.mark.parametrize("at", [0, 1])
def test_a_kill_between_the_renames_of_a_growing_pool(tiny, collector, tmp_path, monkeypatch, at):
    responses = tiny.responses(25)
    sketch.collect(collector, responses[:17], tmp_path / "p", **SETTINGS)
    sketch.collect(collector, responses, tmp_path / "q", **SETTINGS, base=tmp_path / "p")
    plain, calls = Path.rename, []

    def rename(self, target):
        calls.append(self)
        if len(calls) == at + 1:
            raise KeyboardInterrupt
        plain(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            sketch.collect(collector, responses, tmp_path / "p", **SETTINGS)
    if at == 1:
        with pytest.raises(ValueError, match="it is complete; the same call of collect puts it in"):
            sketch.SketchPool.open(tmp_path / "p")
    with pytest.raises(ValueError, match="resume=False removes no finished pool"):
        sketch.collect(collector, responses, tmp_path / "p", **SETTINGS, resume=False)
    sketch.collect(collector, responses, tmp_path / "p", **SETTINGS)
    assert content(tmp_path / "p") == content(tmp_path / "q")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p", "q"]


def start(tiny, folder, rank=0, world=1):
    """Fork a process that does a rank's share; it ends with 0, or with 1 and no traceback."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            collector = sketch.LoraGradients(tiny.lora(), 128)
            sketch.collect(collector, tiny.responses(17), folder, **SETTINGS, shard=(rank, world))
            code = 0
        finally:
            os._exit(code)
    return child


def test_processes_share_a_pool(tiny, tmp_path, whole):
    ranks = [start(tiny, tmp_path / "p", rank, 3) for rank in range(3)]
    assert [os.waitpid(child, 0)[1] for child in ranks] == [0, 0, 0]
    assert content(tmp_path / "p") == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p", "whole"]


def kill_and_resume(tiny, tmp_path, whole, world, trials, seed):
    generator = random.Random(seed)
    kills = 0
    for trial in range(trials):
        folder = tmp_path / f"p{trial}"
        for _ in range(4):
            ranks = [start(tiny, folder, rank, world) for rank in range(world)]
            time.sleep(generator.uniform(0.05, 0.5))
            for child in ranks:
                if generator.random() < 0.8:
                    os.kill(child, signal.SIGKILL)
                kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        assert os.waitpid(start(tiny, folder), 0)[1] == 0
        assert content(folder) == whole
    names = {f"p{trial}" for trial in range(trials)} | {"whole"}
    assert {path.name for path in tmp_path.iterdir()} == names
    return kills


@pytest.mark.parametrize("world", [1, 3])
def test_kills_at_any_time_end_in_the_same_pool(tiny, tmp_path, whole, world):
    assert kill_and_resume(tiny, tmp_path, whole, world, 2, world) > 0


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_many_kills_at_any_time_end_in_the_same_pool(tiny, tmp_path, whole, world):
    assert kill_and_resume(tiny, tmp_path, whole, world, 30, 7 + world) > 20
