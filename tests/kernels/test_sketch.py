"""The stripe kernel: bit for bit the definition in the interpreter, and compiled for real GPUs."""

import pytest

pytest.importorskip("triton")

VALUES = """
import numpy as np, torch
from pyfast.kernels import sketch as kernels
from pyfast.sketch import reference

rng = np.random.default_rng(0)
for rows, p, dim, seed, module in [
    (1, 1, 128, 0, 0),
    (2, 127, 128, 1, 5),
    (1, 128 * 70 + 3, 128, 2**64 - 1, 2**32 - 1),
    (2, 5000, 256, 2**31, 2**31),
    (1, 3000, 2048, 7, 1),
    (1, 9216, 8192, 12345678901234567, 3),
]:
    v = rng.standard_normal((rows, p)).astype(np.float32)
    v[0, ::5] *= 1e-40  # subnormal
    y = torch.full((rows, dim), 0.25)
    kernels.add_sketch(torch.from_numpy(v), y, seed, module)
    total = np.full((rows, dim), 0.25, np.float32)
    for start in range(0, p, 64 * dim):  # chunk by chunk onto what is there
        w = np.arange(dim)
        chunk = np.zeros((rows, dim), np.float32)
        for at in range(start, min(start + 64 * dim, p), dim):
            x, signs = reference.stripe(at // dim, module, dim, seed)
            piece = np.zeros((rows, dim), np.float32)
            piece[:, : min(dim, p - at)] = v[:, at : at + dim]
            chunk += signs * piece[:, w ^ x]
        total += chunk
    assert y.numpy().tobytes() == total.tobytes(), (rows, p, dim)

wide = torch.from_numpy(rng.standard_normal((3, 900)).astype(np.float32))
want = reference.project(wide[:, :700].numpy().copy(), 128)
for given in (wide[:, :700], wide[:, :700].double(), wide[:, :700].T.contiguous().T):
    y = torch.zeros(3, 128)
    kernels.add_sketch(given, y, 0)
    assert y.numpy().tobytes() == want.tobytes()
for dtype in (torch.float16, torch.bfloat16):
    few = wide.to(dtype)
    y = torch.zeros(3, 128)
    kernels.add_sketch(few, y, 0)
    assert y.numpy().tobytes() == reference.project(few.float().numpy(), 128).tobytes()
print("same bits")
"""


def test_the_interpreted_kernel_gives_the_bits_of_the_definition(run_python, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert run_python(VALUES, timeout=400) == "same bits"


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("dim", [128, 65536])
def test_it_compiles_ahead_of_time(run_python, monkeypatch, dtype, dim):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    code = f"""
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from pyfast.kernels import sketch as kernels

pointers = {{"v_ptr": "*{dtype}", "y_ptr": "*fp32"}}
scalars = {{"columns": "i64", "row_stride": "i64", "stripes": "i32"}}
words = {{"seed_low": "i32", "seed_high": "i32", "module": "i32"}}
constants = {{"DIM": {dim}, "BLOCK": min({dim}, kernels.BLOCK), "CHUNK": kernels.CHUNK}}
signature = {{**pointers, **scalars, **words, **dict.fromkeys(constants, "constexpr")}}
source = ASTSource(kernels.add_stripes_kernel, signature, constants)
for target, kind in [
    (GPUTarget("cuda", 80, 32), "cubin"),
    (GPUTarget("cuda", 90, 32), "cubin"),
    (GPUTarget("hip", "gfx942", 64), "hsaco"),
]:
    built = triton.compile(source, target=target)
    assert len(built.asm[kind]) > 1000
    if kind == "cubin":
        assert "fma.rn.f32" not in built.asm["ptx"]  # contraction would change the bits
        assert ".ftz" not in built.asm["ptx"]
        assert "atom" not in built.asm["ptx"] and "red." not in built.asm["ptx"]
print("compiled")
"""
    assert run_python(code, timeout=300) == "compiled"
