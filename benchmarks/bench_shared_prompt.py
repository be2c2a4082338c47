"""Scoring a group with its prompt read once, beside a padded batch of all its responses.

The batch goes through the model twice: as trainers do, with the logits of every token ("padded"),
and leaner, with those of the response tokens alone.

``python benchmarks/bench_shared_prompt.py`` (about four minutes; needs the `train` extra and the
demo's model): SmolLM2-135M with LoRA on every linear layer, forward and backward.
"""

import argparse
import json
from pathlib import Path

import torch
from bench_step import make_policy
from harness import least_time
from torch import Tensor

from pyfast.train.policy.policy import Policy

PROMPT, RESPONSE = 256, 32
NEGATIVES = (3, 7, 15)
TARGETS = {3: 2.5, 7: 4.0, 15: 6.0}


def make_group(policy: Policy, k: int) -> tuple[list[int], list[list[int]]]:
    """Draw random tokens: what they say does not matter for the time."""
    generator = torch.Generator().manual_seed(k)
    vocabulary = policy.model.config.vocab_size
    tokens = torch.randint(3, vocabulary, (PROMPT + (1 + k) * RESPONSE,), generator=generator)
    responses = tokens[PROMPT:].reshape(1 + k, RESPONSE)
    return tokens[:PROMPT].tolist(), responses.tolist()


def padded_logps(policy: Policy, prompt: list[int], responses: list[list[int]]) -> Tensor:
    """Score as trainers do: a row for each response, the logits of every token."""
    tokens = torch.tensor([prompt + response for response in responses])
    logits = policy.model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    logps = logits[:, :-1].log_softmax(-1)
    picked = logps.gather(2, tokens[:, 1:, None]).squeeze(2)
    return picked[:, len(prompt) - 1 :].sum(1)


def lean_logps(policy: Policy, prompt: list[int], responses: list[list[int]]) -> Tensor:
    """Score a row for each response, its head on the response tokens, of one length, alone."""
    tokens = torch.tensor([prompt + response for response in responses])
    base = policy.model.get_base_model()
    states = base.base_model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    hidden = states.last_hidden_state[:, len(prompt) - 1 : -1]
    logps = base.get_output_embeddings()(hidden).log_softmax(-1)
    return logps.gather(2, tokens[:, len(prompt) :, None]).squeeze(2).sum(1)


def gradients(policy: Policy, logps: Tensor) -> Tensor:
    """Gradient of a weighted sum with respect to the adapter, end to end in one vector."""
    weights = torch.linspace(-1, 1, len(logps))
    parameters = list(policy.trainable().values())
    found = torch.autograd.grad((weights * logps).sum(), parameters)
    return torch.cat([part.flatten() for part in found]).double()


def measure(policy: Policy, k: int, repeats: int) -> dict[str, float]:
    """Check that all ways agree, then time them in turn."""
    prompt, responses = make_group(policy, k)
    ways = {
        "shared": lambda: policy.logps(prompt, responses),
        "padded": lambda: padded_logps(policy, prompt, responses),
        "lean": lambda: lean_logps(policy, prompt, responses),
    }

    def run(name: str) -> tuple[Tensor, Tensor]:
        logps = ways[name]()
        return logps.detach(), gradients(policy, logps)

    found = {name: run(name) for name in ways}
    ours, our_gradient = found.pop("shared")
    nats = off = gradient_off = 0.0
    for theirs, their_gradient in found.values():
        nats = max(nats, float((ours - theirs).abs().max()))
        off = max(off, float(((ours - theirs).abs() / theirs.abs()).max()))
        difference = (our_gradient - their_gradient).norm() / their_gradient.norm()
        gradient_off = max(gradient_off, float(difference))
    assert nats <= 1e-3, nats
    assert off <= 1e-5, off
    assert gradient_off <= 1e-5, gradient_off
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, times in seconds.items():
            times.append(least_time(lambda name=name: run(name), 1))
    best = {name: min(times) for name, times in seconds.items()}
    return {
        "k": k,
        **best,
        "ratio": best["padded"] / best["shared"],
        "lean_ratio": best["lean"] / best["shared"],
        "target": TARGETS[k],
        "tokens_ratio": (1 + k) * (PROMPT + RESPONSE) / (PROMPT + (1 + k) * RESPONSE),
        "logps_off": off,
        "logps_off_nats": nats,
        "gradient_off": gradient_off,
    }


def table(rows: list[dict[str, float]]) -> str:
    """Lay the rows out."""
    lines = [
        "| k | shared, s | padded, s | ratio | target | head on responses alone, s | ratio "
        "| ratio of tokens | log-probs off | of them | gradient off |",
        "|---" * 11 + "|",
    ]
    for r in rows:
        lines.append(
            f"| {r['k']} | {r['shared']:.2f} | {r['padded']:.2f} | {r['ratio']:.1f}x "
            f"| {r['target']}x | {r['lean']:.2f} | {r['lean_ratio']:.1f}x "
            f"| {r['tokens_ratio']:.1f}x | {r['logps_off_nats']:.0e} nats "
            f"| {r['logps_off']:.0e} | {r['gradient_off']:.0e} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run all sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    policy = make_policy()
    rows = [measure(policy, k, options.repeats) for k in NEGATIVES]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "shared_prompt.json").write_text(json.dumps(rows, indent=1) + "\n")
    (options.out / "shared_prompt.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
