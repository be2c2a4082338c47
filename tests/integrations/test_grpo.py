"""A step of GRPO with a loss's slopes is the step on the loss."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

trl = pytest.importorskip("trl")

from pyfast import losses  # noqa: E402
from pyfast.integrations.grpo import GroupLossGRPOTrainer  # noqa: E402
from pyfast.models.shared_prompt import GroupScorer  # noqa: E402

SIZE = 4
GOOD = {"good", "great", "happy", "love", "nice"}


def reward(completions, **_):
    return [sum(word in GOOD for word in text.split()) - 0.1 * len(text) for text in completions]


def make(folder, where, *, lora=True, rows=None, more=None, model=None, **changes):
    settings = {
        "output_dir": str(folder),
        "max_steps": 1,
        "per_device_train_batch_size": 2 * SIZE,
        "num_generations": SIZE,
        "max_completion_length": 6,
        "loss_type": "dr_grpo",
        "learning_rate": 0.5,
        "optim": "sgd",
        "max_grad_norm": 0.0,  # SGD without clipping: the step is the gradient
        "lr_scheduler_type": "constant",
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
        "bf16": False,
        "beta": 0.0,
        **changes,
    }
    model = AutoModelForCausalLM.from_pretrained(where) if model is None else model
    adapter = LoraConfig(r=2, target_modules="all-linear")
    torch.manual_seed(0)
    prompts = ["tell me about the day", "tell me about a dog"]
    return GroupLossGRPOTrainer(
        model,
        reward,
        args=trl.GRPOConfig(**settings),
        train_dataset=Dataset.from_list([{"prompt": p} for p in rows or prompts]),
        processing_class=AutoTokenizer.from_pretrained(where, padding_side="left"),
        peft_config=lora if isinstance(lora, LoraConfig) else adapter if lora else None,
        **(more or {}),
    )


@pytest.mark.parametrize("name", ["swepo", "hps", "plackett_luce_top1", "ipo"])
def test_one_step_is_the_step_on_the_loss(tmp_path, tiny_model, monkeypatch, name):
    kwargs = {"beta": 0.3} | ({"gamma": 2.0} if name == "hps" else {})
    trainer = make(tmp_path, tiny_model, more={"loss": name, "loss_kwargs": kwargs})
    seen = {}

    def slopes(policy, reference, lengths):
        seen.update(rewards=trainer._rewards.clone(), policy=policy.clone())
        return GroupLossGRPOTrainer._slopes(trainer, policy, reference, lengths)

    monkeypatch.setattr(trainer, "_slopes", slopes)
    generate = trainer._generate_and_score_completions
    monkeypatch.setattr(
        trainer,
        "_generate_and_score_completions",
        lambda inputs: seen.setdefault("batch", generate(inputs)),
    )
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    batch, rewards = seen["batch"], seen["rewards"]
    assert len(set(rewards.tolist())) > 2  # else there is nothing to learn

    # the same by hand: each completion scored alone, the loss group by group
    model = trainer.accelerator.unwrap_model(trainer.model)
    after = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    for parameter, value in zip(
        (p for p in model.parameters() if p.requires_grad), before.values(), strict=True
    ):
        parameter.data.copy_(value)
        parameter.grad = None
    total = 0.0
    for start in range(0, len(rewards), SIZE):
        rows = sorted(range(start, start + SIZE), key=lambda i: -rewards[i])
        scored, referred = [], []
        for i in rows:
            prompt = batch["prompt_ids"][i][batch["prompt_mask"][i].bool()].tolist()
            response = batch["completion_ids"][i][batch["completion_mask"][i].bool()].tolist()
            scorer = GroupScorer(model, share=False)
            scored.append(scorer.logps([(prompt, [response])]))
            with torch.no_grad(), model.disable_adapter():
                referred.append(scorer.logps([(prompt, [response])]))
        arguments = [torch.cat(scored), torch.cat(referred)]
        if name != "plackett_luce_top1":
            arguments.append(rewards[rows])
        total = total + getattr(losses, name)(*arguments, **kwargs) / 2
    total.backward()
    moved = 0.0
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            step = after[key] - before[key]
            torch.testing.assert_close(step, -0.5 * parameter.grad, rtol=2e-4, atol=2e-6)
            moved = max(moved, float(step.abs().max()))
    assert moved > 1e-3


def test_equal_and_unknown_rewards_give_no_slope(tmp_path, tiny_model):
    trainer = make(tmp_path, tiny_model)
    trainer.model.train()
    policy = torch.randn(2 * SIZE, generator=torch.Generator().manual_seed(0))
    lengths = torch.ones(2 * SIZE)
    trainer._rewards = torch.ones(2 * SIZE)
    assert not trainer._slopes(policy, policy, lengths).any()
    trainer._rewards = torch.tensor([1.0, float("nan"), 3.0, 0.0, 2.0, 2.0, 2.0, 2.0])
    found = trainer._slopes(policy, policy - 0.1 * policy, lengths)
    assert found[2] > 0
    assert found[0] < 0
    assert found[3] < 0
    assert not found[[1, 4, 5, 6, 7]].any()


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        ({"loss_type": "grpo"}, {}, "args.loss_type: expected 'dr_grpo', got 'grpo'"),
        ({"temperature": 0.7}, {}, "args.temperature: expected 1.0"),
        ({"mask_truncated_completions": True}, {}, "args.mask_truncated_completions"),
        ({"lora": False}, {}, "reference_model: expected one"),
        ({}, {"loss": "nothing"}, "loss: expected one of"),
    ],
)
def test_what_would_not_be_the_losss_gradient_is_refused(
    tmp_path, tiny_model, changes, more, message
):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, tiny_model, more=more, **changes)


def test_a_reference_that_would_be_another_model_is_refused(tmp_path, tiny_model):
    adapter = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa")
    with pytest.raises(ValueError, match="another model than it was"):
        make(tmp_path, tiny_model, lora=adapter)
    given = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), adapter)
    with pytest.raises(ValueError, match="init_lora_weights='pissa' has changed the weights"):
        make(tmp_path, tiny_model, lora=False, model=given)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.model.layers[0].self_attn.q_proj.bias = torch.nn.Parameter(torch.zeros(32))
    adapter = LoraConfig(r=2, target_modules=["q_proj"], bias="lora_only")
    with pytest.raises(ValueError, match="training would change the reference too"):
        make(tmp_path, tiny_model, lora=adapter, model=model)


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_the_reference_of_an_adapter_that_was_given(tmp_path, tiny_model, beta):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"]))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    groups = [([4, 5, 6], [[7, 8], [9]])]
    with torch.no_grad():
        own = GroupScorer(model).logps(groups)
        with model.disable_adapter():
            without = GroupScorer(model).logps(groups)
    assert (own - without).abs().min() > 0.01
    trainer = make(tmp_path, tiny_model, lora=False, model=model, beta=beta)
    with torch.no_grad():
        torch.testing.assert_close(trainer._reference_logps(groups), own if beta else without)
