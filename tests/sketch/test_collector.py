"""The collector against one backward pass per response, on all that it must bear."""

import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

import pyfast
from pyfast import sketch
from pyfast.sketch import _capture, _collector, _parts, reference
from pyfast.sketch._batches import pad


def relative(got, want):
    """Largest relative error of a response's gradient."""
    lengths = np.linalg.norm(want, axis=1)
    return float((np.linalg.norm(got - want, axis=1) / np.where(lengths > 0, lengths, 1)).max())


def sketch_of(gradients, collector):
    """The definition: parts with descending numbers."""
    ends = np.cumsum([part.size for part in collector.parts])
    parts = np.split(gradients, ends[:-1], axis=1)
    numbers = list(range(len(parts)))[::-1]
    return reference.project_modules(
        [parts[m] for m in numbers], collector.dim, collector.seed, numbers
    )


def check(model, responses, batch=None, *, like=None, tolerance=1e-5):
    """Hold a batch (by default padded on the right) to the loop over `responses`."""
    collector = sketch.LoraGradients(model, dim=256, seed=5)
    batch = batch or dict(
        zip(("input_ids", "response_mask", "attention_mask"), pad(responses), strict=True)
    )
    found = collector.batch(**batch)
    gradients = collector.gradients(**batch).numpy()
    want = reference.lora_gradients(like or model, responses, collector.names)
    assert relative(gradients, want) <= tolerance
    assert found.sketches.numpy().tobytes() == sketch_of(gradients, collector).tobytes()
    exact = (gradients.astype(np.float64) ** 2).sum(1)
    np.testing.assert_allclose(found.squared_norms, exact, rtol=1e-12)
    np.testing.assert_allclose(found.part_norms.sum(1), exact, rtol=1e-12)
    assert found.lengths.tolist() == [len(response) for _, response in responses]
    return found, gradients


def left_padded(responses, by=0):
    longest = max(len(p) + len(r) for p, r in responses) + by
    ids, mask, real = (torch.zeros(len(responses), longest, dtype=torch.long) for _ in range(3))
    for row, (prompt, response) in enumerate(responses):
        ids[row, longest - len(prompt) - len(response) :] = torch.tensor([*prompt, *response])
        mask[row, longest - len(response) :] = 1
        real[row, longest - len(prompt) - len(response) :] = 1
    return {"input_ids": ids, "response_mask": mask, "attention_mask": real}


def packed(responses, rows, length):
    """Fill `rows` rows one response after the other; what is left over is padding."""
    ids, mask, positions = (torch.zeros(rows, length, dtype=torch.long) for _ in range(3))
    segments = torch.full((rows, length), -1)
    row = at = 0
    for number, (prompt, response) in enumerate(responses):
        size = len(prompt) + len(response)
        if at + size > length:
            row, at = row + 1, 0
        ids[row, at : at + size] = torch.tensor([*prompt, *response])
        mask[row, at + len(prompt) : at + size] = 1
        positions[row, at : at + size] = torch.arange(size)
        segments[row, at : at + size] = number
        at += size
    return {
        "input_ids": ids,
        "response_mask": mask,
        "position_ids": positions,
        "segments": segments,
    }


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_batch_is_the_loop(tiny, count):
    responses = tiny.responses(count)
    model = tiny.lora()
    found, _ = check(model, responses)
    logps = [
        float(model(input_ids=torch.tensor([p + r])).logits.detach()[0, len(p) - 1 : -1]
              .log_softmax(-1).gather(1, torch.tensor(r)[:, None]).sum())
        for p, r in responses
    ]  # fmt: skip
    np.testing.assert_allclose(found.logps, logps, rtol=1e-5)


@pytest.mark.parametrize("changes", [{"use_rslora": True}, {"use_dora": True}, {"rank": 1}])
@pytest.mark.parametrize("training", [False, True])
def test_kinds_of_lora(tiny, changes, training):
    model = tiny.lora(**changes).train(training)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check(model, tiny.responses(4))
    if "use_dora" in changes:
        assert any("lora_magnitude_vector" in str(w.message) for w in caught)


