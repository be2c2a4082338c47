import sys

import pytest

from pyfast.train import rewards
from pyfast.train.errors import UserError


def test_vader_is_between_0_and_1_and_knows_good_from_bad():
    reward = rewards.load("vader")
    bad, neutral, good = rewards.score(reward, "p", ["awful, sad", "", "great, I love it"])
    assert 0 <= bad < neutral < good <= 1
    assert neutral == 0.5


def test_a_reward_is_found_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "my_own_reward.py").write_text("def length(p, ys): return [len(y) for y in ys]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert rewards.score(rewards.load("my_own_reward:length"), "p", ["abc", ""]) == [3.0, 0.0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("vadr", "expected vader or package.module:function, got 'vadr'"),
        ("no_such_module:f", "cannot import 'no_such_module'"),
        ("json:no_such", "module 'json' has no 'no_such'"),
        ("json:__name__", "'json:__name__' is not callable"),
        (":f", "expected vader or package.module:function"),
    ],
)
def test_unknown_rewards(spec, message):
    with pytest.raises(UserError, match=r"^scoring\.reward: ") as caught:
        rewards.load(spec)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], "expected 2 scores, one a response, got 1"),
        ([1.0, float("nan")], "score 1 is not finite: nan"),
        ([float("inf"), 1.0], "score 0 is not finite: inf"),
        ([1.0, "x"], "score 1 is not a number: 'x'"),
        ([None, 1.0], "score 0 is not a number: None"),
    ],
)
def test_what_a_reward_returns_is_checked(returned, message):
    def mine(prompt, responses):
        return returned

    with pytest.raises(UserError) as caught:
        rewards.score(mine, "p", ["a", "b"])
    assert "mine: " + message in str(caught.value)
