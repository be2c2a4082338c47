"""Models in which a batch does not give every response its own gradient: found, and got around."""

import warnings

import numpy as np
import pytest
import torch
from sketch_loop import check, left_padded, packed, relative
from torch import nn

from pyfast import sketch
from pyfast.sketch import reference
from pyfast.sketch._batches import pad


def loop(make, responses, names):
    """One backward pass per response, each of a model of its own: no state goes on."""
    return np.concatenate([reference.lora_gradients(make(), [r], names) for r in responses])


class TimeFirst(nn.Module):
    """An MLP that works on (T, B, d), or on its rows."""

    def __init__(self, mlp, flat):
        super().__init__()
        self.mlp, self.flat = mlp, flat

    def forward(self, x):
        turned = x.transpose(0, 1)
        if self.flat:
            return self.mlp(turned.reshape(-1, x.shape[-1])).view(turned.shape).transpose(0, 1)
        return self.mlp(turned).transpose(0, 1)


class ByExpert(nn.Module):
    """Tokens in the order of the expert that they go to: as many as came in."""

    def __init__(self, mlp):
        super().__init__()
        self.mlp = mlp

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        order = (flat[:, :2] > 0).float().mul(torch.tensor([1.0, 2.0])).sum(1).argsort(stable=True)
        return torch.empty_like(flat).index_copy(0, order, self.mlp(flat[order])).view(x.shape)


class PerToken(nn.Module):
    """Two calls for the tokens of a batch: the count does not fit."""

    def __init__(self, mlp):
        super().__init__()
        self.mlp = mlp

    def forward(self, x):
        return torch.cat([self.mlp(x[:, :1]), self.mlp(x[:, 1:])], dim=1)


class Neighbours(nn.Module):
    """What a row gets depends on the other rows, a little."""

    def __init__(self, mlp, little):
        super().__init__()
        self.mlp, self.little = mlp, little

    def forward(self, x):
        return self.mlp(x) * (1 + self.little * x.mean())


