"""How gradients are caught, what is kept for it, and that the model is left as it was."""

import sys

import pytest
import torch
from sketch_loop import check, relative
from torch.multiprocessing.reductions import StorageWeakRef

from pyfast import sketch
from pyfast.sketch import _capture, _collector, _frozen, _gradients, _parts, _recognised, _sinks


@pytest.mark.parametrize("plain", [True, False])
def test_nothing_is_kept_for_an_a_whose_gradient_is_zero(tiny, plain):
    import gc

    model = tiny.lora()
    layer = model.get_base_model().model.layers[0].mlp.down_proj
    torch.nn.init.zeros_(layer.lora_B["default"].weight)
    found, _ = check(model, tiny.responses(4))
    zero = (found.part_norms == 0).all(axis=0)
    names = sketch.LoraGradients(model, 256).names
    assert [n for n, z in zip(names, zero, strict=True) if z] == [
        "base_model.model.model.layers.0.mlp.down_proj.lora_A.default"
    ]
    seen, alive = [], []
    # A hook on A has the layer run as peft's, one on the layer leaves it as one node.
    hook = (layer if plain else layer.lora_A["default"]).register_forward_hook(
        lambda _m, inputs, _o: seen.append(StorageWeakRef(inputs[0].untyped_storage()))
    )
    assert _capture.is_plain(layer, "default") == plain

    def look(*_):
        gc.collect()
        alive.append(not seen[-1].expired())

    last = model.get_base_model().model.norm.register_forward_hook(look)
    collector = sketch.LoraGradients(model, 256)
    collector.responses(tiny.responses(3))
    assert not alive[-1]
    torch.nn.init.ones_(layer.lora_B["default"].weight)
    collector.responses(tiny.responses(3))
    assert alive[-1]
    gc.collect()
    assert seen[-1].expired()  # after the pass
    hook.remove()
    last.remove()


@pytest.mark.parametrize("plain", [True, False])
def test_nonreentrant_checkpointing_keeps_no_inputs(tiny, plain):
    """Between the passes, the inputs of adapted layers inside a checkpoint are dropped."""
    import gc

    model = tiny.lora()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    alive, seen = [], []
    layer = model.get_base_model().model.layers[0].mlp.down_proj
    hook = (layer if plain else layer.lora_A["default"]).register_forward_hook(
        lambda _m, inputs, _o: seen.append(StorageWeakRef(inputs[0].untyped_storage()))
    )

    def look(*_):
        gc.collect()
        alive.append(not seen[0].expired())

    last = model.get_base_model().model.norm.register_forward_hook(look)
    collector = sketch.LoraGradients(model, 256)
    seen.clear()
    alive.clear()
    collector.responses(tiny.responses(3))
    hook.remove()
    last.remove()
    assert alive
    assert not any(alive)


def test_layers_with_dropout_run_as_one_node_in_evaluation(tiny):
    for rate in (0.0, 0.25):
        layer = tiny.lora(lora_dropout=rate).get_base_model().model.layers[0].mlp.up_proj
        assert _capture.is_plain(layer.eval(), "default", now=True)
        assert _capture.is_plain(layer.train(), "default", now=True) == (rate == 0)


def test_a_matrix_that_is_never_run_is_named(tiny):
    model = tiny.lora()
    collector = sketch.LoraGradients(model, 256)
    model.get_base_model().model.layers[0].mlp.forward = lambda x: x
    with pytest.raises(
        ValueError, match=r"layers.0.mlp.gate_proj.lora_A.default was not run.*6 of"
    ):
        collector.responses(tiny.responses(3))


def test_the_model_is_left_as_it_was(tiny):
    model = tiny.lora()
    model.get_base_model().model.norm.weight.grad = torch.ones(32)
    collector = sketch.LoraGradients(model, 256)
    before = [(n, p.requires_grad) for n, p in model.named_parameters()]
    collector.responses(tiny.responses(3))
    model.get_base_model().model.layers[1].mlp.up_proj.base_layer.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="is not finite"):
        collector.responses(tiny.responses(3))
    for name, requires in before:
        parameter = model.get_parameter(name)
        assert parameter.requires_grad == requires
        assert (parameter.grad is None) == ("model.norm" not in name)
    assert not any(module._forward_hooks for module in model.modules())


def state(model):
    """What a pass changes, and must put back."""
    return (
        {name: module.__dict__.get("forward") for name, module in model.named_modules()},
        {name: [*module._forward_hooks.values()] for name, module in model.named_modules()},
        {name: (p.requires_grad, id(p.grad)) for name, p in model.named_parameters()},
    )


