"""MultiPreferenceTrainer in two processes: the training of one with batches twice as large."""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("trl")

SCRIPT = """
import os, random, sys
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig
from pyfast.integrations.trl import MultiPreferenceTrainer

where, out, lora, precompute = sys.argv[1], sys.argv[2], sys.argv[3] == "1", sys.argv[4] == "1"
torch.set_num_threads(1)
draw = random.Random(0)
words = "good great happy love nice bad sad awful the day dog".split()
text = lambda most: " ".join(draw.choices(words, k=draw.randint(1, most)))
rows = [
    {"prompt": text(6) + " ", "responses": [text(8) for _ in range(n)],
     "scores": [draw.random() for _ in range(n)]}
    for n in [2, 3, 5, 4] * 6
]
world = int(os.environ.get("WORLD_SIZE", 1))
torch.manual_seed(0)
args = DPOConfig(
    out + "-run", max_steps=4, per_device_train_batch_size=4 // world,
    per_device_eval_batch_size=4 // world, gradient_accumulation_steps=2, learning_rate=5e-3,
    logging_steps=1, save_strategy="no", report_to="none", use_cpu=True, bf16=False, beta=0.3,
    disable_tqdm=True, precompute_ref_log_probs=precompute,
    **({"ddp_backend": "gloo"} if world > 1 else {}),
)
trainer = MultiPreferenceTrainer(
    AutoModelForCausalLM.from_pretrained(where), args=args, train_dataset=Dataset.from_list(rows),
    eval_dataset=Dataset.from_list(rows[:8]), processing_class=AutoTokenizer.from_pretrained(where),
    peft_config=LoraConfig(r=2, target_modules="all-linear") if lora else None, loss="swepo",
)
trainer.train()
trainer.evaluate()
model = trainer.accelerator.unwrap_model(trainer.model)
weights = {name: p.detach().clone() for name, p in model.named_parameters()}
torch.save((weights, trainer.state.log_history), f"{out}-{trainer.accelerator.process_index}.pt")
"""
LOGGED = ("loss", "grad_norm", "rewards/chosen", "rewards/margins", "num_tokens", "eval_loss")


def run(folder, name, *, processes, where, lora, precompute):
    script = folder / "train.py"
    script.write_text(SCRIPT)
    starter = [sys.executable]
    if processes > 1:
        starter += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    words = [str(where), str(folder / name), str(int(lora)), str(int(precompute))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*starter, str(script), *words],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=folder,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{name}-{rank}.pt") for rank in range(processes)]


@pytest.mark.parametrize(
    ("lora", "precompute"),
    [(True, False), pytest.param(False, True, marks=pytest.mark.slow)],
    ids=["lora", "full-precomputed"],
)
def test_two_processes_train_as_one_does(tmp_path, tiny_model, lora, precompute):
    how = {"where": tiny_model, "lora": lora, "precompute": precompute}
    ((weights, log),) = run(tmp_path, "one", processes=1, **how)
    (first, their_log), (second, _) = run(tmp_path, "two", processes=2, **how)
    for name, value in weights.items():
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5)
        assert torch.equal(first[name], second[name]), name
    compared = 0
    for one, two in zip(log, their_log, strict=True):
        for name in LOGGED:
            if name in one:
                assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), name
                compared += 1
    assert compared == 4 * 5 + 1
