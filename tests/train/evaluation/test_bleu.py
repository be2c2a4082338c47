"""BLEU against the definition, written out."""

import math
import random
from collections import Counter

import pytest

from pyfast.train.evaluation.bleu import bleu

pytest.importorskip("sacrebleu")


def slow_bleu(text, reference):
    """BLEU-4 of two lists without smoothing (Papineni et al. 2002)."""
    logs = []
    for n in range(1, 5):
        grams, known = (
            Counter(tuple(s[i : i + n]) for i in range(len(s) - n + 1)) for s in (text, reference)
        )
        matched = sum(min(count, known[gram]) for gram, count in grams.items())
        if matched == 0:
            return 0.0
        logs.append(math.log(matched / sum(grams.values())))
    brevity = min(0.0, 1 - len(reference) / len(text))
    return math.exp(brevity + sum(logs) / 4)


TEXTS = [
    "the cat sat on the mat",
    "the cat is on the mat",
    "a dog,  in the rain\nand sun",
    "the",
    "",
    "é€ 漢字 mat on the mat",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("reference", TEXTS[:3])
def test_characters(text, reference, caplog):
    assert bleu(text, reference, of="char") == pytest.approx(slow_bleu(text, reference), abs=1e-12)
    assert caplog.records == []  # nothing to say, a thousand times


def test_characters_of_random_strings():
    generator = random.Random(0)
    for _ in range(50):
        pair = ["".join(generator.choices("ab c\n", k=generator.randrange(40))) for _ in range(2)]
        if pair[1]:
            assert bleu(*pair, of="char") == pytest.approx(slow_bleu(*pair), abs=1e-12)


def test_words():
    text, reference = "the cat sat on the mat today", "so the cat sat on the mat"
    expected = slow_bleu(text.split(), reference.split())
    assert expected > 0.5
    assert bleu(text, reference) == pytest.approx(expected)
    assert bleu(text, text) == pytest.approx(1)
    assert 0 < bleu("the cat sat", reference) < 1  # smoothed, up to trigrams
    assert bleu("", reference) == 0


def test_another_unit_is_refused():
    with pytest.raises(ValueError, match="expected word or char"):
        bleu("a", "b", of="byte")
