"""BLEU of a sentence, through sacrebleu."""

from __future__ import annotations

import functools
from typing import Any

from pyfast.train.errors import UserError


def is_there() -> bool:
    """Tell whether sacrebleu is installed."""
    import importlib.util

    return importlib.util.find_spec("sacrebleu") is not None


def bleu(text: str, reference: str, *, of: str = "word") -> float:
    """Return the BLEU-4 of a text against one reference, 0 to 1 (Papineni et al. 2002).

    Parameters
    ----------
    text, reference : str
    of : {"word", "char"}
        "word": sacrebleu's sentence BLEU (its 13a tokens, exponential smoothing, n-grams no longer
        than the text), by 100. "char": n-grams of characters, spaces among them, without smoothing,
        so that a text without a common 4-gram has 0: what a BLEU of lists gives when it is handed
        strings, as HPS's authors do.
    """
    scorer = _scorer(of)
    if of == "word":
        return float(scorer.sentence_score(text, [reference]).score) / 100
    # A word a character; spaces too, so by their numbers. As a corpus of one: sacrebleu advises
    # against sentences without effective order, in a warning each.
    text, reference = (" ".join(f"{ord(c):x}" for c in s) for s in (text, reference))
    return float(scorer.corpus_score([text], [[reference]]).score) / 100


@functools.cache
def _scorer(of: str) -> Any:
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        raise UserError("BLEU needs the package sacrebleu (pip install sacrebleu)") from None
    if of == "word":
        return BLEU(effective_order=True)
    if of == "char":
        return BLEU(tokenize="none", smooth_method="none", effective_order=False)
    raise ValueError(f"of: expected word or char, got {of!r}")
