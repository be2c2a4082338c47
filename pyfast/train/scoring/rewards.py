"""Rewards: plain callables that score the responses to one prompt."""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import math
import reprlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from pyfast.train.errors import UserError
from pyfast.train.scoring.reward_models import RewardModel, is_model

MOST = 1e30
"""A score of more is refused: in float32 a sum of a few such ones would be infinite."""

Reward = Callable[..., Sequence[float]]
"""``reward(prompt, responses) -> scores``, one finite number a response, higher is better.

A function that has ``**kwargs``, or parameters of their names, is also given the other fields of
the prompt's record in the prompts file, by name.
"""


def load(spec: str, setting: str = "scoring.reward") -> Reward:
    """Find a reward by name.

    Parameters
    ----------
    spec : str
        ``"vader"``, ``"model:WHERE"`` (`RewardModel`, whose weights are loaded later), or
        ``"package.module:function"``; the current folder is searched too.
    setting : str
        What errors call it.

    Raises
    ------
    UserError
        Saying what could not be imported or found. The module's code is run: load none that you do
        not trust.
    """
    if spec == "vader":
        return vader(setting)
    if is_model(spec):
        return RewardModel(spec, setting)
    reward: Reward = imported(spec, setting, "vader", "model:FOLDER_OR_HUB_ID")
    return reward


def source(reward: Reward) -> Path | None:
    """Return the file that a function is written in, or the folder of a model; None: unknown."""
    if isinstance(reward, RewardModel):
        return Path(reward.source)
    named = reward if inspect.isroutine(reward) else type(reward)
    if named.__module__ == __name__:  # vader
        return None
    try:
        found = inspect.getsourcefile(inspect.unwrap(named))
    except (TypeError, ValueError):  # a builtin
        return None
    return None if found is None else Path(found)


def imported(spec: str, setting: str, *others: str) -> Any:
    """Import a function of the user's, ``"package.module:function"``.

    Parameters
    ----------
    spec : str
        What was given for the setting.
    setting : str
        What errors call it.
    *others : str
        What else the setting may be, for the error.

    Raises
    ------
    UserError
        Saying what could not be imported or found, or cannot be called.
    """
    module_name, colon, attribute = spec.partition(":")
    if not colon or not module_name or not attribute:
        expected = " or ".join([", ".join(others), "package.module:function"])
        raise UserError(f"{setting}: expected {expected}, got {spec!r}")
    here = str(Path.cwd())
    if here not in sys.path:  # an installed command does not search the current folder
        sys.path.append(here)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for results
            found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise UserError(f"{setting}: cannot import {module_name!r}: {told(error)}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UserError(f"{setting}: module {module_name!r} has no {attribute!r}")
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"{setting}: {spec!r} is not callable")
    return found


def load_judge(settings: Any, reward: Reward, *, differs: bool = False) -> Reward:
    """Return the scorer that evaluates: that of ``evaluation.reward``, or the training's own.

    Parameters
    ----------
    settings : Settings
        With the sections scoring and evaluation.
    reward : callable
        What the training is scored by.
    differs : bool
        Tell in a line where it is the same: a recipe's results then say how well its own scorer is
        pleased.
    """
    spec = settings.get("evaluation.reward")
    judge = reward if spec in (None, settings.scoring.reward) else load(spec, "evaluation.reward")
    if differs and judge is reward:
        sys.stderr.write(
            "pyfast: warning: evaluation.reward: the scorer that trains also judges "
            f"({settings.scoring.reward}); expected another one\n"
        )
    return judge


def ready(rewards: Mapping[str, Reward], device: Any) -> dict[str, dict[str, str]]:
    """Load the reward models among some rewards; return their fingerprints by name."""
    found = {}
    for name, reward in rewards.items():
        if isinstance(reward, RewardModel):
            reward.load(device)
            found[name] = reward.fingerprint()
    return found


