"""Hugging Face's own Trainer with groups: the steps of a loop by hand."""

import copy
import os
import pickle
import subprocess
import sys

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from pyfast import losses
from pyfast.integrations.transformers import GroupTrainer, GroupTrainerMixin, tokenize_rows
from pyfast.models.shared_prompt import GroupScorer

WORDS = ["good", "great", "happy", "bad", "sad", "awful", "the", "day", "dog"]


def rows(count=8, sizes=(2, 3, 5, 4)):
    import random

    draw = random.Random(0)

    def text(most):
        return " ".join(draw.choices(WORDS, k=draw.randint(1, most)))

    return Dataset.from_list([
        {"prompt": text(6) + " ", "responses": [text(8) for _ in range(n)],
         "scores": [draw.random() for _ in range(n)]}
        for n in (sizes * count)[:count]
    ])  # fmt: skip


def model_of(where, lora=True):
    model = AutoModelForCausalLM.from_pretrained(where)
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=2, target_modules="all-linear")) if lora else model


def settings(folder, **changes):
    return TrainingArguments(**{
        "output_dir": str(folder), "max_steps": 3, "per_device_train_batch_size": 2,
        "learning_rate": 0.05, "optim": "sgd", "lr_scheduler_type": "constant", "seed": 0,
        "max_grad_norm": 0.0, "report_to": "none", "use_cpu": True, "save_strategy": "no",
        "logging_steps": 1, "disable_tqdm": True, "bf16": False, **changes,
    })  # fmt: skip


