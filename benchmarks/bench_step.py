"""One training step of the demo beside the same step written with TRL's functions.

``python benchmarks/bench_step.py`` (about twelve minutes; needs the `train` and `trl` extras, and
the demo's model). The step: reference and policy log-probs of one positive and seven negatives,
SWEPO, backward, AdamW. TRL's side is what its DPO trainer does, for 1 + k responses instead of two:
a padded batch through a model with TRL's fused head, once with and once without the adapter. TRL's
side runs without gradient checkpointing and with it, which is its default; ours runs with each kind
of its own. The second case has a longer prompt and responses.

The limit is the time of the matrix products alone, at the speed that one of them reaches here: one
forward pass of the reference, one of the policy and one backward pass to the hidden states, and the
head, 1 + 2 products. The peak is that of the first step, and of all: memory that the C library gets
back it does not always find a use for.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import resident
import torch
from harness import least_time
from torch import Tensor

from pyfast import losses
from pyfast.train.config import PolicyConfig
from pyfast.train.policy.loading import load
from pyfast.train.policy.policy import Policy

K = 7
QUESTION = "Write one sentence about a walk in the park."
CASES = {"demo": (None, 40), "long": (256, 64)}  # tokens of the prompt, of a response
CHECKPOINTING = ("none", "selective", "full")
TRL = {"trl": "TRL", "trl-default": "TRL's default"}  # without checkpointing, and with it
SIDES = (*CHECKPOINTING, *TRL)


def make_policy(checkpointing: str = "none") -> Policy:
    """Load the demo's model, with an adapter that has learned something: B is not zero."""
    policy = load(PolicyConfig(device="cpu", gradient_checkpointing=checkpointing), seed=0)
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


def as_peft_has_it(policy: Policy) -> Policy:
    """Give the LoRA layers of a policy peft's own forward pass back."""
    from peft.tuners.lora import LoraLayer

    for layer in policy.model.modules():
        if isinstance(layer, LoraLayer):
            vars(layer).pop("forward", None)
    return policy


def make_group(policy: Policy, case: str) -> tuple[list[int], list[list[int]]]:
    """Draw random tokens: what they say does not matter for the time."""
    prompt_length, length = CASES[case]
    generator = torch.Generator().manual_seed(0)
    responses = torch.randint(3, 49_000, (1 + K, length), generator=generator).tolist()
    if prompt_length is None:
        return policy.prompt_ids(QUESTION), responses
    return torch.randint(3, 49_000, (prompt_length,), generator=generator).tolist(), responses


def make_step(policy: Policy, side: str, case: str) -> Callable[[], float]:
    """Return a function that takes one step, leaves its gradient, and puts the adapter back."""
    prompt, responses = make_group(policy, case)
    scores = torch.linspace(1, 0, 1 + K)
    parameters = list(policy.trainable().values())
    start = [p.detach().clone() for p in parameters]
    if side in TRL:
        from trl.trainer.utils import add_fused_lm_head

        base = as_peft_has_it(policy).model.get_base_model()
        add_fused_lm_head(base)
        if side == "trl-default":  # as the trainer does, in training mode; there is no dropout
            base.activation_checkpointing_enable()
            policy.model.enable_input_require_grads()
            policy.model.train()

    def step() -> float:
        optimiser = torch.optim.AdamW(parameters, 4e-4, fused=True)
        if side in TRL:
            with torch.no_grad(), policy.model.disable_adapter():
                ref_logps = trl_logps(policy, prompt, responses)
            policy_logps = trl_logps(policy, prompt, responses)
        else:
            ref_logps = policy.logps(prompt, responses, reference=True)
            policy_logps = policy.logps(prompt, responses)
        loss = losses.swepo(policy_logps, ref_logps, scores, beta=0.1, positives="top")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            for parameter, value in zip(parameters, start, strict=True):
                parameter.copy_(value)
        return loss.item()

    return step


def products_seconds(policy: Policy, case: str) -> float:
    """Seconds that the products of our step take at the speed of one of them."""
    prompt, responses = make_group(policy, case)
    read, scored = len(prompt) + sum(len(r) - 1 for r in responses), sum(map(len, responses))
    model = policy.model.get_base_model()
    linear = sum(
        p.numel()
        for name, p in model.model.layers.named_parameters()
        if p.ndim == 2 and ".lora_" not in name
    )
    x = torch.randn(read, model.config.hidden_size)
    weight = model.model.layers[0].mlp.up_proj.base_layer.weight.detach()
    speed = weight.numel() * read / least_time(lambda: x @ weight.t(), 100)
    return (3 * linear * read + 3 * model.lm_head.weight.numel() * scored) / speed


