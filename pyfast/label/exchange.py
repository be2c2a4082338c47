"""The same pairs in Label Studio and in Argilla: their JSON, out and back.

A pair is known by its id, and by its texts, which have to come back as they went. Only what people
said first is exchanged, not what they said when they were asked again. Only what was submitted
there is a label here: not a draft, nor what was discarded or cancelled.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyfast._files import written_whole
from pyfast.label.desk import Asked, Run, State, now
from pyfast.label.terminal import messages
from pyfast.train.errors import UserError
from pyfast.train.files import read_json, write_json
from pyfast.train.recipes.active_dpo.human_labels import Annotation, check_annotator

SIDES = {"left": "a", "right": "b", "skip": "skip"}
NUMBERS = {"a": "1", "b": "2", "skip": "skip"}

MARK = "annotator: "
"""What a region's note begins with in Label Studio that says who of ours it is of."""

SUBMITTED = "submitted"
STATUSES = ("draft", "discarded", SUBMITTED)
"""Of a response in Argilla."""

PREFERENCE = "preference.responses"
"""Where an Argilla record has the responses to our question, flat or nested."""

LABEL_STUDIO_INTERFACE = """\
<View>
  <Header value="Which response is better?"/>
  <Text name="prompt" value="$prompt"/>
  <Pairwise name="better" toName="response_1,response_2"/>
  <View style="display: flex; gap: 1em">
    <View style="flex: 1"><Text name="response_1" value="$response_1"/></View>
    <View style="flex: 1"><Text name="response_2" value="$response_2"/></View>
  </View>
  <Choices name="skip" toName="prompt" choice="single">
    <Choice value="skip"/>
  </Choices>
</View>
"""
"""The labelling interface that a Label Studio project needs for our tasks."""


@dataclass(frozen=True)
class Given:
    """A label in another tool's file: where it stands, of what, and by whom.

    By an annotator of ours where it came from here, else by a user of theirs if that is known.
    Without an answer where it was not submitted.
    """

    place: str
    key: str
    texts: tuple[Any, Any, Any]
    ours: str | None
    theirs: str | None
    answer: str | None


def write(run: Run, kind: str, path: Path) -> int:
    """Write a run's pairs, with the labels that there are, and return how many pairs.

    Parameters
    ----------
    run : Run
    kind : {"label-studio", "argilla"}
    path : Path
        A JSON file. Label Studio's labelling interface goes beside it, with the suffix .xml.
    """
    state = run.state()
    make = {"label-studio": _task, "argilla": _record}[kind]
    keys = [
        key
        for key, asked in state.asked.items()
        if key in state.said or not (asked.written or asked.taken)
    ]
    write_json(path, [make(key, state.asked[key], state) for key in keys])
    if kind == "label-studio":
        with written_whole(path.with_suffix(".xml")) as beside:
            beside.write_text(LABEL_STUDIO_INTERFACE, encoding="utf-8")
    return len(keys)


def read(run: Run, kind: str, path: Path, annotator: str | None) -> str:
    """Add the labels of a file to a run, all or none of them.

    Parameters
    ----------
    run : Run
    kind : {"label-studio", "argilla"}
    path : Path
    annotator : str, optional
        Whose they are, where they did not come from here; default: as the file says.

    Returns
    -------
    str
        What was done, in words.

    Raises
    ------
    UserError
        ``file: [index]: ...`` for a pair that the run does not ask about or whose texts were
        changed, an answer that is none or may not have been submitted, or one that differs from
        what the annotator said before.
    """
    records = read_json(path)
    if not isinstance(records, list):
        raise UserError(f"{path}: expected a list of {kind} records")
    if annotator is not None:
        check_annotator(annotator)
    reader = {"label-studio": _from_task, "argilla": _from_record}[kind]
    found = [
        given
        for index, record in enumerate(records)
        for given in _checked(reader, record, f"{path}: [{index}]")
    ]
    with run.alone():
        state = run.state()
        new: dict[tuple[str, str], Annotation] = {}
        there = useless = unsubmitted = 0
        for given in found:
            asked = _asked(given, state)
            if given.answer is None:
                unsubmitted += 1
                continue
            name = check_annotator(
                given.ours or annotator or given.theirs or kind, f"{given.place}: annotator"
            )
            before = state.labels.get((given.key, name, False))
            said = before[1] if before else new.get((given.key, name))
            if said is not None and said.answer != given.answer:
                raise UserError(
                    f"{given.place}: {name} says {given.answer!r} of the pair {given.key}, and "
                    f"said {said.answer!r} before, which stands; nothing was imported"
                )
            if said is not None:
                there += 1
            elif asked.written or (asked.taken and given.key not in state.said):
                useless += 1
            else:
                new[given.key, name] = Annotation(given.key, name, given.answer, "a", kind, now())
        run.write(*new.values())
    told = f"{len(new)} new labels, {there} that were here already"
    told += f", {unsubmitted} left out that were not submitted" if unsubmitted else ""
    return told + (f", {useless} of pairs that need none" if useless else "")


def _checked(reader: Any, record: Any, place: str) -> list[Given]:
    """Read a record; whatever is not as the tool has it is told with its place."""
    try:
        found: list[Given] = list(reader(record, place))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{place}: expected a record as it was exported, got {type(error).__name__} at {error}"
        ) from None
    return found


def _asked(given: Given, state: State) -> Asked:
    """Return the question that a label is of."""
    asked = state.asked.get(given.key)
    if asked is None:
        raise UserError(f"{given.place}: this run asks no question {given.key!r}")
    if given.texts != _texts(asked):
        raise UserError(f"{given.place}: the prompt or a response of {given.key} was changed")
    return asked


