"""The closed forms against the reference: values, slopes, extremes and layouts."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfast import losses
from pyfast.losses import fused, plackett_luce, plackett_luce_top1, reference

SIZES = [3, 1, 4, 1, 6, 2, 17, 33]


def ragged(dtype=torch.float64, sizes=SIZES, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    total = int(offsets[-1])
    scores = (scale * torch.randn(total, generator=generator, dtype=torch.float64)).to(dtype)
    positive = torch.rand(total, generator=generator) < 0.4
    positive[offsets[:-1]] = True
    weights = torch.randn(total, generator=generator, dtype=torch.float64).to(dtype)
    weights[torch.rand(total, generator=generator) < 0.3] = -math.inf
    return scores, positive, weights, offsets


def both(name, scores, *arguments, **keywords):
    """Loss and gradient by the reference and by the closed form."""
    outcomes = []
    for module in (reference, fused):
        leaf = scores.clone().requires_grad_()
        loss = getattr(module, name)(leaf, *arguments, **keywords)
        weights = torch.linspace(0.5, 2.0, loss.numel(), dtype=loss.dtype).reshape(loss.shape)
        (gradient,) = torch.autograd.grad((loss * weights).sum(), leaf)
        outcomes.append((loss.detach(), gradient))
    return outcomes


CASES = [
    (use_positive, use_weights, margin)
    for use_positive in (False, True)
    for use_weights in (False, True)
    for margin in (0.0, 0.7, -2.0)
]


@pytest.mark.parametrize(("use_positive", "use_weights", "margin"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_contrast_is_the_reference(use_positive, use_weights, margin, dtype):
    scores, positive, weights, offsets = ragged(dtype)
    (loss, gradient), (fast, slope) = both(
        "contrast",
        scores,
        positive if use_positive else None,
        weights if use_weights else None,
        offsets,
        margin,
    )
    tolerance = 1e-12 if dtype is torch.float64 else 2e-6
    torch.testing.assert_close(fast, loss, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(slope, gradient, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("margin", [0.0, 1.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_listwise_is_the_reference(margin, dtype):
    scores, _, _, offsets = ragged(dtype)
    (loss, gradient), (fast, slope) = both("listwise", scores, offsets, margin)
    tolerance = 1e-12 if dtype is torch.float64 else 2e-6
    torch.testing.assert_close(fast, loss, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(slope, gradient, rtol=tolerance, atol=tolerance)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from([0.1, 0.2, 0.3, -0.7, 1e-30, 1e4]), min_size=1, max_size=9),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_above_mean_is_the_reference_to_the_bit(groups, dtype):
    """A reward that equals the mean up to rounding falls on the same side in both."""
    offsets = torch.tensor([0, *(len(group) for group in groups)]).cumsum(0)
    rewards = torch.tensor([reward for group in groups for reward in group], dtype=dtype)
    for found, expected in zip(
        fused.above_mean(rewards, offsets), reference.above_mean(rewards, offsets), strict=True
    ):
        assert torch.equal(found, expected)
    batch = rewards.expand(3, -1)
    for found, expected in zip(fused.above_mean(batch), reference.above_mean(batch), strict=True):
        assert torch.equal(found, expected)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from([-1e4, -89.0, -1.0, 0.0, 0.5, 88.0, 1e4]), min_size=1, max_size=9),
        min_size=1,
        max_size=5,
    )
)
def test_extremes_and_ties_agree_in_float32(groups):
    offsets = torch.tensor([0, *(len(group) for group in groups)]).cumsum(0)
    scores = torch.tensor([score for group in groups for score in group])
    for name, arguments in (("contrast", (None, None, offsets)), ("listwise", (offsets,))):
        _, (loss, slope) = both(name, scores, *arguments)
        (exact, gradient), _ = both(name, scores.double(), *arguments)
        torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(slope.double(), gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["contrast", "listwise"])
def test_layouts_agree_to_the_bit(name):
    scores = torch.randn(7, 5)
    offsets = torch.arange(8) * 5
    _, (batch, slope) = both(name, scores)
    keywords = {"offsets": offsets}
    _, (flat, flat_slope) = both(name, scores.reshape(-1), **keywords)
    one = [both(name, row)[1][0] for row in scores]
    assert torch.equal(batch, flat)
    assert torch.equal(slope.reshape(-1), flat_slope)
    assert torch.equal(batch, torch.stack(one))
    assert one[0].shape == ()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["contrast", "listwise"])
def test_half_types_are_computed_in_float32(name, dtype):
    scores = torch.randn(4, 6).to(dtype).requires_grad_()
    wide = scores.detach().float().requires_grad_()
    loss, expected = getattr(fused, name)(scores), getattr(fused, name)(wide)
    loss.sum().backward()
    expected.sum().backward()
    assert loss.dtype is torch.float32
    assert torch.equal(loss, expected)
    assert torch.equal(scores.grad, wide.grad.to(dtype))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("offsets", [None, torch.tensor([0, 3, 4, 10])])
@pytest.mark.parametrize("name", ["contrast", "listwise"])
def test_reduced_losses_are_those_of_the_reference(name, offsets, reduction):
    scores = torch.randn((2, 5) if offsets is None else (10,), dtype=torch.float64)
    how = {"offsets": offsets, "margin": 0.3, "reduction": reduction}

    def loss(s):
        return getattr(fused, name)(s, **how)

    leaves = [scores.clone().requires_grad_() for _ in range(2)]
    found = loss(leaves[0])
    expected = getattr(fused, name)(leaves[1], backend="reference", **how)
    assert found.shape == ()
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)
    (3 * found).backward()
    (3 * expected).backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradgradcheck(loss, (scores.requires_grad_(),))


@pytest.mark.parametrize("name", ["contrast", "listwise"])
def test_first_and_second_derivatives(name):
    offsets = torch.tensor([0, 3, 4, 9])
    scores = torch.randn(9, dtype=torch.float64, requires_grad=True)
    keywords = {"offsets": offsets, "margin": 0.3}

    def loss(s):
        return getattr(fused, name)(s, **keywords)

    assert torch.autograd.gradcheck(loss, (scores,))
    assert torch.autograd.gradgradcheck(loss, (scores,))


def test_weights_that_need_a_gradient_go_through_the_reference():
    scores, _, _, offsets = ragged()
    weights = torch.randn(scores.shape, dtype=torch.float64, requires_grad=True)

    def loss(s, w):
        return fused.contrast(s, None, w, offsets)

    assert torch.autograd.gradcheck(loss, (scores.requires_grad_(), weights))


def test_the_interpreter_is_used_only_where_it_is_asked_for(monkeypatch):
    """Its float32 must not take the place of numpy's float64 by itself."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    scores = torch.tensor([1e-9, 0.0, 0.0], dtype=torch.float64)
    for name in ("contrast", "listwise"):
        (exact, gradient), (loss, slope) = both(name, scores)
        assert loss.dtype is torch.float64
        torch.testing.assert_close(loss, exact, rtol=1e-14, atol=0)
        torch.testing.assert_close(slope, gradient, rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_do_not_widen_the_loss_and_those_of_the_positives_are_not_read(dtype):
    scores = torch.tensor([1.0, 0.0, 0.5], dtype=dtype)
    positive = torch.tensor([True, False, True])
    weights = torch.tensor([math.nan, 0.2, math.nan], dtype=torch.float64)
    clean = weights.nan_to_num().to(dtype)
    for module in (reference, fused):
        loss = module.contrast(scores, positive, weights)
        assert loss.dtype is dtype
        assert torch.equal(loss, module.contrast(scores, positive, clean))


@pytest.mark.parametrize("name", ["contrast", "listwise"])
def test_a_margin_is_not_rounded_to_the_scores(name):
    scores = torch.tensor([[1e4, 9999.5, 9999.25, 9998.0]])  # exact in float32
    arguments = {"margin": 0.3} if name == "listwise" else {"margin": 0.3, "positive": None}
    exact = getattr(reference, name)(scores.double(), **arguments)
    for module in (reference, fused):
        loss = getattr(module, name)(scores, **arguments)
        torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)
    positive = torch.tensor([[True, False, True, False]])
    exact = reference.contrast(scores.double(), positive, margin=0.3)
    loss = fused.contrast(scores, positive, margin=0.3)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)


