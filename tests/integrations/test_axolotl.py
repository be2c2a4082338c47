"""axolotl's trainer with groups, made as axolotl's builder makes it.

axolotl pins other versions of torch, transformers, peft and TRL than the tests use, so it is no
part of their environment. Its trainer is stood in for by one of the same shape: mixins before and
after TRL's trainer, and arguments that its builder gives (axolotl 0.19, `HFRLTrainerBuilder.build`
with ``rl: dpo``). Where axolotl imports, its own is taken.
"""

import importlib
import inspect
import sys
import types

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

trl = pytest.importorskip("trl")

from pyfast.integrations.trl import MultiPreferenceTrainer  # noqa: E402

NAME = "pyfast.integrations.axolotl"
ROWS = [
    {
        "prompt": f"tell me about the {topic} ",
        "chosen": "good day",
        "rejected": ["bad rain", "sad", "awful awful dog"],
    }
    for topic in ("day", "dog", "rain", "sun")
]


class Schedule(Trainer):
    """Before TRL's trainer, as the mixin of schedules is."""

    def create_scheduler(self, *args, **kwargs):
        self.scheduled_by_axolotl = True
        return super().create_scheduler(*args, **kwargs)


class Optimizer:
    """Takes a custom optimiser, which TRL's trainer does not."""

    def __init__(self, *args, **kwargs):
        self.custom = kwargs.pop("optimizer_cls_and_kwargs", None)
        super().__init__(*args, **kwargs)


class Parallel(Trainer):
    """After TRL's trainer."""


class AxolotlDPOTrainer(Schedule, Optimizer, trl.DPOTrainer, Parallel):
    """What axolotl's own is to its builder."""

    def __init__(self, *args, dataset_tags=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.dataset_tags = dataset_tags
        self.optimizer = None
        self.model_accepts_loss_kwargs = False


@pytest.fixture
def kind(monkeypatch):
    """The class that `trainer_cls` names, found as axolotl finds it."""
    try:
        importlib.import_module("axolotl.core.trainers.dpo.trainer")
    except ImportError:
        path = ""
        for part in ("axolotl", "core", "trainers", "dpo", "trainer"):
            path = f"{path}.{part}".lstrip(".")
            monkeypatch.setitem(sys.modules, path, types.ModuleType(path))
        sys.modules[path].AxolotlDPOTrainer = AxolotlDPOTrainer
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    yield importlib.import_module(NAME).AxolotlMultiPreferenceTrainer
    sys.modules.pop(NAME, None)


def arguments(folder, **changes):
    """What the configuration becomes."""
    settings = {
        "logging_first_step": True,
        "remove_unused_columns": False,
        "max_length": 64,
        "learning_rate": 5e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0,
        "logging_steps": 1,
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        **changes,
    }
    try:
        config = importlib.import_module("axolotl.core.trainers.dpo.args").AxolotlDPOConfig
    except ImportError:
        config = trl.DPOConfig
    return config(output_dir=str(folder), **settings)


def build(kind, where, training_args, rows=ROWS, **more):
    """Call the class with what axolotl's builder calls it with."""
    model = AutoModelForCausalLM.from_pretrained(where)
    tokenizer = AutoTokenizer.from_pretrained(where)
    trainer_kwargs = {"peft_config": LoraConfig(r=2, target_modules="all-linear"), **more}
    named = "tokenizer" in inspect.signature(kind).parameters
    trainer_kwargs["tokenizer" if named else "processing_class"] = tokenizer
    torch.manual_seed(0)
    return kind(
        model,
        None,  # an adapter is its own reference
        args=training_args,
        train_dataset=Dataset.from_list(rows),
        callbacks=[],
        **trainer_kwargs,
    )


def logged(trainer):
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def test_axolotl_trains_as_ours_does_and_keeps_its_own(kind, tiny_model, tmp_path):
    class Dmpo(kind):
        def __init__(self, *args, **others):
            super().__init__(*args, loss="dmpo", **others)

    trainer = build(Dmpo, tiny_model, arguments(tmp_path / "a"))
    found = logged(trainer)
    wanted = logged(
        build(
            lambda *args, **others: MultiPreferenceTrainer(*args, loss="dmpo", **others),
            tiny_model,
            arguments(tmp_path / "b"),
        )
    )
    assert found == pytest.approx(wanted, rel=1e-6)
    assert found[-1] < found[0]
    if kind.__mro__[3] is AxolotlDPOTrainer:
        assert trainer.scheduled_by_axolotl


def test_a_custom_optimiser_comes_to_axolotl(kind, tiny_model, tmp_path):
    chosen = (torch.optim.SGD, {"lr": 1.0})
    trainer = build(kind, tiny_model, arguments(tmp_path), optimizer_cls_and_kwargs=chosen)
    assert chosen in (getattr(trainer, "custom", None), trainer.optimizer_cls_and_kwargs)


def test_a_start_token_comes_once(kind, tiny_model, tmp_path):
    start = AutoTokenizer.from_pretrained(tiny_model).bos_token_id
    rows = [{"prompt_ids": [start, start, 5], "response_ids": [[6], [7]]}] * 2
    rows += [{"prompt_ids": [start, 5, 5], "response_ids": [[6], [7]]}]
    trainer = build(kind, tiny_model, arguments(tmp_path), rows)
    assert trainer.train_dataset["prompt_ids"][:] == [[start, 5], [start, 5], [start, 5, 5]]


def test_what_would_train_on_something_else_is_refused(kind, tiny_model, tmp_path):
    # what `type: {field_rejected: rejected}` makes of a list, and a template around it
    for form in ("{}", "{}<|im_end|>"):
        rows = [{**row, "rejected": form.format(row["rejected"])} for row in ROWS]
        with pytest.raises(ValueError, match=r"rejected: expected lists.*leave `type` out"):
            build(kind, tiny_model, arguments(tmp_path), rows)
    with pytest.raises(ValueError, match="pad_to_multiple_of"):
        build(kind, tiny_model, arguments(tmp_path), data_collator=list)
    with pytest.raises(ValueError, match="loss_type"):
        build(kind, tiny_model, arguments(tmp_path, loss_type=["ipo"]))  # rl: ipo
    other = TrainingArguments(str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    with pytest.raises(ValueError, match=r"rl: dpo.*TrainingArguments"):
        build(kind, tiny_model, other)
