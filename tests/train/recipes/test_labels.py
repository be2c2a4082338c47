"""Oracles, and that no question is asked twice."""

import errno
import json
import math
import os
from itertools import pairwise

import pytest

from pyfast.train.data.prompts import Prompt
from pyfast.train.errors import UserError, WaitingError
from pyfast.train.recipes.active_dpo import labels, oracle
from pyfast.train.recipes.active_dpo.oracle import Answer, OracleConfig, Question
from pyfast.train.scoring import rewards

QUESTIONS = [Question(f"prompt {i}", f"good {i}", f"bad {i}") for i in range(6)]


class Counting:
    """Says "a", or what it is told, and counts."""

    def __init__(self, says=lambda question: "a", stop_after=None):
        self.asked, self.says, self.stop_after = [], says, stop_after

    def ask(self, questions, batch):
        for question in questions:
            if len(self.asked) == self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(question.key)
            yield Answer(self.says(question))


def words(prompt, responses):
    return [float(len(text)) for text in responses]


def scorer(rule="argmax", reward=words, scale=1.0, seed=0):
    return oracle.Scorer(reward, rule, scale, seed)


def test_no_question_is_asked_twice(tmp_path):
    path = tmp_path / "labels.jsonl"
    first = Counting(stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        labels.ask(path, first, QUESTIONS, "round-1")
    assert len(labels.read(path)) == 2
    second = Counting()
    answers = labels.ask(path, second, QUESTIONS, "round-1")
    assert answers == [Answer("a")] * 6
    asked = first.asked + second.asked
    assert sorted(asked) == sorted(question.key for question in QUESTIONS)
    third = Counting()
    labels.ask(path, third, QUESTIONS[::-1], "round-2")
    assert third.asked == []


def test_an_answer_turns_with_the_question(tmp_path):
    path = tmp_path / "labels.jsonl"
    question = Question("x", "long text", "short")
    turned = Question("x", "short", "long text")
    assert labels.ask(path, scorer(), [question], "1") == [Answer("a", {"scores": [9.0, 5.0]})]
    assert labels.ask(path, Counting(), [turned], "1") == [Answer("b", {"scores": [5.0, 9.0]})]
    skipped = Question("x", "b", "a")
    labels.ask(path, Counting(lambda question: "skip"), [skipped], "1")
    assert labels.ask(path, Counting(), [Question("x", "a", "b")], "1") == [Answer("skip")]


def test_what_a_kill_left_of_a_line_is_dropped(tmp_path):
    path = tmp_path / "labels.jsonl"
    labels.ask(path, Counting(), QUESTIONS[:2], "1")
    whole = path.read_bytes()
    for left in (b'{"batch": "1", "pro', b"\0" * 4000, b'{"batch"' + b"\0" * 9):
        path.write_bytes(whole + left)
        assert len(labels.read(path)) == 2
        asking = Counting()
        labels.ask(path, asking, QUESTIONS[:3], "1")
        assert asking.asked == [QUESTIONS[2].key]
        assert path.read_bytes().startswith(whole)
        assert path.read_bytes().endswith(b"}\n")


def test_a_changed_label_is_told(tmp_path):
    path = tmp_path / "labels.jsonl"
    labels.ask(path, Counting(), QUESTIONS[:2], "1")
    path.write_text(path.read_text().replace('"answer": "a"', '"answer": "b"', 1))
    with pytest.raises(UserError, match=r"labels\.jsonl:1: .* its checksum differs"):
        labels.ask(path, Counting(), QUESTIONS, "1")


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs posix_fallocate")
def test_on_a_full_disk_nobody_is_asked(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "labels.jsonl"
    labels.ask(path, Counting(), QUESTIONS[:2], "1")
    asking = Counting()
    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        with pytest.raises(OSError, match=r"No space left.*labels\.jsonl"):
            labels.ask(path, asking, QUESTIONS, "1")
    assert asking.asked == []
    labels.ask(path, asking, QUESTIONS, "1")
    assert len(asking.asked) == 4


@pytest.mark.parametrize("said", ["A", "", None, 3, ["a"]])
def test_nonsense_is_refused_and_not_kept(tmp_path, said):
    function = oracle.Function(lambda prompt, a, b: said)
    with pytest.raises(UserError, match=r"'prompt 0'.*expected one of 'a', 'b', 'skip', got"):
        labels.ask(tmp_path / "labels.jsonl", function, QUESTIONS, "1")
    assert labels.read(tmp_path / "labels.jsonl") == []


def test_an_oracle_that_raises_keeps_what_it_said_before(tmp_path):
    def tired(prompt, a, b):
        if prompt == "prompt 3":
            raise RuntimeError("enough")
        return "b"

    with pytest.raises(UserError, match=r"prompt 'prompt 3': it raised RuntimeError: enough"):
        labels.ask(tmp_path / "labels.jsonl", oracle.Function(tired), QUESTIONS, "1")
    kept = labels.read(tmp_path / "labels.jsonl")
    assert [label.question.prompt for label in kept] == ["prompt 0", "prompt 1", "prompt 2"]


def test_too_few_answers_are_told(tmp_path):
    class Short:
        def ask(self, questions, batch):
            return iter([Answer("a")])

    with pytest.raises(UserError, match="no answer to the question about 'prompt 1'"):
        labels.ask(tmp_path / "labels.jsonl", Short(), QUESTIONS, "1")


def test_argmax_takes_the_higher_score_whatever_is_shown_first():
    for a, b in (("long text", "short"), ("short", "long text")):
        (answer,) = scorer().ask([Question("x", a, b)], "1")
        assert (a, b)["ab".index(answer.choice)] == "long text"
        assert answer.notes == {"scores": [float(len(a)), float(len(b))]}


def test_a_tie_is_a_coin_flip_that_is_written_down():
    texts = [f"{i:03}" for i in range(401)]
    questions = [Question("x", *pair) for pair in pairwise(texts)]
    answers = list(scorer().ask(questions, "1"))
    assert all(answer.notes["tie"] for answer in answers)
    assert 150 < sum(answer.choice == "a" for answer in answers) < 250
    turned = list(scorer().ask([Question("x", q.b, q.a) for q in questions], "1"))
    assert [answer.choice for answer in turned] == ["ba"["ab".index(y.choice)] for y in answers]
    other = list(scorer(seed=1).ask(questions, "1"))
    assert other != answers


def test_btl_answers_with_the_probability_of_equation_1():
    questions = [Question(str(i), "abc", "ab") for i in range(4000)]
    answers = list(scorer("btl", scale=0.7).ask(questions, "1"))
    share = sum(answer.choice == "a" for answer in answers) / len(answers)
    expected = 1 / (1 + math.exp(-0.7))
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / len(answers))
    (sure,) = scorer("btl", lambda x, ys: [1e9 * len(y) for y in ys]).ask(questions[:1], "1")
    assert sure.choice == "a"


def test_a_file_stops_the_run_until_it_is_filled(tmp_path):
    path, asked = tmp_path / "labels.jsonl", tmp_path / "questions" / "round-1.jsonl"
    somebody = oracle.Files(tmp_path / "questions")
    with pytest.raises(WaitingError, match=r"round-1\.jsonl: 6 of 6 questions have no answer yet"):
        labels.ask(path, somebody, QUESTIONS, "round-1")
    lines = [json.loads(line) for line in asked.read_text().splitlines()]
    assert [(line["prompt"], line["a"]) for line in lines] == [(q.prompt, q.a) for q in QUESTIONS]
    for line, said in zip(lines, ["a", "b", "skip", "b", "a", None], strict=True):
        line["answer"] = said
    asked.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(WaitingError, match="1 of 6"):
        labels.ask(path, somebody, QUESTIONS, "round-1")
    lines[5]["answer"] = "a"
    asked.write_text("\n".join(map(json.dumps, lines)))
    answers = labels.ask(path, somebody, QUESTIONS, "round-1")
    assert [answer.choice for answer in answers] == ["a", "b", "skip", "b", "a", "a"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[1].update(answer="yes"), r'round-1\.jsonl:2: answer: expected "a"'),
        (lambda lines: lines[1].update(a="other"), r"2: .*prompt or responses were changed"),
        (lambda lines: lines.pop(), "expected the question .*, and it is not here"),
        (lambda lines: lines.append(lines[0]), "7: the question stands here twice"),
        (lambda lines: lines[0].pop("id"), "1: expected a question as it was written"),
    ],
)
def test_a_file_that_was_spoilt_is_told(tmp_path, change, message):
    somebody = oracle.Files(tmp_path / "questions")
    with pytest.raises(WaitingError):
        labels.ask(tmp_path / "labels.jsonl", somebody, QUESTIONS, "round-1")
    asked = tmp_path / "questions" / "round-1.jsonl"
    lines = [json.loads(line) for line in asked.read_text().splitlines()]
    for line in lines:
        line["answer"] = "a"
    change(lines)
    asked.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError, match=message):
        labels.ask(tmp_path / "labels.jsonl", somebody, QUESTIONS, "round-1")