@pytest.fixture
def data(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    return tokenize_rows(rows(), tokenizer)


class InOrder:
    """Rows as they lie, so that a loop by hand has the same."""

    def _get_train_sampler(self, *_):
        return None


class Ordered(InOrder, GroupTrainer):
    pass


def by_hand(where, data, steps, size, lora, name, kwargs):
    """One response at a time, plain SGD."""
    model = model_of(where, lora)
    reference = AutoModelForCausalLM.from_pretrained(where)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(parameters, 0.05)

    def logps(which, row):
        found = []
        for y in row["response_ids"]:
            x = row["prompt_ids"]
            tokens = torch.tensor([x + y])
            table = which(input_ids=tokens).logits[0, :-1].log_softmax(-1)
            found.append(table[range(len(x) - 1, len(x) + len(y) - 1), y].sum())
        return torch.stack(found)

    model.eval()
    seen = []
    for step in range(steps):
        batch = [data[(step * size + i) % len(data)] for i in range(size)]
        parts = []
        for row in batch:
            with torch.no_grad():
                ref = logps(reference, row)
            how = kwargs | ({"rewards": torch.tensor(row["scores"])} if name != "dmpo" else {})
            parts.append(getattr(losses, name)(logps(model, row), ref, **how))
        loss = torch.stack(parts).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        seen.append(loss.item())
    return seen, {n: p.detach() for n, p in model.named_parameters()}


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize(("name", "kwargs"), [("swepo", {"beta": 0.3}), ("dmpo", {"beta": 0.2})])
def test_steps_are_those_of_a_loop_by_hand(tmp_path, tiny_model, data, lora, name, kwargs):
    expected, weights = by_hand(tiny_model, data, 3, 4, lora, name, kwargs)
    more = {} if lora else {"ref_model": AutoModelForCausalLM.from_pretrained(tiny_model)}
    for accumulated in (1, 2):  # the mean over all groups, not a sum of means
        trainer = Ordered(
            model_of(tiny_model, lora),
            settings(tmp_path, per_device_train_batch_size=4 // accumulated,
                     gradient_accumulation_steps=accumulated),
            train_dataset=data, loss=name, loss_kwargs=kwargs, **more,
        )  # fmt: skip
        trainer.train()
        log = [row for row in trainer.state.log_history if "loss" in row]
        # the trainer rounds what it logs
        assert [row["loss"] for row in log] == pytest.approx(expected, rel=1e-3)
        assert "rewards/margins" in log[0]
        for name_of, p in trainer.model.named_parameters():
            torch.testing.assert_close(p.detach(), weights[name_of], rtol=1e-3, atol=5e-6)


def test_references_of_every_kind_and_evaluation(tmp_path, tiny_model, data):
    reference = AutoModelForCausalLM.from_pretrained(tiny_model)
    scorer = GroupScorer(reference.eval())
    with torch.no_grad():
        column = [scorer.logps([(r["prompt_ids"], r["response_ids"])]).tolist() for r in data]
    found = []
    for given, more in (
        (data, {}),
        (data, {"ref_model": reference}),
        (data.add_column("ref_logps", column), {}),
    ):
        trainer = Ordered(
            model_of(tiny_model), settings(tmp_path), train_dataset=given, eval_dataset=given,
            loss="swepo", **more,
        )  # fmt: skip
        trainer.train()
        trainer.evaluate()
        found.append((trainer.state.log_history, trainer.state.log_history[-1]))
    for log, held in found[1:]:
        assert held["eval_loss"] == pytest.approx(found[0][1]["eval_loss"], rel=1e-5)
        margin = found[0][1]["eval_rewards/margins"]
        assert held["eval_rewards/margins"] == pytest.approx(margin, rel=1e-3)
        for a, b in zip(log, found[0][0], strict=True):
            if "loss" in a:
                assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    assert all(not p.requires_grad for p in reference.parameters())


def test_every_evaluation_has_metrics_of_its_own_rows(tmp_path, tiny_model, data):
    parts = {"a": data.select(range(3)), "b": data.select(range(3, 8))}
    trainer = Ordered(
        model_of(tiny_model), settings(tmp_path), train_dataset=data, eval_dataset=parts,
        loss="swepo",
    )  # fmt: skip
    trainer.train()
    first = trainer.evaluate()
    for name, part in parts.items():
        for prefix in ("test", "eval"):  # by itself, after another set that nothing has logged
            trainer.predict(data)
            found = trainer.evaluate(part, metric_key_prefix=prefix)
            assert trainer.state.log_history[-1][f"{prefix}_loss"] == found[f"{prefix}_loss"]
            for what in ("loss", "rewards/margins"):
                assert found[f"{prefix}_{what}"] == first[f"eval_{name}_{what}"]
    assert first["eval_a_rewards/margins"] != first["eval_b_rewards/margins"]
    assert not any(name.startswith("eval_rewards") for name in first)
    assert "test_rewards/margins" in trainer.predict(data).metrics


def test_metrics_of_an_evaluation_are_means_over_its_groups(tmp_path, tiny_model, data):
    """Means of batches counted the groups of the last one, which may be alone, for more."""
    found = []
    for size in (1, 2, 3, 8):
        how = settings(tmp_path, per_device_eval_batch_size=size)
        trainer = Ordered(model_of(tiny_model), how, train_dataset=data, loss="swepo")
        found.append(trainer.evaluate(data.select(range(7))))
    for one in found[1:]:
        for name in ("loss", "logps/chosen", "logps/rejected", "negatives/effective"):
            assert one[f"eval_{name}"] == pytest.approx(found[0][f"eval_{name}"], rel=1e-4)


@pytest.mark.parametrize("way", ["alone", "named", "later"])
def test_streams_to_evaluate_are_whole(tmp_path, tiny_model, data, way):
    """accelerate dispatches streams where nobody says no: batches were cut as tensors."""
    stream = data.to_iterable_dataset()
    given = {"alone": stream, "named": {"a": stream}, "later": None}[way]
    how = settings(tmp_path, per_device_eval_batch_size=4)  # of a rest transformers repeats some
    trainer = Ordered(
        model_of(tiny_model), how, train_dataset=data, eval_dataset=given, loss="swepo"
    )
    found = trainer.evaluate(stream if way == "later" else None)
    expected = trainer.evaluate(data)["eval_loss"]
    assert found["eval_a_loss" if way == "named" else "eval_loss"] == pytest.approx(expected)


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_a_copy_of_a_trained_model_is_a_model_of_its_own(tmp_path, tiny_model, data, lora):
    more = {} if lora else {"ref_model": AutoModelForCausalLM.from_pretrained(tiny_model)}
    trainer = Ordered(model_of(tiny_model, lora), settings(tmp_path), train_dataset=data, **more)
    trainer.train()
    copies = [copy.deepcopy(trainer.model), pickle.loads(pickle.dumps(trainer.model))]
    for one in copies:
        with torch.no_grad():
            one.get_output_embeddings().weight.zero_()
            assert not one(input_ids=torch.tensor([[4, 5, 6]])).logits.any()
    assert trainer.model(input_ids=torch.tensor([[4, 5, 6]])).logits.any()


def with_bias(where):
    model = AutoModelForCausalLM.from_pretrained(where)
    for layer in model.model.layers:
        layer.self_attn.q_proj.bias = torch.nn.Parameter(torch.zeros(32))
    return get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", bias="lora_only"))


def with_embeddings(where):
    model = model_of(where)
    model.get_input_embeddings().weight.requires_grad_(True)
    return model


def with_pissa(where):
    model = AutoModelForCausalLM.from_pretrained(where)
    how = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa_niter_2")
    return get_peft_model(model, how)


def with_new_tokens(where):
    model = AutoModelForCausalLM.from_pretrained(where)
    how = LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[4, 5])
    return get_peft_model(model, how)