def stopped(call, at=0):
    """Run `call`, with Ctrl-C at the at-th line of ours; return the functions of these lines."""
    rooms = (_capture, _collector, _frozen, _gradients, _parts, _recognised, _sinks)
    files = {module.__file__ for module in rooms}
    seen = []

    def trace(frame, *_):
        code = frame.f_code
        if code.co_filename not in files or code.co_name == "<genexpr>":
            return None  # what is raised in a generator that is thrown away is lost
        seen.append(code.co_name)
        if len(seen) == at:
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return seen


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_ctrl_c_at_any_line_leaves_the_model_as_it_was(tiny, alone):
    """Above all in what changes the model and in what puts it back."""
    kinds = ["q_proj", "up_proj", "down_proj"]
    kinds += ["embed_tokens"] if alone else []
    model = tiny.lora(tiny.model(num_hidden_layers=1), target_modules=kinds)
    model.get_base_model().lm_head.weight.grad = kept = torch.ones(tiny.vocabulary, 32)
    layers = model.get_base_model().model.layers[0]
    layers.mlp.up_proj.lora_A["default"].register_forward_hook(lambda *_: None)  # not one node
    layers.mlp.down_proj.forward = layers.mlp.down_proj.forward
    layers.mlp.down_proj.forward.__func__.same_as_peft = True  # as models.lora has it
    collector, responses = sketch.LoraGradients(model, 128), tiny.responses(2)
    before, want = state(model), collector.responses(responses).sketches
    try:
        lines = stopped(lambda: collector.responses(responses))
        delicate = {"__enter__", "__exit__", "undo", "unhook", "alone" if alone else "together"}
        delicate |= set() if alone else {"_replace", "_replace_all"}
        assert delicate <= set(lines)
        for at, name in enumerate(lines, 1):
            if name in delicate or at % 40 == 0:
                with pytest.raises(KeyboardInterrupt):
                    stopped(lambda: collector.responses(responses), at)
                assert state(model) == before, (at, name)
    finally:
        del type(layers.mlp.down_proj).forward.same_as_peft
    assert torch.equal(collector.responses(responses).sketches, want)
    assert model.get_base_model().lm_head.weight.grad is kept
    model.get_base_model().lm_head.weight.grad = None
    model(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_a_model_without_embeddings_is_left_as_it_was(tiny):
    model = tiny.lora()
    collector, before = sketch.LoraGradients(model, 128), state(model)

    def none():
        raise NotImplementedError

    model.get_input_embeddings = none
    with pytest.raises(NotImplementedError):
        collector.responses(tiny.responses(2))
    assert state(model) == before


def test_it_works_under_no_grad(tiny):
    collector = sketch.LoraGradients(tiny.lora(), 256)
    want = collector.responses(tiny.responses(3)).sketches
    with torch.no_grad():
        assert torch.equal(collector.responses(tiny.responses(3)).sketches, want)
    with torch.inference_mode(), pytest.raises(ValueError, match=r"under torch.inference_mode\(\)"):
        collector.responses(tiny.responses(3))


def test_plain_layers_run_as_one_node_and_others_as_they_are(tiny, monkeypatch):
    """Both ways give the same gradients; what was in a layer's place is put back."""
    from pyfast.models import lora

    runs = []
    plain = lora.LoraLinear.forward

    def forward(ctx, *arguments):
        if arguments[6:]:  # somebody listens to the factors
            runs.append(1)
        return plain(ctx, *arguments)

    monkeypatch.setattr(lora.LoraLinear, "forward", staticmethod(forward))
    model, responses = tiny.lora(), tiny.responses(5)
    _, want = check(model, responses)
    assert len(runs) == 4 * 14  # passes over two layers of seven: two that check, two of ours
    assert not any("forward" in module.__dict__ for module in model.modules())

    runs.clear()
    layer = model.get_base_model().model.layers[1].mlp.up_proj
    hooks = [m.register_forward_hook(lambda *_: None) for m in (layer.lora_B["default"],)]
    _, got = check(model, responses)
    assert len(runs) == 4 * 13
    assert relative(got, want) <= 1e-6
    hooks[0].remove()

    runs.clear()
    lora.fuse(model)  # which says that it is peft's forward pass
    before = {n: m.__dict__.get("forward") for n, m in model.named_modules()}
    _, got = check(model, responses, like=tiny.lora())
    assert len(runs) == 4 * 14
    assert got.tobytes() == want.tobytes()
    assert {n: m.__dict__.get("forward") for n, m in model.named_modules()} == before

    runs.clear()
    layer.forward = lambda x: type(layer).forward(layer, x)  # somebody's own
    check(model, responses, like=tiny.lora())
    assert len(runs) == 4 * 13