def vader(setting: str = "scoring.reward") -> Reward:
    """Return the VADER sentiment of each response, its compound score scaled to [0, 1].

    0 is most negative, 0.5 neutral, 1 most positive (Hutto & Gilbert, ICWSM 2014).
    """
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise UserError(
            f"{setting}: vader needs the package vaderSentiment (pip install vaderSentiment)"
        ) from None
    analyser = SentimentIntensityAnalyzer()

    def sentiment(prompt: str, responses: list[str]) -> list[float]:
        return [(analyser.polarity_scores(y)["compound"] + 1) / 2 for y in responses]

    return sentiment


def score(reward: Reward, prompt: str, responses: Sequence[str]) -> list[float]:
    """Call a reward and check what comes back.

    Parameters
    ----------
    reward : callable
        It is given copies; what it does to them changes nothing.
    prompt : str
        A `prompts.Prompt` has fields, which go to the reward by name, as far as it takes them.
    responses : sequence of str

    Returns
    -------
    list of float
        One finite score a response, in order.

    Raises
    ------
    UserError
        Naming the function and the prompt: if it raises, needs a field that the prompt has not, or
        returns something else than one finite number a response.
    """
    where = f"reward {_name(reward)}, prompt {reprlib.repr(str(prompt))}"
    fields = _accepted(reward, dict(getattr(prompt, "fields", {})), where)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            # A model reads a chat's messages, functions their text.
            asked = prompt if isinstance(reward, RewardModel) else str(prompt)
            returned: Any = reward(asked, list(responses), **copy.deepcopy(fields))
            scores = _listed(returned)
    except (Exception, SystemExit) as error:
        raise UserError(f"{where}: it raised {told(error)}") from error
    wanted = f"expected {len(responses)} scores, one a response"
    if scores is None:
        raise UserError(f"{where}: {wanted}, got {_what(returned)}")
    if len(scores) != len(responses):
        raise UserError(f"{where}: {wanted}, got {len(scores)}")
    return [_number(value, f"{where}: score {i}") for i, value in enumerate(scores)]


def _accepted(reward: Reward, fields: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the fields that a reward takes by name."""
    try:
        parameters = list(inspect.signature(reward).parameters.values())
    except (TypeError, ValueError):  # a builtin, that does not say
        return {}
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    own = {p.name for p in positional[:2]}
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    taken = {p.name for p in named} - own
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        taken |= set(fields) - own
    for parameter in named:
        required = parameter.default is parameter.empty and parameter.name in taken
        if required and parameter.name not in fields:
            raise UserError(
                f"{where}: it needs the field {parameter.name!r}, which the prompt's record lacks"
            )
    return {name: value for name, value in fields.items() if name in taken}


def _listed(returned: Any) -> list[Any] | None:
    """Return what a reward returned as a list, or None if it is no row of numbers."""
    if inspect.iscoroutine(returned):
        returned.close()  # or Python warns that nobody awaited it
        return None
    if isinstance(returned, (str, bytes, Mapping, Set)) or not isinstance(returned, Iterable):
        return None
    if len(getattr(returned, "shape", (0,))) != 1:  # an array or tensor
        return None
    return list(returned)


def _what(returned: Any) -> str:
    if returned is None:
        return "None (does it return them?)"
    shape = getattr(returned, "shape", None)
    if shape is not None:
        return f"{type(returned).__name__} of shape {list(shape)}"
    return f"{type(returned).__name__} {reprlib.repr(returned)}"


def _number(value: Any, where: str) -> float:
    if isinstance(value, (str, bytes)) or len(getattr(value, "shape", ())) != 0:
        raise UserError(f"{where} is not a number: {reprlib.repr(value)}")
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise UserError(f"{where} is not a number: {reprlib.repr(value)}") from None
    if not math.isfinite(number):
        raise UserError(f"{where} is not finite: {number}")
    if abs(number) > MOST:
        raise UserError(f"{where}: expected at most {MOST:.0e} in size, got {number}")
    return number


def _name(reward: Reward) -> str:
    return getattr(reward, "__qualname__", None) or type(reward).__qualname__


def told(error: BaseException) -> str:
    """Return an error in one line, with its kind and where it was raised."""
    lines = str(error).strip().splitlines()
    kind = type(error).__name__
    return f"{kind}: {lines[0]}" if lines else kind
