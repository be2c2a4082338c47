"""Rewards: plain callables that score the responses to one prompt."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pyfast.train.errors import UserError

Reward = Callable[[str, list[str]], Sequence[float]]
"""``reward(prompt, responses) -> scores``, one finite number a response, higher is better."""


def load(spec: str) -> Reward:
    """Find a reward by name.

    Parameters
    ----------
    spec : str
        ``"vader"``, or ``"package.module:function"``; the current folder is searched too.

    Raises
    ------
    UserError
        Saying what could not be imported or found.
    """
    if spec == "vader":
        return vader()
    module_name, colon, attribute = spec.partition(":")
    if not colon or not module_name or not attribute:
        raise UserError(f"scoring.reward: expected vader or package.module:function, got {spec!r}")
    here = str(Path.cwd())
    if here not in sys.path:  # an installed command does not search the current folder
        sys.path.append(here)
    try:
        reward: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f"scoring.reward: cannot import {module_name!r}: {error}") from None
    for part in attribute.split("."):
        if not hasattr(reward, part):
            raise UserError(f"scoring.reward: module {module_name!r} has no {attribute!r}")
        reward = getattr(reward, part)
    if not callable(reward):
        raise UserError(f"scoring.reward: {spec!r} is not callable")
    return reward  # type: ignore[no-any-return]


def vader() -> Reward:
    """Return the VADER sentiment of each response, its compound score scaled to [0, 1].

    0 is most negative, 0.5 neutral, 1 most positive (Hutto & Gilbert, ICWSM 2014).
    """
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise UserError(
            "scoring.reward: vader needs the package vaderSentiment (pip install vaderSentiment)"
        ) from None
    analyser = SentimentIntensityAnalyzer()

    def sentiment(prompt: str, responses: list[str]) -> list[float]:
        return [(analyser.polarity_scores(y)["compound"] + 1) / 2 for y in responses]

    return sentiment


def score(reward: Reward, prompt: str, responses: list[str]) -> list[float]:
    """Call a reward and check what comes back.

    Returns
    -------
    list of float
        One finite score a response, in order.

    Raises
    ------
    UserError
        If the count is wrong or a score is not a finite number.
    """
    name = getattr(reward, "__qualname__", repr(reward))
    scores = list(reward(prompt, responses))
    if len(scores) != len(responses):
        raise UserError(
            f"reward {name}: expected {len(responses)} scores, one a response, got {len(scores)}"
        )
    checked = []
    for i, value in enumerate(scores):
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise UserError(f"reward {name}: score {i} is not a number: {value!r}") from None
        if not math.isfinite(number):
            raise UserError(f"reward {name}: score {i} is not finite: {number}")
        checked.append(number)
    return checked
