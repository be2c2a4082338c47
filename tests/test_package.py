"""The package as a whole: imports, threads, forks, interrupts, stubs and wheel contents."""

import ast
import inspect
import subprocess
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import pyfast
from pyfast import _core, select

ROOT = Path(__file__).parent.parent
RunPython = Callable[..., str]


def test_import_is_light(run_python: RunPython) -> None:
    code = """
import sys, pyfast, pyfast.select, pyfast.cli
pyfast.select.kmedoids([[0.0], [1.0]], 1)
heavy = {"torch", "transformers", "scipy", "sklearn", "triton", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""
    run_python(code)


@pytest.mark.parametrize("first", ["torch", "pyfast"])
def test_both_import_orders_with_torch(run_python: RunPython, first: str) -> None:
    second = {"torch": "pyfast", "pyfast": "torch"}[first]
    code = f"""
import {first}, {second}
import numpy as np, torch
from pyfast import select
torch.set_num_threads(2)
X = np.random.default_rng(0).normal(size=(40, 30, 8))
for _ in range(3):
    (torch.ones(300, 300) @ torch.ones(300, 300)).sum()
    print(select.kmedoids(X, 3, n_threads=2).medoids.sum())
assert torch.get_num_threads() == 2
"""
    assert len(set(run_python(code).split())) == 1


def test_a_forked_child_can_call(run_python: RunPython) -> None:
    code = """
import os, numpy as np
from pyfast import get_num_threads, select
X = np.random.default_rng(0).normal(size=(40, 30, 8))
before = select.kmedoids(X, 3, n_threads=4).medoids
child = os.fork()
if child == 0:
    same = (select.kmedoids(X, 3, n_threads=4).medoids == before).all()
    os._exit(0 if same and get_num_threads() == 1 else 1)
assert os.waitpid(child, 0)[1] == 0
assert (select.kmedoids(X, 3, n_threads=4).medoids == before).all()
"""
    run_python(code, timeout=60)


@pytest.mark.parametrize(
    "call",
    [
        "select.kmedoids(D, 200, metric='precomputed', search='best', n_threads=1)",
        "select.kmedoids(D, 200, metric='precomputed', search='best', n_init=8, n_threads=4)",
        "select.kmedoids(np.stack([D] * 3), 200, metric='precomputed', search='best', n_threads=4)",
        "select.kmedoids(rng.normal(size=(40000, 600)), 2000, n_threads=1)",
        "select.kmedoids(rng.normal(size=(40000, 600)), 2000, n_threads=4)",
        "select.kmedoids(rng.normal(size=(4000, 8)), 1500, init='greedy', n_threads=1)",
        "select.kmedoids(D, 50, metric='precomputed', certify=True, n_threads=1)",
        "select.opt_select(rng.normal(size=(2500, 64)), rng.random(2500), k=300, n_init=9999)",
        "select.mass_dpo(rng.normal(size=(6000, 800)), *np.zeros((2, 6000)), 0, k=5999)",
        "select.active_dpo(rng.normal(size=(6000, 800)), np.c_[:5999, 1:6000], k=5999)",
        "select.coreset(rng.normal(size=(60000, 64)), rng.random(60000), 2000)",
        "select.logdet(rng.normal(size=(6000, 800)), 6000, n_threads=1)",
        "select.logdet(rng.normal(size=(6000, 800)), 6000, n_threads=2)",
    ],
)
def test_ctrl_c_stops_native_loops(run_python: RunPython, call: str) -> None:
    """Each call would run for minutes; the interrupt must come out of it, and leave it usable."""
    code = f"""
import os, signal, threading, numpy as np
from pyfast import select
rng = np.random.default_rng(0)
D = rng.random((3000, 3000)); D = D + D.T
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs start with it ignored
threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    {call}
    print("finished")
except KeyboardInterrupt:
    print("interrupted", select.kmedoids(D[:9, :9], 2, metric="precomputed").medoids.shape)
