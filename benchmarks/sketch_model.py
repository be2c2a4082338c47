"""The real model, its responses and its passes, for bench_sketch.py."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from bench_step import as_peft_has_it

from pyfast import losses, select, sketch
from pyfast.sketch import _capture
from pyfast.sketch._batches import pad
from pyfast.sketch._frozen import Frozen
from pyfast.train.config import PolicyConfig, SamplingConfig
from pyfast.train.policy.loading import load
from pyfast.train.policy.policy import Policy

TOPICS = [
    "a rainy Sunday afternoon",
    "waiting for a late bus",
    "the smell of bread",
    "an old bicycle",
    "learning to swim",
    "a lost umbrella",
    "the sea in winter",
    "a noisy neighbour",
    "a birthday cake",
    "the night train",
    "a broken phone",
    "moving house",
    "a small garden",
    "the first snow",
    "a long queue",
    "an honest friend",
    "a job interview",
    "cold coffee",
    "a school play",
    "a quiet library",
]
FORMS = [
    "Write one sentence about {}.",
    "Describe {} to a child.",
    "What is the best thing about {}?",
    "Give one piece of advice about {}.",
    "Why do people write poems about {}?",
]
PROMPTS = [form.format(topic) for topic in TOPICS for form in FORMS]


def make_policy(*, fresh: bool) -> Policy:
    """Load SmolLM2-135M with LoRA r=16 on all linear layers, as peft has it; B = 0 or not."""
    policy = as_peft_has_it(load(PolicyConfig(device="cpu"), seed=0))
    if not fresh:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, weight in policy.trainable().items():
                if "lora_B" in name:
                    weight.copy_(0.02 * torch.randn(weight.shape, generator=generator))
    return policy


def sampled(policy: Policy, prompts: int, each: int, tokens: int, out: Path) -> list:
    """Return responses of the policy, prompt by prompt; sampled once and kept."""
    path = out / f"responses-{prompts}x{each}x{tokens}.json"
    if not path.exists():
        config = SamplingConfig(responses=each, max_new_tokens=tokens)
        ids = [policy.prompt_ids(prompt) for prompt in PROMPTS[:prompts]]
        found: list = []
        start = time.perf_counter()
        for first in range(0, prompts, 10):
            some = ids[first : first + 10]
            answers = policy.answer(some, each, config, list(range(first, first + len(some))))
            for prompt, samples in zip(some, answers, strict=True):
                found += [[prompt, response] for response in samples.token_ids]
        record = {"seconds": time.perf_counter() - start, "responses": found}
        path.write_text(json.dumps(record))
    return json.loads(path.read_text())


def passes(collector: sketch.LoraGradients, responses: list) -> dict[str, Callable[[], object]]:
    """Return what is compared: the bare pass, with logits or our head; ours; the batch-1 loop.

    The bare passes return the sum of log pi, to be held to ours.
    """
    base = collector.model.get_base_model()
    ids, mask, _ = pad(responses)
    rows, columns = mask.bool().nonzero(as_tuple=True)
    weights = [part.weight for part in collector.parts]

    def logps(ids: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        hidden = base.base_model(input_ids=ids, use_cache=False).last_hidden_state
        logits = base.get_output_embeddings()(hidden[rows, columns - 1])
        return -torch.nn.functional.cross_entropy(logits, ids[rows, columns], reduction="sum")

    def bare() -> float:
        with Frozen(collector.model):
            total = logps(ids, rows, columns)
            total.backward()
        return float(total.detach())

    def bare_tiled() -> float:
        with Frozen(collector.model):
            hidden = base.base_model(input_ids=ids, use_cache=False).last_hidden_state
            head = base.get_output_embeddings().weight
            total = losses.sequence_logps(
                hidden[:, :-1], head, ids[:, 1:], mask.bool()[:, 1:]
            ).sum()
            total.backward()
        return float(total.detach())

    def loop() -> list:
        found = []
        for prompt, response in responses:
            one = torch.tensor([[*prompt, *response]])
            columns = torch.arange(len(prompt), one.shape[1])
            total = logps(one, torch.zeros_like(columns), columns)
            found.append(torch.autograd.grad(total, weights))
        return found

    calls = {"bare": bare, "bare_tiled": bare_tiled, "loop": loop}
    return {**calls, "ours": lambda: collector.batch(ids, mask)}


def peak_memory(call: Callable[[], object]) -> float:
    """Return the largest resident memory of this process while `call` runs, in MB."""
    process, most, over = psutil.Process(), [0], threading.Event()

    def watch() -> None:
        while not over.is_set():
            most[0] = max(most[0], process.memory_info().rss)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    call()
    over.set()
    watcher.join()
    return most[0] / 1e6


def acquisition(policy: Policy, out: Path, tokens: int) -> dict[str, Any]:
    """Return the seconds of each part: 100 prompts x 3 responses, 300 pairs, 5 chosen."""
    record = sampled(policy, 100, 3, tokens, out)
    collector = sketch.LoraGradients(policy.model)
    inside = [0.0]
    plain = _capture.Capture.add

    def timed(self, *arguments) -> None:
        start = time.perf_counter()
        plain(self, *arguments)
        inside[0] += time.perf_counter() - start

    _capture.Capture.add = timed
    folder = out / f"pool-{time.time_ns()}"
    start = time.perf_counter()
    pool = sketch.collect(collector, record["responses"], folder, max_tokens=1024)
    whole = time.perf_counter() - start
    _capture.Capture.add = plain
    pairs = sketch.response_pairs(3 * np.arange(101))
    start = time.perf_counter()
    picked = select.active_dpo(pool.sketches, pairs, k=5)
    choose = time.perf_counter() - start
    assert len(set(picked.indices.tolist())) == 5
    total = record["seconds"] + whole + choose
    return {
        "sampling_s": record["seconds"],
        "passes_s": whole - inside[0],
        "sketching_s": inside[0],
        "selection_s": choose,
        "sketch_and_selection_share": (inside[0] + choose) / total,
        "response_tokens": float(pool.lengths.sum()),
        "fidelity": str(pool.fidelity).splitlines(),
    }
