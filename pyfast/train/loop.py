"""The training loop. It reads from top to bottom: `run`, then what it calls, in order."""

from __future__ import annotations

import math
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from pyfast._files import write_folder
from pyfast.train import (
    checkpoint,
    data,
    evaluate,
    files,
    fingerprint,
    loading,
    metrics,
    rewards,
    rundir,
)
from pyfast.train.config import OptimisationConfig, TrainConfig
from pyfast.train.encoder import SentenceEncoder
from pyfast.train.errors import DivergedError
from pyfast.train.inputs import Inputs, check_lengths
from pyfast.train.policy import Policy
from pyfast.train.recipes import ampo
from pyfast.train.report import read_summary
from pyfast.train.seeds import derive


def run(config: TrainConfig, inputs: Inputs, out: Path) -> dict[str, Any]:
    """Train, or go on with a run that was interrupted, and evaluate.

    Parameters
    ----------
    config : TrainConfig
    inputs : Inputs
        What `read_inputs` made of `config`.
    out : Path
        The run folder. New: a run starts. Interrupted run with the same settings: it goes on, and
        ends with the same files, bit for bit, as if it had never stopped. Finished run: nothing
        is done, or with more steps, only those. What else may change: `rundir.FREE`.

    Returns
    -------
    dict
        The content of ``summary.json``.

    Raises
    ------
    UserError
        For whatever the user can mend.
    """
    with rundir.claim(out):
        if rundir.open_run(config, inputs, out):
            return read_summary(out)
        if not _is_trained(config, inputs, out):
            _quiet_libraries()
            model = loading.load(config.policy, config.run.seed)
            check_lengths(inputs, model, config.sampling.max_new_tokens)
            encoder = SentenceEncoder(config.scoring.encoder, model.device)
            of_policy = fingerprint.of(model.model.get_base_model(), model.tokenizer)
            of_encoder = fingerprint.of(encoder.model, encoder.tokenizer)
            rundir.check_models(out, {"policy": of_policy, "encoder": of_encoder})

            if inputs.heldout and not (before := out / "eval_before.jsonl").exists():
                evaluate.answer(model, inputs.heldout, inputs.reward, config, before)

            train(config, inputs, model, encoder, out)
            write_folder(out / "adapter", model.save_adapter)

            if inputs.heldout and not (after := out / "eval_after.jsonl").exists():
                evaluate.answer(model, inputs.heldout, inputs.reward, config, after)
        return _finish(config, inputs, out)


def _is_trained(config: TrainConfig, inputs: Inputs, out: Path) -> bool:
    """Tell whether only the summary of a run is missing."""
    return (
        checkpoint.latest_step(out) == config.optimisation.steps
        and (out / "adapter").is_dir()
        and (not inputs.heldout or (out / "eval_after.jsonl").exists())
    )


def train(
    config: TrainConfig,
    inputs: Inputs,
    model: Policy,
    encoder: SentenceEncoder,
    out: Path,
) -> None:
    """Take the optimiser steps that a run still lacks.

    Raises
    ------
    DivergedError
        With the step, as soon as a loss, a gradient or the adapter is not finite. The checkpoints
        that are there stay, and nothing that is not finite gets into one.
    """
    optim = config.optimisation
    parameters = model.trainable()
    optimiser = torch.optim.AdamW(
        parameters.values(), optim.lr, weight_decay=optim.weight_decay, fused=True
    )
    done = checkpoint.restore(out, parameters, optimiser)

    steps = range(done, optim.steps)
    for step in tqdm(steps, desc="training", unit="step", initial=done, total=optim.steps):
        started = time.perf_counter()
        lr = learning_rate(optim, step)
        for settings in optimiser.param_groups:
            settings["lr"] = lr
        optimiser.zero_grad()
        try:
            records = []
            for slot, prompt in enumerate(prompts_of_step(inputs.prompts, config, step)):
                record, group = _learn(config, inputs, model, encoder, prompt, step, slot)
                records.append(record)
                checkpoint.append(out / "groups.jsonl", group.to_json())
            norm = torch.nn.utils.clip_grad_norm_(parameters.values(), optim.max_grad_norm)
            _check_finite("the gradient's norm", norm)  # clipping by it would make all NaN
            optimiser.step()
            _check_finite("the adapter", *parameters.values())
            line = {"step": step + 1, "lr": lr, "grad_norm": norm.item()}
            line |= metrics.mean_of(records)
            checkpoint.append(out / "metrics.jsonl", files.to_json(line))
            if (step + 1) % config.run.checkpoint_every == 0 or step + 1 == optim.steps:
                checkpoint.save(out, step + 1, parameters, optimiser)
        except DivergedError as error:
            raise DivergedError(
                f"diverged at step {step + 1}: {error}; {_what_is_kept(out)} "
                "(a lower optimisation.lr may help, in another --out)"
            ) from None
        # Times differ from run to run, so they have a file of their own.
        seconds = {"step": step + 1, "seconds": round(time.perf_counter() - started, 3)}
        checkpoint.append(out / checkpoint.TIMES, files.to_json(seconds))


