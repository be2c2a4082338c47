"""Preference optimisation in a loop of one's own: selector, scorer and loss are pyfast's.

pip install ".[train]"
python examples/plain_loop.py MODEL GROUPS.jsonl [STEPS]

MODEL is a folder or hub id of a causal language model; each line of GROUPS.jsonl holds a prompt,
its responses and their scores. Prints the loss and how far the chosen responses are ahead.
"""

import itertools
import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from pyfast import losses, select
from pyfast.models.shared_prompt import GroupScorer


def main(name, path, steps=20, k=3, groups_per_step=2):
    """Train a LoRA adapter on groups of a file; return it."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(name)
    model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear")).eval()
    scorer = GroupScorer(model)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)

    groups = []
    for line in Path(path).read_bytes().split(b"\n"):  # a text may hold other line ends
        if not line.strip():
            continue
        row = json.loads(line)
        # The best response, and the k lowest: `opt_select` chooses better, given embeddings.
        picked = select.bottom_k(row["scores"], k=k)
        order = [picked.positive, *picked.negatives]
        prompt = tokenizer(row["prompt"])["input_ids"]
        ends = [tokenizer.eos_token_id]
        responses = [
            tokenizer(row["responses"][i], add_special_tokens=False)["input_ids"] + ends
            for i in order
        ]
        groups.append(((prompt, responses), torch.tensor([row["scores"][i] for i in order])))

    with torch.no_grad(), model.disable_adapter():  # the reference never changes: score it once
        reference = [scorer.logps([group]) for group, _ in groups]
    rows = itertools.cycle(range(len(groups)))
    for step in range(steps):
        total, metrics = 0.0, {}
        for number in itertools.islice(rows, groups_per_step):
            group, scores = groups[number]
            loss = losses.swepo(
                scorer.logps([group]), reference[number], scores, beta=0.1, metrics=metrics
            )
            (loss / groups_per_step).backward()
            total += loss.item() / groups_per_step
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        print(f"step {step + 1}: loss {total:.4f}, margin {metrics['rewards/margins']:.4f}")
    return model


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
