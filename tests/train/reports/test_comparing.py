"""Runs side by side, against numbers made by hand."""

import json

import numpy as np
import pytest

from pyfast import cli
from pyfast.train.errors import UserError
from pyfast.train.recipes.ampo import AmpoSettings
from pyfast.train.reports import comparing

T_2 = 4.302652729911275  # Student's t, 2 degrees of freedom, 0.975 (tables)


def make_run(folder, seed, metrics, inputs="x", **sections):
    folder.mkdir(parents=True)
    settings = {"recipe": "ampo", "run": {"seed": seed}, **sections}
    (folder / "config.json").write_text(json.dumps(settings))
    environment = {"versions": {}, "threads": 1, "inputs": {"prompts": inputs}}
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "summary.json").write_text(json.dumps({"recipe": "ampo", "metrics": metrics}))
    return folder


def read(*folders):
    return [comparing.read_run(folder, AmpoSettings) for folder in folders]


def test_means_intervals_and_paired_differences(tmp_path):
    values = {"random": [1.0, 2.0, 6.0], "coreset": [2.0, 2.5, 9.0]}
    runs = []
    for selector, some in values.items():
        for seed, value in enumerate(some):
            metrics = {"m": {"mean": value, "low": value - 1, "high": value + 2}, "n": value}
            folder = tmp_path / f"{selector}{seed}"
            make_run(folder, seed, metrics, selection={"selector": selector})
            runs.append(folder)
    rows = comparing.rows_of(read(*reversed(runs)))
    assert {row.label for row in rows} == {"selector=random", "selector=coreset"}
    baseline = next(row for row in rows if row.label == "selector=random")
    result = comparing.compare(rows, baseline)
    found = {row["label"]: row["metrics"] for row in result["rows"]}
    for selector, some in values.items():
        part = found[f"selector={selector}"]["m"]
        half = T_2 * np.std(some, ddof=1) / np.sqrt(3)
        assert part["mean"] == pytest.approx(np.mean(some))
        assert part["low"] == pytest.approx(np.mean(some) - half)
        assert part["high"] == pytest.approx(np.mean(some) + half)
        assert part["by_seed"] == dict(enumerate(some))
        assert part["prompts"]["low"] == pytest.approx(np.mean(some) - 1)
        assert found[f"selector={selector}"]["n"]["prompts"] is None
    difference = found["selector=coreset"]["m"]["difference"]
    deltas = [1.0, 0.5, 3.0]
    assert difference["mean"] == pytest.approx(1.5)
    assert difference["high"] - 1.5 == pytest.approx(T_2 * np.std(deltas, ddof=1) / np.sqrt(3))
    text = comparing.table(result)
    assert "noise" in text  # the interval of the difference holds 0
    assert "difference" not in found["selector=random"]["m"]


def test_one_seed_has_no_interval(tmp_path):
    (row,) = comparing.rows_of(read(make_run(tmp_path / "a", 0, {"m": 1.0})))
    part = comparing.compare([row])["rows"][0]["metrics"]["m"]
    assert (part["mean"], part["low"], part["high"], part["n"]) == (1.0, None, None, 1)


def test_what_cannot_be_compared_is_refused(tmp_path, capsys):
    a = make_run(tmp_path / "a", 0, {"m": 1.0})
    same = make_run(tmp_path / "b", 0, {"m": 1.0})
    with pytest.raises(UserError, match="has the settings and the seed of"):
        comparing.rows_of(read(a, same))
    other = make_run(tmp_path / "c", 1, {"m": 1.0}, inputs="y")
    with pytest.raises(UserError, match="has read other data than"):
        comparing.rows_of(read(a, other))
    bad = make_run(tmp_path / "d", 1, {"m": "1"})
    with pytest.raises(UserError, match=r"metrics\.m: expected a number"):
        read(bad)
    (tmp_path / "e").mkdir()
    assert cli.main(["compare", str(a), str(tmp_path / "e")]) == 2
    assert "expected a run folder" in capsys.readouterr().err
    (other / "summary.json").unlink()
    assert cli.main(["compare", str(a), str(other)]) == 0
    assert "left out, not finished" in capsys.readouterr().err


def test_cases_of_one_name_that_differ_are_told_apart(tmp_path):
    kinds = [make_run(tmp_path / f"{k}", 0, {"m": 1.0}, selection={"k": k}) for k in (2, 3)]
    runs = [comparing.read_run(folder, AmpoSettings, "ours") for folder in kinds]
    assert [row.label for row in comparing.rows_of(runs)] == ["ours k=2", "ours k=3"]
