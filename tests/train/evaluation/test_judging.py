import numpy as np
import pytest

from pyfast.train.errors import UserError
from pyfast.train.evaluation import judging


def test_scores():
    ours, theirs = np.array([1.0, 0.5, 0.5, 0.2]), np.array([0.0, 0.5, 0.51, 0.9])
    assert judging.by_score(ours, theirs, 0.02).tolist() == [1, 0.5, 0.5, 0]
    assert judging.by_score(ours, theirs, 0.0).tolist() == [1, 0.5, 0, 0]


def test_a_judge_who_likes_the_first_ties():
    assert judging.outcomes(["x"], ["a"], ["b"], lambda prompt, a, b: 1.0).tolist() == [0.5]


def test_both_orders_are_asked():
    seen = []

    def longer(prompt, first, second):
        seen.append((prompt, first, second))
        return float(len(first) > len(second))

    won = judging.outcomes(["x", "y"], ["aaa", "b"], ["aa", "bb"], longer)
    assert won.tolist() == [1, 0]
    assert seen == [("x", "aaa", "aa"), ("x", "aa", "aaa"), ("y", "b", "bb"), ("y", "bb", "b")]


def test_the_mean_of_both_orders_decides():
    answers = {("a", "b"): 0.9, ("b", "a"): 0.6}  # 0.9 and 0.4: 0.65

    def judge(prompt, first, second):
        return answers[first, second]

    assert judging.outcomes(["x"], ["a"], ["b"], judge).tolist() == [1]
    assert judging.outcomes(["x"], ["b"], ["a"], judge).tolist() == [0]
    assert judging.outcomes(["x"], ["a"], ["b"], judge, 0.16).tolist() == [0.5]


@pytest.mark.parametrize("word", [1.5, -0.1, float("nan"), float("inf")])
def test_another_number_is_refused(word):
    with pytest.raises(UserError, match="judge, prompt 'x': expected a number from 0 to 1"):
        judging.outcomes(["x"], ["a"], ["b"], lambda prompt, a, b: word)


@pytest.mark.parametrize("word", [None, "better"])
def test_no_number_is_told(word):
    with pytest.raises(UserError, match="judge, prompt 'x'"):
        judging.outcomes(["x"], ["a"], ["b"], lambda prompt, a, b: word)
