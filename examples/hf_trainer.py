"""Hugging Face's Trainer with the loss of groups of responses, by a mixin.

pip install ".[transformers]"
python examples/hf_trainer.py MODEL GROUPS.jsonl [STEPS]

MODEL is a folder or hub id of a causal language model; each line of GROUPS.jsonl holds a prompt,
its responses and their scores. Trains a LoRA adapter, saved in hf-trainer/.
"""

import sys

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from pyfast import select
from pyfast.integrations.transformers import GroupTrainerMixin, tokenize_rows


class MyTrainer(GroupTrainerMixin, Trainer):
    """A trainer of yours: what it overrides stays, but for the loss and the batches."""


def lowest(row):
    """Set the three lowest against the best response."""
    return select.bottom_k(row["scores"], k=3)


def main(name, path, steps=20):
    """Train, and return the trainer."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForCausalLM.from_pretrained(name)
    trainer = MyTrainer(
        get_peft_model(model, LoraConfig(r=8, target_modules="all-linear")),
        TrainingArguments(
            "hf-trainer", max_steps=steps, per_device_train_batch_size=2, learning_rate=5e-3,
            logging_steps=1, report_to="none", use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=tokenize_rows(Dataset.from_json(path), tokenizer, selector=lowest),
        loss="swepo",
        loss_kwargs={"beta": 0.1},
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
