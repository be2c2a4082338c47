"""How many threads: what is asked for, and what the environment, OpenMP and a container allow."""

import os
import threading
from pathlib import Path

import pytest

import pyfast
from pyfast import _native, _threads


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(_threads, "_told", set())
    monkeypatch.setattr(_threads, "_quotas", {})


@pytest.mark.parametrize(
    ("value", "threads"),
    [("1", 1), ("1,1", 1), ("3, 2,1", 3), (" 2 ", 2), ("+2", 2), ("007", 7), ("1024", 1024)],
)
def test_the_first_number_counts(value: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert pyfast.get_num_threads() == threads


@pytest.mark.parametrize("value", ["no", "0", "-1", "1.5", ",1", "100000", "9" * 40, "²"])
def test_what_is_no_number_of_threads_is_told_once_and_ignored(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = pyfast.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    with pytest.warns(RuntimeWarning, match="OMP_NUM_THREADS: expected 1 to 1024 threads") as told:
        assert pyfast.get_num_threads() == expected
    assert pyfast.get_num_threads() == expected
    assert len(told) == 1


def test_a_thread_limit_caps_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_THREAD_LIMIT", "2")
    assert _threads.resolve_threads(7) == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert pyfast.get_num_threads() == 2


def test_too_many_are_refused() -> None:
    for number in (1025, 100_000, 2**70):
        for call in (pyfast.set_num_threads, _threads.resolve_threads):
            with pytest.raises(ValueError, match="n_threads: expected 1 to 1024"):
                call(number)


@pytest.mark.skipif(_native.openmp_threads() == 0, reason="this build has no OpenMP")
def test_threadpoolctl_limits_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    threadpoolctl = pytest.importorskip("threadpoolctl")
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    monkeypatch.setattr(_threads, "_runtime_at_start", 0)  # whatever this process was given
    before = pyfast.get_num_threads()
    with threadpoolctl.threadpool_limits(limits=1):
        assert pyfast.get_num_threads() == 1
        pyfast.set_num_threads(2)  # said to us, and so stronger
        assert pyfast.get_num_threads() == 2
        pyfast.set_num_threads(None)
        other = []
        thread = threading.Thread(target=lambda: other.append(pyfast.get_num_threads()))
        thread.start()
        thread.join()
        assert other == [before]  # OpenMP's setting is the thread's own
    assert pyfast.get_num_threads() == before


def files(root: Path, contents: dict[str, str]) -> Path:
    for name, text in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


TWO, ONE = "sys/fs/cgroup/", "sys/fs/cgroup/cpu,cpuacct/"


@pytest.mark.parametrize(
    ("contents", "cpus"),
    [
        ({}, None),
        ({TWO + "cpu.max": "max 100000\n"}, None),
        ({TWO + "cpu.max": "200000 100000\n"}, 2),
        ({TWO + "cpu.max": "150000 100000\n"}, 2),  # rounded up
        ({TWO + "cpu.max": "1000 100000"}, 1),
        ({TWO + "cpu.max": "garbage"}, None),
        ({TWO + "cpu.max": "100000"}, None),
        ({TWO + "cpu.max": "100000 0"}, None),
        ({TWO + "cpu.max": ""}, None),
        (  # of the group and those above it, the least
            {
                "proc/self/cgroup": "0::/a/b\n",
                TWO + "a/b/cpu.max": "400000 100000",
                TWO + "a/cpu.max": "300000 100000",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/x\n3:cpu,cpuacct:/job\n",
                ONE + "job/cpu.cfs_quota_us": "250000\n",
                ONE + "job/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        ({ONE + "cpu.cfs_quota_us": "-1\n", ONE + "cpu.cfs_period_us": "100000\n"}, None),
        ({ONE + "cpu.cfs_quota_us": "100000\n"}, None),
        ({"proc/self/cgroup": "0::/../../x\nnonsense\n", "x/cpu.max": "100000 100000"}, None),
    ],
)
def test_quotas_of_containers(tmp_path: Path, contents: dict[str, str], cpus: int | None) -> None:
    assert _threads.cgroup_cpus(files(tmp_path, contents)) == cpus


def test_a_quota_and_the_affinity_limit_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "openmp_threads", lambda: 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    monkeypatch.setattr(_threads, "cgroup_cpus", lambda _: 3)
    assert pyfast.get_num_threads() == 3
    monkeypatch.setattr(_threads, "_quotas", {})
    monkeypatch.setattr(_threads, "cgroup_cpus", lambda _: 40)
    assert pyfast.get_num_threads() == 12
    monkeypatch.setenv("OMP_NUM_THREADS", "20")
    assert pyfast.get_num_threads() == 20  # asked for