def test_a_long_ranking_does_not_pad_the_short_ones(monkeypatch):
    """Groups of like size share a table, which at most doubles what there is."""
    numbers, padded = [], fused._padded

    def counted(*arguments):
        table, kept = padded(*arguments)
        numbers.append(table.size)
        return table, kept

    monkeypatch.setattr(fused, "_padded", counted)
    sizes = [2] * 500 + [300, 1, 5, 2, 7, 8, 299, 3] + [2] * 500
    scores, _, _, offsets = ragged(torch.float64, sizes)
    (loss, gradient), (fast, slope) = both("listwise", scores, offsets, 0.7)
    assert sum(numbers) <= 2 * len(scores)
    torch.testing.assert_close(fast, loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slope, gradient, rtol=1e-12, atol=1e-12)


def test_groups_of_1_to_1000():
    sizes = [1, 1000, 2, 999, 1, 17]
    scores, positive, weights, offsets = ragged(torch.float32, sizes, scale=3e3)
    for name, arguments in (
        ("contrast", (positive, weights, offsets)),
        ("listwise", (offsets,)),
    ):
        _, (loss, slope) = both(name, scores, *arguments)
        wide = [x.double() if x.is_floating_point() else x for x in arguments]
        (exact, gradient), _ = both(name, scores.double(), *wide)
        torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=2e-3)
        torch.testing.assert_close(slope.double(), gradient, rtol=1e-3, atol=2e-3)


