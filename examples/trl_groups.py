"""TRL's DPO trainer for one chosen response and several against it, which a selector picks.

pip install ".[trl]"
python examples/trl_groups.py MODEL GROUPS.jsonl [STEPS]

MODEL is a folder or hub id of a causal language model; each line of GROUPS.jsonl holds a prompt,
its responses, their scores and their embeddings. Trains a LoRA adapter, saved in trl-groups/.
"""

import sys

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig

from pyfast import select
from pyfast.integrations.trl import MultiPreferenceTrainer


def cover_the_bad_ones(row):
    """Set against the best response the three whose neighbourhoods cover the others."""
    return select.opt_select(row["embeddings"], row["scores"], k=3)


def main(name, path, steps=20):
    """Train, and return the trainer."""
    gpu = torch.cuda.is_available()
    trainer = MultiPreferenceTrainer(
        AutoModelForCausalLM.from_pretrained(name),
        args=DPOConfig(
            "trl-groups", max_steps=steps, per_device_train_batch_size=2, learning_rate=5e-3,
            beta=0.1, logging_steps=1, report_to="none", use_cpu=not gpu, bf16=gpu,
        ),
        train_dataset=Dataset.from_json(path),
        processing_class=AutoTokenizer.from_pretrained(name),
        peft_config=LoraConfig(r=8, target_modules="all-linear"),
        loss="swepo",
        selector=cover_the_bad_ones,
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
