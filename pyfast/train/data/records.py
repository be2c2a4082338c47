"""The data set of a recipe: prompts with candidate responses, in one schema for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyfast.train.data.group import check_numbers
from pyfast.train.data.lines import as_object, lines
from pyfast.train.data.prompts import Prompt, prompt_of
from pyfast.train.errors import UserError
from pyfast.train.files import resolve, to_json


@dataclass(frozen=True)
class Record:
    """One prompt with its candidate responses.

    Attributes
    ----------
    prompt : Prompt
        With the record's other fields (``prompt.fields``), which rewards may ask for.
    responses : list of str, length n
    scores : list of float, length n, or None
        Higher is better.
    positive : int or None
        Index of the chosen response.
    valid : list of int or None
        Indices of all right responses, where there are several.
    split : str or None
    id : str or None
    place : str
        ``file:line``, or ``file: row r`` of a Parquet file, from 0.
    """

    prompt: Prompt
    responses: list[str]
    scores: list[float] | None = None
    positive: int | None = None
    valid: list[int] | None = None
    split: str | None = None
    id: str | None = None
    place: str = field(default="", compare=False)

    def to_json(self) -> str:
        """Return the record as one line of JSON, without what is not known."""
        known = ("responses", "scores", "positive", "valid", "split", "id")
        values = {name: getattr(self, name) for name in known}
        values = {name: value for name, value in values.items() if value is not None}
        return to_json({"prompt": self.prompt.written, **values, **self.prompt.fields})


def read_records(
    path: str | Path,
    *,
    name: str = "data.groups",
    needs: Sequence[str] = (),
    least: int = 2,
    split: str | None = None,
) -> list[Record]:
    """Read a groups file.

    Parameters
    ----------
    path : str or Path
        JSON Lines (packed ones too: .gz, .bz2, .xz, .zst), or ``*.parquet``. A record has
        ``"prompt"`` (a string, or a list of ``{"role", "content"}``) and ``"responses"`` (strings);
        ``"scores"``, ``"positive"``, ``"valid"``, ``"split"`` and ``"id"`` where known. Other
        fields are kept with the prompt. Also ``pkg://PACKAGE/PATH``.
    name : str
        The setting, which an error about the whole file names.
    needs : sequence of str
        Fields that each record must have.
    least : int
        Responses that each record must have.
    split : str, optional
        Read the records of this split alone.

    Returns
    -------
    list of Record
        In file order.

    Raises
    ------
    UserError
        ``file:line: field: expected ...`` for the first bad record; or if there is none.
    """
    found = resolve(str(path))
    if found is None:
        raise UserError(f"{name}: no such file: {path}")
    rows = _parquet_rows(found) if found.suffix == ".parquet" else _json_rows(found)
    records = []
    for place, row in rows:
        try:
            record = record_of(row, place, needs=needs, least=least)
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
        if split is None or record.split == split:
            records.append(record)
    if not records:
        which = f" of split {split!r}" if split is not None else ""
        raise UserError(f"{found}: expected at least one group{which}, the file has none")
    return records


def record_of(
    row: dict[str, Any], place: str = "", *, needs: Sequence[str] = (), least: int = 2
) -> Record:
    """Make a record of a JSON object.

    Raises
    ------
    UserError
        ``field: expected ...``
    """
    row = {key: value for key, value in row.items() if value is not None}
    responses = row.pop("responses", None)
    if not isinstance(responses, list) or not all(isinstance(y, str) for y in responses):
        raise UserError("responses: expected a list of strings")
    n = len(responses)
    if n < least:
        raise UserError(f"responses: expected at least {least}, got {n}")
    for need in needs:
        if need not in row:
            raise UserError(f"{need}: expected {_KINDS[need]}, got nothing")
    check_numbers(row, "scores", n, nullable=False)
    scores = row.pop("scores", None)
    positive, valid = row.pop("positive", None), row.pop("valid", None)
    if positive is not None:
        _check_index(positive, n, "positive")
    if valid is not None:
        if not isinstance(valid, list) or not valid:
            raise UserError("valid: expected a list of whole numbers, at least one")
        for i, index in enumerate(valid):
            _check_index(index, n, f"valid[{i}]")
        if len(set(valid)) < len(valid):
            raise UserError(f"valid: expected numbers that differ, got {valid}")
    split, identity = row.pop("split", None), row.pop("id", None)
    if split is not None and not isinstance(split, str):
        raise UserError(f"split: expected a string, got {split!r}")
    if identity is not None and type(identity) not in (str, int):
        raise UserError(f"id: expected a string or a whole number, got {identity!r}")
    prompt = prompt_of(row.pop("prompt", None), row)
    return Record(
        prompt,
        responses,
        None if scores is None else [float(score) for score in scores],
        positive,
        valid,
        split,
        None if identity is None else str(identity),
        place,
    )


_KINDS = {
    "scores": "one number a response",
    "positive": "the index of the chosen response",
    "valid": "the indices of the right responses",
    "split": "a string",
    "id": "a string",
}


def _check_index(value: Any, n: int, name: str) -> None:
    if type(value) is not int or not 0 <= value < n:
        raise UserError(f"{name}: expected a whole number in 0..{n - 1}, got {value!r}")


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, text in lines(path):
        yield f"{path}:{number}", as_object(path, number, text, "a group object")


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError(f"{path}: reading Parquet needs pyarrow (pip install pyarrow)") from None
    try:
        number = 0
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    yield f"{path}: row {number}", row
                    number += 1
    except (pa.ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{path}: cannot be read as Parquet: {reason}") from None