def test_strided_offsets():
    scores, spread = torch.randn(9), torch.tensor([0, -1, 2, -1, 9, -1])
    for loss in (fused.contrast, fused.listwise):
        assert torch.equal(
            loss(scores, offsets=spread[::2]), loss(scores, offsets=spread[::2].clone())
        )


def test_backends_by_name(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    policy, ref = torch.zeros(3), torch.zeros(3)
    expected = plackett_luce_top1(policy, ref, backend="reference")
    assert expected.item() == pytest.approx(math.log(3))
    with pytest.raises(ValueError, match="backend must be one of auto, reference, triton"):
        plackett_luce_top1(policy, ref, backend="x")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"^backend triton cannot be used: .*(GPU|triton)"):
            plackett_luce(policy, ref, backend="triton")


@pytest.mark.parametrize("name", ["plackett_luce_top1", "swepo", "hps", "dmpo", "ipo"])
@pytest.mark.parametrize("offsets", [None, torch.tensor([0, 2, 5, 12])])
def test_compiles_without_a_graph_break(name, offsets):
    shape = (3, 4) if offsets is None else (12,)
    policy, ref, rewards = torch.randn(3, *shape)
    more = (rewards,) if name in ("swepo", "hps") else ()

    def step(p):
        return getattr(losses, name)(p, ref, *more, beta=0.5, offsets=offsets)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    mine, plain = policy.clone().requires_grad_(), policy.clone().requires_grad_()
    loss, expected = compiled(mine), step(plain)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(mine.grad, plain.grad)


TAKE_REWARDS = ("swepo", "hps", "plackett_luce", "ipo", "lipo_lambda")


@pytest.mark.parametrize("name", ["plackett_luce_top1", "dpo_k", "kto", *TAKE_REWARDS])
@pytest.mark.parametrize("offsets", [None, torch.tensor([0, 2, 5, 12])])
def test_transforms_of_torch_func(name, offsets):
    """Per-sample gradients, as influence functions want them; torch refuses closed forms there."""
    shape = (3, 4) if offsets is None else (12,)
    many, (ref, rewards) = torch.randn(2, *shape).double(), torch.randn(2, *shape).double()
    more = (rewards,) if name in TAKE_REWARDS else ()
    more_named = {"kl": 0.1} if name == "kto" else {}

    def loss(p):
        return getattr(losses, name)(p, ref, *more, beta=0.5, offsets=offsets, **more_named)

    plain = [p.clone().requires_grad_() for p in many]
    expected = [loss(p) for p in plain]
    gradients = [torch.autograd.grad(value, p)[0] for value, p in zip(expected, plain, strict=True)]
    torch.testing.assert_close(torch.func.vmap(loss)(many), torch.stack(expected).detach())
    found = torch.func.vmap(torch.func.grad(loss))(many)
    torch.testing.assert_close(found, torch.stack(gradients))
    along, tangent = torch.func.jvp(loss, (many[0],), (torch.ones_like(many[0]),))
    torch.testing.assert_close((along, tangent), (expected[0].detach(), gradients[0].sum()))


def test_a_missing_value_is_told_in_transforms_that_see_values():
    policy, ref = torch.tensor([0.0, float("nan")]), torch.zeros(2)
    with pytest.raises(ValueError, match=r"^policy_logps must be finite, got nan"):
        torch.func.grad(lambda p: plackett_luce(p, ref))(policy)
