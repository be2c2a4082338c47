"""Models as they come: wrapped, with several adapters, fused experts, weights elsewhere."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from sketch_loop import check, left_padded, packed
from torch import nn

from pyfast import sketch


def lora(**changes):
    from peft import LoraConfig

    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"], **changes}
    return LoraConfig(init_lora_weights=False, **settings)


def test_several_adapters_at_once(tiny):
    model = tiny.lora()
    model.add_adapter("other", lora(r=2))
    model.base_model.set_adapter(["default", "other"])
    collector = sketch.LoraGradients(model, 256)
    assert {name.rpartition(".")[2] for name in collector.names} == {"default", "other"}
    check(model, tiny.responses(4))


def test_an_adapter_that_joins_is_refused(tiny):
    model = tiny.lora()
    model.add_adapter("other", lora())
    collector = sketch.LoraGradients(model, 256)
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(ValueError, match=r"the active adapter of .*q_proj changed"):
        collector.responses(tiny.responses(2))


def test_mixed_adapters(tiny):
    from peft import get_peft_model

    model = get_peft_model(tiny.model(), lora(), mixed=True)
    check(model, tiny.responses(4))


def test_transformers_own_add_adapter(tiny):
    model = tiny.model()
    model.add_adapter(lora())
    check(model, tiny.responses(4))


def test_modules_to_save_are_left_out_and_said(tiny):
    from peft import get_peft_model

    model = get_peft_model(tiny.model(), lora(modules_to_save=["down_proj"]))
    with pytest.warns(UserWarning, match="are no LoRA A or B and are left out"):
        collector = sketch.LoraGradients(model, 256)
    assert len(collector.left_out) == 2
    assert all("down_proj.modules_to_save" in name for name in collector.left_out)


def test_compiled(tiny):
    model = tiny.lora()
    want = sketch.LoraGradients(model, 256).responses(tiny.responses(3)).sketches
    wrapped = torch.compile(model, backend="eager")
    assert torch.equal(
        sketch.LoraGradients(wrapped, 256).responses(tiny.responses(3)).sketches, want
    )
    assert torch.equal(
        sketch.LoraGradients(nn.DataParallel(model), 256).responses(tiny.responses(3)).sketches,
        want,
    )


DISTRIBUTED = """
import sys, torch, torch.distributed as dist
sys.path[:0] = sys.argv[1:3]
import conftest
from pyfast import sketch
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
model, responses = conftest.make_lora(), conftest.make_responses(3)
want = sketch.LoraGradients(model, 256).responses(responses).sketches
from torch.nn.parallel import DistributedDataParallel
got = sketch.LoraGradients(DistributedDataParallel(model), 256).responses(responses).sketches
assert torch.equal(got, want)
from torch.distributed.fsdp import fully_shard
from torch.distributed.device_mesh import init_device_mesh
mesh = init_device_mesh("cpu", (1,))
for layer in model.get_base_model().model.layers:
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
try:
    sketch.LoraGradients(model, 256)
except ValueError as error:
    assert "sharded (a DTensor" in str(error), error
    print("refused")
"""


def test_ddp_is_looked_through_and_fsdp_refused():
    here = os.path.dirname(os.path.abspath(__file__))
    helpers = os.path.join(os.path.dirname(here), "helpers")
    run = subprocess.run(
        [sys.executable, "-c", DISTRIBUTED, here, helpers],
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.stdout == "refused\n", run.stderr[-2000:]


def test_offloaded_weights_are_refused(tiny):
    from accelerate import cpu_offload

    model = tiny.lora()
    cpu_offload(model, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"model: .* is on the meta device \(offloaded"):
        sketch.LoraGradients(model, 256)


def test_what_is_no_model_is_refused(tiny):
    for bad in (None, "model"):
        with pytest.raises(TypeError, match="model: expected a torch module, got"):
            sketch.LoraGradients(bad)
    with pytest.raises(TypeError, match="expected a causal language model, got LlamaModel"):
        sketch.LoraGradients(tiny.lora(tiny.model().model), 256)


def test_capped_and_scaled_heads(tiny):
    from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM

    shape = {
        "vocab_size": 60,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.5,
    }
    gemma = Gemma2Config(**shape, head_dim=8, final_logit_softcapping=1.0)
    for model in (
        Gemma2ForCausalLM(gemma),
        GraniteForCausalLM(GraniteConfig(**shape, logits_scaling=3.0)),
    ):
        check(tiny.lora(model.eval()), tiny.responses(5))
        with_head = tiny.lora(model.eval(), target_modules=["q_proj", "lm_head"])
        check(with_head, tiny.responses(5))


def test_token_ids_out_of_range_are_refused_first(tiny):
    collector = sketch.LoraGradients(tiny.lora(), 256)
    good = [([1, 2], [3]), ([4], [5, 6])]
    for bad, token in ((([1, 60], [2]), 60), (([1], [2, -1]), -1)):
        message = rf"responses: expected tokens from 0 to 59, got {token} at 2"
        with pytest.raises(ValueError, match=message):
            collector.responses([*good, bad])
        with pytest.raises(ValueError, match=message):  # before the first batch
            next(collector.stream([*good, bad], 8))
    ids = torch.tensor([[1, 2, 3], [4, 60, 5]])
    with pytest.raises(ValueError, match="input_ids: expected tokens from 0 to 59, at row 1, col"):
        collector.batch(ids, torch.tensor([[0, 1, 1], [0, 0, 1]]))


@pytest.mark.filterwarnings("ignore")
def test_lora_on_fused_experts(tiny):
    from peft import get_peft_model
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    model = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=60, hidden_size=32, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
            num_experts_per_tok=2, initializer_range=0.2,
        )
    ).eval()  # fmt: skip
    fused = ["experts.gate_up_proj", "experts.down_proj"]
    model = get_peft_model(model, lora(target_modules=["q_proj"], target_parameters=fused, r=2))
    collector = sketch.LoraGradients(model, 256)
    assert (collector.batching, collector.left_out) == ("alone", [])
    assert sum("experts" in name for name in collector.names) == 8
    found, _ = check(model, tiny.responses(6))
    experts = np.array(["experts" in name for name in collector.names])
    assert (found.part_norms[:, experts].sum(1) > 0).all()
    responses = tiny.responses(6)
    check(model, responses, left_padded(responses))
    check(model, responses, packed(responses, 3, 40))
