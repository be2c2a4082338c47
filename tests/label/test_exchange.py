"""Label Studio's and Argilla's JSON: round trips, and what is refused."""

import json
import shutil

import pytest
import waiting_run
from sklearn.metrics import cohen_kappa_score
from waiting_run import Question

from pyfast import cli
from pyfast.label import agreement, exchange
from pyfast.label.desk import Desk, Run
from pyfast.train.errors import UserError

FORMATS = ("label-studio", "argilla")
CHAT = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
QUESTIONS = [
    Question("prompt <b>0</b>", "one", "two\n\nlines"),
    Question(CHAT, "שלום", "<script>alert(1)</script>"),
    *(Question(f"prompt {i}", f"x{i}", f"y{i}") for i in range(4)),
]


@pytest.fixture
def run(tmp_path):
    return waiting_run.make(tmp_path, QUESTIONS)


def label(run, name, choices):
    desk = Desk(Run(run), name, via="terminal")
    for choice in choices:
        desk.answer(desk.look().shown.id, choice)


def said(run):
    """What stands, without how and when it came."""
    labels = Run(run).state().labels
    return {key: given.answer for key, (_, given) in labels.items()}


@pytest.mark.parametrize("kind", FORMATS)
def test_there_and_back(run, tmp_path, kind):
    label(run, "ann", "12s12")
    label(run, "bob.b@example.org", "s112s1")
    fresh = tmp_path / "fresh"
    shutil.copytree(run, fresh)
    (fresh / "annotations.jsonl").unlink()
    out, again = tmp_path / "out.json", tmp_path / "again.json"
    assert exchange.write(Run(run), kind, out) == 6
    assert exchange.read(Run(fresh), kind, out, None) == "11 new labels, 0 that were here already"
    assert said(fresh) == said(run)
    before = (fresh / "annotations.jsonl").read_bytes()
    assert exchange.read(Run(fresh), kind, out, None) == "0 new labels, 11 that were here already"
    assert (fresh / "annotations.jsonl").read_bytes() == before
    exchange.write(Run(fresh), kind, again)
    assert again.read_bytes() == out.read_bytes()


def filled(run, kind, path):
    """Label what was exported as a person does in the other tool, and read it."""
    exchange.write(Run(run), kind, path)
    records = json.loads(path.read_text())
    answers = ["a", "b", "skip", "b", "a", "a"]
    for record, answer in zip(records, answers, strict=True):
        if kind == "argilla":
            value = {"a": "1", "b": "2", "skip": "skip"}[answer]
            record["responses"] = {"preference": [{"value": value, "user_id": "7f3a-1"}]}
        elif answer == "skip":  # as the tool's own button does it
            record["annotations"] = [{"result": [], "was_cancelled": True, "completed_by": 7}]
        else:
            side = {"a": "left", "b": "right"}[answer]
            region = {
                "type": "pairwise", "from_name": "better", "to_name": "better",
                "value": {"selected": side}, "origin": "manual", "id": "u-_3",
                "meta": {"text": ["bob"]},
            }  # fmt: skip
            record["annotations"] = [
                {"id": 3, "result": [region], "was_cancelled": False, "completed_by": 7}
            ]
        record["id"] = record.get("id", 12)
    return records, answers


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", [None, "carol"])
def test_labels_that_were_given_there(run, tmp_path, kind, name):
    path = tmp_path / "out.json"
    records, answers = filled(run, kind, path)
    path.write_text(json.dumps(records[::-1]))
    exchange.read(Run(run), kind, path, name)
    assert [answer.choice for answer in waiting_run.take(run, QUESTIONS)] == answers
    theirs = {"label-studio": "label-studio-7", "argilla": "argilla-7f3a-1"}[kind]
    assert {line["annotator"] for line in waiting_run.annotations(run)} == {name or theirs}
    assert {line["via"] for line in waiting_run.annotations(run)} == {kind}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("text", r"\[5\].*the prompt or a response of .* was changed"),
        ("id", r"\[5\].*this run asks no question 'other'"),
        ("answer", r"\[5\].*expected"),
        ("shape", r"\[5\].*expected a record as it was exported"),
        ("list", r"expected a list of"),
        ("twice", r"says 'b' of the pair .* and said 'a' before, which stands; nothing was"),
    ],
)
def test_a_file_is_taken_whole_or_not_at_all(run, tmp_path, kind, change, message):
    path = tmp_path / "out.json"
    records, _ = filled(run, kind, path)
    last = records[5]
    data = last["data"] if kind == "label-studio" else last["fields"]
    if change == "text":
        data["response_1"] += " "
    elif change == "id" and kind == "argilla":
        last["id"] = "other"
    elif change == "id":
        data["question"] = "other"
    elif change == "answer" and kind == "argilla":
        last["responses"]["preference"][0]["value"] = "3"
    elif change == "answer":
        last["annotations"][0]["result"][0]["value"]["selected"] = "none"
    elif change == "shape":
        records[5] = {"id": 1}
    elif change == "list":
        records = {"records": records}
    else:
        records.append(json.loads(json.dumps(last).replace("left", "right").replace('"1"', '"2"')))
    path.write_text(json.dumps(records))
    with pytest.raises(UserError, match=message):
        exchange.read(Run(run), kind, path, None)
    assert waiting_run.annotations(run) == []


