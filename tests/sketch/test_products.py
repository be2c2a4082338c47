"""Gradients made from their factors, native, against numpy; and their sketches, to the bit."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from pyfast import _native
from pyfast.sketch import reference
from pyfast.sketch._products import add_products, products

# responses, tokens, size, rank, dim: tiles cut short on every side; stripes that begin within a
# row; more than one chunk of them; one token; none; a rank beyond a tile; tokens beyond a block.
SHAPES = [
    (3, 5, 40, 4, 256),
    (2, 1, 7, 3, 128),
    (8, 96, 576, 16, 65536),
    (2, 600, 301, 17, 1024),
    (2, 20, 1301, 40, 128),
    (1, 10, 9, 300, 128),
    (5, 3, 1, 1, 128),
    (4, 0, 30, 16, 128),
    (1, 30, 5000, 16, 65536),
    (4, 300, 5000, 16, 8192),  # work enough for several threads
]
LEVELS = ["baseline", "avx2", "avx512"]


def factors(responses, tokens, size, rank, seed=0):
    rng = np.random.default_rng(seed)
    wide = rng.standard_normal((responses, tokens, size)) * 10.0 ** rng.integers(-2, 3, (size,))
    narrow = rng.standard_normal((responses, tokens, rank))
    return torch.from_numpy(wide.astype(np.float32)), torch.from_numpy(narrow.astype(np.float32))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_products_and_their_sketches(shape, threads):
    *sizes, dim = shape
    wide, narrow = factors(*sizes)
    got = products(wide, narrow, threads).numpy()
    want = reference.products(wide.numpy(), narrow.numpy())
    # A chain of T fused multiply-adds is off by at most T half units of the sum of magnitudes.
    magnitudes = reference.products(np.abs(wide.numpy()), np.abs(narrow.numpy()))
    assert (np.abs(got - want) <= (sizes[1] + 1) * 2.0**-24 * magnitudes).all()

    start = np.random.default_rng(1).standard_normal((sizes[0], dim)).astype(np.float32)
    out = torch.from_numpy(start.copy())
    lengths = add_products(wide, narrow, out, 5, 3, threads)
    flat = got.reshape(sizes[0], -1)
    twice = start.copy()
    _native.sketch_add(flat, twice, 5, 3, 0, 1)
    assert out.numpy().tobytes() == twice.tobytes()
    np.testing.assert_allclose(lengths, (flat.astype(np.float64) ** 2).sum(1), rtol=1e-13)

    out = torch.zeros(sizes[0], dim)
    add_products(wide, narrow, out, 5, 3, threads)
    assert np.array_equal(out.numpy(), reference.project(flat, dim, 5, 3))


@pytest.mark.parametrize("rank", [1, 4, 16, 24])
def test_exact_sums_are_exact(rank):
    rng = np.random.default_rng(rank)
    wide = torch.from_numpy(rng.integers(-9, 10, (3, 70, 131)).astype(np.float32))
    narrow = torch.from_numpy(rng.integers(-9, 10, (3, 70, rank)).astype(np.float32))
    want = np.einsum("btd,btr->bdr", wide.numpy().astype(int), narrow.numpy().astype(int))
    assert np.array_equal(products(wide, narrow, 2).numpy(), want)


def test_an_order_is_kept_over_the_tokens():
    """Each sum is one chain: 2^24 swallows each 1 that comes after it, none that comes before."""
    values = torch.ones(1, 1000, 3)
    values[0, 500] = 2.0**24
    assert products(values, torch.ones(1, 1000, 2), 1).unique().tolist() == [2.0**24 + 500]


def test_a_response_does_not_depend_on_its_neighbours():
    wide, narrow = factors(6, 40, 200, 16)
    whole = products(wide, narrow, 2)
    out = torch.zeros(6, 256)
    lengths = add_products(wide, narrow, out, 0, 0, 2)
    for b in range(6):
        alone = torch.zeros(1, 256)
        assert add_products(wide[b : b + 1], narrow[b : b + 1], alone, 0, 0, 1) == lengths[b]
        assert torch.equal(alone[0], out[b])
        assert torch.equal(products(wide[b : b + 1], narrow[b : b + 1], 1)[0], whole[b])


def test_factors_may_lie_anyhow():
    wide, narrow = factors(3, 20, 50, 16)
    want = products(wide, narrow, 1)
    turned = [f.transpose(0, 2).contiguous().transpose(0, 2) for f in (wide, narrow)]
    assert torch.equal(products(*turned, 1), want)
    assert torch.equal(products(wide, narrow[:, :, :1].expand(3, 20, 5), 1)[..., 4], want[..., 0])


def digest():
    """Of the bits of all shapes; printed by a process of its own."""
    found = hashlib.sha256()
    for *sizes, dim in SHAPES:
        wide, narrow = factors(*sizes)
        out = torch.zeros(sizes[0], dim)
        found.update(add_products(wide, narrow, out, 1, 2, 1).tobytes())
        found.update(out.numpy().tobytes())
        found.update(products(wide, narrow, 1).numpy().tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("level", LEVELS)
def test_every_simd_level_gives_the_same_bits(level):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_products as t; print(t.digest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, os.path.dirname(__file__)],
        env={**os.environ, "PYFAST_SIMD": level},
        capture_output=True,
        text=True,
    )
    if "expected a level of this machine" in done.stderr:
        pytest.skip(f"this machine has no {level}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == digest()


FLOATS = np.zeros((2, 3, 4), np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wide": FLOATS.astype(float)}, "wide: expected a C-contiguous 3-dimensional array of fl"),
        ({"narrow": FLOATS[0]}, "narrow: expected a C-contiguous 3-dimensional"),
        ({"narrow": FLOATS[:, :2].copy()}, "narrow: expected the responses and tokens of wide"),
        ({"out": np.zeros((3, 128), np.float32)}, "out: expected a writeable array with the rows"),
        ({"out": np.zeros((2, 130), np.float32)}, "out's columns: expected a power of two"),
        ({"threads": 0}, "threads: expected 1 to"),
    ],
)
def test_the_binding_refuses_what_does_not_fit(changes, message):
    call = {
        "wide": FLOATS,
        "narrow": FLOATS,
        "out": np.zeros((2, 128), np.float32),
        "seed": 0,
        "module": 0,
        "threads": 1,
    }
    with pytest.raises(TypeError, match=message):
        _native.sketch_add_products(**{**call, **changes})
    with pytest.raises(TypeError, match=r"out: expected a writeable array \(responses, size, rank"):
        _native.products(FLOATS, FLOATS, np.zeros((2, 4, 5), np.float32), 1)
