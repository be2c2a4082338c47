"""The reference of a training is the model as it was given, whatever TRL makes of that."""

import copy

import peft
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

trl = pytest.importorskip("trl")

from pyfast.integrations.trl import MultiPreferenceTrainer  # noqa: E402

ROWS = [
    {"prompt": "tell me ", "responses": ["good day", "bad", "sad rain dog"], "scores": [2, 1, 0]},
    {"prompt": "the dog is ", "responses": ["nice", "awful and sad"], "scores": [1, 0]},
    {"prompt": "sun ", "responses": ["love", "hate was", "poor a"], "scores": [0, 2, 1]},
]
STEPS = 3
CLOSE = {"rtol": 1e-5, "atol": 1e-4}


def lora(**changes):
    settings = {"r": 2, "target_modules": ["q_proj"], **changes}
    return peft.LoraConfig(task_type="CAUSAL_LM", **settings)


def ia3():
    layers = ["k_proj", "v_proj", "down_proj"]
    return peft.IA3Config(
        task_type="CAUSAL_LM", target_modules=layers, feedforward_modules=["down_proj"]
    )


ADAPTERS = {
    "lora": lora(),
    "lora on embeddings": lora(target_modules=["q_proj", "embed_tokens"]),
    "saved head": lora(modules_to_save=["lm_head"]),
    "new tokens": lora(trainable_token_indices=[5, 6, 7, 8, 9]),
    "ia3": ia3(),
    "vera": peft.VeraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "o_proj"]),
    "loha": peft.LoHaConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]),
    "lokr": peft.LoKrConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]),
}


def changed(model, size=0.3):
    """Move what is trainable, as fine-tuning would."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return model


def alone(model, prompt, response):
    """Log pi of one response, by the model's own logits."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0]
    logps = logits.double().log_softmax(-1)[len(prompt) - 1 : -1]
    return float(logps.gather(1, torch.tensor(response)[:, None]).sum())


def train(model, where, folder, peft_config=None, **changes):
    """Train with a loss that moves everything; return groups and reference log-probs by step."""
    seen = []

    def loss(policy_logps, ref_logps, *, offsets):
        seen.append((trainer.groups, ref_logps.clone()))
        return -policy_logps.mean()

    class Listening(MultiPreferenceTrainer):
        def _compute_loss(self, model, inputs, return_outputs=False):
            self.groups = inputs["groups"]
            return super()._compute_loss(model, inputs, return_outputs)

    args = trl.DPOConfig(
        str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=3,
        learning_rate=5e-2,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        **changes,
    )
    trainer = Listening(
        model,
        args=args,
        train_dataset=Dataset.from_list(ROWS),
        processing_class=AutoTokenizer.from_pretrained(where),
        peft_config=peft_config,
        loss=loss,
    )
    trainer.train()
    assert len(seen) == STEPS
    return seen


def check(seen, start):
    start.eval()
    for groups, ref_logps in seen:
        truth = [alone(start, x, y) for x, responses in groups for y in responses]
        torch.testing.assert_close(ref_logps.double(), torch.tensor(truth).double(), **CLOSE)


@pytest.mark.parametrize(
    ("name", "precompute"), [*((name, False) for name in ADAPTERS), ("ia3", True)]
)
def test_an_adapter_that_was_given_is_the_reference(tmp_path, tiny_model, name, precompute):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model = changed(peft.get_peft_model(model, copy.deepcopy(ADAPTERS[name])))
    start = copy.deepcopy(model)
    seen = train(model, tiny_model, tmp_path, precompute_ref_log_probs=precompute)
    check(seen, start)
    with start.disable_adapter():  # the base model is something else
        without = alone(start, [4, 5], [6, 7])
    assert abs(without - alone(start, [4, 5], [6, 7])) > 0.01


@pytest.mark.parametrize("random_start", [False, True])
def test_a_model_that_is_a_path_is_its_own_reference(tmp_path, tiny_model, random_start):
    adapter = lora(init_lora_weights=not random_start)
    seen = train(str(tiny_model), tiny_model, tmp_path, adapter)
    check(seen, AutoModelForCausalLM.from_pretrained(tiny_model))


def another_name(model):
    return changed(peft.get_peft_model(model, lora(), adapter_name="mine")), None


def two_of_them(model):
    model = changed(peft.get_peft_model(model, lora()))
    model.add_adapter("other", lora(target_modules=["v_proj"]))
    model.set_adapter("other")
    return model, None


def without_a_peft_model(model):
    model.add_adapter(lora())
    return changed(model), None


def other_weights(model):
    return changed(model, 0.03), None


def takes_from_the_weights(model):
    return model, lora(init_lora_weights="pissa")


def trains_biases(model):
    for layer in model.model.layers:
        layer.self_attn.q_proj.bias = torch.nn.Parameter(torch.zeros(32))
    return model, lora(bias="lora_only")


REFUSED = {
    another_name: "one active adapter, called 'default'.*active are mine",
    two_of_them: "one active adapter, called 'default'.*active are other",
    without_a_peft_model: "another model than it was",
    other_weights: "another model than it was",
    takes_from_the_weights: "another model than it was",
    trains_biases: "training would change the reference too",
}


@pytest.mark.parametrize("way", REFUSED)
def test_a_reference_that_would_be_another_model_is_refused(tmp_path, tiny_model, way):
    model, adapter = way(AutoModelForCausalLM.from_pretrained(tiny_model))
    with pytest.raises(ValueError, match=REFUSED[way]):
        train(model, tiny_model, tmp_path, adapter)


def test_pissa_is_refused_by_path_too(tmp_path, tiny_model):
    with pytest.raises(ValueError, match="another model than it was"):
        train(str(tiny_model), tiny_model, tmp_path, lora(init_lora_weights="pissa"))