@pytest.mark.parametrize("way", [with_bias, with_embeddings, with_pissa])
def test_an_adapter_off_that_is_no_reference_is_refused(tmp_path, tiny_model, data, way):
    trainer = Ordered(way(tiny_model), settings(tmp_path), train_dataset=data)
    with pytest.raises(ValueError, match=r"model: .*give the reference yourself"):
        trainer.train()
    reference = AutoModelForCausalLM.from_pretrained(tiny_model)
    Ordered(way(tiny_model), settings(tmp_path), train_dataset=data, ref_model=reference).train()
    Ordered(with_new_tokens(tiny_model), settings(tmp_path), train_dataset=data).train()


def test_dropout_is_not_the_references(tmp_path, tiny_model, data):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, attention_dropout=0.5)
    model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    trainer = GroupTrainer(model, settings(tmp_path), train_dataset=data)
    model.train()
    batch = trainer.data_collator([data[0], data[1]])
    found = [trainer._reference(batch) for _ in range(2)]
    assert torch.equal(*found)
    assert model.training


def test_streams_and_mixed_precision(tmp_path, tiny_model, data):
    stream = data.to_iterable_dataset()
    how = settings(tmp_path / "a")
    trainer = GroupTrainer(model_of(tiny_model), how, train_dataset=stream)
    assert trainer.accelerator.dispatch_batches is False
    trainer.train()
    plain = Ordered(model_of(tiny_model), settings(tmp_path / "b"), train_dataset=data)
    plain.train()
    for a, b in zip(trainer.state.log_history, plain.state.log_history, strict=True):
        if "loss" in a:
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    half = Ordered(model_of(tiny_model), settings(tmp_path, bf16=True), train_dataset=data)
    types = []
    layer = next(m for n, m in half.model.named_modules() if n.endswith("q_proj.base_layer"))
    layer.register_forward_hook(lambda _m, _i, out: types.append(out.dtype))
    half.train()
    assert types[-1] == torch.bfloat16  # the first ones are of what is tried out
    for a, b in zip(half.state.log_history, plain.state.log_history, strict=True):
        if "loss" in a:
            assert a["loss"] == pytest.approx(b["loss"], abs=0.05)


