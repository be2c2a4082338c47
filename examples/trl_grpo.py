"""TRL's GRPO trainer with the slopes of a group loss as its advantages.

pip install ".[trl]"
python examples/trl_grpo.py MODEL PROMPTS.jsonl [STEPS]

MODEL is a folder or hub id of a causal language model; each line of PROMPTS.jsonl holds a prompt
and perhaps more. Trains a LoRA adapter towards longer words, saved in trl-grpo/.
"""

import sys

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig

from pyfast.integrations.grpo import GroupLossGRPOTrainer


def letters(completions, **_):
    """Reward letters a word: put a reward of your own here."""
    return [len(text.replace(" ", "")) / (1 + len(text.split())) for text in completions]


def main(name, path, steps=5):
    """Train, and return the trainer."""
    gpu = torch.cuda.is_available()
    trainer = GroupLossGRPOTrainer(
        AutoModelForCausalLM.from_pretrained(name),
        letters,
        args=GRPOConfig(
            "trl-grpo", max_steps=steps, per_device_train_batch_size=8, num_generations=4,
            max_completion_length=16, learning_rate=1e-3, loss_type="dr_grpo", logging_steps=1,
            report_to="none", use_cpu=not gpu, bf16=gpu,
        ),
        train_dataset=Dataset.from_json(path).select_columns(["prompt"]),
        processing_class=AutoTokenizer.from_pretrained(name, padding_side="left"),
        peft_config=LoraConfig(r=8, target_modules="all-linear"),
        loss="swepo",
        loss_kwargs={"beta": 0.1},
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