def _learn(
    config: TrainConfig,
    inputs: Inputs,
    model: Policy,
    encoder: SentenceEncoder,
    prompt: str,
    step: int,
    slot: int,
) -> tuple[dict[str, float], data.Group]:
    """Add one group's gradient; return what was measured, and the group."""
    # AMPO, Algorithm 1: sample, score, embed, select ...
    ids = model.prompt_ids(prompt)
    seed = derive(config.run.seed, "sample", step, slot)
    (samples,) = model.answer([ids], config.sampling.responses, config.sampling, [seed])
    scores = rewards.score(inputs.reward, prompt, samples.texts)
    embeddings = encoder.encode(samples.texts)
    seed = derive(config.run.seed, "select", step, slot)
    chosen = ampo.choose(config.selection, scores, embeddings, seed, samples.texts)
    n = len(scores)
    record = metrics.sample_metrics(
        scores,
        chosen.positive,
        chosen.negatives,
        [len(tokens) for tokens in samples.token_ids],
        samples.finished,
        samples.texts,
    )
    if chosen.cost is not None:
        record["selection/cost"] = chosen.cost
    tied = max(scores) == min(scores) or not chosen.negatives
    record["groups/tied"] = float(tied)
    policy_logps = ref_logps = torch.zeros(0)

    if chosen.negatives:  # ... and contrast the positive with the negatives.
        picked = [samples.token_ids[i] for i in chosen.indices]
        ref_logps = model.logps(ids, picked, reference=True)
        policy_logps = model.logps(ids, picked)
        picked_scores = policy_logps.new_tensor([scores[i] for i in chosen.indices])
        measured: dict[str, torch.Tensor] = {}
        _check_finite("a log-probability", policy_logps, ref_logps)
        loss = ampo.loss(config.loss, policy_logps, ref_logps, picked_scores, measured)
        _check_finite("the loss", loss)
        if not tied:  # a group of equals prefers nothing: no gradient
            share = loss / config.optimisation.groups_per_step
            share.backward()  # type: ignore[no-untyped-call]
        record |= {"loss": loss.item(), **{name: value.item() for name, value in measured.items()}}
    shown = chosen.indices if chosen.negatives else []
    return record, data.Group(
        prompt,
        samples.texts,
        scores,
        embeddings if config.run.save_embeddings else None,
        samples.token_ids,
        _spread(policy_logps, shown, n),
        _spread(ref_logps, shown, n),
        chosen.positive,
        chosen.negatives,
        {"step": step + 1, "selector": config.selection.selector},
    )


def _check_finite(what: str, *values: torch.Tensor) -> None:
    """Refuse to go on with NaN or infinity."""
    finite = torch.stack([value.detach().isfinite().all() for value in values])
    if not finite.all():
        numbers = [value.detach() for value, fine in zip(values, finite, strict=True) if not fine]
        bad = numbers[0][~numbers[0].isfinite()].flatten()[0].item()
        raise DivergedError(f"{what} is {bad}")


def _what_is_kept(out: Path) -> str:
    step = checkpoint.latest_step(out)
    return f"the checkpoint of step {step} is kept" if step else "no checkpoint was made before"


def prompts_of_step(prompts: list[str], config: TrainConfig, step: int) -> list[str]:
    """Return the prompts of one step: each epoch goes through all, in a seeded order."""
    count = config.optimisation.groups_per_step
    chosen = []
    for position in range(step * count, (step + 1) * count):
        epoch, index = divmod(position, len(prompts))
        generator = np.random.default_rng(derive(config.run.seed, "order", epoch))
        chosen.append(prompts[generator.permutation(len(prompts))[index]])
    return chosen


def learning_rate(config: OptimisationConfig, step: int) -> float:
    """Return the learning rate of a step (from 0).

    Linear warm-up over the first ``w = ceil(warmup * steps)`` steps, lr (step + 1) / w; then a
    cosine from lr at step w down to min_lr_ratio * lr, which step `steps` would have.
    """
    warmup = math.ceil(config.warmup * config.steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / (config.steps - warmup)
    low = config.min_lr_ratio
    return config.lr * (low + (1 - low) * (1 + math.cos(math.pi * progress)) / 2)


def _spread(values: torch.Tensor, indices: list[int], n: int) -> list[float | None]:
    """Put the values of selected responses at their places among all n."""
    spread: list[float | None] = [None] * n
    for index, value in zip(indices, values.tolist(), strict=True):
        spread[index] = value
    return spread


def _quiet_libraries() -> None:
    """Leave the terminal to our own progress bars."""
    from transformers.utils import logging

    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _finish(config: TrainConfig, inputs: Inputs, out: Path) -> dict[str, Any]:
    """Draw the pictures and write the summary, last: a folder with it is a finished run."""
    from pyfast.train import plots

    compared = None
    if inputs.heldout:
        compared = evaluate.compare(out / "eval_before.jsonl", out / "eval_after.jsonl", config)
    summary = {
        "recipe": config.recipe,
        "selector": config.selection.selector,
        "seed": config.run.seed,
        "steps": config.optimisation.steps,
        "heldout": compared,
    }
    plots.plot_run(out)
    checkpoint.keep(out, 1)
    files.write_json(out / "summary.json", summary)
    return summary
