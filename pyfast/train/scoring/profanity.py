"""A scorer that is a classifier of offensive words: `evaluation.reward` of HPS's demo."""

from __future__ import annotations

from collections.abc import Sequence

from pyfast.train.errors import UserError


def clean(prompt: str, responses: Sequence[str]) -> list[float]:
    """Return how likely each response is free of offensive language, 0 to 1.

    By alt-profanity-check: a linear classifier of words, trained on comments that people labelled.
    """
    try:
        from profanity_check import predict_prob
    except ImportError:
        raise UserError(
            "pyfast.train.scoring.profanity: it needs the package alt-profanity-check and "
            "scikit-learn (pip install alt-profanity-check)"
        ) from None
    return [1 - float(p) for p in predict_prob(list(responses))]
