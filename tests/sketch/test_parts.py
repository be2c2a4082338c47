"""Which matrices are sketched, what is left out, and models that are refused."""

import pytest
import torch
from sketch_loop import check
from torch import nn

from pyfast import sketch


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


def test_other_trainable_parameters_are_said(tiny):
    model = tiny.lora()
    model.get_base_model().model.norm.weight.requires_grad_(True)
    with pytest.warns(UserWarning, match="1 trainable parameters.*left out.*model.norm.weight"):
        collector = sketch.LoraGradients(model, 256)
    assert collector.left_out == ["base_model.model.model.norm.weight"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "target_parameters": ["mlp.up_proj.weight"]},
    ],
)
def test_lora_where_no_token_goes_through_a_is_sketched_one_response_at_a_time(tiny, changes):
    """peft looks rows of A up, or adds B A to the parameter."""
    if not hasattr(pytest.importorskip("peft.tuners.lora.layer"), "ParamWrapper"):
        pytest.skip("this peft knows no target_parameters")
    model = tiny.lora(**changes)
    with pytest.warns(UserWarning, match=r"rows: .* works in a LoRA layer .*one response at"):
        collector = sketch.LoraGradients(model, 256)
    assert (collector.batching, collector.left_out) == ("alone", [])
    assert len(collector.names) == (6 if "embed_tokens" in changes["target_modules"] else 8)
    check(model, tiny.responses(5))


def test_a_gradient_that_is_not_finite_is_named(tiny):
    model = tiny.lora()
    model.get_base_model().model.embed_tokens.weight.data[30] = torch.nan
    collector = sketch.LoraGradients(model, 256)
    with pytest.raises(ValueError, match=r"gradient of response 2 is not finite in .*layers.1"):
        collector.responses([([5], [6]), ([4], [4]), ([5, 30], [6]), ([30], [30])])


def test_a_model_of_nan_is_said_to_be_one(tiny):
    model = tiny.lora()
    model.get_base_model().model.layers[1].mlp.up_proj.lora_B["default"].weight.data[3] = torch.nan
    with pytest.raises(ValueError, match=r"not finite; the first .* is .*1.mlp.up_proj.lora_B.def"):
        sketch.LoraGradients(model, 256)
