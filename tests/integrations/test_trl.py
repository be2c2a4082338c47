"""MultiPreferenceTrainer beside TRL's DPOTrainer, and what that one has no word for."""

import copy
import math
import pickle

import pytest
import torch
from datasets import Dataset, load_from_disk
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

trl = pytest.importorskip("trl")

from pyfast import losses, select  # noqa: E402
from pyfast.integrations.trl import MultiPreferenceTrainer  # noqa: E402
from pyfast.models.shared_prompt import GroupScorer  # noqa: E402

STEPS = 50
LOGGED = ("loss", "grad_norm", "rewards/chosen", "rewards/margins", "rewards/accuracies")
PRINTED = ("loss", "rewards/margins", "grad_norm")


def config(folder, **changes):
    settings = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 5e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "beta": 0.3,
        "disable_tqdm": True,
        "bf16": False,
        **changes,
    }
    return trl.DPOConfig(**settings)


def trained(kind, folder, rows, where, *, lora, eval_rows=None, more=None, **changes):
    """Train from the same start; return the trainer and what it logged."""
    model = AutoModelForCausalLM.from_pretrained(where)
    peft_config = None
    if lora:
        peft_config = LoraConfig(r=2, target_modules="all-linear")
    torch.manual_seed(0)  # of the adapter: older versions do not set it
    trainer = kind(
        model,
        args=config(folder, **changes),
        train_dataset=rows,
        eval_dataset=eval_rows,
        processing_class=AutoTokenizer.from_pretrained(where),
        peft_config=peft_config,
        **(more or {}),
    )
    trainer.train()
    return trainer, trainer.state.log_history


def largest_apart(ours, theirs, name):
    """How far a logged number is from TRL's at its worst step."""
    steps = zip(ours, theirs, strict=True)
    return max(abs(a[name] - b[name]) for a, b in steps if name in b)


@pytest.mark.parametrize("precompute", [False, True], ids=["reference", "precomputed"])
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_pairs_train_as_trl_trains_them(tmp_path, tiny_model, pairs, lora, precompute, parity):
    changes = {"lora": lora, "precompute_ref_log_probs": precompute}
    _, theirs = trained(trl.DPOTrainer, tmp_path / "a", pairs, tiny_model, **changes)
    more = {"loss": "dpo"}
    _, ours = trained(
        MultiPreferenceTrainer, tmp_path / "b", pairs, tiny_model, more=more, **changes
    )
    steps = [(a, b) for a, b in zip(theirs, ours, strict=True) if "loss" in a]
    assert len(steps) == STEPS
    for a, b in steps:
        # at the first step all rewards are 0 but for rounding, and TRL counts who is above
        for name in LOGGED if a["step"] > 1 else LOGGED[:-1]:
            assert b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-4), (a["step"], name)
    parity(*(largest_apart(ours, theirs, name) for name in PRINTED))
    assert abs(steps[-1][0]["rewards/margins"]) > 0.5  # something was learnt


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_mixed_precision_trains_as_trl_does_within_its_rounding(tmp_path, tiny_model, pairs, lora):
    changes = {"lora": lora, "bf16": True, "max_steps": 10}
    _, theirs = trained(trl.DPOTrainer, tmp_path / "a", pairs, tiny_model, **changes)
    _, exact = trained(
        trl.DPOTrainer, tmp_path / "c", pairs, tiny_model, **{**changes, "bf16": False}
    )
    more = {"loss": "dpo"}
    _, ours = trained(
        MultiPreferenceTrainer, tmp_path / "b", pairs, tiny_model, more=more, **changes
    )
    for a, b, c in zip(theirs, ours, exact, strict=True):
        if "loss" in a:  # no further from float32 than TRL's own
            allowed = abs(a["loss"] - c["loss"]) + 0.02
            assert b["loss"] == pytest.approx(c["loss"], abs=allowed)


class Gradients(TrainerCallback):
    """Keeps the gradient of every step."""

    def __init__(self):
        self.found = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        parts = [p.grad.float().flatten() for p in model.parameters() if p.grad is not None]
        self.found.append(torch.cat(parts))


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_gradients_in_mixed_precision_are_as_near_as_trls(
    tmp_path, tiny_model, pairs, lora, parity
):
    def gradients(kind, bf16, **more):
        kept = Gradients()
        changes = {"lora": lora, "max_steps": 6, "learning_rate": 0.0, "max_grad_norm": 0.0}
        more |= {"callbacks": [kept]}
        trained(kind, tmp_path / "out", pairs, tiny_model, more=more, bf16=bf16, **changes)
        return torch.stack(kept.found)

    exact = gradients(trl.DPOTrainer, False)
    theirs = gradients(trl.DPOTrainer, True)
    ours = gradients(MultiPreferenceTrainer, True, loss="dpo")
    apart = [((x - exact).norm(dim=1) / exact.norm(dim=1)).mean().item() for x in (theirs, ours)]
    for who, value in zip(("TRL's", "ours"), apart, strict=True):
        parity(value, what=f"{who} bf16 gradient")
    assert 0 < apart[1] < 1.2 * apart[0]


