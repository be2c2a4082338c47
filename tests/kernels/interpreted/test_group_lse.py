"""The group kernels in Triton's interpreter, on outputs that were poisoned with NaN."""

import contextlib
import math

import pytest
import torch
from pyfast.kernels import group_lse

from pyfast.losses import fused, reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = {
    "one": ((7,), None),
    "lone": ((1,), None),
    "batch": ((3, 17), None),
    "pairs": ((9, 2), None),
    "columns": ((4, 1), None),
    "ragged": ((63,), [0, 1, 4, 5, 21, 38, 62, 63]),
    "over a block": ((310,), [0, 1, 300, 310]),
}


@pytest.fixture(autouse=True)
def _poison(monkeypatch):
    """Fill every output with NaN before the kernel runs: what it leaves out is seen."""
    empty = torch.empty

    def poisoned(*args, **kwargs):
        return empty(*args, **kwargs).fill_(math.nan)

    monkeypatch.setattr(group_lse.torch, "empty", poisoned)


def inputs(layout, dtype, scale=3.0):
    shape, ends = LAYOUTS[layout]
    generator = torch.Generator().manual_seed(len(layout))
    scores = (scale * torch.randn(shape, generator=generator)).to(dtype)
    weights = torch.randn(shape, generator=generator)
    weights[torch.rand(shape, generator=generator) < 0.3] = -math.inf
    positive = torch.rand(shape, generator=generator) < 0.4
    offsets = None if ends is None else torch.tensor(ends)
    groups = reference.Groups.of(scores, offsets)
    positive.reshape(-1)[groups.starts] = True
    return scores, positive, weights.to(dtype), offsets


def judged(found, same_dtype, truth, tolerance=2e-6):
    """|fp32 - kernel| <= |fp32 - reference in the same dtype| + tolerance."""
    assert torch.isfinite(found).all()
    off = (found.double() - truth).abs()
    allowed = (same_dtype.double() - truth).abs()
    assert (off <= allowed + tolerance * (1 + truth.abs())).all()


def with_slope(function, scores, *arguments, **keywords):
    leaf = scores.clone().requires_grad_()
    loss = function(leaf, *arguments, **keywords)
    (slope,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach().reshape(-1), slope


def double(value):
    return (
        value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("use_positive", [False, True])
@pytest.mark.parametrize("use_weights", [False, True])
def test_contrast(layout, dtype, use_positive, use_weights):
    scores, positive, weights, offsets = inputs(layout, dtype)
    arguments = (
        positive if use_positive else None,
        weights if use_weights else None,
        offsets,
        0.25,
    )
    loss, slope = group_lse.contrast(
        scores, positive=arguments[0], log_weights=arguments[1], offsets=offsets, margin=0.25
    )
    truth = with_slope(reference.contrast, scores.double(), *map(double, arguments))
    same = with_slope(reference.contrast, scores, *arguments)
    judged(loss, same[0], truth[0])
    judged(slope, same[1], truth[1])
    assert loss.dtype is slope.dtype is torch.float32


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", sorted(set(LAYOUTS) - {"over a block"}))
@pytest.mark.parametrize("margin", [0.0, 1.5])
def test_listwise(layout, dtype, margin):
    scores, _, _, offsets = inputs(layout, dtype)
    loss, slope = group_lse.listwise(scores, offsets=offsets, margin=margin)
    truth = with_slope(reference.listwise, scores.double(), offsets, margin)
    same = with_slope(reference.listwise, scores, offsets, margin)
    judged(loss, same[0], truth[0])
    judged(slope, same[1], truth[1])


@pytest.mark.parametrize(
    "scores", [[1e4, 0, -1e4], [-1e4, 0, 1e4], [0, 89, 88], [5, 5, 5], [80, 0, 0]]
)
def test_extremes(scores):
    scores = torch.tensor([[float(s) for s in scores]])
    for kernel, judge in (
        (group_lse.contrast, reference.contrast),
        (group_lse.listwise, reference.listwise),
    ):
        loss, slope = kernel(scores)
        expected = with_slope(judge, scores.double())
        torch.testing.assert_close(loss.double(), expected[0], rtol=1e-6, atol=1e-37)
        torch.testing.assert_close(slope.double(), expected[1], rtol=2e-6, atol=1e-37)


def test_large_common_shift_costs_no_digits():
    scores = torch.tensor([[3.0, 1.0, 2.0, 2.0, -1.0]])  # whole numbers: shifted ones are exact
    for kernel in (group_lse.contrast, group_lse.listwise):
        plain, shifted = kernel(scores), kernel(scores + 1e4)
        torch.testing.assert_close(shifted, plain, rtol=1e-6, atol=1e-7)


def test_strided_scores():
    scores = torch.randn(5, 4).t()
    for kernel in (group_lse.contrast, group_lse.listwise):
        for found, expected in zip(kernel(scores), kernel(scores.contiguous()), strict=True):
            assert torch.equal(found, expected)


def test_strided_offsets():
    scores, spread = torch.randn(9), torch.tensor([0, -1, 2, -1, 9, -1])
    for kernel in (group_lse.contrast, group_lse.listwise):
        found = kernel(scores, offsets=spread[::2])
        for one, other in zip(found, kernel(scores, offsets=spread[::2].clone()), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("use_positive", [False, True])
def test_a_margin_is_not_rounded_to_the_scores(use_positive):
    scores = torch.tensor([[1e4, 9999.5, 9999.25, 9998.0]])  # exact in float32
    positive = torch.tensor([[True, False, True, False]]) if use_positive else None
    loss, slope = group_lse.contrast(scores, positive, margin=0.3)
    expected = with_slope(reference.contrast, scores.double(), positive, margin=0.3)
    torch.testing.assert_close(loss.double(), expected[0], rtol=2e-6, atol=0)
    torch.testing.assert_close(slope.double(), expected[1], rtol=2e-6, atol=0)


@pytest.mark.parametrize("call", [group_lse.contrast, group_lse.listwise])
def test_launches_where_the_scores_lie(call, monkeypatch):
    placed = []

    def place(tensor):
        placed.append(tensor.shape)
        return contextlib.nullcontext()

    monkeypatch.setattr(group_lse, "launching_on", place)
    call(torch.zeros(2, 3))
    assert placed == [(2, 3)]


def test_a_ranking_too_long_for_a_block_is_refused():
    with pytest.raises(ValueError, match="takes groups of up to 16384 responses, got 16385"):
        group_lse.listwise(torch.zeros(16385))


@pytest.mark.parametrize("name", ["contrast", "listwise"])
def test_gradients_through_autograd(name):
    scores, _, _, offsets = inputs("ragged", torch.float32)
    weights = torch.rand(7)
    outcomes = []
    for backend in ("reference", "triton"):
        leaf = scores.clone().requires_grad_()
        loss = getattr(fused, name)(leaf, offsets=offsets, backend=backend)
        outcomes.append(torch.autograd.grad((loss * weights).sum(), leaf)[0])
    torch.testing.assert_close(*outcomes, rtol=1e-5, atol=1e-6)


def test_float64_is_refused():
    with pytest.raises(
        ValueError, match="the kernels accumulate in float32, the scores are float64"
    ):
        fused.contrast(torch.zeros(3, dtype=torch.float64), backend="triton")
