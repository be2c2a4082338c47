"""Gradient sketches on a GPU beside their peers: bits checked against the CPU first, then timed.

Usage: python benchmarks/gpu_sketch.py [--out FOLDER] [--smoke]
--smoke runs all of it on tiny sizes on the CPU (set TRITON_INTERPRET=1), for its answers alone.
Writes gpu-sketch.json. "copy" is the roofline: it reads the gradients once, and writes them.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyfast.kernels import sketch as kernels
from pyfast.kernels import sketch_fused

from pyfast import sketch


def seconds(call: Callable[[], Any], device: str, repeats: int = 20) -> float:
    """Return the median time of a call, the device idle before and after."""
    times = []
    for _ in range(repeats + 3):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return float(np.median(times[3:]))


def projection(device: str, rows: int, p: int, dim: int, repeats: int) -> dict[str, float | None]:
    """Time the stripe kernel, copies, CountSketch by index_add, dense signs, fast_jl."""
    torch.manual_seed(0)
    v = torch.randn(rows, p, device=device)
    y = torch.zeros(rows, dim, device=device)
    kernels.add_sketch(v, y, seed=5)
    assert torch.equal(y.cpu(), sketch.project(v.cpu(), dim, seed=5)), "the CPU's bits"
    copy = torch.empty_like(v)
    places = torch.randint(0, dim, (p,), device=device)
    signs = torch.randint(0, 2, (p,), device=device).float() * 2 - 1
    found: dict[str, Any] = {
        "stripes": seconds(lambda: kernels.add_sketch(v, y, seed=5), device, repeats),
        "copy": seconds(lambda: copy.copy_(v), device, repeats),
    }
    for name, fixed in (("index_add", False), ("index_add, deterministic", True)):
        torch.use_deterministic_algorithms(fixed)
        found[name] = seconds(lambda: y.zero_().index_add_(1, places, v * signs), device, repeats)
    torch.use_deterministic_algorithms(False)
    small = v[:, : min(p, 1 << 16)]
    matrix = torch.randint(0, 2, (small.shape[1], dim), device=device).float() * 2 - 1
    per_number = p / small.shape[1]
    found["dense matmul, drawn before, scaled"] = per_number * seconds(
        lambda: small @ matrix, device, repeats
    )
    try:
        import fast_jl
    except ImportError:
        found["fast_jl"] = None  # not installed
    else:
        cores = torch.cuda.get_device_properties(0).multi_processor_count
        found["fast_jl"] = seconds(
            lambda: fast_jl.project_rademacher_8(v, dim, 0, cores), device, repeats
        )
    found["stripes_over_copy"] = found["stripes"] / found["copy"]
    return found


def fused(device: str, tokens: int, channels: int, repeats: int) -> dict[str, float]:
    """Sketch 8 gradients of one matrix, r = 16, from their factors: at once, and in two steps."""
    torch.manual_seed(0)
    wide = torch.randn(8 * tokens, channels, device=device)
    narrow = torch.randn(8 * tokens, 16, device=device)
    offsets = tokens * torch.arange(9, device=device)
    y, also = torch.zeros(8, 1024, device=device), torch.zeros(8, 1024, device=device)

    def at_once() -> None:
        sketch_fused.add_outer_sketch(wide, narrow, offsets, y, seed=5)

    def in_two_steps() -> None:
        factors = wide.view(8, tokens, -1).transpose(1, 2), narrow.view(8, tokens, 16)
        kernels.add_sketch(torch.bmm(*factors).view(8, -1), also, seed=5)

    at_once()
    in_two_steps()
    assert float((y - also).norm() / also.norm()) < 1e-5
    two, one = (seconds(call, device, repeats) for call in (in_two_steps, at_once))
    return {"fused": one, "bmm and stripes": two, "ratio": two / one}


def end_to_end(device: str, smoke: bool) -> dict[str, float]:
    """Sketch 8 responses of 512 tokens under a 1B model made from a config; loop beside."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    size = (
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 100}
        if smoke
        else {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "vocab_size": 128256,
        }
    )
    heads = {"num_attention_heads": size["hidden_size"] // 32, "num_key_value_heads": 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**size, **heads)).to(device, torch.bfloat16).eval()
    model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear"))
    collector = sketch.LoraGradients(model, dim=8192)
    length = 16 if smoke else 512
    ids = torch.randint(0, size["vocab_size"], (8, length), device=device)
    mask = torch.zeros_like(ids)
    mask[:, length // 2 :] = 1
    weights = [part.weight for part in collector.parts]

    def loop() -> None:
        for row in ids:
            logits = model(input_ids=row[None]).logits[0, length // 2 - 1 : -1].float()
            loss = torch.nn.functional.cross_entropy(logits, row[length // 2 :], reduction="sum")
            gradients = torch.autograd.grad(loss, weights)
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            sketch.project(flat, 8192)

    repeats = 1 if smoke else 5
    ours = seconds(lambda: collector.batch(ids, mask), device, repeats)
    theirs = seconds(loop, device, repeats)
    return {"ours_per_s": 8 / ours, "loop_per_s": 8 / theirs, "ratio": theirs / ours}


def main() -> None:
    """Check, time, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    device = "cpu" if options.smoke else "cuda"
    sizes = [(2, 3000, 1024)] if options.smoke else [(8, 4_884_480, d) for d in (8192, 65536)]
    results: dict[str, Any] = {
        f"{rows} x {p} to {dim}": projection(device, rows, p, dim, 1 if options.smoke else 20)
        for rows, p, dim in sizes
    }
    shape = (20, 7, 1) if options.smoke else (512, 8192, 20)
    results["fused, tokens x channels {} x {}".format(*shape)] = fused(device, *shape)
    results["end to end"] = end_to_end(device, options.smoke)
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1)
    (options.out / "gpu-sketch.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
