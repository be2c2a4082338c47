"""A DPO script of TRL's that stays as it is, but for its product with the head.

pip install ".[trl]"
python examples/trl_fast_head.py MODEL PAIRS.jsonl [STEPS]

MODEL is a folder or hub id of a causal language model; each line of PAIRS.jsonl holds prompt,
chosen and rejected (`pyfast export --format pairs`). Trains a LoRA adapter, saved in trl-pairs/.
"""

import sys

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from pyfast.integrations.trl import fast_head


def main(name, path, steps=20):
    """Train, and return the trainer."""
    gpu = torch.cuda.is_available()
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(name),
        args=DPOConfig(
            "trl-pairs", max_steps=steps, per_device_train_batch_size=2, learning_rate=5e-3,
            logging_steps=1, report_to="none", use_cpu=not gpu, bf16=gpu,
        ),
        train_dataset=Dataset.from_json(path),
        processing_class=AutoTokenizer.from_pretrained(name),
        peft_config=LoraConfig(r=8, target_modules="all-linear"),
    )  # fmt: skip
    with fast_head():
        trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
