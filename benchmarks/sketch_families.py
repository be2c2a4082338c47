"""How the gradients of each model family are sketched: exactly in a batch, slower, or refused.

    python benchmarks/sketch_families.py [--dtype bfloat16] [--out FILE] [NAME ...]

Each is a tiny model with random weights and LoRA on all linear layers, and on fused experts. Every
response's gradient is compared with that of a backward pass over it alone: from rows padded on the
right, on the left, packed rows, and under both kinds of gradient checkpointing. In half precision
the loop itself is that far from float32; the table says how many times as far the sketches are.
"""

import argparse
import copy
import sys
import warnings

import numpy as np
import torch
from families import FAMILIES, first_line, make

RESPONSES = [
    ([5, 9, 12, 7, 20, 31, 8, 44], [45, 46, 47, 48, 49, 50, 51, 52]),
    ([4, 5], [6, 70, 71]),
    ([60], [61, 62]),
    ([30, 31, 32], [3, 90, 91, 92, 93, 94]),
    ([11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25], [40, 41, 42, 43, 44, 45, 46]),
    ([77, 78], [79, 80, 81, 82, 83]),
]


def adapt(name):
    """Return a family's model with LoRA everywhere that does something."""
    from peft import LoraConfig, get_peft_model

    model = make(name)
    experts = {
        "experts." + parameter.rpartition("experts.")[2]
        for parameter, value in model.named_parameters()
        if "experts." in parameter and value.ndim == 3
    }
    settings = {"r": 2, "lora_alpha": 4, "exclude_modules": ["router"]}  # Llama-4's gives a tuple
    settings |= {"target_parameters": sorted(experts)} if experts else {}
    torch.manual_seed(1)
    try:
        model = get_peft_model(model, LoraConfig(target_modules="all-linear", **settings))
    except ValueError:  # peft leaves out what Mamba's kernels read
        model = make(name)
        names = {
            module_name.rpartition(".")[2]
            for module_name, module in model.base_model.named_modules()
            if isinstance(module, torch.nn.Linear)
        }
        names = sorted(names - {"out_proj"})
        model = get_peft_model(model, LoraConfig(target_modules=names, **settings))
    with torch.no_grad():
        for parameter, value in model.named_parameters():
            if "lora_" in parameter:
                value.normal_(std=0.2)
    for module in model.modules():  # checkpointing needs training mode
        for attribute, value in vars(module).items():
            if isinstance(value, float) and (attribute == "p" or "drop" in attribute):
                setattr(module, attribute, 0.0)
    return model


def left_padded(responses):
    """Return a batch padded on the left."""
    longest = max(len(p) + len(r) for p, r in responses) + 1
    ids, mask, real = (torch.zeros(len(responses), longest, dtype=torch.long) for _ in range(3))
    for row, (prompt, response) in enumerate(responses):
        start = longest - len(prompt) - len(response)
        ids[row, start:] = torch.tensor([*prompt, *response])
        mask[row, longest - len(response) :] = 1
        real[row, start:] = 1
    return ids, mask, real


def packed(responses):
    """Return two rows that hold all responses."""
    half = len(responses) // 2
    lines = [responses[:half], responses[half:]]
    length = max(sum(len(p) + len(r) for p, r in line) for line in lines)
    ids, mask, positions = (torch.zeros(2, length, dtype=torch.long) for _ in range(3))
    segments = torch.full((2, length), -1)
    number = 0
    for row, line in enumerate(lines):
        at = 0
        for prompt, response in line:
            end = at + len(prompt) + len(response)
            ids[row, at:end] = torch.tensor([*prompt, *response])
            mask[row, at + len(prompt) : end] = 1
            positions[row, at:end] = torch.arange(end - at)
            segments[row, at:end] = number
            at, number = end, number + 1
    return ids, mask, None, positions, segments


def lengths(gradients):
    """Return the length of each response's gradient."""
    return np.linalg.norm(gradients, axis=1)


def truth(model, names):
    """Return one response's gradient after another, each of a model that ran no other."""
    from pyfast.sketch import reference

    return np.concatenate(
        [reference.lora_gradients(copy.deepcopy(model), [one], names) for one in RESPONSES]
    )


def check(name, dtype):
    """Return a line's cells."""
    from pyfast import sketch
    from pyfast.sketch._batches import pad

    try:
        model = adapt(name)
    except Exception as error:
        return ["not made: " + first_line(error)]
    exact_model = copy.deepcopy(model)
    model = model.to(dtype)
    untouched = copy.deepcopy(model)  # some keep a state
    try:
        collector = sketch.LoraGradients(model, 256)
    except (ValueError, TypeError) as error:
        return [f"refused: {first_line(error)}"]
    loop = truth(untouched, collector.names)
    noise = 0.0
    if dtype != torch.float32:
        exact = truth(exact_model, collector.names)
        noise = np.sqrt(np.mean((lengths(loop - exact) / lengths(exact)) ** 2))
    cells = []
    batches = {"right": pad(RESPONSES), "left": left_padded(RESPONSES), "packed": packed(RESPONSES)}
    for how in ("right", "left", "packed", "checkpointed", "checkpointed, reentrant"):
        try:
            if "checkpointed" in how:
                if not getattr(model.get_base_model(), "supports_gradient_checkpointing", False):
                    continue
                model.gradient_checkpointing_enable({"use_reentrant": "reentrant" in how})
                model.train()
            found = collector.gradients(*batches.get(how, batches["right"])).numpy()
            want = loop if dtype == torch.float32 else exact
            error = lengths(found - want) / lengths(want)
            error = np.sqrt(np.mean(error**2)) / noise if noise else error.max()
            good = error < (2 if noise else 2e-4)
            cells.append(f"{error:.1f}x" if noise else f"{error:.0e}")
            if not good:
                cells[-1] = "WRONG: " + cells[-1]
        except (ValueError, TypeError) as error:
            cells.append(f"refused: {first_line(error)}")
    way = {"together": "in a batch", "equal": "rows of equal lengths", "alone": "one at a time"}
    model.eval()
    said = [f"{kind}: {why}" for kind, why in collector.differs.items()]
    if collector.left_out:
        said.append(f"{len(collector.left_out)} left out")
    return [way[collector.batching], " ".join(cells), "; ".join(said)]


def main():
    """Print the table, and write it where it is asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    import transformers

    transformers.logging.set_verbosity_error()
    lines = [
        "| family | sketched | right, left, packed, checkpointed twice | laid out anew because |",
        "|---|---|---|---|",
    ]
    for name in arguments.names or FAMILIES:
        try:
            cells = check(name, getattr(torch, arguments.dtype))
        except Exception as error:
            cells = [f"FAILED: {type(error).__name__}: {first_line(error)}"]
        cells += [""] * (3 - len(cells))
        lines.append("| " + " | ".join([name, *cells]) + " |")
        print(lines[-1], flush=True)
    if arguments.out:
        with open(arguments.out, "w") as stream:
            stream.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
