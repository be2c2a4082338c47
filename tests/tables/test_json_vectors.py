"""Vectors that are read by the core from lines of JSON: every number to the nearest float."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pyfast import _native
from pyfast.tables import json_lines

NEEDS = {"scores": pa.list_(pa.float64()), "e": pa.list_(pa.list_(pa.float32()))}


def nearest(text):
    """The float32 nearest to a decimal number, exactly; ties to the even one."""
    exact = Fraction(text)
    guess = np.float32(float(exact))
    near = [
        np.nextafter(guess, np.float32(-np.inf)),
        guess,
        np.nextafter(guess, np.float32(np.inf)),
    ]
    return min(near, key=lambda x: (abs(Fraction(float(x)) - exact), int(x.view(np.uint32)) & 1))


def read(text, name="e"):
    return _native.json_vectors(text if isinstance(text, bytes) else text.encode(), name)


def numbers(seed=0):
    """Decimals as they are written, of all lengths and sizes, and those about middles of floats."""
    draw = np.random.default_rng(seed)
    found = ["0", "-0", "0.0", "1", "-1.5", "1e5", "1E+05", "12e-3", "0.1", "1e22", "1e-22", "1e30"]
    found += [repr(float(x)) for x in draw.normal(size=300).astype(np.float32)]
    found += [repr(float(x)) for x in draw.normal(size=300) * 10.0 ** draw.integers(-25, 25, 300)]
    found += [
        f"{x:.{n}e}" for x, n in zip(draw.normal(size=100), draw.integers(0, 18, 100), strict=True)
    ]
    found += [
        f"{x:.{n}f}" for x, n in zip(draw.normal(size=100), draw.integers(1, 17, 100), strict=True)
    ]
    for x in draw.normal(size=100).astype(np.float32):
        middle = (float(x) + float(np.nextafter(x, np.float32(9)))) / 2
        found += [repr(middle), f"{middle:.16f}", f"{middle:.18e}"]
    return found


def test_numbers_are_the_nearest_floats():
    """Whatever is read is right; what cannot be told is left, and of usual numbers nothing is."""
    left = []
    for text in numbers():
        found = read(f'{{"e":[[{text}]]}}')
        if found is None:
            left.append(text)
            continue
        value, expected = found[0][0, 0], nearest(text)
        assert value == expected, text
        assert np.signbit(value) == text.startswith("-"), text
    assert {abs(Fraction(text)) for text in left}.isdisjoint({0, 1, Fraction("0.1")})
    usual = [
        repr(float(x)) for x in np.random.default_rng(1).normal(size=20_000).astype(np.float32)
    ]
    values, counts, rest = read('{"e":[[' + ",".join(usual) + "]]}")
    assert values.shape == (1, 20_000)
    assert values.tolist() == [[float(text) for text in usual]]
    assert (counts.tolist(), rest) == ([1], b'{"e":null}\n')


def test_the_rest_of_the_lines():
    lines = [
        '{"id": 1, "e": [[1, 2], [3, 4]], "text": "a \\"e\\": [[9]] }]"}',
        '  { "e" :[ [ 5,6 ] ]\t, "nested": {"e": [[7]], "x": [1, "]"]}, "scores": [0.5]}',
        '{"é": "é", "e": [], "after": null}\r',
    ]
    values, counts, rest = read("\n".join(lines))
    assert values.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert counts.tolist() == [2, 1, 0]
    kept = [json.loads(line) for line in rest.decode().splitlines()]
    assert kept == [json.loads(line) | {"e": None} for line in lines]


@pytest.mark.parametrize(
    "line",
    [
        '{"e": [[1, 2], [3]]}',  # of several lengths
        '{"e": [[]]}',
        '{"e": [1, 2]}',
        '{"e": [[1], 2]}',
        '{"e": [[1,]]}',
        '{"e": [[1]],}',
        '{"e": [[1 2]]}',
        '{"e": [[1], null]}',
        '{"e": [[null]]}',
        '{"e": [["1"]]}',
        '{"e": [[NaN]]}',
        '{"e": [[Infinity]]}',
        '{"e": null}',
        '{"f": [[1]]}',
        '{"e": [[1]], "e": [[2]]}',
        '{"\\u0065": [[1]], "e": [[2]]}',
        '{"e": [[1]]',
        '{"e": [[1]]} x',
        '{"e": [[1]]}{"e": [[1]]}',
        "[[[1]]]",
        '{"e": [[1]], "text": "open}',
        '{"e": [[1]], "text": "open\\',
        "{",
        '{"e',
        '{"e":',
        '{"e":[',
        '{"e":[[',
        '{"e":[[1',
        '{"e":[[01]]}',
        '{"e":[[1.]]}',
        '{"e":[[.5]]}',
        '{"e":[[+1]]}',
        '{"e":[[-]]}',
        '{"e":[[1e]]}',
        '{"e":[[0x1]]}',
        '{"e":[[1e999999999999]]}',
        '{"e":[[1e-60]]}',
        '{"e":[[1e39]]}',
        '{"e":[[3.5e38]]}',
        '{"e":[[1e-40]]}',
        '{"e":[[12345678901234567890]]}',
        '{"e":[[0.' + "0" * 70 + "1]]}",
        '{"e":[[16777217]]}',  # in the middle of two floats
    ],
)
def test_what_is_not_plain_is_left_to_the_other_parser(line):
    assert read(line) is None
    for other in ('{"e":[[1]]}\n' + line, line + '\n{"e":[[1]]}'):
        assert read(other) is None


def parse_both(text, monkeypatch):
    lines = [(i + 1, line.encode()) for i, line in enumerate(text.split("\n"))]
    found = []
    for plain in (True, False):
        with monkeypatch.context() as patch:
            if not plain:
                patch.setattr(_native, "json_vectors", lambda *_: None)
            results = []
            for whole in (False, True):
                try:
                    results.append(json_lines.parse(Path("a"), 1, lines, NEEDS, whole=whole))
                except ValueError as error:
                    results.append(str(error))
            found.append(results)
    return found


@pytest.mark.parametrize(
    "more",
    [
        '"text": "x"',
        '"scores": [1, 2.5]',
        '"when": "2026-01-01"',
        '"scores": 7',
        '"scores": [1, 2]]',
    ],
)
def test_tables_are_those_of_the_other_parser(monkeypatch, more):
    draw = np.random.default_rng(0)
    lines = [
        f'{{"id": {i}, "e": {json.dumps(draw.normal(size=(i % 4, 5)).tolist())}, {more}}}'
        for i in range(20)
    ]
    ours, theirs = parse_both("\n".join(lines), monkeypatch)
    for mine, other in zip(ours, theirs, strict=True):
        if isinstance(other, str):
            assert mine == other
        else:
            assert mine.equals(other)
            assert mine.column_names == other.column_names


def test_long_numbers_take_the_other_way_and_come_out_the_same(monkeypatch):
    lines = [f'{{"e": [[{text}]], "scores": [1]}}' for text in numbers(5)]
    for line in lines:
        ours, theirs = parse_both(line, monkeypatch)
        assert str(ours) == str(theirs)
        assert isinstance(ours[0], str) or ours[0].equals(theirs[0])


def test_cut_lines_are_never_read_beyond_their_end():
    whole = b'{"a": ["x\\"", {"b": 1}], "e": [[1.25e-3, -2], [3, 4]], "c": "d"}'
    assert read(whole) is not None
    for end in range(1, len(whole)):
        assert read(whole[:end]) is None
        assert read(whole[:end] + b"\n" + whole) is None