def _texts(asked: Asked) -> tuple[str, str, str]:
    """Return prompt and responses as texts; the messages of a chat one after the other."""
    prompt = asked.question.written
    if not isinstance(prompt, str):
        prompt = "\n\n".join(f"{role}: {text}" for role, text in messages(prompt))
    return prompt, asked.question.a, asked.question.b


def _fields(asked: Asked) -> dict[str, str]:
    return dict(zip(("prompt", "response_1", "response_2"), _texts(asked), strict=True))


def _task(key: str, asked: Asked, state: State) -> dict[str, Any]:
    """Return a task of Label Studio, with its annotations."""
    return {
        "data": {"question": key, "batch": asked.batch, **_fields(asked)},
        "annotations": [{"result": [_region(given)]} for given in state.said.get(key, {}).values()],
    }


def _region(given: Annotation) -> dict[str, Any]:
    who = {"text": [MARK + given.annotator]}
    side = "left" if given.answer == "a" else "right"
    if given.answer == "skip":
        value: dict[str, Any] = {"choices": ["skip"]}
        return {
            "id": f"{given.id[:8]}-skip", "type": "choices", "from_name": "skip",
            "to_name": "prompt", "value": value, "meta": who,
        }  # fmt: skip
    return {
        "id": f"{given.id[:8]}-better", "type": "pairwise", "from_name": "better",
        "to_name": "response_1", "value": {"selected": side}, "meta": who,
    }  # fmt: skip


def _from_task(task: Any, place: str) -> Iterator[Given]:
    data = task["data"]
    texts = (data["prompt"], data["response_1"], data["response_2"])
    for number, annotation in enumerate(task["annotations"]):
        where = f"{place}: annotations[{number}]"
        cancelled, said, ours = annotation.get("was_cancelled", False), [], None
        if not isinstance(cancelled, bool):
            raise UserError(f"{where}: was_cancelled: expected true or false, got {cancelled!r}")
        for region in annotation["result"]:
            if region["type"] == "pairwise":
                said.append(region["value"]["selected"])
            elif region["type"] == "choices":
                said += region["value"]["choices"]
            for note in region.get("meta", {}).get("text", []):  # people may write some there
                ours = note[len(MARK) :] if note.startswith(MARK) else ours
        if not cancelled and (len(said) != 1 or said[0] not in SIDES):
            raise UserError(f"{where}: expected one of left, right and skip; got {said}")
        answer = None if cancelled else SIDES[said[0]]  # the tool's own skipping submits nothing
        yield Given(where, data["question"], texts, ours, _completed_by(annotation), answer)


def _completed_by(annotation: dict[str, Any]) -> str | None:
    """Return who annotated in Label Studio: a number, or the user with an e-mail address."""
    who = annotation.get("completed_by")
    if isinstance(who, dict):
        who = who.get("email") or who.get("id")
    return f"label-studio-{who}" if isinstance(who, int) else who


def _record(key: str, asked: Asked, state: State) -> dict[str, Any]:
    """Return a record of Argilla (2.x), with its responses to the question "preference"."""
    said = state.said.get(key, {})
    responses = [
        {"value": NUMBERS[given.answer or ""], "user_id": _user(name), "status": SUBMITTED}
        for name, given in said.items()
    ]
    return {
        "id": key,
        "fields": _fields(asked),
        "metadata": {"batch": asked.batch, "annotators": ",".join(said)},
        "suggestions": {},
        "responses": {"preference": responses} if said else {},
        "vectors": {},
        "status": "pending",
    }


def _user(name: str) -> str:
    """Return the id that an annotator of ours gets in Argilla, whose users' ids are UUIDs."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"pyfast:annotator:{name}"))


def _from_record(record: Any, place: str) -> Iterator[Given]:
    is_nested = "fields" in record
    fields = record["fields"] if is_nested else record
    metadata = (record.get("metadata") or {}) if is_nested else record
    texts = (fields["prompt"], fields["response_1"], fields["response_2"])
    ours = {_user(name): name for name in str(metadata.get("annotators") or "").split(",")}
    answers = {number: answer for answer, number in NUMBERS.items()}
    for number, (value, user, status) in enumerate(_responses(record, is_nested)):
        where = f"{place}: {PREFERENCE}[{number}]"
        if status is None:
            raise UserError(
                f"{where}: it may be a draft: the file does not say what was submitted; expected "
                "it with each response's status, as Dataset.records(with_responses=True)"
                ".to_list(flatten=True) has it"
            )
        if status not in STATUSES:
            raise UserError(
                f"{where}: status: expected one of {', '.join(STATUSES)}; got {status!r}"
            )
        if status == SUBMITTED and value not in answers:
            raise UserError(f'{where}: value: expected "1", "2" or "skip", got {value!r}')
        answer = answers[value] if status == SUBMITTED else None
        theirs = None if user == "None" else f"argilla-{user[:8]}"
        yield Given(where, record["id"], texts, ours.get(user), theirs, answer)


def _responses(record: Any, is_nested: bool) -> Iterator[tuple[Any, str, Any]]:
    """Return value, user and status of each response; None where the status cannot be told.

    Nested records have it where they were serialised so. Else it follows for the one response of a
    record that is completed, which takes one that is submitted.
    """
    if not is_nested:
        columns = [record.get(f"{PREFERENCE}{end}") or [] for end in ("", ".users", ".status")]
        yield from ((x, str(user), status) for x, user, status in zip(*columns, strict=True))
        return
    given = (record.get("responses") or {}).get("preference") or []
    alone = len(given) == 1 and record.get("status") == "completed"
    for response in given:
        status = response.get("status") or (SUBMITTED if alone else None)
        yield response["value"], str(response["user_id"]), status