def test_fresh_lora_has_gradients_in_b_alone(tiny):
    found, _ = check(tiny.lora(fresh=True), [([1, 2, 3], [4, 5, 6]), ([7, 8], [9, 10])])
    assert (found.part_norms[:, 0::2] == 0).all()
    assert (found.part_norms[:, 1::2] > 0).all()


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
    torch.nn.init.ones_(layer.lora_B["default"].weight)
    collector.responses(tiny.responses(3))
    gc.collect()
    alive.append(not seen[-1].expired())  # after the pass
    hook.remove()
    last.remove()
    assert alive[-3:] == [False, True, False]


def test_padding_on_the_left(tiny):
    responses = tiny.responses(5)
    model = tiny.lora()
    check(model, responses, left_padded(responses))
    check(model, responses, left_padded(responses, by=3))


def test_padding_on_both_sides(tiny):
    responses = tiny.responses(5)
    batch = {k: nn.functional.pad(v, (0, 4)) for k, v in left_padded(responses, by=2).items()}
    check(tiny.lora(), responses, batch)


def test_padding_inside_a_prompt(tiny):
    responses = [([5, 6, 7], [8, 9]), ([4, 5, 6, 7], [9])]
    batch = {
        "input_ids": torch.tensor([[5, 0, 0, 6, 7, 8, 9], [0, 4, 5, 6, 0, 7, 9]]),
        "response_mask": torch.tensor([[0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0, 1]]),
        "attention_mask": torch.tensor([[1, 0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 0, 1, 1]]),
    }
    check(tiny.lora(), responses, batch)


def test_packed_rows(tiny):
    responses = tiny.responses(9)
    batch = packed(responses, rows=5, length=32)
    assert len({int(row) for row in (batch["segments"] >= 3).nonzero()[:, 0]}) > 1
    check(tiny.lora(), responses, batch)


def test_packed_rows_in_any_order_of_numbers(tiny):
    responses = tiny.responses(6)
    batch = packed(responses, rows=3, length=40)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    segments = batch["segments"]
    batch["segments"] = torch.where(segments >= 0, order[segments.clamp(min=0)], segments)
    moved = [responses[int((order == number).nonzero())] for number in range(6)]
    check(tiny.lora(), moved, batch)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("changes", [{}, {"use_dora": True}])
@pytest.mark.filterwarnings("ignore")
def test_gradient_checkpointing(tiny, reentrant, changes):
    model = tiny.lora(**changes)
    responses = tiny.responses(5)
    plain = sketch.LoraGradients(model, 256, 5).responses(responses)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.train()
    runs = []
    hook = (
        model.get_base_model().model.layers[0].mlp.register_forward_hook(lambda *_: runs.append(1))
    )
    found, _ = check(model, responses, like=tiny.lora(**changes))
    assert len(runs) >= 4  # each of two passes ran the layer again
    assert found.sketches.numpy().tobytes() == plain.sketches.numpy().tobytes()
    hook.remove()


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cast_adapter", [True, False])
def test_half_precision_is_as_near_to_float32_as_the_loop(tiny, dtype, cast_adapter):
    responses = tiny.responses(40)  # one response alone may be 20 % nearer or farther
    exact_model, model = tiny.lora(), tiny.lora().to(dtype)
    if cast_adapter:  # as peft does by default: the adapter in float32
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = dict(exact_model.named_parameters())[name].data.clone()
    collector = sketch.LoraGradients(model, 256)
    exact = reference.lora_gradients(exact_model, responses, collector.names)
    loop = reference.lora_gradients(model, responses, collector.names)
    got = collector.gradients(*pad(responses)).numpy()

    def far(gradients):
        errors = np.linalg.norm(gradients - exact, axis=1) / np.linalg.norm(exact, axis=1)
        return np.sqrt(np.mean(errors**2))

    assert far(got) <= 1.1 * far(loop) + 1e-5
    assert relative(got, exact) < 0.2
    assert collector.responses(responses).sketches.dtype == torch.float32


