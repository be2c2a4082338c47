"""Supervised fine-tuning before a recipe: the model after it is what the recipe loads.

It is a stage of its own, in the run folder's ``sft/``, with its own checkpoints; done once, its
adapter is folded into the weights, so that the reference of the recipe is the fine-tuned model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from pyfast._files import clear_leftovers, write_folder
from pyfast.train import descent, files
from pyfast.train.data import order
from pyfast.train.data.lines import as_object, lines
from pyfast.train.data.prompts import Prompt, prompt_of
from pyfast.train.errors import DivergedError, UserError
from pyfast.train.policy import fingerprint, loading
from pyfast.train.processes import ALONE, Team
from pyfast.train.runs import checkpoint
from pyfast.train.runs.layout import check_own
from pyfast.train.seeds import derive

if TYPE_CHECKING:
    from pyfast.train.context import Context

FOLDER = "sft"


@dataclass(frozen=True)
class Example:
    """A prompt and the response to learn; `place` is where they stand."""

    prompt: Prompt
    response: str
    place: str


def read(kind: Any, settings: Any, inputs: Any) -> list[Example]:
    """Return what a run is fine-tuned on: nothing, a file, or its recipe's chosen responses.

    Raises
    ------
    UserError
        For the first bad line of the file, or if there is neither.
    """
    config = getattr(settings, "sft", None)
    if config is None or config.epochs == 0:
        return []
    if config.data is None:
        chosen = [Example(*one) for one in kind.chosen(settings, inputs)]
        if not chosen:
            raise UserError(
                'sft.data: expected a file of {"prompt", "response"}; there are no chosen '
                f"responses before {settings.recipe} trains"
            )
        return chosen
    path = files.resolve(config.data)
    if path is None:
        raise UserError(f"sft.data: no such file: {config.data}")
    examples = [_example(path, number, text) for number, text in lines(path)]
    if not examples:
        raise UserError(f"{path}: expected at least one example, the file has none")
    return examples


def _example(path: Path, number: int, text: str) -> Example:
    place = f"{path}:{number}"
    row = as_object(path, number, text, 'an object like {"prompt": "...", "response": "..."}')
    response = row.pop("response", None)
    if not isinstance(response, str) or not response.strip():
        raise UserError(f'{place}: expected a non-empty string "response", got {response!r}')
    try:
        return Example(prompt_of(row.pop("prompt", None), row), response, place)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def run(settings: Any, examples: Sequence[Example], out: Path, team: Team = ALONE) -> Path | None:
    """Fine-tune, or go on with it, or find it done.

    Parameters
    ----------
    settings : Settings
        With the sections sft, policy, text and run.
    examples : sequence of Example
    out : Path
        The run folder.
    team : Team, optional
        The run's processes.

    Returns
    -------
    Path or None
        The adapter or model after it, for `loading.load`; None without examples.

    Raises
    ------
    UserError
        If an example does not fit into the model, or the run has trained on what another model or
        other examples gave.
    """
    if not examples:
        return None
    from pyfast.train.context import Context

    folder = out / FOLDER
    policy = loading.load(settings.policy, derive(settings.run.seed, "sft"))
    ctx = Context(policy, settings.run.seed, folder, team, **dataclasses.asdict(settings.text))
    rows = [_row(ctx, example) for example in examples]
    mark = {
        "model": fingerprint.of(policy.base, policy.tokenizer),
        "examples": hashlib.sha256(files.to_json(rows).encode()).hexdigest(),
        "policy": {
            name: getattr(settings.policy, name)
            for name in ("training", "lora_rank", "lora_alpha", "target_modules", "dtype")
        },
        "sft": {**dataclasses.asdict(settings.sft), "data": None},
        "seed": settings.run.seed,
    }
    team.agree("supervised fine-tuning", files.to_json(mark))
    ctx.once(lambda: _open(folder, mark, out))
    saved = folder / policy.saves
    if not ctx.once(saved.is_dir):
        _train(ctx, settings, rows)
        ctx.once(lambda: write_folder(saved, policy.save))
    ctx.once(lambda: shutil.rmtree(folder / "checkpoint", ignore_errors=True))
    return saved


def finished(settings: Any, run: Path) -> Path | None:
    """Return what `run` returned to a run that is finished."""
    config = getattr(settings, "sft", None)
    if config is None or config.epochs == 0:
        return None
    return run / FOLDER / ("model" if settings.policy.training == "full" else "adapter")


def _open(folder: Path, mark: dict[str, Any], out: Path) -> None:
    """Begin in the folder, go on in it, or begin again if it is of something else."""
    path = folder / "stage.json"
    if folder.is_dir():
        check_own(folder)
        for within in (folder, folder / "checkpoint"):
            clear_leftovers(within)
        if path.exists() and files.read_json(path) == mark:
            return
        if checkpoint.latest_step(out):
            raise UserError(
                f"{out} was started with another supervised fine-tuning: model, examples or "
                "settings differ; give the same to go on with it, or another --out"
            )
        shutil.rmtree(folder)
    folder.mkdir()
    files.write_json(path, mark)


def _row(ctx: Context, example: Example) -> tuple[list[int], list[int]]:
    try:
        prompt, response = ctx.tokens.prompt(example.prompt), ctx.tokens.response(example.response)
    except UserError as error:
        raise UserError(f"{example.place}: {error}") from None
    count, positions = len(prompt) + len(response), ctx.positions
    if positions is not None and count > positions:
        raise UserError(
            f"{example.place}: prompt and response have {count} tokens; the model has {positions} "
            "positions"
        )
    return prompt, response


def _train(ctx: Context, settings: Any, rows: list[tuple[list[int], list[int]]]) -> None:
    """Minimise the mean negative log-likelihood of a response token, batch by batch."""
    config, policy, folder = settings.sft, ctx.policy, ctx.folder
    count = math.ceil(config.epochs * len(rows))
    steps = math.ceil(count / config.batch)
    parameters = policy.trainable()
    optimiser = descent.adamw(parameters, config)
    done = checkpoint.restore_for(ctx.team, folder, parameters, optimiser)
    bar = tqdm(range(done, steps), "fine-tuning", steps, unit="step", initial=done)
    for step in bar:
        chosen = order.of_step(len(rows), config.batch, ctx.seed("sft"), step)
        batch = [rows[index] for _, index in chosen[: count - step * config.batch]]
        tokens = sum(len(response) for _, response in batch)
        optimiser.zero_grad()

        def learn(row: tuple[list[int], list[int]], tokens: int = tokens) -> float:
            prompt, response = row
            loss = -policy.logps(prompt, [response]).sum() / tokens
            descent.check_finite("the loss", loss)
            loss.backward()  # type: ignore[no-untyped-call]
            return float(loss.item())

        try:
            total = sum(ctx.each(batch, learn))
            ctx.reduce(parameters)
            lr = descent.learning_rate(config, step, steps)
            norm = descent.take_step(
                optimiser, parameters, lr, config.max_grad_norm, f"the {policy.saves}"
            )
            line = {"step": step + 1, "lr": lr, "grad_norm": norm, "loss": total}
            saves = (step + 1) % settings.run.checkpoint_every == 0 or step + 1 == steps
            if saves:
                ctx.team.agree_on_weights(f"the {policy.saves}", parameters)

            def write(line: dict[str, Any] = line, saves: bool = saves) -> None:
                checkpoint.append(folder / "metrics.jsonl", files.to_json(line))
                if saves:
                    checkpoint.save(folder, line["step"], parameters, optimiser)

            ctx.once(write)
        except DivergedError as error:
            raise DivergedError(
                f"supervised fine-tuning diverged at step {step + 1}: {error} "
                "(a lower sft.lr may help, in another --out)"
            ) from None
