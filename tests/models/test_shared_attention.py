import pytest
import torch
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention as attend

from pyfast.models import shared_attention
from pyfast.models.shared_attention import SharedPromptMask
from pyfast.models.shared_prompt import lay_out, visible


def group(prompt, *responses):
    return [1] * prompt, [[2] * response for response in responses]


CASES = {
    "one row": [group(3, 4, 2, 5)],
    "ragged rows with padding": [group(1, 2, 7), group(6, 3), group(4, 4, 4, 4)],
    "responses of one token": [group(2, 1, 1), group(3, 1, 3)],
    "a prompt of one token": [group(1, 2)],
}


def masks(groups, dtype=torch.float64):
    segments = lay_out(groups).segments
    seen = visible(segments)[:, None]
    dense = torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
    return dense, SharedPromptMask.of(dense.clone(), segments)


def states(mask, kv_heads=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    sizes = [(len(mask), heads, mask.shape[-1], 8) for heads in (4, kv_heads, kv_heads)]
    made = [torch.randn(size, generator=generator, dtype=dtype) for size in sizes]
    return [tensor.requires_grad_() for tensor in made]


@pytest.mark.parametrize("groups", CASES.values(), ids=CASES)
@pytest.mark.parametrize("settings", [{}, {"scale": 0.3}, {"enable_gqa": True}], ids=str)
def test_it_is_what_the_dense_mask_gives(groups, settings, monkeypatch):
    dense, mask = masks(groups)
    inputs = states(dense, kv_heads=2 if "enable_gqa" in settings else 4)
    expected = attend(*inputs, attn_mask=dense, **settings)
    calls = []
    inner = shared_attention._attention
    monkeypatch.setattr(
        shared_attention, "_attention", lambda *args: calls.append(1) or inner(*args)
    )
    actual = attend(*inputs, attn_mask=mask, is_causal=False, dropout_p=0.0, **settings)
    assert calls == [1]
    assert type(actual) is torch.Tensor
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    weights = torch.linspace(-1, 1, actual.numel(), dtype=actual.dtype).view_as(actual)
    for one, other in zip(
        torch.autograd.grad((weights * actual).sum(), inputs),
        torch.autograd.grad((weights * expected).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_only_what_is_seen_is_multiplied(monkeypatch):
    pairs = []

    def counted(query, key, value, **settings):
        pairs.append(query.shape[2] * key.shape[2])
        return attend(query, key, value, **settings)

    monkeypatch.setattr(shared_attention, "scaled_dot_product_attention", counted)
    _, mask = masks([group(10, 6, 6, 6)])
    inputs = states(mask)
    shared_attention._attention(*inputs, mask.parts, {})
    assert pairs == [10 * 10] + 3 * [5 * 15]  # the last token of a response is not read


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_number_types(dtype):
    dense, mask = masks(CASES["ragged rows with padding"], dtype)
    inputs = states(dense, dtype=dtype)
    off = 1e-5 if dtype == torch.float32 else 2e-2
    expected = attend(*inputs, attn_mask=dense)
    torch.testing.assert_close(attend(*inputs, attn_mask=mask), expected, rtol=off, atol=off)


def test_elsewhere_it_is_a_plain_tensor():
    dense, mask = masks([group(3, 4, 2)])
    for one, other in [
        (mask + 1, dense + 1),
        (mask[:, :, :, :4], dense[:, :, :, :4]),
        (functional.relu(mask), functional.relu(dense)),
        (mask.to(torch.float32), dense.to(torch.float32)),
    ]:
        assert type(one) is torch.Tensor
        assert torch.equal(one, other)
    inputs = states(dense)
    sliced = attend(*inputs, attn_mask=mask[:, :, :, :])
    torch.testing.assert_close(sliced, attend(*inputs, attn_mask=dense))
    torch.testing.assert_close(attend(*inputs, mask), attend(*inputs, dense))  # by position
