"""The projection: known answers, the same bits on every path, its statistics, and bad input."""

import contextlib
import hashlib

import numpy as np
import pytest
import torch

from pyfast import _native, sketch
from pyfast.sketch import reference

KNOWN_X = [59605, 52388, 41769, 61225]
KNOWN_SIGNS = "-+-++-----++---++---++---+--+-++"
KNOWN_SMALL = [-11.0, 2.0, -4.0, 1.0, 5.0, 3.0, 4.0, -9.0]
KNOWN_DIGESTS = {
    (128, 0, 0): "ecd50eb2d070e789",
    (8192, 0, 0): "ee285854e310489c",
    (65536, 0, 0): "7fbda1070fda608b",
    (65536, 2**40 + 1, 3): "614ac70c0c260f7b",
    (1048576, 1, 0): "72a43b87f506bdc2",
}


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# docs/xor-stripes.md prints these.
def test_known_stripes():
    assert [reference.stripe(g, 0, 65536, 0)[0] for g in range(4)] == KNOWN_X
    signs = "".join("-" if s < 0 else "+" for s in reference.stripe(0, 0, 128, 0)[1][:32])
    assert signs == KNOWN_SIGNS


def test_known_sketches():
    v = (np.arange(1000) % 7 - 3).astype(np.float32)
    assert sketch.project(v, dim=128)[:8].tolist() == KNOWN_SMALL
    v = (np.arange(300_001) % 11 - 5).astype(np.float32)
    for (dim, seed, module), digest in KNOWN_DIGESTS.items():
        y = sketch.project(v, dim=dim, seed=seed, module=module)
        assert hashlib.sha256(y.astype("<f4").tobytes()).hexdigest()[:16] == digest


def test_known_sketches_of_the_definition():
    v = (np.arange(300_001) % 11 - 5).astype(np.float32)
    for (dim, seed, module), digest in KNOWN_DIGESTS.items():
        y = reference.project(v[None], dim, seed, module)[0]
        assert hashlib.sha256(y.astype("<f4").tobytes()).hexdigest()[:16] == digest


@pytest.mark.slow
def test_known_sketches_of_the_interpreted_kernel(run_python, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    code = """
import hashlib, torch
from pyfast.kernels import sketch as kernels
v = (torch.arange(300_001) % 11 - 5).float()[None]
y = torch.zeros(1, 65536)
kernels.add_sketch(v, y, 2**40 + 1, 3)
print(hashlib.sha256(y.numpy().astype("<f4").tobytes()).hexdigest()[:16])
"""
    assert run_python(code, timeout=400) == KNOWN_DIGESTS[65536, 2**40 + 1, 3]


def test_philox_is_the_published_one_and_the_cores():
    counter, key = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
    block = reference.philox(counter, key)
    assert [int(w) for w in block] == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]
    assert tuple(int(w) for w in block) == _native.philox(counter, key)


@pytest.mark.parametrize(
    ("rows", "p", "dim"),
    [
        (1, 1, 128),
        (3, 127, 128),
        (2, 128 * 64, 128),
        (2, 128 * 64 + 1, 128),
        (4, 9216, 65536),
        (3, 100_000, 512),
        (2, 300_000, 4096),
        (2, 70_001, 8192),
        (1, 1_100_000, 2**20),
        (4, 600_000, 4096),  # a million numbers keep one more thread busy
    ],
)
@pytest.mark.parametrize("n_threads", [1, 3])
def test_the_bits_of_the_definition(rows, p, dim, n_threads):
    v = numbers(rows, p, seed=p)
    seed, module = 2**63 + 12345, 9
    want = reference.project(v, dim, seed, module)
    assert same(sketch.project(v, dim, seed, module=module, n_threads=n_threads), want)


def test_extreme_numbers_and_signed_zeros_have_the_bits_of_the_definition():
    v = numbers(3, 5000)
    v[0, ::3] = 1e-42  # subnormal
    v[0, 1::3] = 1e30
    v[1] = -0.0
    v[2, ::2] = -v[2, 1::2]  # sums that cancel
    assert same(sketch.project(v, 256), reference.project(v, 256))


def test_a_row_has_the_same_bits_in_every_batch():
    v = numbers(7, 50_000)
    whole = sketch.project(v, 2048)
    for i in range(7):
        assert same(sketch.project(v[i], 2048), whole[i])
    assert same(sketch.project(v[2:5], 2048), whole[2:5])


