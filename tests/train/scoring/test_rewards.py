import functools
import sys

import numpy as np
import pytest
import torch

from pyfast.train.data import prompts
from pyfast.train.errors import UserError
from pyfast.train.scoring import rewards


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
        ("vadr", "expected vader, model:FOLDER_OR_HUB_ID or package.module:function, got 'vadr'"),
        ("no_such_module:f", "cannot import 'no_such_module'"),
        ("json:no_such", "module 'json' has no 'no_such'"),
        ("json:__name__", "'json:__name__' is not callable"),
        (":f", "expected vader, model:FOLDER_OR_HUB_ID or package.module:function"),
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
        (["1", "2"], "score 0 is not a number: '1'"),
        ([1j, 1.0], "score 0 is not a number: 1j"),
        ([10**400, 1.0], "score 0 is not a number: 1000"),
        ([1.0, -1e308], "score 1: expected at most 1e+30 in size, got -1e+308"),
        (None, "expected 2 scores, one a response, got None (does it return them?)"),
        (0.5, "expected 2 scores, one a response, got float 0.5"),
        ("ab", "expected 2 scores, one a response, got str 'ab'"),
        ({"a": 1.0, "b": 2.0}, "expected 2 scores, one a response, got dict"),
        ({1.0, 2.0}, "expected 2 scores, one a response, got set"),
        (np.ones((2, 1)), "expected 2 scores, one a response, got ndarray of shape [2, 1]"),
        (np.float64(3.0), "expected 2 scores, one a response, got float64 of shape []"),
        (torch.ones(1, 2), "expected 2 scores, one a response, got Tensor of shape [1, 2]"),
        (torch.tensor([0.0, torch.nan]), "score 1 is not finite: nan"),
        ([torch.ones(1), torch.ones(1)], "score 0 is not a number: tensor([1.])"),
        ([1.0, 2.0, 3.0], "expected 2 scores, one a response, got 3"),
        (iter([1.0]), "expected 2 scores, one a response, got 1"),
    ],
)
def test_what_a_reward_returns_is_checked(returned, message):
    def mine(prompt, responses):
        return returned

    with pytest.raises(UserError) as caught:
        rewards.score(mine, "p", ["a", "b"])
    assert "mine, prompt 'p': " + message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "returned",
    [
        (1, 2),
        np.array([1.0, 2.0]),
        torch.tensor([1.0, 2.0]),
        iter([1, 2]),
        [np.float32(1), True + 1],
    ],
)
def test_any_row_of_numbers_will_do(returned):
    assert rewards.score(lambda prompt, responses: returned, "p", ["a", "b"]) == [1.0, 2.0]


def test_a_reward_changes_nothing_that_it_is_given():
    """One that sorts the responses would score others than those it was asked about."""
    prompt = prompts.Prompt("p", {"answers": ["b"]})
    responses = ["b", "a", "c"]

    def sorting(prompt, responses, answers):
        responses.sort()
        responses.pop()
        answers.clear()
        return [1.0, 2.0, 3.0]

    assert rewards.score(sorting, prompt, responses) == [1.0, 2.0, 3.0]
    assert responses == ["b", "a", "c"]
    assert prompt.fields == {"answers": ["b"]}


FIELDS = {"answer": "42", "level": 3, "prompt_id": 7}


def by_name(prompt, responses, answer):
    return {"answer": answer}


def keyword_only(prompt, responses, *, level, answer="none"):
    return {"level": level, "answer": answer}


def anything(prompt, responses, **others):
    return others


def renamed(question, texts, level=0, missing="default"):
    return {"level": level, "missing": missing}


def own_names(answer, level):  # the two that it must have, whatever they are called
    return {}


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (by_name, {"answer": "42"}),
        (keyword_only, {"level": 3, "answer": "42"}),
        (anything, FIELDS),
        (renamed, {"level": 3, "missing": "default"}),
        (own_names, {}),
        (lambda prompt, responses: {}, {}),
    ],
)
def test_fields_of_the_prompt_go_to_a_reward_by_name(function, expected):
    seen = []

    @functools.wraps(function)
    def spied(*args, **named):
        seen.append(function(*args, **named))
        return [0.0]

    prompt = prompts.Prompt("what?", FIELDS)
    assert rewards.score(spied, prompt, ["y"]) == [0.0]
    assert seen == [expected]


def test_a_field_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"by_name, prompt 'what': it needs the field 'answer'"):
        rewards.score(by_name, "what", ["y"])


def test_fields_come_from_the_prompts_file(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "six times seven?", "answer": "42", "tags": ["easy"]}\n')
    (prompt,) = prompts.read_prompts(path)
    assert prompt == "six times seven?"

    def exact(prompt, responses, answer, **others):
        assert type(prompt) is str
        assert others == {"tags": ["easy"]}
        return [float(y == answer) for y in responses]

    assert rewards.score(exact, prompt, ["41", "42"]) == [0.0, 1.0]


@pytest.mark.parametrize("error", [ValueError("no\nsuch"), ZeroDivisionError(), SystemExit(3)])
def test_a_reward_that_raises_is_named(error):
    def broken(prompt, responses):
        raise error

    with pytest.raises(UserError) as caught:
        rewards.score(broken, "why?" * 100, ["a"])
    message = str(caught.value)
    assert message.endswith(
        f"it raised {type(error).__name__}{'' if not str(error) else ': '}"
        + (str(error).splitlines()[0] if str(error) else "")
    )
    assert "broken, prompt 'why?why?" in message
    assert len(message) < 200
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("text", ["1/0", "raise SystemExit(1)", "def f(:", "import no_such_module"])
def test_a_reward_that_cannot_be_imported(tmp_path, monkeypatch, text):
    name = f"broken_{abs(hash(text))}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=rf"^scoring\.reward: cannot import '{name}'") as caught:
        rewards.load(f"{name}:f")
    assert "\n" not in str(caught.value)


def test_what_a_reward_prints_is_no_result(tmp_path, monkeypatch, capsys):
    (tmp_path / "loud.py").write_text(
        "print('imported')\ndef f(p, ys):\n    print('scored')\n    return [0.0] * len(ys)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    rewards.score(rewards.load("loud:f"), "p", ["a"])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "imported\nscored\n"


def test_a_reward_that_has_to_be_awaited():
    async def later(prompt, responses):
        return [0.0]

    with pytest.raises(UserError, match="expected 1 scores, one a response, got coroutine"):
        rewards.score(later, "p", ["a"])