@pytest.mark.parametrize(
    "wrap", [lambda m: TimeFirst(m, False), lambda m: TimeFirst(m, True), ByExpert, PerToken]
)
@pytest.mark.filterwarnings("ignore:.*checkpointing")
def test_tokens_in_another_order_are_found(tiny, wrap):
    model = tiny.lora()
    layer = model.get_base_model().model.layers[1]
    layer.mlp = wrap(layer.mlp)
    with pytest.warns(UserWarning, match=r"rows: .*layers.1.mlp.*; sketching one response at a ti"):
        collector = sketch.LoraGradients(model, 256)
    assert collector.batching == "alone"
    assert "layers.1.mlp" in collector.differs["rows"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(model, tiny.responses(6))
        check(model, tiny.responses(6), left_padded(tiny.responses(6)))
        check(model, tiny.responses(6), packed(tiny.responses(6), 3, 40))


@pytest.mark.filterwarnings("ignore")
def test_an_order_changed_later_is_found(tiny):
    model, responses = tiny.lora(), tiny.responses(6)
    collector = sketch.LoraGradients(model, 256)
    assert collector.batching == "together"
    assert not collector.differs
    mlp = model.get_base_model().model.layers[1].mlp
    plain = mlp.forward
    mlp.forward = lambda x: plain(x.transpose(0, 1)).transpose(0, 1)
    got = collector.gradients(*pad(responses)).numpy()
    assert relative(got, reference.lora_gradients(model, responses, collector.names)) < 1e-5
    assert "mlp" in collector.differs["rows"]
    del mlp.forward
    assert collector.responses(responses).sketches.any()
    assert collector.batching == "together"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.filterwarnings("ignore")
def test_rows_that_see_each_other_are_found(tiny, dtype):
    model = tiny.lora().to(dtype)
    layer = model.get_base_model().model.layers[0]
    layer.mlp = Neighbours(layer.mlp, 1e-2 if dtype == torch.float32 else 5.0)
    assert sketch.LoraGradients(model, 256).batching != "together"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layers", [1, 8])
def test_rounding_is_no_difference(tiny, dtype, layers):
    model = tiny.lora(tiny.model(num_hidden_layers=layers)).to(dtype)
    collector, responses = sketch.LoraGradients(model, 256), tiny.responses(6)
    collector.batch(**left_padded(responses))
    collector.batch(**packed(responses, 3, 40))
    assert (collector.batching, collector.differs) == ("together", {})


@pytest.mark.parametrize("shared", ["module", "weight"])
@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_a_matrix_of_two_layers_counts_once(tiny, shared, hooked):
    model = tiny.lora()
    one, two = (layer.mlp.up_proj for layer in model.get_base_model().model.layers)
    if shared == "module":
        two.lora_A["default"] = one.lora_A["default"]
    else:
        two.lora_A["default"].weight = one.lora_A["default"].weight
    if hooked:
        two.lora_B["default"].register_forward_hook(lambda *_: None)
    collector = sketch.LoraGradients(model, 256)
    assert len(collector.names) == 27
    assert collector.batching == "together"
    check(model, tiny.responses(5))


def test_a_matrix_that_is_a_here_and_b_there(tiny):
    model = tiny.lora(tiny.model(intermediate_size=32), target_modules=["up_proj", "gate_proj"])
    one, two = (layer.mlp.up_proj for layer in model.get_base_model().model.layers)
    two.lora_B["default"].weight = nn.Parameter(torch.randn(32, 4) * 0.1)
    one.lora_A["default"] = nn.Linear(32, 4, bias=False)
    one.lora_A["default"].weight = nn.Parameter(torch.randn(4, 32) * 0.1)
    square = nn.Linear(4, 4, bias=False)
    one.lora_B["default"].weight, two.lora_A["default"].weight = square.weight, square.weight
    one.lora_B["default"] = nn.Sequential(square, nn.Linear(4, 32, bias=False))[0]
    with pytest.raises((ValueError, RuntimeError)):  # no model can run so
        sketch.LoraGradients(model, 256)


NOISES = {
    "a hook on the embeddings": lambda m: m.model.embed_tokens.register_forward_hook(
        lambda _m, _i, out: out + 0.01 * torch.rand_like(out)
    ),
    "jitter": lambda m: m.model.layers[1].mlp.register_forward_pre_hook(
        lambda _m, args: (args[0] * torch.empty_like(args[0]).uniform_(0.99, 1.01),)
    ),
    "numpy": lambda m: m.model.layers[1].mlp.register_forward_pre_hook(
        lambda _m, args: (args[0] * float(np.random.rand()),)  # noqa: NPY002
    ),
    "dropped layers": lambda m: m.model.layers[1].mlp.register_forward_hook(
        lambda _m, _i, out: out * (torch.rand([]) > 0.3)
    ),
}


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("later", [False, True])
def test_noise_is_refused(tiny, noise, later):
    model, responses = tiny.lora(), tiny.responses(4)
    collector = sketch.LoraGradients(model, 256)
    NOISES[noise](model.get_base_model())
    where = "embed_tokens" if "embeddings" in noise else "layers.1.mlp"
    message = rf"model: .*{where} draws random numbers in its forward pass"
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=message):
        collector.responses(responses) if later else sketch.LoraGradients(model, 256)
    assert not later or torch.equal(torch.get_rng_state(), before) or "numpy" not in noise


def test_noise_of_an_own_generator_is_refused(tiny):
    model = tiny.lora()
    generator = torch.Generator().manual_seed(0)
    model.get_base_model().model.embed_tokens.register_forward_hook(
        lambda _m, _i, out: out + 1e-3 * torch.rand(out.shape, generator=generator)
    )
    with pytest.raises(ValueError, match=r"differs from one pass to the next|draws random"):
        sketch.LoraGradients(model, 256)