def test_every_kind_of_input_gives_the_same_bits():
    v = numbers(3, 20_000)
    want = sketch.project(v, 1024)
    assert same(sketch.project(v.astype(np.float64), 1024), want)
    assert same(sketch.project(np.asfortranarray(v), 1024), want)
    assert same(sketch.project(v[:, ::-1][:, ::-1], 1024), want)
    assert same(sketch.project(v.astype(">f4"), 1024), want)
    readonly = v.copy()
    readonly.flags.writeable = False
    assert same(sketch.project(readonly, 1024), want)
    tensor = torch.from_numpy(v)
    for given in (tensor, tensor.double(), tensor.T.contiguous().T, tensor.clone()):
        got = sketch.project(given, 1024)
        assert isinstance(got, torch.Tensor)
        assert same(got.numpy(), want)
    for dtype in (torch.float16, torch.bfloat16):
        few = tensor.to(dtype)
        assert same(sketch.project(few, 1024).numpy(), sketch.project(few.float().numpy(), 1024))
    half = v.astype(np.float16)
    assert same(sketch.project(half, 1024), sketch.project(half.astype(np.float32), 1024))


def test_blocks_of_a_view_join_to_the_bits_of_the_whole(monkeypatch):
    from pyfast.sketch import _project

    monkeypatch.setattr(_project, "_BLOCK", 1)
    v = numbers(2, 100_000)
    assert same(sketch.project(v.astype(np.float64), 128), reference.project(v, 128))


def test_stripes_beyond_32_bits_of_numbers():
    """p = 2^33 + 5 as a view of one number: only the last chunk is computed here."""
    dim, p = 4096, 2**33 + 5
    first = p // (64 * dim) * 64
    tail = np.broadcast_to(np.float32(1), (1, p))[:, first * dim :]
    out = np.zeros((1, dim), np.float32)
    _native.sketch_add(np.ascontiguousarray(tail), out, 3, 1, first, 2)
    want = np.zeros((1, dim), np.float32)
    for g in range(first, p // dim + 1):
        x, signs = reference.stripe(g, 1, dim, 3)
        piece = np.zeros(dim, np.float32)
        piece[: min(dim, p - g * dim)] = 1
        want += signs * piece[np.arange(dim) ^ x]
    assert first * dim > 2**32
    assert same(out, want)


@pytest.mark.slow
def test_a_view_of_2_to_the_33_numbers_needs_no_memory():
    p = 2**33 + 5
    y = sketch.project(np.broadcast_to(np.float32(1), (p,)), dim=2**20)
    assert np.isfinite(y).all()
    # All numbers are 1: y[w] is a sum of 8192 signs, odd only where the last stripe has a number.
    assert np.abs(y).max() < 7 * np.sqrt(8193)
    assert abs(float(np.mean(y**2)) / 8192 - 1) < 0.01
    assert int((y.astype(np.int64) % 2).sum()) == 5


def test_inner_products_are_kept_as_the_theory_says():
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 40_000)).astype(np.float32)
    b = 0.6 * a + 0.8 * b
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    exact, dim = float(a @ b), 512
    errors = []
    for seed in range(400):
        y = sketch.project(np.stack([a, b]), dim, seed)
        errors.append(float(y[0] @ y[1]) - exact)
    theory = np.sqrt((1 + exact**2) / dim)
    assert abs(np.mean(errors)) < 5 * theory / np.sqrt(400)
    assert abs(np.std(errors) / theory - 1) < 5 / np.sqrt(800)


def test_one_stripe_only_permutes_and_signs():
    v = numbers(1000)
    y = sketch.project(v, 1024)
    assert sorted(np.abs(y)) == sorted([*np.abs(v), *[0.0] * 24])