def measure(side: str, case: str, repeats: int, gradient: Path) -> dict[str, float]:
    """Measure one side in this process; its gradient goes to a file, to be compared."""
    policy = make_policy("none" if side in TRL else side)
    step = make_step(policy, side, case)
    before = resident.reset()
    loss = step()
    first_peak = resident.peak() - before
    seconds, cpu_seconds = [], []
    for _ in range(repeats):
        cpu = time.process_time()
        seconds.append(least_time(step, 1))
        cpu_seconds.append(time.process_time() - cpu)
    peak = resident.peak() - before
    found = torch.cat([p.grad.flatten() for p in policy.trainable().values()]).double()
    np.save(gradient, found.numpy())
    return {
        "loss": loss,
        "first_peak_bytes": first_peak,
        "peak_bytes": peak,
        "seconds": min(seconds),
        "cpu_seconds": min(cpu_seconds),  # of all threads, waiting for each other included
        "products_seconds": products_seconds(policy, case),
    }


def compare(case: str, out: Path, repeats: int) -> dict[str, Any]:
    """Measure each side of a case in a process of its own, twice in turn; check the gradients."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for side in (*SIDES, *SIDES):
        command = [sys.executable, __file__, "--one", side, "--case", case, "--out", str(out)]
        command += ["--repeats", str(repeats)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[side].append(json.loads(done.stdout.splitlines()[-1]))
    gradients = {side: np.load(out / f"gradient-{side}.npy") for side in SIDES}
    theirs = gradients.pop("trl")
    length = np.linalg.norm(theirs)
    off = max(float(np.linalg.norm(found - theirs) / length) for found in gradients.values())
    assert off <= 1e-5, off
    best = {s: {key: min(r[key] for r in found[s]) for key in found[s][0]} for s in SIDES}
    return {"case": case, "gradient_off": off, "sides": best}


def beside(
    ours: dict[str, float], theirs: dict[str, float], key: str, unit: float, form: str
) -> list[str]:
    """Return a peer's figure, and how many times ours it is."""
    return [f"{theirs[key] / unit:{form}}", f"{theirs[key] / ours[key]:.1f}x"]


def table(results: list[dict[str, Any]]) -> str:
    """Lay the results out."""
    theirs = " | ".join(f"{name}, UNIT | ratio" for name in TRL.values())
    seconds, megabytes = theirs.replace("UNIT", "s"), theirs.replace("UNIT", "MB")
    header = (
        f"| case | checkpointing | s | {seconds} | target | of the products' time "
        f"| first peak, MB | {megabytes} | target | peak of all steps, MB | {megabytes} |"
    )
    lines = [header, "|---" * (header.count("|") - 1) + "|"]
    for result in results:
        sides = result["sides"]
        targets = ("4x", "3x") if result["case"] == "demo" else ("-", "-")
        for how in CHECKPOINTING:
            r = sides[how]
            cells = [result["case"], how, f"{r['seconds']:.2f}"]
            for peer in TRL:
                cells += beside(r, sides[peer], "seconds", 1.0, ".2f")
            cells += [targets[0], f"{r['seconds'] / r['products_seconds']:.1f}x"]
            for key, target in (("first_peak_bytes", [targets[1]]), ("peak_bytes", [])):
                cells.append(f"{r[key] / 1e6:.0f}")
                for peer in TRL:
                    cells += beside(r, sides[peer], key, 1e6, ".0f")
                cells += target
            lines.append(f"| {' | '.join(cells)} |")
    off = max(result["gradient_off"] for result in results)
    return "\n".join([*lines, "", f"Gradients differ by at most {off:.1e} of their length.\n"])


def main() -> None:
    """Measure all cases, or with --one a single side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--case", choices=CASES, help="this case alone")
    parser.add_argument("--one", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.one:
        file = options.out / f"gradient-{options.one}.npy"
        print(json.dumps(measure(options.one, options.case, options.repeats, file)))
        return
    cases = [options.case] if options.case else list(CASES)
    results = [compare(case, options.out, options.repeats) for case in cases]
    (options.out / "step.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.out / "step.md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
