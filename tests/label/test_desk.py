"""The desk: every question has an id and one answer, whoever is at work, and undoing."""

import json
import random
import threading

import pytest
import waiting_run
from waiting_run import QUESTIONS

from pyfast._files import locked
from pyfast.label.desk import Desk, RefusedError, Run
from pyfast.train.errors import UserError, WaitingError


@pytest.fixture
def run(tmp_path):
    return waiting_run.make(tmp_path)


def desk_of(run, name="ann", **options):
    return Desk(Run(run), name, via="terminal", **options)


def label_all(desk, choose=lambda shown: "1"):
    view, seen = desk.look(), []
    while view.shown is not None:
        seen.append(view.shown)
        view = desk.answer(view.shown.id, choose(view.shown))
    return seen


def test_the_run_takes_what_was_said_of_the_response_that_was_shown(run):
    """Prefer the response that ends with x, wherever it is shown."""
    desk = desk_of(run)
    seen = label_all(desk, lambda shown: "1" if shown.responses[0].endswith("x") else "2")
    answers = waiting_run.take(run)
    assert [answer.choice for answer in answers] == ["a"] * 6
    assert {shown.responses[0][-1] for shown in seen} == {"x", "y"}  # both orders were shown
    assert answers[0].notes == {"annotator": "ann", "annotators": 1, "agreeing": 1, "again": False}
    for line, shown in zip(waiting_run.annotations(run), seen, strict=True):
        assert (line["id"], line["first"]) == (shown.id, shown.first)
        assert shown.responses[0].endswith("xy"["ab".index(line["first"])])


def test_the_order_is_of_the_seed_and_the_annotator(tmp_path):
    questions = [*QUESTIONS, *(waiting_run.Question(f"p{i}", "x", "y") for i in range(200))]

    def orders(seed, name):
        run = waiting_run.make(tmp_path / f"{seed}", questions, seed=seed)
        desk = desk_of(run, name)
        return [desk._first(question.key) for question in questions]

    assert orders(3, "ann") == orders(3, "ann")
    assert orders(3, "ann") != orders(4, "ann")
    assert orders(3, "ann") != orders(3, "bob")
    assert 70 < orders(3, "ann").count("a") < 136


def test_a_look_changes_nothing_and_a_reload_shows_the_same(run):
    desk = desk_of(run)
    view = desk.look()
    assert desk.look() == view == desk_of(run).look()
    assert waiting_run.annotations(run) == []
    assert (view.done, view.total, view.waiting, view.last) == (0, 6, 6, None)


def test_a_second_answer_is_refused_and_the_first_one_stands(run):
    """A double click, a request that is sent again, a second window: all of them are this."""
    one, other = desk_of(run), desk_of(run)
    shown = one.look().shown
    assert other.look().shown == shown
    one.answer(shown.id, "1")
    for desk in (one, other):
        for choice in "12s":
            with pytest.raises(RefusedError, match=r"has your answer already: response 1\."):
                desk.answer(shown.id, choice)
    assert len(waiting_run.annotations(run)) == 1
    assert other.look().shown.id != shown.id


@pytest.mark.parametrize("choice", ["3", "", "a", "S", None])
def test_what_is_no_choice_is_refused(run, choice):
    desk = desk_of(run)
    with pytest.raises(UserError, match=r"choice: expected 1, 2 or s"):
        desk.answer(desk.look().shown.id, choice)
    with pytest.raises(UserError, match=r"id: this run asks no question 'x'"):
        desk.answer("x", "1")
    assert waiting_run.annotations(run) == []


def test_undo_asks_the_same_again_and_only_once(run):
    desk = desk_of(run)
    first = desk.look().shown
    view = desk.answer(first.id, "1")
    second = view.shown
    view = desk.answer(second.id, "s")
    place = view.last
    view = desk.undo(place)
    assert view.shown == second
    with pytest.raises(RefusedError, match="not your last one any more"):
        desk.undo(place)  # a double click on undo takes back one label, not two
    view = desk.undo(view.last)
    assert (view.shown, view.done, view.last) == (first, 0, None)
    with pytest.raises(RefusedError, match="not your last one"):
        desk.undo(0)
    desk.answer(first.id, "2")
    assert [line["answer"] for line in waiting_run.annotations(run)][2:4] == [None, None]
    assert desk.look().done == 1


def test_no_undo_of_what_the_run_has_taken(run):
    desk = desk_of(run)
    label_all(desk)
    waiting_run.take(run)
    view = desk.look()
    with pytest.raises(RefusedError, match="the run has taken this label up; it stands"):
        desk.undo(view.last)
    other = desk_of(run, "bob")  # whose label the run does not use
    view = other.answer(other.look().shown.id, "2")
    assert other.undo(view.last).done == 0


def test_no_undo_while_the_run_is_at_work(run):
    desk = desk_of(run)
    label_all(desk)
    with (
        locked(run / ".lock", keep=True),
        pytest.raises(RefusedError, match="the run is at work and has taken its labels up"),
    ):
        desk.undo(desk.look().last)
    assert desk.undo(desk.look().last).done == 5


