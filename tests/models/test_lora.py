import pytest
import torch
from peft import LoraConfig, get_peft_model

from pyfast.models import lora
from pyfast.models.lora import LoraLinear

TOKENS = torch.tensor([[4, 9, 12, 7, 20], [6, 8, 3, 3, 10]])


def adapted(tiny, **settings):
    """A made-up model with an adapter that does something, in double precision."""
    settings = {"r": 2, "lora_alpha": 6, "target_modules": "all-linear", **settings}
    model = tiny.model(attention_bias=True).eval()
    model = get_peft_model(model, LoraConfig(init_lora_weights=False, **settings))
    return model.eval().double()


def logits_and_gradients(model):
    logits = model(input_ids=TOKENS).logits
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [logits, *torch.autograd.grad(logits.square().sum(), parameters)]


def test_fused_layers_give_what_pefts_give(tiny):
    model = adapted(tiny)
    expected = logits_and_gradients(model)
    lora.fuse(model)
    logits = model(input_ids=TOKENS).logits
    nodes, names = [logits.grad_fn], set()
    while nodes:
        node = nodes.pop()
        names.add(node.name())
        nodes += [next_node for next_node, _ in node.next_functions if next_node is not None]
    assert "LoraLinearBackward" in names
    for one, other in zip(logits_and_gradients(model), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 2, 2)])
def test_gradients_of_one_layer(bias, shape):
    def draw(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    generator = torch.Generator().manual_seed(0)
    x, a, b = draw(*shape, 5), draw(2, 5), draw(4, 2)
    weight, constant = draw(4, 5), draw(4) if bias else None
    for tensor in (x, a, b):
        tensor.requires_grad_()

    def layer(x, a, b):
        return LoraLinear.apply(x, weight, constant, a, b, 1.5)

    expected = torch.nn.functional.linear(x, weight + 1.5 * b @ a, constant)
    torch.testing.assert_close(layer(x, a, b), expected)
    assert torch.autograd.gradcheck(layer, (x, a, b))


def test_a_frozen_layer_keeps_no_inputs(tiny):
    model = adapted(tiny)
    lora.fuse(model)
    model.requires_grad_(False)
    layer = model.get_base_model().model.layers[0].mlp.up_proj
    x = torch.randn(3, layer.in_features, dtype=torch.float64, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = layer(x)
    assert not any(t.shape == x.shape or t.data_ptr() == x.data_ptr() for t in kept)
    delta = layer.get_delta_weight("default")
    (gradient,) = torch.autograd.grad(out.sum(), x)
    expected = (layer.base_layer.weight + delta).sum(dim=0).expand_as(x)
    torch.testing.assert_close(gradient, expected)


def test_switched_off_it_is_the_layer_below(tiny):
    model = adapted(tiny)
    with model.disable_adapter():
        expected = model(input_ids=TOKENS).logits
    lora.fuse(model)
    with model.disable_adapter():
        assert torch.equal(model(input_ids=TOKENS).logits, expected)
    assert not torch.allclose(model(input_ids=TOKENS).logits, expected)


def test_a_merged_adapter_counts_once(tiny):
    model = adapted(tiny)
    expected = model(input_ids=TOKENS).logits
    lora.fuse(model)
    model.merge_adapter()
    torch.testing.assert_close(model(input_ids=TOKENS).logits, expected)
    model.unmerge_adapter()
    torch.testing.assert_close(model(input_ids=TOKENS).logits, expected)


def test_hooks_inside_a_layer_still_run(tiny):
    model = adapted(tiny)
    lora.fuse(model)
    seen = []
    layer = model.get_base_model().model.layers[1].mlp.up_proj
    expected = model(input_ids=TOKENS).logits
    hook = layer.lora_B["default"].register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(model(input_ids=TOKENS).logits, expected)
    hook.remove()
    model(input_ids=TOKENS)
    assert seen == [1]


@pytest.mark.parametrize("settings", [{"lora_dropout": 0.5}, {"use_dora": True}], ids=str)
def test_layers_that_do_more_keep_pefts_forward_pass(tiny, settings):
    model = adapted(tiny, **settings)
    expected = model(input_ids=TOKENS).logits
    lora.fuse(model)
    assert not any("forward" in vars(layer) for layer in model.modules())
    assert torch.equal(model(input_ids=TOKENS).logits, expected)


def test_a_base_weight_that_trains_gets_its_gradient(tiny):
    model = adapted(tiny)
    weight = model.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight
    weight.requires_grad_(True)
    lora.fuse(model)
    model(input_ids=TOKENS).logits.sum().backward()
    assert weight.grad is not None
    assert weight.grad.abs().max() > 0


def test_an_adapter_of_another_type_keeps_pefts_forward_pass(tiny):
    model = get_peft_model(tiny.model().bfloat16(), LoraConfig(target_modules=["q_proj"]))
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    assert layer.lora_A["default"].weight.dtype == torch.float32
    lora.fuse(model)
    assert "forward" not in vars(layer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_backward_inside_autocast_is_what_it_is_outside(tiny, dtype):
    model = adapted(tiny).float()
    lora.fuse(model)
    parameters = [p for p in model.parameters() if p.requires_grad]

    def run(on):
        loss = model.get_base_model().model.layers[0].mlp(torch.ones(2, 3, 32)).square().sum()
        taken = [p for n, p in model.named_parameters() if p.requires_grad and "0.mlp" in n]
        assert parameters
        assert taken
        with torch.autocast("cpu", dtype, enabled=on):
            return torch.autograd.grad(loss, taken)

    for one, other in zip(run(True), run(False), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inside_autocast_fused_layers_are_pefts(tiny, dtype):
    model = adapted(tiny).float()

    def run():
        with torch.autocast("cpu", dtype):
            logits = model(input_ids=TOKENS).logits
        parameters = [p for p in model.parameters() if p.requires_grad]
        return [logits, *torch.autograd.grad(logits.float().square().sum(), parameters)]

    expected = run()
    lora.fuse(model)
    for one, other in zip(run(), expected, strict=True):
        assert torch.equal(one, other)
