"""Sequence log-probs from tiles against all logits at once."""

import doctest
import math

import pytest
import torch

from pyfast.losses import _tiles, linear, sequence_logps

VOCABULARY, WIDTH = 301, 24


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles so small that every loop goes around several times, with a rest at the end."""
    monkeypatch.setattr(_tiles, "CPU_TOKENS", 7)
    monkeypatch.setattr(_tiles, "CPU_TILE", 1)
    monkeypatch.setattr(_tiles, "LEAST_WORDS", 64)


def case(shape=(3, 11), dtype=torch.float64, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    hidden = (scale * normal(*shape, WIDTH)).to(dtype)
    weight, bias = normal(VOCABULARY, WIDTH).to(dtype), normal(VOCABULARY).to(dtype)
    labels = torch.randint(0, VOCABULARY, shape, generator=generator)
    mask = torch.rand(shape, generator=generator) < 0.6
    return hidden, weight, bias, labels, mask


def everything(backend, inputs, *, train_head, train_hidden=True, **arguments):
    """Log-probs, token log-probs, entropy and the gradients asked for."""
    hidden, weight, bias, labels, mask = inputs
    hidden = hidden.clone().requires_grad_(train_hidden)
    weight = weight.clone().requires_grad_(train_head)
    if bias is not None:
        bias = bias.clone().requires_grad_(train_head)
    found = sequence_logps(
        hidden, weight, labels, mask, head_bias=bias, details=True, backend=backend, **arguments
    )
    wanted = [x for x in (hidden, weight, bias) if x is not None and x.requires_grad]
    weights = torch.linspace(0.5, 2.0, labels.numel()).reshape(labels.shape)
    loss = (found.token_logps * weights).sum() + (3 * found.logps).sum()
    gradients = torch.autograd.grad(loss, wanted) if wanted else ()
    return found.logps.detach(), found.token_logps.detach(), found.entropy, *gradients


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("train_head", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(
    "how", [{}, {"temperature": 0.6}, {"softcap": 4.0}, {"softcap": 9.0, "temperature": 2.5}]
)
def test_tiles_are_the_reference(train_head, with_bias, how):
    inputs = list(case())
    inputs[2] = inputs[2] if with_bias else None
    tiled = everything("auto", inputs, train_head=train_head, **how)
    whole = everything("reference", inputs, train_head=train_head, **how)
    assert len(tiled) == 3 + 1 + train_head * (1 + with_bias)
    for found, expected in zip(tiled, whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_by_hand():
    # Logits (ln 2, 0, ln 5): probabilities 2/8, 1/8, 5/8.
    hidden = torch.tensor([[[1.0], [1.0], [2.0]]], dtype=torch.float64)
    head = torch.tensor([[2.0], [1.0], [5.0]], dtype=torch.float64).log()
    labels = torch.tensor([[0, 2, 1]])
    found = sequence_logps(hidden, head, labels, details=True)
    tokens = [math.log(1 / 4), math.log(5 / 8), math.log(1 / 30)]
    assert found.token_logps[0].tolist() == pytest.approx(tokens, rel=1e-12)
    assert found.logps.tolist() == pytest.approx([sum(tokens)], rel=1e-12)
    entropy = -(2 / 8 * math.log(2 / 8) + 1 / 8 * math.log(1 / 8) + 5 / 8 * math.log(5 / 8))
    assert found.entropy[0, 0].item() == pytest.approx(entropy, rel=1e-12)
    assert found.lengths.tolist() == [3]
    half = sequence_logps(hidden, head, labels, torch.tensor([[1, 0, 1]]))
    assert half.item() == pytest.approx(tokens[0] + tokens[2], rel=1e-12)
    hot = sequence_logps(hidden, head, labels, temperature=0.5, mask=labels == 0)
    assert hot.item() == pytest.approx(math.log(4 / 30), rel=1e-12)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("how", [{}, {"softcap": 3.0, "temperature": 0.8}])
@pytest.mark.parametrize("trained", ["hidden", "head", "all"])
def test_gradcheck(trained, how):
    hidden, weight, bias, labels, mask = case((2, 3))
    hidden, weight, bias = hidden[..., :3], weight[:70, :3], bias[:70]
    labels = labels % 70
    hidden = hidden.clone().requires_grad_(trained != "head")
    weight = weight.clone().requires_grad_(trained != "hidden")
    bias = bias.clone().requires_grad_(trained != "hidden")

    def loss(h, w, b):
        return sequence_logps(h, w, labels, mask, head_bias=b, **how)

    assert torch.autograd.gradcheck(loss, (hidden, weight, bias))


def test_a_second_derivative_is_refused():
    hidden, weight, _, labels, _ = case()
    hidden.requires_grad_()
    loss = sequence_logps(hidden, weight, labels).sum()
    with pytest.raises(RuntimeError, match="no second derivative in tiles: leave create_graph"):
        torch.autograd.grad(loss, hidden, create_graph=True)


# Layouts ------------------------------------------------------------------------------------


def test_layouts_agree():
    hidden, weight, _, labels, mask = case((4, 9))
    batch = sequence_logps(hidden, weight, labels, mask)
    offsets = torch.arange(5) * 9
    flat = sequence_logps(
        hidden.reshape(-1, WIDTH), weight, labels.reshape(-1), mask.reshape(-1), offsets=offsets
    )
    one = torch.stack([sequence_logps(*x[:1], weight, *x[1:]) for x in zip(hidden, labels, mask)])  # noqa: B905
    assert batch.shape == (4,)
    torch.testing.assert_close(batch, flat, rtol=1e-13, atol=0)
    torch.testing.assert_close(batch, one, rtol=1e-13, atol=0)
    strided = hidden.transpose(0, 1).contiguous().transpose(0, 1)
    assert not strided.is_contiguous()
    assert torch.equal(sequence_logps(strided, weight, labels, mask), batch)


def test_ignored_labels_are_the_default_mask():
    hidden, weight, _, labels, mask = case()
    expected = sequence_logps(hidden, weight, labels, mask)
    assert torch.equal(sequence_logps(hidden, weight, labels.masked_fill(~mask, -100)), expected)
    # What lies at unscored places does not matter, labels and hidden states alike.
    hidden[~mask] = math.nan
    labels[~mask] = 10**9
    for kind in (torch.bool, torch.int64, torch.uint8):
        assert torch.equal(sequence_logps(hidden, weight, labels, mask.to(kind)), expected)


def test_unscored_hidden_states_get_no_gradient():
    hidden, weight, _, labels, mask = case()
    hidden.requires_grad_()
    sequence_logps(hidden, weight, labels, mask).sum().backward()
    assert (hidden.grad[~mask] == 0).all()
    assert (hidden.grad[mask].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("train_head", [False, True])
def test_nothing_scored(train_head):
    hidden, weight, _, labels, mask = case()
    hidden.requires_grad_()
    weight.requires_grad_(train_head)
    found = sequence_logps(hidden, weight, labels, torch.zeros_like(mask), details=True)
    found.logps.sum().backward()
    assert found.logps.tolist() == [0, 0, 0]
    assert found.lengths.tolist() == [0, 0, 0]
    assert (hidden.grad == 0).all()
    offsets = torch.tensor([0, 0, 5, 5])
    empty = sequence_logps(hidden[0, :5], weight, labels[0, :5], offsets=offsets)
    assert empty[0] == empty[2] == 0
    assert empty[1] < 0


# Extremes and dtypes ------------------------------------------------------------------------


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("scale", [1e3, 1e-6])
def test_extreme_logits(scale):
    inputs = case(dtype=torch.float32, scale=scale)
    tiled = everything("auto", inputs, train_head=False)
    exact = everything(
        "auto", [x.double() if x.is_floating_point() else x for x in inputs], train_head=False
    )
    assert all(torch.isfinite(x).all() for x in tiled)
    # A logit of some 1e4 is rounded to 1e-3 when it is made.
    torch.testing.assert_close(tiled[1].double(), exact[1], rtol=1e-6, atol=1e-5 + 1e-5 * scale)
    torch.testing.assert_close(tiled[3].double(), exact[3], rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("small_tiles")
def test_words_ruled_out_by_a_bias_of_minus_infinity():
    hidden, weight, bias, labels, mask = case()
    bias[:130] = -math.inf  # two whole tiles and a bit
    labels = labels.clamp(min=130)
    inputs = (hidden, weight, bias, labels, mask)
    tiled = everything("auto", inputs, train_head=False)
    kept = (hidden, weight[130:], bias[130:], labels - 130, mask)
    for found, expected in zip(tiled, everything("auto", kept, train_head=False), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("train_head", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_summed_in_float32(dtype, train_head):
    inputs = case(dtype=dtype)
    wide = [x.float() if x.is_floating_point() else x for x in inputs]
    half = everything("auto", inputs, train_head=train_head)
    full = everything("auto", wide, train_head=train_head)
    assert half[0].dtype is torch.float32
    for found, expected in zip(half[:3], full[:3], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)
    for found, expected in zip(half[3:], full[3:], strict=True):
        assert found.dtype is dtype
        rounding = 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(found.float(), expected, rtol=rounding, atol=rounding)


def test_float32_is_as_good_as_log_softmax():
    inputs = case((4, 50), dtype=torch.float32)
    exact = everything(
        "reference", [x.double() if x.is_floating_point() else x for x in inputs], train_head=True
    )
    ours = everything("auto", inputs, train_head=True)
    plain = everything("reference", inputs, train_head=True)
    for found, same_dtype, truth in zip(ours, plain, exact, strict=True):
        off = (found.double() - truth).abs().max()
        assert off <= 2 * (same_dtype.double() - truth).abs().max() + 1e-6


def test_mixed_dtypes_are_widened():
    hidden, weight, _, labels, mask = case(dtype=torch.float32)
    found = sequence_logps(hidden, weight.bfloat16(), labels, mask)
    expected = sequence_logps(hidden, weight.bfloat16().float(), labels, mask)
    torch.testing.assert_close(found, expected)
    assert sequence_logps(hidden.double(), weight, labels, mask).dtype is torch.float64


@pytest.mark.parametrize("train_head", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_logits_are_made(dtype, train_head):
    """Weigh the largest tensor that any operation makes, but for W's gradient."""
    from torch.utils._python_dispatch import TorchDispatchMode

    tokens, words, width = 64, 20_000, 200
    hidden = torch.randn(1, tokens, width).to(dtype).requires_grad_()
    weight = torch.randn(words, width).to(dtype).requires_grad_(train_head)
    labels = torch.randint(0, words, (1, tokens))

    class Largest(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                size = tensor.untyped_storage().nbytes() if isinstance(tensor, torch.Tensor) else 0
                if size != weight.nbytes:  # W, a part of it, or its gradient
                    self.found = max(self.found, size)
            return out

    with Largest() as ours:
        sequence_logps(hidden, weight, labels).sum().backward()
    with Largest() as plain:
        sequence_logps(hidden, weight, labels, backend="reference").sum().backward()
    assert plain.found >= 4 * tokens * words
    assert ours.found <= 4 * _tiles.CPU_TILE


def test_a_frozen_head_keeps_the_slope_alone():
    """What backward does not read is not kept, and may change before it runs."""
    hidden, weight, bias, labels, mask = case()
    hidden.requires_grad_()
    kept = []

    def keep(tensor):
        kept.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = sequence_logps(hidden, weight, labels, mask, head_bias=bias).sum()
    assert weight.data_ptr() not in kept
    (expected,) = torch.autograd.grad(loss, hidden, retain_graph=True)
    weight.zero_()
    bias.zero_()
    (found,) = torch.autograd.grad(loss, hidden)
    assert torch.equal(found, expected)


def test_no_log_prob_is_above_0():
    """At logits of 500 the label's own and the log-sum-exp are rounded in different products."""
    torch.manual_seed(0)
    weight, labels = torch.randn(3000, 512), torch.randint(0, 3000, (1, 400))
    found = sequence_logps(weight[labels], weight, labels, details=True)
    assert (found.token_logps <= 0).all()
    assert (found.token_logps > -1e-3).all()


def test_thousands_of_tokens_are_summed_without_losing_digits():
    torch.manual_seed(0)
    hidden, weight = torch.randn(8000, 4), 4 * torch.randn(50, 4)
    labels, offsets = torch.randint(0, 50, (8000,)), torch.tensor([0, 7000, 8000])
    found = sequence_logps(hidden, weight, labels, offsets=offsets, details=True)
    assert found.logps.dtype is torch.float32
    exact = [part.double().sum().item() for part in found.token_logps.split([7000, 1000])]
    assert found.logps.tolist() == pytest.approx(exact, rel=1e-7)
    assert found.lengths.dtype is torch.int64


def test_a_label_of_156_in_8_bits_is_scored():
    hidden, weight = torch.randn(1, 3, 8), torch.randn(256, 8)
    labels = torch.tensor([[156, 3, 156]])
    expected = sequence_logps(hidden, weight, labels)
    assert torch.equal(sequence_logps(hidden, weight, labels.to(torch.uint8)), expected)


# What is said -------------------------------------------------------------------------------


def test_examples_in_the_docstrings():
    outcome = doctest.testmod(linear)
    assert outcome.attempted > 0
    assert outcome.failed == 0


H, W, Y = torch.zeros(2, 3, 4), torch.zeros(9, 4), torch.zeros(2, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((None, W, Y), TypeError, "hidden must be a torch.Tensor, got NoneType"),
        ((H.long(), W, Y), TypeError, "hidden must have a floating-point dtype, got torch.int64"),
        (
            (H[0, 0], W, Y),
            ValueError,
            "hidden must have shape (B, L, H), (L, H) or (T, H), got (4,)",
        ),
        ((H, W.t(), Y), ValueError, "head_weight must have shape (V, 4), got (4, 9)"),
        (
            (H, W.to("meta"), Y),
            ValueError,
            "head_weight must be on the device of hidden (cpu), got meta",
        ),
        ((H, W, Y.float()), TypeError, "labels must hold integers, got torch.float32"),
        ((H, W, Y.bool()), TypeError, "labels must hold integers, got torch.bool"),
        (
            (H, W, Y[:, :2]),
            ValueError,
            "labels must have the shape of hidden without its last axis (2, 3), got (2, 2)",
        ),
        (
            (H, W, Y, Y.float()),
            TypeError,
            "mask must hold bool or integers, got torch.float32",
        ),
        (
            (H, W, Y, Y[0]),
            ValueError,
            "mask must have the shape of hidden without its last axis (2, 3), got (3,)",
        ),
        (
            (H, W, torch.tensor([[0, 1, 2], [3, 9, 0]])),
            ValueError,
            "labels must be from 0 to 8 where scored, got 9 at (1, 1)",
        ),
        (
            (H, W, torch.tensor([[0, 1, 2], [3, -1, 0]])),
            ValueError,
            "labels must be from 0 to 8 where scored, got -1 at (1, 1)",
        ),
    ],
)
def test_bad_tensors(arguments, kind, message, raises):
    with raises(kind, message):
        sequence_logps(*arguments)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"temperature": 0}, ValueError, "temperature must be finite and greater than 0, got 0"),
        ({"softcap": -1.0}, ValueError, "softcap must be finite and greater than 0, got -1.0"),
        (
            {"head_bias": torch.zeros(4)},
            ValueError,
            "head_bias must have shape (9,), got (4,)",
        ),
        ({"backend": "x"}, ValueError, "backend must be one of auto, reference, triton, got 'x'"),
        (
            {"offsets": torch.tensor([0, 6])},
            ValueError,
            "labels must be flat (T,) when offsets are given, got shape (2, 3)",
        ),
    ],
)
def test_bad_settings(arguments, kind, message, raises):
    with raises(kind, message):
        sequence_logps(H, W, Y, **arguments)