def test_whole_gradients_come_from_the_pass_of_the_sketches(tiny):
    collector, responses = sketch.LoraGradients(tiny.lora(), 256), tiny.responses(9)
    got = {n: np.full(collector.size, np.nan, np.float32) for n in (1, 4, 8)}
    batches = {}
    for numbers, batch in collector.stream(responses, 60, gradients=got):
        batches |= {n: batch.sketches[row] for row, n in enumerate(numbers)}
        whole = collector.gradients(*pad([responses[n] for n in numbers])).numpy()
        for row, n in enumerate(numbers):
            assert n not in got or np.array_equal(got[n], whole[row])
    descending = range(len(collector.places))[::-1]
    for n, gradient in got.items():
        parts = [gradient[None, collector.places[number]] for number in descending]
        want = reference.project_modules(parts, 256, 0, descending)
        assert np.array_equal(want[0], batches[n].numpy())
    fresh = sketch.LoraGradients(tiny.lora(fresh=True), 256)
    for _ in fresh.stream(responses, 60, gradients=got):  # no A is handed on
        pass
    assert not got[4][fresh.places[0]].any()
    assert got[4][fresh.places[1]].any()
    for bad in (np.zeros(5, np.float32), np.zeros(collector.size)):
        with pytest.raises(ValueError, match=r"gradients: expected float32 \(\d+,\) at 3, got"):
            next(collector.stream(responses, 60, gradients={3: bad}))


def test_tied_weights(tiny):
    model = tiny.lora(tiny.model(tie_word_embeddings=True))
    base = model.get_base_model()
    assert base.lm_head.weight is base.model.embed_tokens.weight
    check(model, tiny.responses(4))


@pytest.mark.parametrize("checkpoint", [None, False, True])
@pytest.mark.filterwarnings("ignore")
def test_a_module_used_twice_adds_up(tiny, checkpoint):
    def make():
        base = tiny.model(num_hidden_layers=3)
        base.model.layers[2] = base.model.layers[0]
        return tiny.lora(base)

    model = make()
    if checkpoint is not None:
        model.gradient_checkpointing_enable({"use_reentrant": checkpoint})
        model.train()
    check(model, tiny.responses(4), like=make())


def test_frozen_matrices_are_left_out(tiny):
    model = tiny.lora()
    for name, parameter in model.named_parameters():
        if "layers.0." in name or ("lora_A" in name and "q_proj" in name):
            parameter.requires_grad_(False)
    collector = sketch.LoraGradients(model, 256)
    assert len(collector.names) == 13
    assert not any("layers.0." in name for name in collector.names)
    check(model, tiny.responses(3))
    model.requires_grad_(False)
    with pytest.raises(ValueError, match=r"expected trainable LoRA weights.*is_trainable=True"):
        sketch.LoraGradients(model)


def test_an_adapter_that_is_off_is_refused(tiny):
    model, responses = tiny.lora(), tiny.responses(2)
    collector = sketch.LoraGradients(model, 256)
    with model.disable_adapter(), pytest.raises(ValueError, match=r"adapter of .*q_proj is disab"):
        collector.responses(responses)
    model.merge_adapter()
    with pytest.raises(ValueError, match="q_proj is merged; call unmerge_adapter"):
        collector.responses(responses)
    model.unmerge_adapter()
    from peft import LoraConfig

    model.add_adapter("other", LoraConfig(r=2, target_modules="all-linear"))
    model.set_adapter("other")
    with pytest.raises(ValueError, match=r"the active adapter of .* changed"):
        collector.responses(responses)
    assert sketch.LoraGradients(model, 256).names[0].endswith("lora_A.other")


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_that_is_not_the_one_of_before_is_refused(tiny):
    from peft import LoraConfig

    model, responses = tiny.lora(), tiny.responses(2)
    collector = sketch.LoraGradients(model, 256)
    again = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    model.add_adapter("other", again)
    model.set_adapter("other")
    model.delete_adapter("default")
    model.add_adapter("default", again)
    model.set_adapter("default")
    message = r"q_proj.lora_A.default is no longer in it .*make a new collector"
    with pytest.raises(ValueError, match=message):
        collector.responses(responses)
    collector = sketch.LoraGradients(model, 256)
    collector.responses(responses)
    layer = model.get_base_model().model.layers[1].mlp.up_proj
    layer.lora_B["default"] = nn.Linear(4, 48, bias=False).requires_grad_(False)
    with pytest.raises(ValueError, match=r"1.mlp.up_proj.lora_A.default is no longer in it"):
        collector.responses(responses)
    collector = sketch.LoraGradients(model, 256)
    model.merge_and_unload()
    with pytest.raises(ValueError, match=message):
        collector.responses(responses)


