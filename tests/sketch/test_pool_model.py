"""Whose pool it is: a model that has changed is refused by what differs."""

import json
import os

import pytest
import torch
from sketch_pools import stopped

from pyfast import sketch
from pyfast.sketch import _fingerprint


def scaled(model):
    for module in model.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling["default"] *= 4


def a_number(model):
    model.get_base_model().model.layers[1].mlp.gate_proj.base_layer.weight.data[5, 7] += 1


def half(model):
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.bfloat16()


def frozen(model):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_B" in name)


def embeddings(model):
    model.get_input_embeddings().weight.data.mul_(1.5)


def configured(**changes):
    def change(model):
        model.config.update(changes)

    return change


def attention(model):
    model.set_attn_implementation("eager")


def epsilon(model):
    model.get_base_model().model.norm.variance_epsilon = 1e-4


def training(model):
    model.train()


def frequencies(model):
    model.get_base_model().model.rotary_emb.inv_freq *= 2


def a_hook(model):
    layer = model.get_base_model().model.layers[0].mlp
    layer.register_forward_hook(lambda _m, _i, output: output * 1.5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (scaled, r"adapter: .*q_proj was \['Linear', .*, \[2.0\]\] and is .*8.0.*11 more"),
        (a_number, r"weights: .*layers.1.mlp.gate_proj.base_layer.weight .float32 \[48, 32\] "),
        (half, r"weights: .*embed_tokens.weight .float32 .* before, .bfloat16"),
        (frozen, "names were 28 and are 14"),
        (embeddings, "weights: .*embed_tokens.weight"),
        (configured(rms_norm_eps=1e-5), r"model.config: rms_norm_eps was 1e-06 and is 1e-05;"),
        (configured(sliding_window=4), "model.config: sliding_window was absent and is 4;"),
        (
            configured(rope_parameters={"rope_theta": 5e5, "rope_type": "default"}),
            "model.config: rope_parameters.rope_theta was 10000.0 and is 500000.0;",
        ),
        (attention, "model.config: attn_implementation was 'sdpa' and is 'eager';"),
        (epsilon, r"modules: .*model.norm.variance_epsilon was \[1e-06\] and is \[0.0001\];"),
        (training, "model: training was False and is True;"),
        (frequencies, "buffers: .*rotary_emb.inv_freq"),
        (a_hook, r"model: the gradient of response \d is not what it was .*something else has ch"),
    ],
)  # fmt: skip
def test_what_is_left_must_be_of_the_same_model(tiny, tmp_path, monkeypatch, change, message):
    responses = tiny.responses(9)

    def collect(model):
        collector = sketch.LoraGradients(model, 128)
        return sketch.collect(collector, responses, tmp_path / "p", max_tokens=60, progress=False)

    with monkeypatch.context() as patch:
        stopped(patch, after=1)
        with pytest.raises(KeyboardInterrupt):
            collect(tiny.lora())
    model = tiny.lora()
    change(model)
    with pytest.raises(ValueError, match=message):
        collect(model)
    assert (collect(tiny.lora()).squared_norms > 0).all()


def test_a_fingerprint_looks_at_every_number(tiny):
    model = tiny.lora(tiny.model(vocab_size=40000), target_modules=["q_proj"])
    collector = sketch.LoraGradients(model, 128)
    weight = model.get_input_embeddings().weight.data
    assert weight.numel() > _fingerprint._WHOLE
    found = {json.dumps(_fingerprint.fingerprint(collector))}
    for number in range(1, 40000, 3001):
        weight[number, number % 32] += 1
        found.add(json.dumps(_fingerprint.fingerprint(collector)))
    weight[[11, 22]] = weight[[22, 11]]  # the same numbers elsewhere
    found.add(json.dumps(_fingerprint.fingerprint(collector)))
    assert len(found) == 2 + len(range(1, 40000, 3001))


def test_a_fingerprint_is_the_same_in_another_process(tiny, tmp_path):
    def written(path):
        collector = sketch.LoraGradients(tiny.lora(), 128)
        path.write_text(json.dumps(_fingerprint.fingerprint(collector)))

    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            written(tmp_path / "a")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    torch.set_num_threads(2)
    written(tmp_path / "b")
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()
