"""One training step of the demo beside the same step written with TRL's functions.

``python benchmarks/bench_step.py`` (about three minutes; needs the `train` and `trl` extras and the
demo's model). The step: reference and policy log-probabilities of one positive and seven negatives,
SWEPO, backward, AdamW. TRL's side is what its DPO trainer does, for 1 + k responses instead of two:
a padded batch through a model with TRL's fused head, once with and once without the adapter.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from harness import least_time
from torch import Tensor

from pyfast import losses
from pyfast.train.config import PolicyConfig
from pyfast.train.policy import Policy, load

K, RESPONSE = 7, 40
QUESTION = "Write one sentence about a walk in the park."
SIDES = ("pyfast", "trl")


def make_policy() -> Policy:
    """Load the demo's model, with an adapter that has learned something: B is not zero."""
    policy = load(PolicyConfig(device="cpu"), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.trainable().items():
            if "lora_B" in name:
                parameter.copy_(0.01 * torch.randn(parameter.shape, generator=generator))
    return policy


def trl_logps(policy: Policy, prompt: list[int], responses: list[list[int]]) -> Tensor:
    """Score as TRL's DPO trainer does."""
    tokens = torch.tensor([prompt + response for response in responses])
    labels = tokens.clone()
    labels[:, : len(prompt)] = -100
    found = policy.model(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        labels=labels,
        use_cache=False,
        fused_lm_head=True,
    )
    return found.log_probs.sum(1)


def make_step(policy: Policy, side: str) -> Callable[[], tuple[float, Tensor]]:
    """Return a function that takes one step, puts the adapter back, and tells its gradient."""
    prompt = policy.prompt_ids(QUESTION)
    generator = torch.Generator().manual_seed(0)
    responses = torch.randint(3, 49_000, (1 + K, RESPONSE), generator=generator).tolist()
    scores = torch.linspace(1, 0, 1 + K)
    parameters = list(policy.trainable().values())
    start = [p.detach().clone() for p in parameters]
    if side == "trl":
        from trl.trainer.utils import add_fused_lm_head

        add_fused_lm_head(policy.model.get_base_model())

    def step() -> tuple[float, Tensor]:
        optimiser = torch.optim.AdamW(parameters, 4e-4)
        if side == "trl":
            with torch.no_grad(), policy.model.disable_adapter():
                ref_logps = trl_logps(policy, prompt, responses)
            policy_logps = trl_logps(policy, prompt, responses)
        else:
            ref_logps = policy.logps(prompt, responses, reference=True)
            policy_logps = policy.logps(prompt, responses)
        loss = losses.swepo(policy_logps, ref_logps, scores, beta=0.1, positives="top")
        optimiser.zero_grad()
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in parameters]).double()
        optimiser.step()
        with torch.no_grad():
            for parameter, value in zip(parameters, start, strict=True):
                parameter.copy_(value)
        return loss.item(), gradient

    return step


def peak_bytes() -> int:
    """Most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(side: str, repeats: int, gradient: Path) -> dict[str, float]:
    """Measure one side in this process; its gradient goes to a file, to be compared."""
    step = make_step(make_policy(), side)
    before = peak_bytes()
    loss, found = step()
    peak = peak_bytes() - before
    np.save(gradient, found.numpy())
    return {"loss": loss, "peak_bytes": peak, "seconds": least_time(step, repeats)}


def main() -> None:
    """Measure each side in a process of its own, twice in turn, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--one", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.one:
        file = options.out / f"gradient-{options.one}.npy"
        print(json.dumps(measure(options.one, options.repeats, file)))
        return
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for side in (*SIDES, *SIDES):
        command = [sys.executable, __file__, "--one", side, "--out", str(options.out)]
        command += ["--repeats", str(options.repeats)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[side].append(json.loads(done.stdout.splitlines()[-1]))
    ours, theirs = (np.load(options.out / f"gradient-{side}.npy") for side in SIDES)
    off = float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
    assert off <= 1e-5, off
    best = {s: {key: min(r[key] for r in found[s]) for key in found[s][0]} for s in SIDES}
    ratios = {key: best["trl"][key] / best["pyfast"][key] for key in ("seconds", "peak_bytes")}
    result = {"gradient_off": off, **best, "ratios": ratios}
    (options.out / "step.json").write_text(json.dumps(result, indent=1) + "\n")
    lines = ["| | pyfast | TRL's functions | ratio | target |", "|---|---|---|---|---|"]
    for key, scale, unit, target in (("seconds", 1, "s", 4), ("peak_bytes", 1e-6, "MB", 3)):
        values = " | ".join(f"{best[side][key] * scale:.3g} {unit}" for side in SIDES)
        lines.append(f"| {key} | {values} | {ratios[key]:.1f}x | {target}x |")
    lines.append(f"\nGradients differ by {off:.1e} of their length.")
    (options.out / "step.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