def test_oracles_by_their_settings(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def best(prompt, a, b): return 'b'\ndef score(p, ys): ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    reward = rewards.vader()

    def load(*arguments):
        config = OracleConfig(*arguments)
        return oracle.load(config, oracle.scorer_of(config, reward))(7, tmp_path)

    assert load().reward is reward
    assert (load("btl", None, 2.0).rule, load("btl", None, 2.0).scale) == ("btl", 2.0)
    assert load("argmax", "mine:score").reward.__name__ == "score"
    assert isinstance(load("file"), oracle.Files)
    assert load("mine:best").function("x", "y", "z") == "b"
    with pytest.raises(UserError, match=r"oracle\.oracle: expected argmax, btl, file or package"):
        load("best")
    with pytest.raises(UserError, match=r"oracle\.oracle: module 'mine' has no 'worst'"):
        load("mine:worst")
    with pytest.raises(UserError, match=r"oracle\.oracle_reward: cannot import 'nothing'"):
        load("argmax", "nothing:score")
    with pytest.raises(UserError, match=r"expected oracle argmax or btl, got 'file'"):
        load("file", "mine:score")


def test_a_chat_is_asked_about_and_found_again(tmp_path):
    chat = Prompt([{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}])
    question = Question(chat, "hello", "go away")
    path, folder = tmp_path / "labels.jsonl", tmp_path / "questions"
    with pytest.raises(WaitingError):
        labels.ask(path, oracle.Files(folder), [question], "round-1")
    record = json.loads((folder / "round-1.jsonl").read_text())
    assert record["prompt"] == chat.messages
    (folder / "round-1.jsonl").write_text(json.dumps({**record, "answer": "a"}))
    asked = labels.ask(path, oracle.Files(folder), [question], "round-1")
    assert [answer.choice for answer in asked] == ["a"]
    counting = Counting()
    labels.ask(path, counting, [Question(chat, "go away", "hello")], "round-2")
    assert counting.asked == []
    other = Question(str(chat), "hello", "go away")  # the same text, and another prompt
    assert other.key != question.key


def test_a_scorer_gets_the_fields_of_the_prompt(tmp_path):
    def reward(prompt, responses, target):
        return [float(text == target) for text in responses]

    question = Question(Prompt("x", {"target": "right"}), "wrong", "right")
    (answer,) = labels.ask(tmp_path / "labels.jsonl", scorer(reward=reward), [question], "1")
    assert answer.choice == "b"
