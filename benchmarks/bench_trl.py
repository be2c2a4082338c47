"""A TRL script of a dozen lines before and after: `fast_head`, and `MultiPreferenceTrainer`.

``python benchmarks/bench_trl.py`` (about three minutes; needs the `train` and `trl` extras and the
demo's model). Each way trains LoRA on the same pairs in a process of its own: seconds of processor
time a step (the median of all but the first) and the peak of memory above that of the loaded
model. Losses of all steps must agree with TRL's to 1e-3 before anything is printed.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time

import resident

WAYS = ("trl", "fast_head", "MultiPreferenceTrainer")
SCRIPTS = {
    "trl": "trainer = DPOTrainer(...); trainer.train()",
    "fast_head": "with fast_head(): trainer.train()",
    "MultiPreferenceTrainer": 'MultiPreferenceTrainer(..., loss="dpo").train()',
}


def script(way: str, steps: int, checkpointing: bool, prompt: int, response: int) -> dict:
    """Train, and return losses, seconds of the steps and memory."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from pyfast.integrations.trl import MultiPreferenceTrainer, fast_head
    from pyfast.train.config import PolicyConfig
    from pyfast.train.files import resolve
    from pyfast.train.policy.gguf import gguf_folder

    where = gguf_folder(resolve(PolicyConfig().model))
    words = ["walk", "park", "is", "good", "body", "and", "soul", "on", "days", "sun", "or", "rain"]

    def text(start: int, count: int) -> str:
        return " ".join(words[(start * 7 + i * i) % len(words)] for i in range(count))

    rows = [
        {"prompt": text(i, prompt), "chosen": " " + text(i + 1, response),
         "rejected": " " + text(i + 5, response)}
        for i in range(2 * steps)
    ]  # fmt: skip
    stamps: list[float] = []

    class Stamps(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            stamps.append(time.process_time())

        def on_step_end(self, *_: object, **__: object) -> None:
            stamps.append(time.process_time())

    with tempfile.TemporaryDirectory() as out:
        # --- the script ---
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32)
        args = DPOConfig(
            out, max_steps=steps, per_device_train_batch_size=2, learning_rate=1e-4,
            logging_steps=1, report_to="none", save_strategy="no", use_cpu=True, bf16=False,
            gradient_checkpointing=checkpointing, disable_tqdm=True, seed=0,
        )  # fmt: skip
        kind = MultiPreferenceTrainer if way == "MultiPreferenceTrainer" else DPOTrainer
        trainer = kind(
            model=model,
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(where),
            peft_config=LoraConfig(r=16, target_modules="all-linear"),
            callbacks=[Stamps()],
            **({"loss": "dpo"} if kind is MultiPreferenceTrainer else {}),
        )
        loaded = resident.reset()
        with fast_head() if way == "fast_head" else contextlib.nullcontext():
            trainer.train()
        # ---
    peak = resident.peak()
    took = [b - a for a, b in zip(stamps[::2], stamps[1::2], strict=True)]
    return {
        "loss": [row["loss"] for row in trainer.state.log_history if "loss" in row],
        "seconds": statistics.median(took[1:]),
        "megabytes": (peak - loaded) / 2**20,
    }


def main() -> None:
    """Run every way in its own process, check, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--way", choices=WAYS, help="run one way here and print JSON")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=96, help="words of a prompt")
    parser.add_argument("--response", type=int, default=32, help="words of a response")
    parser.add_argument("--checkpointing", action="store_true", help="as TRL does by default")
    given = parser.parse_args()
    if given.way:
        print(json.dumps(script(given.way, given.steps, given.checkpointing, given.prompt,
                                given.response)))  # fmt: skip
        return
    found = {}
    for way in WAYS:
        command = [sys.executable, __file__, "--way", way, *sys.argv[1:]]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[way] = json.loads(done.stdout.splitlines()[-1])
    theirs = found["trl"]
    for way, ours in found.items():
        apart = max(abs(a - b) for a, b in zip(ours["loss"], theirs["loss"], strict=True))
        if not apart <= 1e-3:
            raise SystemExit(f"{way}: losses are {apart} apart from TRL's")
        ours["apart"] = apart
    print("| script | processor s a step | more memory, MB | against TRL | losses apart |")
    print("|---|---|---|---|---|")
    for way, ours in found.items():
        ratio = theirs["seconds"] / ours["seconds"]
        print(
            f"| `{SCRIPTS[way]}` | {ours['seconds']:.2f} | {ours['megabytes']:.0f} | "
            f"{ratio:.1f}x, {theirs['megabytes'] / ours['megabytes']:.1f}x | {ours['apart']:.0e} |"
        )


if __name__ == "__main__":
    main()