GROUPS = [
    {
        "prompt": prompt,
        "responses": ["good day", "bad rain dog", "sad", "awful awful hate", "nice sun"],
        "scores": [0.9, 0.2, 0.1, 0.0, 0.7],
        "embeddings": [[1.0, 0], [0, 1], [0, 1.1], [3, 3], [1, 0.1]],
    }
    for prompt in ("tell me about the day ", "tell me about a dog ", "about the sun ", "rain ")
]


def direct(trainer, loss, rows):
    """The loss of rows by hand: one scorer, one group after the other."""
    scorer = GroupScorer(trainer.accelerator.unwrap_model(trainer.model))
    found = []
    for row in rows:
        group = [(row["prompt_ids"], row["response_ids"])]
        with torch.no_grad():
            policy = scorer.logps(group)
            with trainer.model.disable_adapter():
                reference = scorer.logps(group)
        found.append(loss(policy, reference, torch.tensor(row["scores"])))
    return torch.stack(found).mean()


@pytest.mark.parametrize("name", ["swepo", "hps", "plackett_luce", "lipo_lambda", "ipo"])
def test_groups_of_any_size_with_any_loss(tmp_path, tiny_model, name):
    more = {"loss": name, "loss_kwargs": {"gamma": 2.0} if name == "hps" else {}}
    rows = Dataset.from_list(GROUPS)
    trainer, log = trained(
        MultiPreferenceTrainer,
        tmp_path,
        rows,
        tiny_model,
        eval_rows=rows,
        lora=True,
        max_steps=6,
        more=more,
    )
    found = [line["loss"] for line in log if "loss" in line]
    assert found[-1] < found[0]

    def loss(policy, reference, scores):
        return getattr(losses, name)(policy, reference, scores, beta=0.3, **more["loss_kwargs"])

    expected = direct(trainer, loss, trainer.eval_dataset)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-4)


def test_a_selector_between_data_and_loss(tmp_path, tiny_model):
    def selector(row):
        return select.opt_select(row["embeddings"], row["scores"], k=2)

    trainer, _ = trained(
        MultiPreferenceTrainer,
        tmp_path,
        Dataset.from_list(GROUPS),
        tiny_model,
        lora=True,
        max_steps=1,
        more={"loss": "swepo", "selector": selector},
    )
    picked = select.opt_select(GROUPS[0]["embeddings"], GROUPS[0]["scores"], k=2)
    row = trainer.train_dataset[0]
    assert row["scores"] == [GROUPS[0]["scores"][i] for i in (0, *picked.negatives)]
    assert len(row["response_ids"]) == 3


def test_a_stream_to_evaluate_beside_rows_to_train_on(tmp_path, tiny_model):
    """accelerate dispatches streams where nobody says no: batches were cut as tensors."""
    rows = Dataset.from_list(GROUPS)
    trainer, _ = trained(
        MultiPreferenceTrainer,
        tmp_path,
        rows,
        tiny_model,
        lora=True,
        eval_rows=rows.to_iterable_dataset(),
        max_steps=1,
        more={"loss": "swepo"},
        per_device_eval_batch_size=2,
    )
    expected = trainer.evaluate(trainer.train_dataset)["eval_loss"]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected)


def listed(rejected):
    return {"rejected": rejected}


def numbered(rejected):
    """S-DPO's columns."""
    return {f"rejected{i}": text for i, text in enumerate([*rejected, None, None, None][:4], 1)}


