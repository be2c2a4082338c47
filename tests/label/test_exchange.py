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


def region_of(answer):
    """An answer as Label Studio has it."""
    if answer == "skip":
        return {
            "type": "choices", "from_name": "skip", "to_name": "prompt",
            "value": {"choices": ["skip"]}, "origin": "manual", "id": "u-_3",
        }  # fmt: skip
    return {
        "type": "pairwise", "from_name": "better", "to_name": "better",
        "value": {"selected": {"a": "left", "b": "right"}[answer]}, "origin": "manual",
        "id": "u-_3", "meta": {"text": ["bob"]},
    }  # fmt: skip


def filled(run, kind, path):
    """Label what was exported as a person does in the other tool, and read it."""
    exchange.write(Run(run), kind, path)
    records = json.loads(path.read_text())
    answers = ["a", "b", "skip", "b", "a", "a"]
    for record, answer in zip(records, answers, strict=True):
        if kind == "argilla":
            value = {"a": "1", "b": "2", "skip": "skip"}[answer]
            record["responses"] = {"preference": [{"value": value, "user_id": "7f3a-1"}]}
            record["status"] = "completed"
        else:
            region = region_of(answer)
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


# Two people at one pair, in Argilla: what each did, and which of it is a label.
ARGILLA = [
    ([("1", "submitted"), ("2", "submitted")], ["a", "b"]),
    ([("1", "submitted"), ("2", "draft")], ["a"]),
    ([("1", "discarded"), ("2", "submitted")], ["b"]),
    ([(None, "discarded"), ("2", "draft")], []),
]


@pytest.mark.parametrize("is_flat", [False, True])
@pytest.mark.parametrize(("given", "counted"), ARGILLA)
def test_drafts_and_what_was_discarded_are_no_labels(run, tmp_path, given, counted, is_flat):
    path = tmp_path / "records.json"
    exchange.write(Run(run), "argilla", path)
    records = json.loads(path.read_text())
    users = [f"{number}f3a-1" for number in range(len(given))]
    if is_flat:  # as Argilla's to_list(flatten=True) has them
        records = [
            {"id": r["id"], **r["fields"], **r["metadata"], "status": r["status"]} for r in records
        ]
        record = records[1]
        record["preference.responses"] = [value for value, _ in given]
        record["preference.responses.users"] = users
        record["preference.responses.status"] = [status for _, status in given]
    else:
        records[1]["responses"]["preference"] = [
            {"value": value, "user_id": user, "status": status}
            for user, (value, status) in zip(users, given, strict=True)
        ]
    path.write_text(json.dumps(records))
    told = exchange.read(Run(run), "argilla", path, None)
    left = len(given) - len(counted)
    assert told.startswith(f"{len(counted)} new labels, 0 that were here already")
    assert (f"{left} left out that were not submitted" in told) is (left > 0)
    assert list(said(run).values()) == counted


@pytest.mark.parametrize(
    ("status", "responses", "message"),
    [
        ("pending", [{"value": "1", "user_id": "7f3a"}], "it may be a draft"),
        (None, [{"value": "1", "user_id": "7f3a"}], "it may be a draft"),
        ("completed", [{"value": x, "user_id": x} for x in "12"], "it may be a draft"),
        ("completed", [{"value": "1", "user_id": "7", "status": "sent"}], "status: expected one"),
        ("completed", [{"value": None, "user_id": "7", "status": "submitted"}], "value: expected"),
    ],
)
def test_what_may_be_a_draft_is_refused(run, tmp_path, status, responses, message):
    path = tmp_path / "records.json"
    exchange.write(Run(run), "argilla", path)
    records = json.loads(path.read_text())
    records[2] |= {"status": status, "responses": {"preference": responses}}
    path.write_text(json.dumps(records))
    with pytest.raises(UserError, match=rf"\[2\]: preference.responses\[0\]: {message}"):
        exchange.read(Run(run), "argilla", path, None)
    assert waiting_run.annotations(run) == []


def test_our_labels_go_out_as_submitted(run, tmp_path):
    """Argilla takes a response without a status for a draft."""
    label(run, "ann", "1s")
    exchange.write(Run(run), "argilla", tmp_path / "records.json")
    records = json.loads((tmp_path / "records.json").read_text())
    given = [x for record in records for x in record["responses"].get("preference", [])]
    assert [x["status"] for x in given] == ["submitted", "submitted"]


@pytest.mark.parametrize("chosen", [None, "a", "skip"])
def test_what_was_cancelled_is_no_label(run, tmp_path, chosen):
    """Label Studio's own button to skip a task submits nothing, whatever was chosen before."""
    path = tmp_path / "tasks.json"
    exchange.write(Run(run), "label-studio", path)
    tasks = json.loads(path.read_text())
    result = [] if chosen is None else [region_of(chosen)]
    tasks[0]["annotations"] = [
        {"result": result, "was_cancelled": True, "completed_by": 7},
        {"result": [region_of("b")], "was_cancelled": False, "completed_by": 8},
    ]
    tasks[1]["annotations"] = [{"result": result, "was_cancelled": True, "completed_by": 7}]
    tasks[2]["drafts"] = [{"result": [region_of("a")], "was_postponed": True}]
    path.write_text(json.dumps(tasks))
    told = exchange.read(Run(run), "label-studio", path, None)
    assert told == "1 new labels, 0 that were here already, 2 left out that were not submitted"
    assert list(said(run).values()) == ["b"]
    assert sum(map(Run(run).state().is_open, Run(run).state().asked)) == 5


@pytest.mark.parametrize("cancelled", ["true", 1, None])
def test_a_cancelled_that_is_none_is_refused(run, tmp_path, cancelled):
    path = tmp_path / "tasks.json"
    exchange.write(Run(run), "label-studio", path)
    tasks = json.loads(path.read_text())
    tasks[0]["annotations"] = [{"result": [region_of("a")], "was_cancelled": cancelled}]
    path.write_text(json.dumps(tasks))
    with pytest.raises(UserError, match="was_cancelled: expected true or false"):
        exchange.read(Run(run), "label-studio", path, None)


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