def test_dropout_is_refused_in_training_alone(tiny):
    responses = tiny.responses(3)
    model = tiny.lora(lora_dropout=0.25)
    check(model, responses)
    model.train()
    with pytest.raises(ValueError, match=r"lora_dropout.* drops out at rate 0.25.*model.eval\(\)"):
        sketch.LoraGradients(model, 256)
    model = tiny.lora(tiny.model(attention_dropout=0.5))
    collector = sketch.LoraGradients(model, 256)
    model.train()
    with pytest.raises(ValueError, match=r"self_attn drops out at rate 0.5"):
        collector.responses(responses)
    model = tiny.lora()
    quiet = sketch.LoraGradients(model, 256).responses(responses).sketches
    assert torch.equal(
        sketch.LoraGradients(model.train(), 256).responses(responses).sketches, quiet
    )


def test_layers_with_dropout_run_as_one_node_in_evaluation(tiny):
    for rate in (0.0, 0.25):
        layer = tiny.lora(lora_dropout=rate).get_base_model().model.layers[0].mlp.up_proj
        assert _capture.is_plain(layer.eval(), "default", now=True)
        assert _capture.is_plain(layer.train(), "default", now=True) == (rate == 0)


def test_empty_responses_and_single_tokens(tiny):
    model = tiny.lora()
    responses = [([5, 6], []), ([7], [8]), ([9, 10, 11], [3, 4]), ([4], [])]
    collector = sketch.LoraGradients(model, 256)
    found = collector.responses(responses)
    assert found.lengths.tolist() == [0, 1, 2, 0]
    assert found.logps[0] == found.logps[3] == 0
    assert not found.sketches[[0, 3]].any()
    assert found.squared_norms[[0, 3]].tolist() == [0, 0]
    gradients = collector.gradients(*pad(responses)).numpy()[1:3]
    want = reference.lora_gradients(model, responses[1:3], collector.names)
    assert relative(gradients, want) <= 1e-5
    nothing = collector.responses([([5, 6], [])])
    assert not nothing.sketches.any()
    assert nothing.logps.tolist() == [0]


def test_other_trainable_parameters_are_said(tiny):
    model = tiny.lora()
    model.get_base_model().model.norm.weight.requires_grad_(True)
    with pytest.warns(UserWarning, match="1 trainable parameters.*left out.*model.norm.weight"):
        collector = sketch.LoraGradients(model, 256)
    assert collector.left_out == ["base_model.model.model.norm.weight"]
    model = tiny.lora(target_modules=["q_proj", "embed_tokens"])
    with pytest.warns(UserWarning, match="lora_embedding_A"):
        collector = sketch.LoraGradients(model, 256)
    assert any("lora_embedding_B" in name for name in collector.left_out)
    assert len(collector.names) == 4


@pytest.mark.filterwarnings("ignore")
def test_lora_on_a_parameter_is_left_out(tiny):
    """peft adds B A to the parameter there: no token goes through A or B."""
    if not hasattr(pytest.importorskip("peft.tuners.lora.layer"), "ParamWrapper"):
        pytest.skip("this peft knows no target_parameters")
    model = tiny.lora(target_modules=["q_proj"], target_parameters=["mlp.up_proj.weight"])
    with pytest.warns(UserWarning, match=r"4 trainable parameters .* left out.*up_proj.lora_A"):
        collector = sketch.LoraGradients(model, 256)
    assert len(collector.names) == 4
    assert all("q_proj" in name for name in collector.names)
    assert all("up_proj" in name for name in collector.left_out)
    check(model, tiny.responses(3))


