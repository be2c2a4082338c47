"""The head kernels in Triton's interpreter, on outputs that were poisoned with NaN."""

import contextlib
import math

import pytest
import torch
from pyfast.kernels import head

from pyfast.losses import _tiles, reference, sequence_logps

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
HOW = [(1.0, None), (0.6, None), (1.0, 5.0), (1.7, 3.0)]


def nan_like(tensor, dtype=torch.float32):
    return torch.full(tensor.shape, math.nan, dtype=dtype)


def exact(tile, softcap):
    """Capped logits and the slope of the cap, in double."""
    z = tile.double()
    slope = torch.ones_like(z)
    if softcap is not None:
        bent = torch.tanh(z / softcap)
        z, slope = softcap * bent, 1 - bent**2
    return z, slope


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 17, 1024, 1500])
@pytest.mark.parametrize(("temperature", "softcap"), HOW)
def test_fold_over_three_tiles(dtype, width, temperature, softcap):
    torch.manual_seed(width)
    rows = 3
    tiles = [(4 * torch.randn(rows, width) + shift).to(dtype) for shift in (0, 6, -6)]
    top, mass, moment = torch.full((rows, 1), -math.inf), torch.zeros(rows, 1), torch.zeros(rows, 1)
    for count, tile in enumerate(tiles, 1):
        before, shares = top.clone(), nan_like(tile)
        shrink = nan_like(top)
        kept = tile.clone()
        head.fold(tile, shares, top, mass, moment, shrink, temperature, softcap)
        assert torch.equal(tile, kept)
        z, _ = exact(torch.cat(tiles[:count], 1), softcap)
        best = z.amax(1, keepdim=True)
        torch.testing.assert_close(top.double(), best, rtol=1e-6, atol=1e-6)
        e = torch.exp((z - top.double()) / temperature)
        torch.testing.assert_close(mass.double(), e.sum(1, keepdim=True), rtol=2e-5, atol=0)
        below = (e * (z - top.double())).sum(1, keepdim=True)
        torch.testing.assert_close(moment.double(), below, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(shrink, torch.exp((before - top) / temperature))
        z, slope = exact(tile, softcap)
        e = torch.exp((z - top.double()) / temperature)
        torch.testing.assert_close(shares.double(), e * slope, rtol=5e-5, atol=2e-6)


def test_fold_passes_over_words_that_are_ruled_out():
    top, mass, moment = torch.full((2, 1), -math.inf), torch.zeros(2, 1), torch.zeros(2, 1)
    out = torch.full((2, 5), -math.inf)
    shrink, shares = nan_like(top), nan_like(out)
    head.fold(out, shares, top, mass, moment, shrink, 1.0, None)
    assert (top == -math.inf).all()
    assert (mass == 0).all()
    assert (shares == 0).all()
    tile = torch.tensor([[0.0, -math.inf], [1.0, 1.0]])
    head.fold(tile, None, top, mass, moment, shrink, 1.0, None)
    assert mass.flatten().tolist() == [1.0, 2.0]
    assert moment.flatten().tolist() == [0.0, 0.0]
    assert (shrink == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 17, 1500])
@pytest.mark.parametrize(("temperature", "softcap"), HOW)
def test_slope(dtype, width, temperature, softcap):
    torch.manual_seed(width)
    tile = (4 * torch.randn(4, width)).to(dtype)
    z, bend = exact(tile, softcap)
    top = z.amax(1, keepdim=True).float()
    mass = 2 + torch.exp((z - top) / temperature).sum(1, keepdim=True).float()  # of more words
    grad = torch.tensor([1.0, -2.0, 0.0, 0.5])
    labels = torch.tensor([0, width - 1, -3, width])
    out = nan_like(tile, dtype)
    head.slope(tile, out, top, mass, grad, labels, temperature, softcap)
    p = torch.exp((z - top.double()) / temperature) / mass.double()
    own = (torch.arange(width) == labels[:, None]).double()
    truth = (own - p) * bend * (grad / temperature)[:, None].double()
    tolerance = 2e-5 if dtype is torch.float32 else torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), truth, rtol=tolerance, atol=1e-6)