def test_the_run_waits_until_all_are_answered_and_asks_nothing_twice(run):
    desk = desk_of(run)
    for _ in range(5):
        desk.answer(desk.look().shown.id, "1")
        with pytest.raises(WaitingError, match=r"of 6 questions .* with `pyfast label .*run`"):
            waiting_run.take(run)
    desk.answer(desk.look().shown.id, "1")
    first = waiting_run.take(run)
    assert waiting_run.take(run) == first
    assert len((run / "labels.jsonl").read_text().splitlines()) == 6
    more = [*QUESTIONS[:2], waiting_run.Question("new", "x", "y")]
    with pytest.raises(WaitingError, match="1 of 1"):
        waiting_run.take(run, more, "round-2")
    assert desk.look().shown.prompt == "new"
    assert (desk.look().waiting, desk.look().total) == (1, 7)


def test_an_answer_in_the_file_counts_more_and_is_not_asked(run):
    path = run / "questions" / "round-1.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    desk = desk_of(run)
    key = desk.look().shown.id
    desk.answer(key, "s")
    for line in lines:
        if line["id"] == key or line["prompt"] == "prompt 4":
            line["answer"] = "b"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert desk.look().total == 5
    assert "prompt 4" not in [shown.prompt for shown in label_all(desk)]
    answers = {q.key: a for q, a in zip(QUESTIONS, waiting_run.take(run), strict=True)}
    assert answers[key].choice == answers[QUESTIONS[4].key].choice == "b"
    assert answers[key].notes == {}
    with pytest.raises(RefusedError, match="has an answer in the questions' file"):
        desk.answer(QUESTIONS[4].key, "1")


def test_a_second_annotator_and_disagreements_asked_again(run):
    ann, bob = desk_of(run, "ann"), desk_of(run, "bob")
    by_text = {"x": lambda shown: "1" if shown.responses[0][-1] == "x" else "2"}
    label_all(ann, by_text["x"])
    opposite = lambda shown: "12"[by_text["x"](shown) == "1"]  # noqa: E731
    seen = label_all(
        bob, lambda s: (opposite if s.prompt in ("prompt 1", "prompt 4") else by_text["x"])(s)
    )
    assert len(seen) == 6
    state = Run(run).state()
    disputed = [state.asked[key].question.prompt for key in state.disputed()]
    assert sorted(disputed) == ["prompt 1", "prompt 4"]
    judge = desk_of(run, "ann", again=True)
    assert (judge.look().total, judge.look().done) == (2, 0)
    first = judge.look().shown
    view = judge.answer(first.id, "1" if first.responses[0][-1] == "y" else "2")
    view = judge.undo(view.last)
    assert view.shown == first
    view = judge.answer(first.id, "1" if first.responses[0][-1] == "y" else "2")
    with pytest.raises(RefusedError, match="was asked again already"):
        desk_of(run, "bob", again=True).answer(first.id, "1")
    agreed = next(q for q in QUESTIONS if q.prompt == "prompt 0")
    with pytest.raises(RefusedError, match="do not disagree"):
        judge.answer(agreed.key, "1")
    answers = dict(zip((q.prompt for q in QUESTIONS), waiting_run.take(run), strict=True))
    wanted = dict.fromkeys(answers, "a") | {first.prompt: "b"}  # the earliest, but that one
    assert {prompt: answer.choice for prompt, answer in answers.items()} == wanted
    assert answers[first.prompt].notes == {
        "annotator": "ann", "annotators": 2, "agreeing": 1, "again": True
    }  # fmt: skip
    assert judge.look().shown is None  # the run has taken the other one: it is final


def test_what_the_run_waits_for_comes_first(run):
    ann, bob = desk_of(run, "ann"), desk_of(run, "bob")
    keys = [shown.id for shown in label_all(ann)][:3]
    for _ in range(3):
        ann.undo(ann.look().last)
    order = [shown.id for shown in label_all(bob)]
    assert set(order[:3]).isdisjoint(keys)
    assert set(order[3:]) == set(keys)


def test_many_at_once_double_nothing(tmp_path):
    """Threads with desks of their own, as windows and processes are, answer what they see."""
    questions = [waiting_run.Question(f"p{i}", "x", "y") for i in range(40)]
    run = waiting_run.make(tmp_path, questions)
    refused = []

    def work(seed):
        desk, generator = desk_of(run, generator_name(seed)), random.Random(seed)
        while (view := desk.look()).shown is not None:
            try:
                desk.answer(view.shown.id, generator.choice("12s"))
            except RefusedError:
                refused.append(seed)

    def generator_name(seed):
        return "ann" if seed < 4 else "bob"

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = waiting_run.annotations(run)
    assert sorted((line["annotator"], line["id"]) for line in lines) == sorted(
        (name, question.key) for name in ("ann", "bob") for question in questions
    )


@pytest.mark.parametrize("name", ["", " ann", "ann ", "a" * 65, "a\nb", "a,b", "../x", "_x"])
def test_names_that_are_refused(run, name):
    with pytest.raises(UserError, match="annotator: expected a name"):
        desk_of(run, name)


def test_a_folder_that_is_no_waiting_run(tmp_path, run):
    with pytest.raises(UserError, match=r"no config\.json here; expected a run folder"):
        Run(tmp_path)
    for path in (run / "questions").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"no questions here .* this one's oracle is 'file'"):
        Run(run)


def test_a_changed_annotation_is_told(run):
    desk = desk_of(run)
    desk.answer(desk.look().shown.id, "s")
    path = run / "annotations.jsonl"
    path.write_text(path.read_text().replace('"skip"', '"a"'))
    with pytest.raises(UserError, match=r"annotations\.jsonl:1: .* its checksum differs"):
        desk.look()
    with pytest.raises(UserError, match=r"annotations\.jsonl:1"):
        waiting_run.take(run)
