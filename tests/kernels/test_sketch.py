"""The stripe kernels: bit for bit the definition in the interpreter, and compiled for real GPUs."""

from pathlib import Path

import pytest

pytest.importorskip("triton")
HELPERS = Path(__file__).parent.parent / "helpers"

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


FUSED = """
import numpy as np, torch
from pyfast.kernels import sketch_fused as kernels
from pyfast.sketch._project import add_projection

rng = np.random.default_rng(0)

def case(lengths, channels, rank, dim, seed, module, whole, dtype=torch.float32):
    offsets = torch.tensor([0, *np.cumsum(lengths)])
    tokens, rows = int(offsets[-1]), len(lengths)

    def factor(width):  # with NaN around it, that must not be touched
        shape = (tokens, width)
        draw = rng.integers(-9, 10, shape) if whole else rng.standard_normal(shape)
        poisoned = torch.full((tokens + 5, width + 3), torch.nan, dtype=dtype)
        poisoned[:tokens, :width] = torch.from_numpy(draw)
        return poisoned[:tokens, :width]

    wide, narrow = factor(channels), factor(rank)
    exact = np.stack([
        wide[a:b].double().numpy().T @ narrow[a:b].double().numpy()
        for a, b in zip(offsets[:-1], offsets[1:])
    ]).reshape(rows, -1)
    y = torch.full((rows, dim), 0.25)
    want = y.clone()
    squares = kernels.add_outer_sketch(wide, narrow, offsets, y, seed, module)
    add_projection(torch.from_numpy(exact.astype(np.float32)), want, seed, module, 1)
    np.testing.assert_allclose(squares.numpy(), (exact**2).sum(1), rtol=1e-12 if whole else 1e-6)
    if whole:  # exact sums, so version 1's bits
        assert y.numpy().tobytes() == want.numpy().tobytes(), (lengths, channels, rank, dim)
    else:
        scale = np.sqrt((exact**2).sum(1, keepdims=True))
        assert (np.linalg.norm(y - want, axis=1, keepdims=True) <= 1e-6 * scale + 1e-6).all()

for whole in (True, False):
    case([3, 0, 1, 70], 20, 16, 256, 0, 0, whole)  # two stripes; no token, one, many
    case([32, 33], 7, 16, 1024, 2**64 - 1, 2**32 - 1, whole)  # a stripe that is not full
case([5], 40, 32, 512, 2**31, 5, True)
case([2, 9], 33, 64, 2048, 7, 1, False)
case([2, 34], 65 * 16 + 1, 16, 256, 1, 2**31, True)  # more stripes than a chunk
case([3, 40], 20, 16, 256, 0, 9, True, torch.float16)  # the interpreter multiplies bfloat16 wrongly

for rank, dim, message in [(8, 1024, "16 or more, got 8"), (24, 1024, "got 24"), (16, 128, "128")]:
    try:
        kernels.add_outer_sketch(torch.ones(1, 4), torch.ones(1, rank), torch.tensor([0, 1]),
                                 torch.zeros(1, dim), 0)
    except ValueError as error:
        assert message in str(error), error
    else:
        raise AssertionError((rank, dim))
try:
    kernels.add_outer_sketch(torch.ones(1, 4), torch.ones(1, 16).half(), torch.tensor([0, 1]),
                             torch.zeros(1, 256), 0)
except ValueError as error:
    assert "expected torch.float32 as wide, got torch.float16" in str(error)
else:
    raise AssertionError("dtypes")
print("same sketches")
"""


def test_the_fused_kernel_gives_the_sketches_of_the_products(run_python, monkeypatch):
    """Its bits where sums are exact, and within rounding elsewhere; NaN beside what it may read."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert run_python(FUSED, timeout=400) == "same sketches"


# Two processes compile: LLVM takes one core. A case that fails is named by its exception. Each says
# what the kernel takes of the GPU; what spills is slow, and fails.
COMPILE = (
    f"""
import itertools, multiprocessing, re, sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