def test_seeds_and_modules_draw_differently():
    v = numbers(5000)
    sketches = [
        sketch.project(v, 128, seed, module=module)
        for seed, module in [(0, 0), (1, 0), (2**32, 0), (0, 1)]
    ]
    for i, y in enumerate(sketches):
        for z in sketches[:i]:
            assert not np.array_equal(y, z)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda v: sketch.project(v, 100), ValueError, "dim: expected 128 to 1048576, got 100"),
        (lambda v: sketch.project(v, 384), ValueError, "dim: expected a power of two, got 384"),
        (lambda v: sketch.project(v, 2**21), ValueError, "dim: expected 128 to 1048576"),
        (lambda v: sketch.project(v, 128.0), TypeError, "dim: expected an int, got float"),
        (lambda v: sketch.project(v, 128, -1), ValueError, "seed: expected 0 to"),
        (lambda v: sketch.project(v, module=2**32), ValueError, "module: expected 0 to 4294967295"),
        (lambda v: sketch.project(v, n_threads=0), ValueError, "n_threads: expected 1 to"),
        (lambda v: sketch.project(v.astype(int)), TypeError, "v: expected floats.*got int64"),
        (lambda v: sketch.project(v.astype(complex)), TypeError, "v: expected floats"),
        (lambda v: sketch.project(v[None, None]), ValueError, r"v: expected shape \(B, p\) or"),
        (lambda v: sketch.project(v[:0]), ValueError, r"v: expected shape .* got \(0,\)"),
        (lambda v: sketch.project(torch.ones(3, dtype=torch.int32)), TypeError, "tensor of floats"),
        (lambda v: sketch.project(torch.eye(3).to_sparse()), TypeError, "dense tensor of floats"),
        (lambda v: sketch.project(torch.ones(3, requires_grad=True)), TypeError, "v.detach()"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call(numbers(10))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_a_number_that_is_not_finite_is_found(bad, kind):
    v = numbers(3, 5000)
    v[1, 4321] = bad
    with pytest.raises(
        ValueError, match=f"finite float32 numbers, got {bad} at row 1, column 4321"
    ):
        sketch.project(kind(v), 128)


@pytest.mark.parametrize(
    "kind", [lambda v: v[:, ::-1], lambda v: v[::-1], lambda v: v.astype(">f4")]
)
def test_a_number_that_is_not_finite_is_found_in_every_layout(kind):
    v = kind(numbers(3, 500).copy())
    v[1, 432] = np.nan
    with pytest.raises(ValueError, match="finite float32 numbers, got nan at row 1, column 432"):
        sketch.project(v, 128)


def test_kernels_launch_where_their_tensors_lie(monkeypatch):
    pytest.importorskip("triton")
    from pyfast.kernels import sketch as kernels
    from pyfast.kernels import sketch_fused as fused

    class Kernel:
        def __getitem__(self, _grid):
            return lambda *_, **__: events.append("launch")

    @contextlib.contextmanager
    def on(tensor):
        events.append(tensor.shape)
        yield
        events.append("end")

    events = []
    for module, kernel in [(kernels, "add_stripes_kernel"), (fused, "add_outer_kernel")]:
        monkeypatch.setattr(module, kernel, Kernel())
        monkeypatch.setattr(module, "launching_on", on)
    kernels.add_sketch(torch.ones(2, 300), torch.zeros(2, 128), 0)
    offsets, y = torch.tensor([0, 5]), torch.zeros(1, 256)
    fused.add_outer_sketch(torch.ones(5, 40), torch.ones(5, 16), offsets, y, 0)
    assert events == [(2, 300), "launch", "end", (5, 40), "launch", "end"]


def test_a_device_without_kernels_is_said(monkeypatch):
    from pyfast.kernels import runtime

    monkeypatch.setattr(runtime, "why_unusable", lambda: "triton is not installed")
    with pytest.raises(ValueError, match="got one on meta: triton is not installed"):
        sketch.project(torch.ones(300, device="meta"), 128)


def test_overflow_is_said():
    with pytest.raises(ValueError, match="got 1e\\+300 at row 0, column 2"):
        sketch.project(np.array([1.0, 2.0, 1e300]), 128)
    with pytest.raises(ValueError, match="its sums overflow float32"):
        sketch.project(np.full(128 * 300, 3e38, np.float32), 128)


def test_every_simd_level_gives_the_same_bits(run_python, monkeypatch):
    code = """
import hashlib, numpy as np
from pyfast import sketch, _core
try:
    _core.build_info()
except ValueError:
    print("not here")
else:
    v = np.random.default_rng(5).standard_normal((3, 123_457), np.float32)
    print(*(hashlib.sha256(sketch.project(v, d).tobytes()).hexdigest() for d in (128, 4096, 65536)))
"""
    found = {run_python(code)}
    for level in ("baseline", "avx2", "avx512"):
        monkeypatch.setenv("PYFAST_SIMD", level)
        found.add(run_python(code))
    assert len(found - {"not here"}) == 1


def test_importing_the_room_loads_torch_and_no_model_library(run_python):
    code = """
import sys, pyfast
from pyfast import sketch
assert "torch" in sys.modules
heavy = {"transformers", "peft", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""
    run_python(code)


def test_ctrl_c_stops_a_long_projection(run_python):
    code = """
import os, signal, threading, numpy as np
from pyfast import sketch
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs start with it ignored
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    sketch.project(np.broadcast_to(np.float32(1), (2**36,)), 128)
    print("finished")
except KeyboardInterrupt:
    print("interrupted", sketch.project(np.ones(200), 128).shape)
"""
    assert run_python(code, timeout=100) == "interrupted (128,)"


def test_the_extension_checks_what_it_is_given():
    data, out = np.zeros((2, 10), np.float32), np.zeros((2, 128), np.float32)
    good = (data, out, 0, 0, 0, 1)
    for position, bad, message in [
        (0, data.astype(np.float64), "data: expected"),
        (0, data[:1], "out: expected .* the rows of data"),
        (1, np.zeros((2, 100), np.float32), "128 to 1048576"),
        (1, np.zeros((2, 384), np.float32), "power of two"),
        (1, np.broadcast_to(np.float32(0), (2, 128)), "out: expected"),
        (4, 3, "multiple of 64"),
        (4, 2**32, "first_stripe: expected 0 to"),
        (5, 0, "threads: expected"),
    ]:
        call = list(good)
        call[position] = bad
        with pytest.raises(TypeError, match=message):
            _native.sketch_add(*call)
