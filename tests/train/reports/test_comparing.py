"""Runs side by side, against numbers made by hand."""

import json
import math

import numpy as np
import pytest

from pyfast import cli
from pyfast.train.errors import UserError
from pyfast.train.recipes.ampo import AmpoSettings
from pyfast.train.reports import comparing

T_2 = 4.302652729911275  # Student's t, 2 degrees of freedom, 0.975 (tables)


def make_run(folder, seed, metrics, inputs="x", models=None, **sections):
    folder.mkdir(parents=True)
    settings = {"recipe": "ampo", "run": {"seed": seed}, **sections}
    (folder / "config.json").write_text(json.dumps(settings))
    environment = {"versions": {}, "threads": 1, "inputs": {"prompts": inputs}}
    environment["models"] = models or {}
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
    for i, value in enumerate(["1", math.nan, math.inf, 10**400, {"mean": 1.0, "low": math.nan}]):
        bad = make_run(tmp_path / f"d{i}", 1, {"m": value})
        with pytest.raises(UserError, match=r"metrics\.m: expected a finite number"):
            read(bad)
    (tmp_path / "e").mkdir()
    assert cli.main(["compare", str(a), str(tmp_path / "e")]) == 2
    assert "expected a run folder" in capsys.readouterr().err
    (other / "summary.json").unlink()
    assert cli.main(["compare", str(a), str(other)]) == 0
    assert "left out, not finished" in capsys.readouterr().err


def test_a_pattern_finds_the_files_of_a_sweep_too(tmp_path, capsys):
    runs = [make_run(tmp_path / f"seed={seed}", seed, {"m": float(seed)}) for seed in (0, 1)]
    files = [tmp_path / name for name in ("sweep.json", "seed=0.json", "comparison.png")]
    for path in files:
        path.write_text("{}")
    assert cli.main(["compare", "--json", *map(str, sorted(tmp_path.iterdir()))]) == 0
    out, err = capsys.readouterr()
    assert [row["seeds"] for row in json.loads(out)["rows"]] == [[0, 1]]
    told = [f"pyfast: left out, a file and no run: {path}" for path in sorted(files)]
    assert err.splitlines() == told
    assert not (runs[0] / "comparison.json").exists()
    assert cli.main(["compare", str(files[1])]) == 2
    assert f"{files[1]}: expected the folder of a run or of a sweep" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"step": 2, "score": NaN}', "score: expected a finite number, got nan"),
        ('{"step": 2, "score": null}', "score: expected a finite number, got None"),
        ('{"score": 1}', "step: expected a finite number, got None"),
        ('{"step": 1, "score": 1}', "score stands there for 1 already"),
        ('{"step": 2, "sc', "expected an object"),
    ],
)
def test_curves_of_damaged_files_are_refused(tmp_path, capsys, line, message):
    run = make_run(tmp_path / "a", 0, {"m": 1.0})
    (run / "evaluation").mkdir()
    path = run / "evaluation" / "metrics.jsonl"
    path.write_text(f'{{"step": 1, "score": 0.5}}\n{line}\n')
    assert cli.main(["compare", str(run), "--out", str(tmp_path / "out")]) == 2
    assert f"{path}:2: {message}" in capsys.readouterr().err


def test_cases_of_one_name_that_differ_are_told_apart(tmp_path):
    kinds = [make_run(tmp_path / f"{k}", 0, {"m": 1.0}, selection={"k": k}) for k in (2, 3)]
    runs = [comparing.read_run(folder, AmpoSettings, "ours") for folder in kinds]
    assert [row.label for row in comparing.rows_of(runs)] == ["ours k=2", "ours k=3"]


def test_rows_that_read_different_things_under_one_name_are_refused(tmp_path):
    data = {"prompts": "p.jsonl"}
    a = make_run(tmp_path / "a", 0, {"m": 1.0}, data=data, loss={"beta": 0.1})
    b = make_run(tmp_path / "b", 0, {"m": 2.0}, "y", data=data, loss={"beta": 0.5})
    with pytest.raises(UserError, match=r"read other data than .*data\.prompts = 'p\.jsonl'"):
        comparing.rows_of(read(a, b))
    c = make_run(tmp_path / "c", 0, {"m": 2.0}, "y", data={"prompts": "q.jsonl"})
    assert len(comparing.rows_of(read(a, c))) == 2  # the rows' names tell it


def test_models_that_changed_between_seeds_are_refused(tmp_path):
    policy = {name: name for name in ("weights", "settings", "tokenizer")}
    other = {**policy, "weights": "trained on"}
    for number, (what, sections, refused) in enumerate([
        ({"policy": other}, {}, "policy.model"),
        ({"policy": policy, "reward": {"weights": "b"}}, {}, "scoring.reward"),
        ({"policy": policy, "reward": {"weights": "a"}}, {}, None),
        ({"policy": other}, {"policy": {"dtype": "bfloat16"}}, None),  # of the same weights
        ({"policy": other}, {"sft": {"epochs": 1.0}}, None),
    ]):  # fmt: skip
        at = tmp_path / str(number)
        first = {"policy": policy, "reward": {"weights": "a"}}
        a = make_run(at / "a", 0, {"m": 1.0}, models=first)
        b = make_run(at / "b", 1, {"m": 1.0}, models=what, **sections)
        if refused is None:
            comparing.rows_of(read(a, b))
            continue
        with pytest.raises(UserError, match=f"read other models than .*: {refused}"):
            comparing.rows_of(read(a, b))


def test_a_fine_tuned_start_may_differ_by_seed(tmp_path):
    runs = [
        make_run(tmp_path / f"{s}", s, {"m": 1.0}, sft={"epochs": 1.0},
                 models={"policy": {"weights": f"{s}", "settings": "x", "tokenizer": "x"}})
        for s in (0, 1)
    ]  # fmt: skip
    (row,) = comparing.rows_of(read(*runs))
    assert len(row.runs) == 2


def test_intervals_over_prompts_have_the_level_of_the_runs(tmp_path):
    metric = {"m": {"mean": 1.0, "low": 0.0, "high": 2.0}}
    half, other = {"confidence": 0.5}, {"confidence": 0.9}
    runs = [make_run(tmp_path / f"{s}", s, metric, evaluation=half) for s in (0, 1)]
    result = comparing.compare(comparing.rows_of(read(*runs)))
    assert (result["confidence"], result["prompts_confidence"]) == (0.95, 0.5)
    assert "95 % over seeds  50 % over prompts" in comparing.table(result)
    runs.append(make_run(tmp_path / "2", 2, metric, evaluation=other))
    with pytest.raises(UserError, match=r"confidence: expected that of .* 0\.5, got 0\.9"):
        comparing.rows_of(read(*runs))