def test_a_matrix_that_is_never_run_is_named(tiny):
    model = tiny.lora()
    collector = sketch.LoraGradients(model, 256)
    model.get_base_model().model.layers[0].mlp.forward = lambda x: x
    with pytest.raises(
        ValueError, match=r"layers.0.mlp.gate_proj.lora_A.default was not run.*6 of"
    ):
        collector.responses(tiny.responses(3))


@pytest.mark.filterwarnings("ignore")
def test_lora_on_the_head(tiny):
    model = tiny.lora(target_modules=["q_proj", "lm_head"])
    collector = sketch.LoraGradients(model, 256)
    assert "lm_head" in collector.names[-1]
    check(model, tiny.responses(5))
    responses = tiny.responses(7)
    check(model, responses, packed(responses, rows=4, length=32))


def test_a_head_in_tiles_is_the_head(tiny):
    """A plain head, one with a bias, and one that is no plain linear layer: the same gradients."""

    class Other(nn.Linear):
        pass

    responses = tiny.responses(5)
    model = tiny.lora()
    plain, _ = check(model, responses)
    base = model.get_base_model()
    weight = base.lm_head.weight
    base.lm_head = Other(*weight.shape[::-1], bias=False)
    base.lm_head.weight = weight
    other, _ = check(model, responses)
    np.testing.assert_allclose(other.logps, plain.logps, rtol=1e-5)
    base.lm_head = nn.Linear(*weight.shape[::-1])
    base.lm_head.weight = weight
    with torch.no_grad():
        base.lm_head.bias.copy_(torch.linspace(-2, 2, tiny.vocabulary))
    biased, _ = check(model, responses)
    assert not np.allclose(biased.logps, plain.logps)


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
        {name: p.requires_grad for name, p in model.named_parameters()},
    )


def stopped(call, at=0):
    """Run `call`, with Ctrl-C at the at-th line of ours; return the functions of these lines."""
    files = {module.__file__ for module in (_capture, _collector, _parts)}
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


def test_ctrl_c_at_any_line_leaves_the_model_as_it_was(tiny):
    """Above all in what changes the model and in what puts it back."""
    kinds = ["q_proj", "up_proj", "down_proj"]
    model = tiny.lora(tiny.model(num_hidden_layers=1), target_modules=kinds)
    layers = model.get_base_model().model.layers[0]
    layers.mlp.up_proj.lora_A["default"].register_forward_hook(lambda *_: None)  # not one node
    layers.mlp.down_proj.forward = layers.mlp.down_proj.forward
    layers.mlp.down_proj.forward.__func__.same_as_peft = True  # as models.lora has it
    collector, responses = sketch.LoraGradients(model, 128), tiny.responses(2)
    before, want = state(model), collector.responses(responses).sketches
    try:
        lines = stopped(lambda: collector.responses(responses))
        delicate = {"__enter__", "__exit__", "undo", "unhook", "_replace", "_replace_all", "_run"}
        assert delicate <= set(lines)
        for at, name in enumerate(lines, 1):
            if name in delicate or at % 40 == 0:
                with pytest.raises(KeyboardInterrupt):
                    stopped(lambda: collector.responses(responses), at)
                assert state(model) == before, (at, name)
    finally:
        del type(layers.mlp.down_proj).forward.same_as_peft
    assert torch.equal(collector.responses(responses).sketches, want)
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


def test_a_gradient_that_is_not_finite_is_named(tiny):
    model = tiny.lora()
    model.get_base_model().model.embed_tokens.weight.data[7] = torch.nan
    collector = sketch.LoraGradients(model, 256)
    with pytest.raises(ValueError, match=r"gradient of response 2 is not finite in .*layers.1"):
        collector.responses([([5], [6]), ([4], [4]), ([5, 7], [6]), ([7], [7])])