@pytest.mark.parametrize("columns", [listed, numbered])
def test_rejected_responses_and_a_loss_of_ones_own(tmp_path, tiny_model, pairs, columns):
    seen = []

    def mine(policy_logps, ref_logps, *, offsets, beta):
        seen.append((offsets.tolist(), beta))
        return (policy_logps - ref_logps)[offsets[:-1]].neg().mean() * beta

    rows = [
        {k: row[k] for k in ("prompt", "chosen")} | columns([row["rejected"]] * (1 + i))
        for i, row in enumerate(pairs.select(range(4)))
    ]
    trained(
        MultiPreferenceTrainer,
        tmp_path,
        Dataset.from_list(rows),
        tiny_model,
        lora=True,
        max_steps=2,
        more={"loss": mine},
    )
    assert {beta for _, beta in seen} == {0.3}
    assert sorted(size for offsets, _ in seen for size in torch.tensor(offsets).diff()) == sorted(
        torch.tensor([2, 3, 4, 5] * 2)
    )


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        ({"loss_type": "ipo"}, {}, "args.loss_type: expected"),
        ({"label_smoothing": 0.1}, {}, "args.label_smoothing: expected 0.0"),
        ({"label_smoothing_factor": 0.1}, {}, r"args.label_smoothing_factor: expected 0\.0"),
        ({"neftune_noise_alpha": 5.0}, {}, "args.neftune_noise_alpha: expected None, or share=Fal"),
        ({}, {"loss": "dpoo"}, "loss: expected one of"),
        ({}, {"compute_metrics": len}, "compute_metrics: expected None"),
        ({}, {"selector": lambda row: [0, 0]}, "selector: expected distinct positions"),
        ({}, {"selector": lambda row: [0, 9]}, "selector: expected distinct positions"),
        ({}, {"selector": lambda row: None}, "selector: expected a result of pyfast.select"),
        ({"accelerator_config": {"dispatch_batches": True}}, {}, "expected dispatch_batches=False"),
        ({}, {"loss": "swepo", "share": 3}, "share"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, tiny_model, changes, more, message):
    rows = Dataset.from_list(GROUPS)
    with pytest.raises((ValueError, TypeError), match=message):
        trained(
            MultiPreferenceTrainer,
            tmp_path,
            rows,
            tiny_model,
            lora=True,
            max_steps=1,
            more=more,
            **changes,
        )


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_a_copy_of_a_trained_model_is_a_model_of_its_own(tmp_path, tiny_model, pairs, lora):
    changes = {"lora": lora, "max_steps": 1, "gradient_checkpointing": False}
    trainer, _ = trained(
        MultiPreferenceTrainer, tmp_path, pairs, tiny_model, more={"loss": "dpo"}, **changes
    )
    copies = [copy.deepcopy(trainer.model), pickle.loads(pickle.dumps(trainer.model))]
    for one in copies:
        with torch.no_grad():
            one.get_output_embeddings().weight.zero_()
            assert not one(input_ids=torch.tensor([[4, 5, 6]])).logits.any()
    assert trainer.model(input_ids=torch.tensor([[4, 5, 6]])).logits.any()


def test_precomputed_references_are_of_this_model_and_these_tokens(
    tmp_path, tiny_model, pairs, monkeypatch
):
    pairs.save_to_disk(str(tmp_path / "rows"))
    computed = []
    column = MultiPreferenceTrainer._reference_column
    monkeypatch.setattr(
        MultiPreferenceTrainer,
        "_reference_column",
        lambda self, *how: computed.append(1) or column(self, *how),
    )

    def first_loss(changed=(), **changes):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(tiny_model, **dict(changed))
        reference = None  # TRL 1.0 makes its own from the files, without what was changed
        if changed:
            reference = AutoModelForCausalLM.from_pretrained(tiny_model, **dict(changed))
        trainer = MultiPreferenceTrainer(
            model,
            reference,
            args=config(tmp_path, max_steps=1, precompute_ref_log_probs=True, **changes),
            train_dataset=load_from_disk(str(tmp_path / "rows")),
            processing_class=AutoTokenizer.from_pretrained(tiny_model),
            loss="dpo",
        )
        trainer.train()
        return trainer.state.log_history[0]["loss"]

    end = {"truncation_mode": "keep_end"}
    ways = [
        {"max_length": 9, **end},
        {"max_length": 6, **end},
        {"max_length": None},
        {"max_length": None, "changed": {"rms_norm_eps": 5.0}},
    ]
    for number, way in enumerate(ways):
        for _ in range(2):  # the second time it is there
            assert first_loss(**way) == pytest.approx(math.log(2), abs=1e-5), way
            assert len(computed) == number + 1


@pytest.mark.parametrize("keep", ["keep_start", "keep_end"])
def test_long_rows_are_cut_as_trl_cuts_them(tmp_path, tiny_model, pairs, keep):
    changes = {"lora": True, "max_steps": 5, "max_length": 9, "truncation_mode": keep}
    _, theirs = trained(trl.DPOTrainer, tmp_path / "a", pairs, tiny_model, **changes)
    more = {"loss": "dpo"}
    _, ours = trained(
        MultiPreferenceTrainer, tmp_path / "b", pairs, tiny_model, more=more, **changes
    )
    for a, b in zip(theirs, ours, strict=True):
        if "loss" in a:
            assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
