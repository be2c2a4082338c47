"""The collector against one backward pass per response, on all that it must bear."""

import warnings

import numpy as np
import pytest
import torch
from sketch_loop import check, left_padded, packed, relative
from torch import nn

import pyfast
from pyfast import sketch
from pyfast.sketch import reference
from pyfast.sketch._batches import pad


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
    """64 million products keep one more thread busy (csrc/core/sketch/sketch.cpp)."""
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
