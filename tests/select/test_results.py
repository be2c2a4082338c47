"""Results are equal by value."""

import dataclasses
import importlib
import pkgutil

import numpy as np
import pytest

import pyfast.select
from pyfast import select


def every_result() -> list:
    rng = np.random.default_rng(0)
    X, r = rng.normal(size=(2, 8, 3)), rng.normal(size=(2, 8))
    pairs = [[0, 1], [1, 2], [2, 3]]
    return [
        select.kmedoids(X, 2, certify=True),
        select.opt_select(X, r, 2),
        select.coreset(X[0], r[0], 2),
        select.bottom_k(r, 2),
        select.random(5, 2),
        select.hard_preference(r, 1.0),
        select.logdet(X, 2),
        select.logdet(X[0], 2),
        select.logdet(X[0], 2).state,
        select.mass_dpo(X, r, r, k=2),
        select.active_dpo(X[0], pairs, k=2),
    ]


def test_results_are_equal_by_value() -> None:
    for one, other in zip(every_result(), every_result(), strict=True):
        assert one == other
        assert (one != other) is False
        assert one != 3
        with pytest.raises(TypeError, match="unhashable"):
            hash(one)
        name = dataclasses.fields(one)[0].name
        changed = dataclasses.replace(one, **{name: getattr(one, name) + 1})
        assert one != changed
        assert one in [changed, other]
    first, second = every_result()[:2]
    assert first != second


def test_nan_equals_nothing_and_shapes_count() -> None:
    one = select.random(5, 2)
    for a, b, same in (
        (np.array([np.nan]), np.array([np.nan]), False),
        (np.array([1, 2]), np.array([1.0, 2.0]), True),
        (np.array([1, 2]), np.array([[1, 2]]), False),
        (np.array([1]), 1, False),
    ):
        pair = [dataclasses.replace(one, indices=value) for value in (a, b)]
        assert (pair[0] == pair[1]) is same


def test_no_dataclass_of_the_selectors_compares_arrays_as_tuples() -> None:
    for module in pkgutil.iter_modules(pyfast.select.__path__, "pyfast.select."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and dataclasses.is_dataclass(value):
                holds_arrays = any("NDArray" in str(f.type) for f in dataclasses.fields(value))
                assert not holds_arrays or value.__dataclass_params__.eq is False, value
