"""Files that a run keeps: as they were written, or refused with their name."""

import json

import pytest

from pyfast.train.errors import UserError
from pyfast.train.runs import kept

OBJECT = {"pairs": [[0, 1], [2, 3]], "report": {"logdet": 1.25, "ties": 0}, "text": "é\n"}
LIST = [{"texts": ["a"], "token_ids": [[1, 2]]}, {"texts": ["b"], "token_ids": [[3]]}]


@pytest.mark.parametrize("value", [OBJECT, LIST, {}])
def test_what_is_read_is_what_was_written(tmp_path, value):
    path = tmp_path / "round-1" / "made.json"
    kept.write(path, value)
    assert kept.read(path) == value
    kept.write(path, value)
    assert kept.read(path) == value


def changed(value):
    """Everything that differs in one place: another value, none, one more."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield {other: x for other, x in value.items() if other != key}
            yield from ({**value, key: new} for new in changed(part))
        yield {**value, "more": 1}
    elif isinstance(value, list):
        yield []
        yield value[1:]
        yield [*value, *value[:1]]
        yield [*value[1:], *value[:1]]
        yield from ([new, *value[1:]] for part in value[:1] for new in changed(part))
    yield from (other for other in ([], "", 7, 0.5, None, True, {"a": 1}) if other != value)


@pytest.mark.parametrize("value", [OBJECT, LIST])
def test_what_was_changed_is_refused_with_its_name(tmp_path, value):
    path = tmp_path / "made.json"
    kept.write(path, value)
    text = path.read_text()
    refused = 0
    for other in changed(value):
        if other == value:  # a list of one, turned round
            continue
        path.write_text(json.dumps(other, indent=2) + "\n")
        with pytest.raises(UserError, match=r"made\.json: expected what the run has kept there"):
            kept.read(path)
        refused += 1
    assert refused > 30
    for part in (text[:-3], "", "{", text + " "):
        path.write_text(part)
        with pytest.raises(UserError, match=r"made\.json: expected what the run has kept there"):
            kept.read(path)
    path.write_text(text)
    assert kept.read(path) == value
    for other in ("", "0" * 64, "é"):
        digest = path.with_name("made.json.sha256")
        digest.write_text(other)
        with pytest.raises(UserError, match=r"made\.json: expected what the run has kept there"):
            kept.read(path)
    digest.unlink()
    with pytest.raises(UserError, match=r"made\.json: expected what the run has kept there"):
        kept.read(path)


def test_a_file_that_grew_is_sealed_once(tmp_path):
    path = tmp_path / "round-1.jsonl"
    path.write_text("{}\n")
    kept.seal(path)
    kept.seal(path)
    path.write_text("{ }\n")
    with pytest.raises(UserError, match=r"round-1\.jsonl: expected what the run has kept there"):
        kept.seal(path)