def test_launches_where_the_tile_lies(monkeypatch):
    placed = []

    def place(tensor):
        placed.append(tensor)
        return contextlib.nullcontext()

    monkeypatch.setattr(head, "launching_on", place)
    tile, column = torch.zeros(2, 3), torch.ones(2, 1)
    head.fold(tile, None, column.clone(), column.clone(), None, column.clone(), 1.0, None)
    head.slope(tile, nan_like(tile), column, column, column[:, 0], torch.tensor([0, 1]), 1.0, None)
    assert len(placed) == 2
    assert all(tensor is tile for tensor in placed)


@pytest.mark.parametrize("train_head", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("temperature", "softcap"), HOW)
def test_sequence_logps(monkeypatch, dtype, train_head, temperature, softcap):
    """|fp32 - kernel| <= |fp32 - reference in the same dtype| + tolerance, gradients included."""
    monkeypatch.setattr(_tiles, "CPU_TOKENS", 5)
    monkeypatch.setattr(_tiles, "CPU_TILE", 1)
    monkeypatch.setattr(_tiles, "LEAST_WORDS", 48)
    torch.manual_seed(1)
    hidden, weight, bias = torch.randn(2, 7, 12), torch.randn(131, 12), torch.randn(131)
    labels = torch.randint(0, 131, (2, 7)).index_fill(1, torch.tensor([0, 1]), -100)

    def outcome(kind, backend):
        leaves = [x.to(dtype).to(kind).requires_grad_() for x in (hidden, weight, bias)]
        for leaf in leaves[1:]:
            leaf.requires_grad_(train_head)
        found = sequence_logps(
            leaves[0],
            leaves[1],
            labels,
            head_bias=leaves[2],
            temperature=temperature,
            softcap=softcap,
            details=True,
            backend=backend,
        )
        weights = torch.tensor([1.0, -2.0], dtype=found.logps.dtype)
        wanted = leaves if train_head else leaves[:1]
        gradients = torch.autograd.grad((found.logps * weights).sum(), wanted)
        return found.logps.detach(), found.token_logps.detach(), found.entropy, *gradients

    truth = outcome(torch.float64, "reference")
    for found, same, expected in zip(
        outcome(dtype, "triton"), outcome(dtype, "reference"), truth, strict=True
    ):
        assert torch.isfinite(found).all()
        off, allowed = (found - expected).abs().max(), (same - expected).abs().max()
        assert off <= allowed + 1e-5 * (1 + expected.abs().max())


@pytest.mark.parametrize("train_head", [False, True])
@pytest.mark.parametrize("backend", ["triton", "auto"])
@pytest.mark.parametrize("softcap", [None, 6.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_multiplied_as_they_are(monkeypatch, dtype, softcap, backend, train_head):
    """What a GPU does, here with products that torch rounds to half types: as older ones are."""
    monkeypatch.setattr(_tiles, "_multiplied_as_is", lambda rows, weight: True)
    monkeypatch.setattr(_tiles, "_has_out_dtype", lambda: False)
    monkeypatch.setattr(_tiles, "CPU_TOKENS", 5)
    torch.manual_seed(2)
    hidden, weight = torch.randn(2, 7, 12).to(dtype), torch.randn(131, 12).to(dtype)
    labels = torch.randint(0, 131, (2, 7))

    def outcome(backend, kind):
        h, w = hidden.to(kind).requires_grad_(), weight.to(kind).requires_grad_(train_head)
        logps = sequence_logps(h, w, labels, softcap=softcap, temperature=0.8, backend=backend)
        return (logps.detach(), *torch.autograd.grad(logps.sum(), [h, w] if train_head else [h]))

    for found, expected in zip(
        outcome(backend, dtype), outcome("reference", torch.float64), strict=True
    ):
        off = (found.double() - expected).norm() / expected.norm()
        assert off <= 2 * torch.finfo(dtype).eps


def test_reference_is_torchs_log_softmax():
    logits = torch.randn(3, 11)
    labels = torch.tensor([0, 10, 4])
    logps, entropy = reference.token_logps(logits, torch.eye(11), None, labels)
    expected = -torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(logps, expected)
    spread = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(entropy, spread)