def test_a_trainer_of_ones_own_resumes(tmp_path, tiny_model, data):
    class Mine(GroupTrainerMixin, Trainer):
        pass

    def make(**changes):
        how = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"}
        return Mine(model_of(tiny_model), settings(tmp_path, **how, **changes), train_dataset=data)

    whole = make()
    whole.train()
    again = make()
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_does_not_fit_is_told(tmp_path, tiny_model, data):
    def make(model=None, changes=None, **more):
        how = settings(tmp_path, **(changes or {}))
        return GroupTrainer(model or model_of(tiny_model), how, train_dataset=data, **more)

    for name in ("best", "advantages", "sequence_logps"):
        with pytest.raises(ValueError, match=r"loss: expected one of dmpo, dpo, .*; got"):
            make(loss=name)
    with pytest.raises(ValueError, match="scores: expected in every row, because the loss"):
        make(loss="swepo").evaluate(data.remove_columns("scores"))
    with pytest.raises(ValueError, match=r"rows: expected prompt_ids .*tokenize_rows"):
        make(changes={"remove_unused_columns": False}).evaluate(rows())
    with pytest.raises(ValueError, match="share: expected"):
        make(share="no")
    with pytest.raises(ValueError, match="data_collator: expected None"):
        make(data_collator=print)
    with pytest.raises(ValueError, match="compute_metrics: expected None"):
        make(compute_metrics=print)
    with pytest.raises(ValueError, match=r"label_smoothing_factor: expected 0\.0, got 0\.1"):
        make(changes={"label_smoothing_factor": 0.1})
    with pytest.raises(ValueError, match="neftune_noise_alpha: expected None, or share=False"):
        make(changes={"neftune_noise_alpha": 5.0})
    make(changes={"neftune_noise_alpha": 5.0}, share=False)
    with pytest.raises(ValueError, match="accelerator_config: expected dispatch_batches=False"):
        make(changes={"accelerator_config": {"dispatch_batches": True}})
    bare = model_of(tiny_model, lora=False)
    with pytest.raises(ValueError, match="ref_model: expected another model"):
        make(bare, ref_model=bare)
    with pytest.raises(ValueError, match="ref_model: expected one, or ref_logps in the rows"):
        make(bare).train()
    make(bare, loss_kwargs={"reward": "simpo", "beta": 2.0}).train()


SCRIPT = """
import os, sys
import torch
from transformers import AutoTokenizer
sys.path.insert(0, sys.argv[3])
from test_transformers import Ordered, model_of, rows, settings
from pyfast.integrations.transformers import tokenize_rows

torch.set_num_threads(1)
where, out, stream = sys.argv[1], sys.argv[2], sys.argv[4] == "1"
world = int(os.environ.get("WORLD_SIZE", 1))
data = tokenize_rows(rows(16), AutoTokenizer.from_pretrained(where))
given = data.to_iterable_dataset(num_shards=2) if stream else data
trainer = Ordered(
    model_of(where),
    settings(out + "-run", per_device_train_batch_size=4 // world,
             per_device_eval_batch_size=4 // world, gradient_accumulation_steps=2,
             **({"ddp_backend": "gloo"} if world > 1 else {})),
    train_dataset=given, eval_dataset=data, loss="swepo", loss_kwargs={"beta": 0.3},
)
trainer.train()
trainer.evaluate()
model = trainer.accelerator.unwrap_model(trainer.model)
weights = {name: p.detach().clone() for name, p in model.named_parameters()}
torch.save((weights, trainer.state.log_history), f"{out}-{trainer.accelerator.process_index}.pt")
"""


def run(folder, name, processes, where, stream):
    script = folder / "train.py"
    script.write_text(SCRIPT)
    starter = [sys.executable]
    if processes > 1:
        starter += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    here = os.path.dirname(__file__)
    words = [str(where), str(folder / name), here, str(int(stream))]
    done = subprocess.run(
        [*starter, str(script), *words], capture_output=True, text=True, timeout=240, cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{name}-{rank}.pt") for rank in range(processes)]


def test_two_processes_train_as_one_does(tmp_path, tiny_model):
    ((weights, log),) = run(tmp_path, "one", 1, tiny_model, False)
    (first, theirs), (second, _) = run(tmp_path, "two", 2, tiny_model, False)
    moved = model_of(tiny_model)
    for name, value in moved.named_parameters():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], weights[name], rtol=1e-4, atol=1e-6)
        assert not value.requires_grad or not torch.equal(value, first[name])
    for a, b in zip(log, theirs, strict=True):
        for name in ("loss", "eval_loss", "rewards/margins", "grad_norm"):
            if name in a:
                assert b[name] == pytest.approx(a[name], rel=1e-3), name


@pytest.mark.slow
def test_two_processes_read_a_stream(tmp_path, tiny_model):
    (first, _), (second, _) = run(tmp_path, "two", 2, tiny_model, True)
    for name, value in first.items():
        assert torch.equal(value, second[name])


def test_a_tokenizer_without_an_end_token_is_refused(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="tokenizer: expected one with an end token"):
        tokenize_rows(rows(), tokenizer)