sys.path.append({str(HELPERS)!r})
from kernel_resources import line, resources
"""
    + """

TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), "cubin"),
    "sm_90": (GPUTarget("cuda", 90, 32), "cubin"),
    "sm_100": (GPUTarget("cuda", 100, 32), "cubin"),
    "gfx942": (GPUTarget("hip", "gfx942", 64), "hsaco"),
}


def compiled(case):
    dtype, name = case
    target, kind = TARGETS[name]
    kernel, types, constants = source(dtype)
    signature = {**types, **dict.fromkeys(constants, "constexpr")}
    options = {"num_warps": warps(constants)}
    built = triton.compile(ASTSource(kernel, signature, constants), target=target, options=options)
    assert built.asm[kind][:4] == bytes([127]) + b"ELF", case
    assert built.metadata.shared <= 64 * 1024, case
    taken = resources(built, name)
    assert taken["spilled"] == 0, (case, taken)
    said = line(f"{kernel.__name__} {sorted(constants.items())[0]}", name, dtype, taken)
    return case, built.asm["ptx"] if kind == "cubin" else "", said


if __name__ == "__main__":
    cases = list(itertools.product(["fp32", "bf16", "fp16"], TARGETS))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for case, ptx, said in pool.imap_unordered(compiled, cases):
            print(said)
            assert not re.search("(^|[^a-z])(atom|red)[.]", ptx), case
            check(case, ptx)
    print("compiled", len(cases))
"""
)


def tell(output, capsys):
    """Show what the kernels take, in CI's log too; all twelve cases are there."""
    *lines, last = output.splitlines()
    with capsys.disabled():
        print("", *lines, sep="\n")
    assert last == "compiled 12"
    assert len(lines) == 12


@pytest.mark.parametrize("dim", [128, 65536])
def test_it_compiles_ahead_of_time(run_python, monkeypatch, capsys, dim):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    code = f"""
from pyfast.kernels import sketch as kernels


def source(dtype):
    types = {{"v_ptr": "*" + dtype, "y_ptr": "*fp32"}}
    types |= {{"columns": "i64", "row_stride": "i64", "stripes": "i32"}}
    types |= {{"seed_low": "i32", "seed_high": "i32", "module": "i32"}}
    constants = {{"DIM": {dim}, "BLOCK": min({dim}, kernels.BLOCK), "CHUNK": kernels.CHUNK}}
    return kernels.add_stripes_kernel, types, constants


def warps(constants):
    return 4


def check(case, ptx):
    assert "fma.rn.f32" not in ptx, case  # contraction would change the bits
    assert ".ftz" not in ptx, case
{COMPILE}"""
    tell(run_python(code, timeout=400), capsys)


@pytest.mark.parametrize(("rank", "dim"), [(16, 256), (16, 65536), (64, 65536), (128, 65536)])
def test_the_fused_kernel_compiles_ahead_of_time(run_python, monkeypatch, capsys, rank, dim):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    code = f"""
from pyfast.kernels import sketch_fused as kernels


def source(dtype):
    types = {{"wide_ptr": "*" + dtype, "narrow_ptr": "*" + dtype, "offsets_ptr": "*i64"}}
    types |= {{"y_ptr": "*fp32", "squares_ptr": "*fp64"}}
    types |= {{"channels": "i32", "wide_stride": "i64", "narrow_stride": "i64", "stripes": "i32"}}
    types |= {{"seed_low": "i32", "seed_high": "i32", "module": "i32"}}
    block = min({dim}, max(kernels.BLOCK, kernels.LEAST * {rank}))
    constants = {{"DIM": {dim}, "RANK": {rank}, "BLOCK": block}}
    constants |= {{"CHUNK": kernels.CHUNK, "TOKENS": kernels.TOKENS}}
    return kernels.add_outer_kernel, types, constants


def warps(constants):
    return kernels.warps(constants["BLOCK"])


def check(case, ptx):
    assert "tf32" not in ptx, case
{COMPILE}"""
    tell(run_python(code, timeout=400), capsys)