def test_the_command(run, tmp_path, capsys):
    out = tmp_path / "tasks.json"
    label(run, "ann", "12s121")
    assert cli.main(["label", str(run), "--export", "label-studio", "--out", str(out)]) == 0
    assert 'name="better" toName="response_1,response_2"' in out.with_suffix(".xml").read_text()
    arguments = ["label", str(run), "--import", "label-studio", "--from", str(out)]
    assert cli.main(arguments) == 0
    assert "0 new labels, 6 that were here already" in capsys.readouterr().out


def test_agreement_against_scikit_learn(run, capsys):
    label(run, "ann", "12s121")
    label(run, "bob", "1s2121")
    label(run, "carol", "11")
    state = Run(run).state()
    found = agreement.pairs(state)
    assert [pair.annotators for pair in found] == [
        ("ann", "bob"),
        ("ann", "carol"),
        ("bob", "carol"),
    ]
    for pair in found:
        both = [
            [given[name].answer for name in pair.annotators]
            for given in state.said.values()
            if given.keys() >= set(pair.annotators)
        ]
        first, second = zip(*both, strict=True)
        assert pair.both == len(both)
        assert pair.raw == sum(x == y for x, y in both) / len(both)
        expected = cohen_kappa_score(first, second)
        if pair.kappa is None:
            assert len({*first, *second}) == 1
        else:
            assert abs(pair.kappa - expected) < 1e-12
    assert cli.main(["label", str(run), "--agreement"]) == 0
    assert (
        f"ann - bob       6     {found[0].same}      {found[0].raw:.3f}" in capsys.readouterr().out
    )
    assert cli.main(["label", str(run), "--agreement", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["kappa"] == found[0].kappa


def test_kappa_by_hand():
    assert agreement.cohen(list("aabb"), list("abab")) == 0.0
    assert agreement.cohen(list("aabb"), list("aabb")) == 1.0
    assert agreement.cohen(list("aabb"), list("bbaa")) == -1.0
    assert agreement.cohen(list("aaaa"), list("aaaa")) is None
    assert agreement.cohen([], []) is None
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: p_o = 0.7, p_e = 0.5
    first = ["a"] * 25 + ["b"] * 25
    second = ["a"] * 20 + ["b"] * 5 + ["a"] * 10 + ["b"] * 15
    assert abs(agreement.cohen(first, second) - 0.4) < 1e-15


@pytest.mark.parametrize("said", [["left", "skip"], ["left", "right"], [], ["skip", "skip"]])
def test_an_annotation_that_says_two_things_or_none_is_refused(run, tmp_path, said):
    path = tmp_path / "out.json"
    records, _ = filled(run, "label-studio", path)
    regions = [
        {"type": "choices", "value": {"choices": [what]}}
        if what == "skip"
        else {"type": "pairwise", "value": {"selected": what}}
        for what in said
    ]
    records[4]["annotations"][0]["result"] = regions
    path.write_text(json.dumps(records))
    with pytest.raises(
        UserError, match=r"\[4\]: annotations\[0\]: expected one of left, right and"
    ):
        exchange.read(Run(run), "label-studio", path, None)
    assert waiting_run.annotations(run) == []