"""
    assert run_python(code, timeout=60) == "interrupted (2,)"


@pytest.mark.parametrize(
    "call",
    [
        "_native.first_invalid(np.zeros(1 << 27), True)",
        "_native.first_invalid(np.zeros(1 << 27, np.float32), False)",
        "_native.first_asymmetric(np.zeros(11_000 * 11_000), np.array([0, 11_000]))",
        "_native.squared_norms(np.zeros((1 << 14, 1 << 13), np.float32), 1)",
    ],
)
def test_signals_are_served_while_the_input_is_scanned(run_python: RunPython, call: str) -> None:
    """Without a look up, a scan leaves one signal pending; the interpreter serves a few around it.

    The zeros are pages that the system has not yet handed out: they take no memory.
    """
    code = f"""
import signal, numpy as np
from pyfast import _native
served = []
signal.signal(signal.SIGALRM, lambda *_: served.append(1))
signal.setitimer(signal.ITIMER_REAL, 2e-5, 2e-5)
{call}
signal.setitimer(signal.ITIMER_REAL, 0)
print(len(served) >= 10 or len(served))
def stop(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, stop)
try:
    signal.setitimer(signal.ITIMER_REAL, 1e-4)
    {call}
    print("finished")
except KeyboardInterrupt:
    print("interrupted", _native.first_invalid(np.ones(3), True))
"""
    assert run_python(code, timeout=60) == "True\ninterrupted -1"


def test_many_threads_call_at_once() -> None:
    X = np.random.default_rng(0).normal(size=(50, 20, 6))
    expected = select.kmedoids(X, 3, n_init=2).medoids
    with ThreadPoolExecutor(16) as pool:
        calls = [
            pool.submit(select.kmedoids, X, 3, n_init=2, n_threads=1 + i % 3) for i in range(96)
        ]
        assert all((call.result().medoids == expected).all() for call in calls)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are counted in /proc")
@pytest.mark.parametrize(
    "call",
    [
        "select.kmedoids(x(16, 20, 8), 3, n_threads=4)",
        "select.kmedoids(D, 3, metric='precomputed', n_threads=4)",
        "select.kmedoids(x(16, 20, 8), 3, certify=True, n_threads=4)",
        "select.opt_select(x(8, 32, 64), x(8, 32), 5, n_threads=4)",
        "select.coreset(x(8, 32, 64), x(8, 32), 5, n_threads=4)",
        "select.bottom_k(x(16, 32), 5, n_threads=4)",
        "select.logdet(x(16, 20, 64), 3, n_threads=4)",
        "select.mass_dpo(x(16, 20, 64), x(16, 20), x(16, 20), 0, k=3, n_threads=4)",
        "select.active_dpo(x(40, 64), np.c_[:39, 1:40], k=3, n_threads=4)",
    ],
)
def test_a_batch_of_little_work_starts_no_thread(run_python: RunPython, call: str) -> None:
    """Waking one takes longer than the work, and on a busy machine many times as long."""
    code = f"""
import os, numpy as np
from pyfast import select
rng = np.random.default_rng(0)
x = lambda *shape: rng.normal(size=shape)
X = x(16, 12, 3); D = np.sqrt(((X[:, :, None] - X[:, None]) ** 2).sum(-1))
before = len(os.listdir("/proc/self/task"))
{call}
print(len(os.listdir("/proc/self/task")) - before)
select.kmedoids(x(400, 100, 300), 5, n_threads=4)
print(len(os.listdir("/proc/self/task")) - before)
"""
    assert run_python(code).split() == ["0", "3"]


def test_thread_setting(run_python: Callable[..., str]) -> None:
    # In its own process: what OpenMP was limited to in this one would count too.
    code = """
import os
import numpy as np, pyfast
os.environ["OMP_NUM_THREADS"] = "3"
seen = [pyfast.get_num_threads()]
for number in (5, np.int64(7), None):
    pyfast.set_num_threads(number)
    seen.append(pyfast.get_num_threads())
