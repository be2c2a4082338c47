"""What a run reads, checked before anything heavy is imported or loaded."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyfast.train import files
from pyfast.train.data.prompts import Prompt, check_heldout, numbered_prompts
from pyfast.train.errors import UserError
from pyfast.train.scoring import rewards

if TYPE_CHECKING:
    from pyfast.train.context import Context


@dataclass(frozen=True)
class Inputs:
    """What a run reads, checked.

    Attributes
    ----------
    prompts, heldout : list of Prompt
    reward : callable
        What the training is scored by.
    judge : callable
        What the evaluation is scored by; the same one, if no other is asked for.
    hashes : dict of str to str
        SHA-256 of the files by setting, ``"prompts"`` and ``"heldout"``.
    places : dict of str to list of str
        ``file:line`` of each prompt, by setting.
    """

    prompts: list[Prompt]
    heldout: list[Prompt]
    reward: rewards.Reward
    judge: rewards.Reward
    hashes: dict[str, str]
    places: dict[str, list[str]]

    @property
    def rewards(self) -> dict[str, rewards.Reward]:
        """The scorers by name, each once."""
        found = {"reward": self.reward}
        return found if self.judge is self.reward else {**found, "judge": self.judge}


def read_inputs(config: Any, *, judge_differs: bool = False) -> Inputs:
    """Read and check everything the user wrote, before any model is loaded.

    With `judge_differs` it is told where the evaluation has no scorer of its own.
    """
    if config.data.prompts is None:
        raise UserError("data.prompts: expected a prompts file")
    hashes = {}
    texts: dict[str, list[Prompt]] = {"prompts": [], "heldout": []}
    places: dict[str, list[str]] = {"prompts": [], "heldout": []}
    for name, spec in (("prompts", config.data.prompts), ("heldout", config.data.heldout)):
        if spec is None:
            continue
        path = files.resolve(spec)
        if path is None:
            raise UserError(f"data.{name}: no such file: {spec}")
        for number, text in numbered_prompts(path):
            texts[name].append(text)
            places[name].append(f"{path}:{number}")
        hashes[name] = files.sha256(path)
    if config.data.heldout is not None:
        check_heldout(texts["prompts"], texts["heldout"], config.data.heldout)
    reward = rewards.load(config.scoring.reward)
    judge = rewards.load_judge(config, reward, differs=judge_differs)
    return Inputs(texts["prompts"], texts["heldout"], reward, judge, hashes, places)


def check_lengths(inputs: Inputs, ctx: Context, longest: int) -> None:
    """Refuse a prompt that leaves no room for its responses, before any work is done.

    How many prompts are cut (`Tokeniser`) is told in a line.

    Parameters
    ----------
    inputs : Inputs
    ctx : Context
    longest : int
        Tokens of the longest response.

    Raises
    ------
    UserError
        With the prompt's file and line, its tokens, and the positions that the model has.
    """
    before = ctx.tokens.cut["prompts"]
    for name, prompts in (("prompts", inputs.prompts), ("heldout", inputs.heldout)):
        for place, prompt in zip(inputs.places[name], prompts, strict=True):
            try:
                count = len(ctx.tokens.prompt(prompt))
            except UserError as error:
                raise UserError(f"{place}: {error}") from None
            positions = ctx.positions
            if positions is not None and count + longest > positions:
                raise UserError(
                    f"{place}: the prompt has {count} tokens, and sampling.max_new_tokens = "
                    f"{longest} may follow; the model has {positions} positions"
                )
    cut = ctx.tokens.cut["prompts"] - before
    if cut:
        sys.stderr.write(
            f"pyfast: {cut} of {len(inputs.prompts) + len(inputs.heldout)} prompts are longer than "
            "text.max_prompt and are cut from the left\n"
        )
