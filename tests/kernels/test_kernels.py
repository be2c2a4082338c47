"""Every kernel: its values in the interpreter, and its compilation for GPUs that are not here."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("triton")

FOLDER = Path(__file__).parent
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"

GROUPS = {"offsets": "*i64", "loss": "*fp32", "slope": "*fp32", "size": "i32", "margin": "fp32"}
SCALARS = {"width": "i32", "unit": "fp32", "cap": "fp32", "rate": "fp32"}
COLUMNS = {"top": "*fp32", "mass": "*fp32", "moment": "*fp32", "shrink": "*fp32"}
# Module, kernel, types of its arguments with SCORE for the inputs' own, flags and sizes.
KERNELS = {
    "contrast, all": (
        "group_lse",
        "contrast_kernel",
        {"scores": "SCORE", "positive": "*u8", "log_weights": "SCORE", **GROUPS},
        {"HAS_OFFSETS": True, "HAS_POSITIVE": True, "HAS_WEIGHTS": True, "BLOCK": 128},
    ),
    "contrast, plain": (
        "group_lse",
        "contrast_kernel",
        {"scores": "SCORE", "positive": "SCORE", "log_weights": "SCORE", **GROUPS},
        {"HAS_OFFSETS": False, "HAS_POSITIVE": False, "HAS_WEIGHTS": False, "BLOCK": 32},
    ),
    "listwise": (
        "group_lse",
        "listwise_kernel",
        {"scores": "SCORE", **GROUPS},
        {"HAS_OFFSETS": True, "BLOCK": 1024},
    ),
    "fold": (
        "head",
        "fold_kernel",
        {"tile": "SCORE", "shares": "SCORE", **COLUMNS, **SCALARS},
        {"HAS_CAP": True, "HAS_SHARES": True, "HAS_MOMENT": True, "BLOCK": 1024},
    ),
    "slope": (
        "head",
        "slope_kernel",
        {"tile": "SCORE", "out": "SCORE", "top": "*fp32", "mass": "*fp32"}
        | {"grad": "*fp32", "labels": "*i64", **SCALARS},
        {"HAS_CAP": True, "BLOCK": 1024},
    ),
}
TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETING, reason="kernels are interpreted in this process, not compiled")
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", KERNELS)
def test_compiles_ahead_of_time(name, target, dtype, tmp_path, monkeypatch, capsys):
    """And says what the kernel takes of the GPU; what spills is slow, and fails."""
    import triton
    from kernel_resources import line, resources
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    module, kernel, types, constants = KERNELS[name]
    source = ASTSource(
        getattr(importlib.import_module(f"pyfast.kernels.{module}"), kernel),
        signature={key: kind.replace("SCORE", f"*{dtype}") for key, kind in types.items()}
        | dict.fromkeys(constants, "constexpr"),
        constexprs=constants,
    )
    compiled = triton.compile(source, target=GPUTarget(*TARGETS[target]), options={"num_warps": 4})
    binary = compiled.asm["hsaco" if target == "gfx942" else "cubin"]
    assert binary[:4] == b"\x7fELF"
    assert compiled.metadata.shared <= 64 * 1024
    taken = resources(compiled, target)
    with capsys.disabled():
        print("\n" + line(name, target, dtype, taken), end="")
    assert taken["spilled"] == 0, taken


def test_every_kernel_is_compiled_above():
    """A kernel that is added has to be listed here too."""
    for module in sorted({row[0] for row in KERNELS.values()}):
        source = (FOLDER.parent.parent / "kernels" / f"{module}.py").read_text()
        defined = set(re.findall(r"def (\w+_kernel)\(", source))
        assert defined == {row[1] for row in KERNELS.values() if row[0] == module}
    modules = {path.stem for path in (FOLDER.parent.parent / "kernels").glob("*.py")}
    elsewhere = {"runtime", "hub_folder", "sketch", "sketch_fused"}  # no kernel; test_sketch.py
    assert modules == {row[0] for row in KERNELS.values()} | elsewhere


def test_launches_go_to_the_device_of_the_tensor(monkeypatch):
    """Not to the current one: Triton looks there by itself."""
    import torch
    from pyfast.kernels import runtime

    monkeypatch.setattr(torch.cuda, "device", lambda device: f"with {device}")
    elsewhere = SimpleNamespace(is_cuda=True, device=torch.device("cuda:1"))
    assert runtime.launching_on(elsewhere) == "with cuda:1"
    with runtime.launching_on(torch.zeros(1)) as nothing:
        assert nothing is None


@pytest.mark.slow
def test_values_in_the_interpreter():
    """Triton decides at import whether it interprets, so that this needs its own process."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", FOLDER / "interpreted"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = re.search(r"(\d+) passed", done.stdout)
    assert counts is not None
    assert int(counts[1]) >= 150
    assert "skipped" not in done.stdout


@pytest.mark.slow
def test_the_gpu_benchmark_checks_its_answers_without_a_gpu(tmp_path):
    """So that it stands ready: the same checks as on a GPU, in the interpreter."""
    done = subprocess.run(
        [sys.executable, FOLDER.parent.parent / "benchmarks" / "gpu.py", "--out", tmp_path],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing is timed" in done.stdout
    table = (tmp_path / "gpu.md").read_text()
    assert "side = ours" in table
    assert "sketch 2 x 3000 to 1024" in table
    assert "FAILED" not in table