os.environ["OMP_NUM_THREADS"] = ""
print(seen, pyfast.get_num_threads() >= 1)
"""
    assert run_python(code) == "[3, 5, 7, 3] True"


def test_threads_that_are_none_are_refused() -> None:
    for bad, error in (
        (0, ValueError),
        (-2, ValueError),
        (1.5, TypeError),
        (True, TypeError),
        (np.bool_(True), TypeError),
    ):
        with pytest.raises(error, match="n_threads: expected"):
            pyfast.set_num_threads(bad)  # type: ignore[arg-type]


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'pyfast' has no attribute 'nothing'"):
        pyfast.nothing  # noqa: B018
    assert {"select", "losses"} <= set(dir(pyfast))


def test_extension_declares_that_it_needs_no_gil() -> None:
    source = (ROOT / "csrc/bind/module.cpp").read_text()
    assert "mod_gil_not_used()" in source
    assert _core.build_info()["threads"] in {"omp", "std"}


def test_simd_level_can_be_forced_and_an_unknown_one_is_refused(
    run_python: RunPython, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYFAST_SIMD", "baseline")
    show = "from pyfast import _core; print(_core.build_info()['simd'])"
    assert run_python(show) == "baseline"
    monkeypatch.setenv("PYFAST_SIMD", "mmx")
    code = """
import pyfast.select  # importing is fine, calling is not, however often
from pyfast import _core
for _ in range(2):
    try:
        _core.build_info()
    except ValueError as error:
        print(error)
"""
    lines = run_python(code).splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("PYFAST_SIMD: expected a level of this machine (baseline")
        assert line.endswith("got mmx")


def test_stub_names_the_functions_and_arguments_of_the_built_module() -> None:
    stub = ast.parse((ROOT / "pyfast/_core.pyi").read_text())
    declared = {
        node.name: [a.arg for a in node.args.args]
        for node in stub.body
        if isinstance(node, ast.FunctionDef)
    }
    built = {}
    for name, function in inspect.getmembers(_core, inspect.isroutine):
        signature = (function.__doc__ or "").splitlines()[0]  # pybind11 writes it there
        parsed = ast.parse(f"def {signature.replace('->', '-> ')}: ...").body[0]
        assert isinstance(parsed, ast.FunctionDef)
        built[name] = [a.arg for a in parsed.args.args]
    assert declared == built


def test_kernels_come_as_a_part_of_pyfast_and_hugging_faces_still_import(
    run_python: RunPython,
) -> None:
    code = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import kernels, pyfast.kernels.runtime as ours
assert hasattr(kernels, "get_kernel"), kernels
assert ours.why_unusable() is None or ours.why_unusable()
"""
    run_python(code)


@pytest.mark.slow
def test_wheel_contents(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--outdir", tmp_path, ROOT]
    build += ["-C", "cmake.build-type=Debug"]  # the same files, compiled in less time
    subprocess.run(build, check=True, capture_output=True)  # the sdist, and the wheel from it
    (wheel,) = tmp_path.glob("pyfast_align-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    ours = [*(ROOT / "pyfast").rglob("*"), *(ROOT / "kernels").rglob("*.py")]
    sources = {path.relative_to(ROOT).as_posix() for path in ours if path.is_file()}
    sources = {name for name in sources if not name.endswith((".pyc", ".so", ".pyd"))}
    installed = {f"pyfast/{name}" if name.startswith("kernels/") else name for name in sources}
    assert not installed - names  # or a pattern of pyproject.toml or .gitignore is too wide
    assert {"pyfast/py.typed", "pyfast/_core.pyi", "pyfast/kernels/runtime.py"} <= names
    assert any(n.startswith("pyfast/_core.") and n.endswith((".so", ".pyd")) for n in names)
    assert {"pyfast/train/demo/prompts_train.jsonl", "pyfast/train/demo/ampo.json"} <= names
    assert {f"pyfast/label/static/page.{kind}" for kind in ("html", "css", "js")} <= names
    tops = {n.split("/")[0] for n in names}
    assert tops == {"pyfast"} | {t for t in tops if t.endswith(".dist-info")}
    assert not [n for n in names if n.endswith((".cpp", ".hpp", ".a"))]
