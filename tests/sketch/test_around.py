"""What stands around the transformers model, peft's or accelerate's, counts in a gradient."""

import pytest
import torch
from accelerate import Accelerator
from sketch_loop import relative

from pyfast import sketch
from pyfast.models.shared_prompt import GroupScorer
from pyfast.sketch import _fingerprint, reference
from pyfast.sketch._batches import pad


def test_a_peft_model_from_accelerate_computes_in_its_autocast(tiny, fresh_accelerate):
    responses = tiny.responses(5)
    batch = pad(responses)
    exact = sketch.LoraGradients(tiny.lora(), 256)
    with torch.autocast("cpu", torch.bfloat16):
        inside = sketch.LoraGradients(tiny.lora(), 256)
        expected, logps = inside.gradients(*batch), inside.responses(responses).logps
    prepared = Accelerator(mixed_precision="bf16", cpu=True).prepare(tiny.lora())
    collector = sketch.LoraGradients(prepared, 256)
    assert collector.batching == "together"
    found = collector.gradients(*batch)
    assert torch.equal(found, expected)  # what autocast around it gives, to the bit
    assert (collector.responses(responses).logps == logps).all()
    assert not torch.equal(found, exact.gradients(*batch))
    theirs = reference.lora_gradients(prepared, responses, collector.names)
    exactly = reference.lora_gradients(tiny.lora(), responses, exact.names)
    assert relative(found.numpy(), theirs) <= 2 * relative(theirs, exactly)
    assert _fingerprint.fingerprint(collector)["model"]["autocast"] == "torch.bfloat16"


@pytest.mark.parametrize("how", ["forward", "hook"])
def test_what_a_peft_model_does_to_the_logits_is_refused(tiny, how):
    model = tiny.lora()
    collector, scorer = sketch.LoraGradients(model, 256), GroupScorer(model)

    def halved(output):
        output.logits = output.logits / 2
        return output

    if how == "hook":
        model.register_forward_hook(lambda _module, _inputs, output: halved(output))
    else:
        forward = model.forward
        model.forward = lambda *args, **named: halved(forward(*args, **named))
    for run in (
        lambda: sketch.LoraGradients(model, 256),
        lambda: collector.responses(tiny.responses(2)),
        lambda: GroupScorer(model),
        lambda: scorer.logps([([1, 2], [[3], [4]])]),
    ):
        with pytest.raises(ValueError, match="changes its logits after the head"):
            run()


def test_adapters_that_begin_at_some_tokens_are_refused(tiny):
    model = tiny.lora(alora_invocation_tokens=[5, 6], task_type="CAUSAL_LM")
    for make in (lambda: sketch.LoraGradients(model, 256), lambda: GroupScorer(model)):
        with pytest.raises(ValueError, match="'default' is an aLoRA, which begins at its"):
            make()


def test_a_backbone_that_is_compiled_inside_the_model(tiny):
    model = tiny.lora()
    expected = sketch.LoraGradients(model, 256, batching="alone").responses(tiny.responses(2))
    base = model.get_base_model()
    base.model = torch.compile(base.model, backend="eager")
    found = sketch.LoraGradients(model, 256, batching="alone").responses(tiny.responses(2))
    assert relative(found.sketches.numpy(), expected.sketches.numpy()) < 1e-5


def test_a_model_that_gives_bare_tuples_is_refused(tiny):
    model = tiny.lora()
    collector = sketch.LoraGradients(model, 256)
    model.get_base_model().config.return_dict = False
    for run in (
        lambda: sketch.LoraGradients(model, 256),
        lambda: collector.responses([([1], [2])]),
    ):
        with pytest.raises(ValueError, match="gives bare tuples; set "):
            run()