def test_a_model_of_nan_is_said_to_be_one(tiny):
    model = tiny.lora()
    model.get_base_model().model.layers[1].mlp.up_proj.lora_B["default"].weight.data[3] = torch.nan
    with pytest.raises(ValueError, match=r"not finite; the first .* is .*1.mlp.up_proj.lora_B.def"):
        sketch.LoraGradients(model, 256)


def test_inputs_without_the_tokens_shape_are_refused(tiny):
    model = tiny.lora()
    mlp = model.get_base_model().model.layers[1].mlp
    plain = mlp.forward
    mlp.forward = lambda x: torch.cat([plain(x[:, :1]), plain(x[:, 1:])], dim=1)
    with pytest.raises(ValueError, match=r"layers.1.mlp.*saw an input of shape .*mixture of exp"):
        sketch.LoraGradients(model, 256).responses(tiny.responses(3))
    mlp.forward = lambda x: plain(x.reshape(-1, x.shape[-1])).view(x.shape)
    check(model, tiny.responses(3))


def test_models_with_more_than_a_head_are_refused(tiny):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.5,
        final_logit_softcapping=1.0,
    )
    with pytest.raises(ValueError, match="Gemma2ForCausalLM changes its logits"):
        sketch.LoraGradients(tiny.lora(Gemma2ForCausalLM(config).eval()), 256)
    with pytest.raises(TypeError, match="expected a causal language model, got LlamaModel"):
        sketch.LoraGradients(tiny.lora(tiny.model().model), 256)


def test_threads_do_not_change_a_bit(tiny):
    model, responses = tiny.lora(), tiny.responses(6)
    collector = sketch.LoraGradients(model, 4096)
    found = []
    for threads in (1, 3):
        pyfast.set_num_threads(threads)
        found.append(collector.responses(responses).sketches.numpy().tobytes())
    pyfast.set_num_threads(None)
    assert found[0] == found[1]


def test_threads_do_not_change_a_bit_where_they_are_used(tiny):
    """64 million products keep one more thread busy (csrc/core/sketch.cpp)."""
    wide = tiny.model(num_hidden_layers=1, intermediate_size=4096)
    model = tiny.lora(wide, rank=16, target_modules=["up_proj", "down_proj"])
    responses = tiny.responses(16, longest=100)
    tokens = max(len(prompt) + len(response) for prompt, response in responses)
    collector = sketch.LoraGradients(model, 1024)
    assert max(part.size for part in collector.parts) * 16 * tokens > 64e6
    found = []
    for threads in (1, 3):
        pyfast.set_num_threads(threads)
        batch = collector.responses(responses)
        found.append(batch.sketches.numpy().tobytes() + batch.part_norms.tobytes())
    pyfast.set_num_threads(None)
    assert found[0] == found[1]


def test_sketches_keep_inner_products(tiny):
    model, responses = tiny.lora(), tiny.responses(6)
    collector = sketch.LoraGradients(model, 65536)
    gradients = collector.gradients(*pad(responses)).numpy().astype(np.float64)
    sketches = collector.responses(responses).sketches.numpy().astype(np.float64)
    scale = np.linalg.norm(gradients, axis=1)
    error = (sketches @ sketches.T - gradients @ gradients.T) / np.outer(scale, scale)
    assert np.abs(error).max() < 5 * np.sqrt(2 / 65536)