def test_random_numbers_that_nobody_uses_are_fine(tiny):
    model = tiny.lora()
    model.get_base_model().model.norm.register_forward_hook(lambda *_: torch.rand(1) and None)
    check(model, tiny.responses(3))


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_frequencies_that_depend_on_the_longest_row(tiny, kind):
    settings = {"rope_type": kind, "factor": 4.0, "rope_theta": 10000.0}
    if kind == "longrope":
        settings |= {"long_factor": [4.0] * 4, "short_factor": [1.0] * 4}
        settings["original_max_position_embeddings"] = 12

    def make():
        positions = 12 if kind == "dynamic" else 48
        return tiny.lora(tiny.model(rope_parameters=settings, max_position_embeddings=positions))

    responses = tiny.responses(9, longest=20)
    lengths = [len(p) + len(r) for p, r in responses]
    assert min(lengths) <= 12 < max(lengths)
    model = make()
    collector = sketch.LoraGradients(model, 256)
    want = loop(make, responses, collector.names)
    for batch in (dict(enumerate(pad(responses))).values(),):
        assert relative(collector.gradients(*batch).numpy(), want) < 1e-5
    assert relative(collector.gradients(**left_padded(responses)).numpy(), want) < 1e-5
    assert relative(collector.gradients(**packed(responses, 6, 30)).numpy(), want) < 1e-5
    # the same bits whatever went through the model before
    short = [r for r, n in zip(responses, lengths, strict=True) if n == min(lengths)]
    first = sketch.LoraGradients(make(), 256).responses(short).sketches
    assert torch.equal(collector.responses(short).sketches, first)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert collector.batching == "together"


def test_in_place_on_the_output_of_a_layer(tiny):
    model = tiny.lora()
    for layer in model.get_base_model().model.layers:
        layer.mlp.down_proj.register_forward_hook(lambda _m, _i, out: out.mul_(1.5))
        layer.self_attn.q_proj.lora_A["default"].register_forward_hook(
            lambda _m, _i, out: out.add_(0.5)
        )
    check(model, tiny.responses(4))
    mlp = model.get_base_model().model.layers[0].mlp
    mlp.forward = lambda x: mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)).mul_(mlp.up_proj(x).mul_(2)))
    check(model, tiny.responses(4))


def test_what_depends_on_the_longest_row_is_found_when_rows_are_long(tiny):
    """Frequencies of one's own, say: nothing of it shows in the made-up responses."""
    model = tiny.lora()
    rope = model.get_base_model().model.rotary_emb
    plain = rope.forward

    def forward(x, position_ids):
        return plain(x, position_ids * (0.5 if position_ids.max() > 40 else 1.0))

    rope.forward = forward
    responses = [([1, 2, 3], list(range(1, 60))), ([4, 5], [6, 7, 8, 9])]
    collector = sketch.LoraGradients(model, 256)
    assert collector.batching == "together"
    collector.responses([([1, 2], [3] * 20), ([4], [5, 6])])
    with pytest.raises(ValueError, match=r"response 1 of a batch differs .* batching='equal'"):
        collector.responses(responses)
    for batching in ("equal", "alone"):
        collector = sketch.LoraGradients(model, 256, batching=batching)
        assert collector.batching == batching
        got = collector.gradients(*pad(responses)).numpy()
        assert relative(got, reference.lora_gradients(model, responses, collector.names)) < 1e-5
    with pytest.raises(ValueError, match="batching: expected 'auto', 'equal' or 'alone', got 'no'"):
        sketch.LoraGradients(model, batching="no")


def test_matrices_that_are_never_run_are_said(tiny):
    model = tiny.lora()
    mlp = model.get_base_model().model.layers[1].mlp
    mlp.forward = lambda x: x
    with pytest.warns(UserWarning, match=r"6 LoRA matrices are never run, .*layers.1.mlp.gate_pr"):
        collector = sketch.LoraGradients(model, 256)
    assert len(collector.unused) == 6
    check(model, tiny.responses(3))