@pytest.mark.parametrize(
    ("offsets", "kind", "message"),
    [
        ([0, 6], TypeError, "offsets must be a torch.Tensor, got list"),
        (
            torch.tensor([0.0, 6.0]),
            TypeError,
            "offsets must have an integer dtype (int32, int64), got torch.float32",
        ),
        (
            torch.tensor([6]),
            ValueError,
            "offsets must have shape (B+1,) with B at least 1, got (1,)",
        ),
        (
            torch.tensor([0, 5]),
            ValueError,
            "offsets must end at the number of tokens (6), got offsets[1] = 5",
        ),
        (
            torch.tensor([0, 4, 2, 6]),
            ValueError,
            "offsets must not decrease, got offsets[1] = 4 and offsets[2] = 2",
        ),
    ],
)
def test_bad_offsets(offsets, kind, message, raises):
    with raises(kind, message):
        sequence_logps(H.reshape(6, 4), W, Y.reshape(6), offsets=offsets)


@pytest.mark.parametrize(
    ("hidden", "head", "what"), [(H.double(), W, "hidden states are"), (H, W.double(), "head is")]
)
def test_the_kernels_refuse_float64(monkeypatch, hidden, head, what):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    message = f"cannot be used: the kernels accumulate in float32, the {what} float64$"
    with pytest.raises(ValueError, match=message):
        sequence_logps(hidden, head, Y, backend="triton")


def test_triton_needs_a_gpu_or_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"^backend triton cannot be used: .*(GPU|triton)"):
            sequence_logps(H, W, Y, backend="triton")


def test_what_sequence_logps_found_is_equal_by_value() -> None:
    hidden, head = torch.randn(2, 3, 4), torch.randn(7, 4)
    labels = torch.randint(0, 7, (2, 3))
    one, other = (sequence_logps(hidden, head, labels, details=True) for _ in range(2))
    assert one == other
    assert one != sequence_logps(hidden + 1, head, labels, details=True)