IDS = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 0]])
MASK = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 0]])
REAL = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
POSITIONS = torch.tensor([[0, 1, 0, 1], [0, 1, 2, 0]])
SEGMENTS = torch.tensor([[0, 0, 1, 1], [2, 2, 2, -1]])
ONES = torch.tensor([[0, 1, 0, 1], [0, 0, 1, 0]])


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        ((IDS[0], MASK[0]), ValueError, r"input_ids: expected shape \(rows, T\), got \(4,\)"),
        ((IDS.float(), MASK), TypeError, "input_ids: expected integers, got torch.float32"),
        ((IDS, MASK[:1]), ValueError, r"response_mask: expected shape \(2, 4\), got \(1, 4\)"),
        ((IDS, 2 * MASK), ValueError, "response_mask: expected only 0 and 1"),
        ((IDS, REAL), ValueError, "a token before the first one of the response, at row 0, colu"),
        ((IDS, MASK, 1 - MASK), ValueError, "no response token where attention_mask is 0, at row"),
        (
            (IDS, MASK, torch.tensor([[1, 0, 1, 1], [1, 1, 1, 0]])),
            ValueError,
            "response_mask: expected no padding just before a response token, at row 0, column 2",
        ),
        ((IDS, MASK, None, POSITIONS[:, :2]), ValueError, "position_ids: expected shape"),
        ((IDS, ONES, REAL, POSITIONS, SEGMENTS), ValueError, "attention_mask: expected none"),
        ((IDS, ONES, None, None, SEGMENTS), ValueError, "position_ids: expected beside segments"),
        ((IDS, ONES, None, POSITIONS, SEGMENTS - 1), ValueError, "segments: expected 0 to R - 1"),
        ((IDS, ONES, None, POSITIONS, SEGMENTS * 2), ValueError, "segments: expected 0 to R - 1"),
        (
            (IDS, ONES, None, POSITIONS, torch.tensor([[0, 1, 0, 1], [2, 2, 2, -1]])),
            ValueError,
            "segments: expected segment 0 in one piece",
        ),
        (
            (IDS, ONES, None, torch.arange(4).expand(2, 4), SEGMENTS),
            ValueError,
            "position_ids: expected positions that restart there, at row 0, column 2",
        ),
        (
            (IDS, ONES, None, POSITIONS * 2, SEGMENTS),
            ValueError,
            "position_ids: expected positions that rise by one there, at row 0, column 1",
        ),
        (
            (IDS, torch.tensor([[0, 1, 0, 1], [0, 0, 1, 1]]), None, POSITIONS, SEGMENTS),
            ValueError,
            "no response token outside the segments, at row 1, column 3",
        ),
    ],
)
def test_bad_batches_are_named(tiny, batch, error, message):
    with pytest.raises(error, match=message):
        sketch.LoraGradients(tiny.lora(), 256).batch(*batch)


def test_bad_settings_are_named(tiny):
    model = tiny.lora()
    with pytest.raises(ValueError, match="dim: expected a power of two, got 1000"):
        sketch.LoraGradients(model, 1000)
    with pytest.raises(ValueError, match="seed: expected 0 to"):
        sketch.LoraGradients(model, seed=-1)
    with pytest.raises(ValueError, match="expected trainable LoRA weights"):
        sketch.LoraGradients(tiny.model())
    with pytest.raises(ValueError, match="a prompt of at least one token, at 1"):
        sketch.LoraGradients(model).responses([([1], [2]), ([], [2])])
    for bad in (2.5, True):
        with pytest.raises(TypeError, match=r"expected integer token ids, got torch.\w+ at 1"):
            sketch.LoraGradients(model).responses([([1], [2]), ([bad], [bad])])


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
    assert len(runs) == 2 * 14  # two passes over two layers of seven
    assert not any("forward" in module.__dict__ for module in model.modules())

    runs.clear()
    layer = model.get_base_model().model.layers[1].mlp.up_proj
    hooks = [m.register_forward_hook(lambda *_: None) for m in (layer.lora_B["default"],)]
    _, got = check(model, responses)
    assert len(runs) == 2 * 13
    assert relative(got, want) <= 1e-6
    hooks[0].remove()

    runs.clear()
    lora.fuse(model)  # which says that it is peft's forward pass
    before = {n: m.__dict__.get("forward") for n, m in model.named_modules()}
    _, got = check(model, responses, like=tiny.lora())
    assert len(runs) == 2 * 14
    assert got.tobytes() == want.tobytes()
    assert {n: m.__dict__.get("forward") for n, m in model.named_modules()} == before

    runs.clear()
    layer.forward = lambda x: type(layer).forward(layer, x)  # somebody's own
    check(model, responses, like=tiny.lora())
    assert len(runs) == 2 * 13
