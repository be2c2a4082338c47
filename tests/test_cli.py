import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest

from pyfast import cli


@pytest.fixture
def groups_file(tmp_path):
    generator = np.random.default_rng(0)
    path = tmp_path / "groups.jsonl"
    with path.open("w") as stream:
        for i in range(3):
            record = {
                "prompt": f"p{i}",
                "responses": [f"y{j}" for j in range(6)],
                "scores": generator.random(6).tolist(),
                "embeddings": generator.normal(size=(6, 4)).tolist(),
            }
            stream.write(json.dumps(record) + "\n")
    return path


def refused(capsys, *arguments):
    """Run a command that must fail in one line; return that line."""
    assert cli.main([str(a) for a in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pyfast: error: ")
    assert err.count("\n") == 1
    return err


def test_heavy_packages_are_not_imported(tmp_path):
    """Neither by the import, nor by help, nor before a malformed prompts file is told."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a"}\nnonsense\n')
    code = f"""
import sys
from pyfast import cli
heavy = {{"torch", "transformers", "peft", "matplotlib"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert cli.main(["train", "ampo", "--help"]) == 0
command = ["train", "ampo", "--prompts", {str(prompts)!r}, "--out", {str(tmp_path / "run")!r}]
assert cli.main(command) == 2
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"pyfast: error: {prompts}:2: expected an object like")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "command", [[], ["train"], ["train", "ampo"], ["select"], ["plot"], ["env"]]
)
def test_help_is_for_strangers(capsys, command):
    assert cli.main([*command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "usage: pyfast" in text
    assert "example" in text


def test_every_setting_has_a_flag_with_help_and_default(capsys):
    from dataclasses import fields

    from pyfast.train.recipes.ampo import AmpoSettings

    cli.main(["train", "ampo", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, kind in AmpoSettings.sections().items():
        for item in fields(kind):
            flag = item.name.replace("_", "-")
            before = {"evaluation": "eval-", "sft": "sft-"}.get(name, "")
            assert f"--{before}{flag}" in text
    assert text.count("(default: ") >= sum(
        len(fields(kind)) for kind in AmpoSettings.sections().values()
    )


def test_version(capsys):
    from importlib.metadata import version

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"pyfast {version('pyfast-align')}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND (see pyfast --help)"),
        (["trian"], "invalid choice: 'trian'"),
        (["train", "dpo"], "invalid choice: 'dpo'"),
        (["train", "ampo"], "data.prompts: expected a prompts file"),
        (["train", "ampo", "--lr", "fast"], "argument --lr: invalid float value: 'fast'"),
        (["train", "ampo", "--demo", "--lr", "-1"], "optimisation.lr: expected a number > 0"),
        (["train", "ampo", "--demo", "--selector", "best"], "invalid choice: 'best'"),
        (["train", "ampo", "--demo", "--k", "32"], "selection.k: expected at most"),
        (["train", "ampo", "--demo", "--config", "x"], "not allowed with argument"),
        (["train", "ampo", "--config", "nowhere.json"], "nowhere.json: No such file"),
        (["train", "ampo", "--prompts", "nowhere.txt"], "data.prompts: no such file: nowhere.txt"),
        (["train", "ampo", "--demo", "--reward", "nothing:f"], "cannot import 'nothing'"),
        (["train", "ampo", "--demo", "--steps"], "argument --steps: expected one argument"),
        (["train", "ampo", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["select", "nowhere.jsonl"], "nowhere.jsonl: No such file"),
        (["plot", "nowhere"], "nowhere: no config.json here"),
    ],
)
def test_mistakes_are_told_in_one_line(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *arguments)
    assert not (tmp_path / "runs").exists()


def test_a_missing_package_is_named(capsys, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "peft" else find(name)
    )
    message = refused(capsys, "train", "ampo", "--demo")
    assert "this command needs peft (try: pip install 'pyfast-align[train]')" in message


def test_ctrl_c_is_status_130(capsys, monkeypatch):
    def interrupt(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.train, "run", interrupt)
    assert cli.main(["train", "ampo", "--demo", "--out", "my runs/x"]) == 130
    err = capsys.readouterr().err
    assert "run again: pyfast train ampo --demo --out 'my runs/x'" in err


@pytest.mark.parametrize("selector", ["opt-select", "coreset", "bottom-k", "random"])
def test_select_fills_in_the_choice(capsys, groups_file, selector):
    assert cli.main(["select", str(groups_file), "--k", "2", "--selector", selector]) == 0
    lines = capsys.readouterr().out.splitlines()
    given = [json.loads(line) for line in groups_file.read_text().splitlines()]
    for line, before in zip(lines, given, strict=True):
        after = json.loads(line)
        assert after["scores"][after["positive"]] == max(after["scores"])
        assert len(set(after["negatives"]) - {after["positive"]}) == 2
        for key in ("prompt", "responses", "scores", "embeddings"):
            assert after[key] == before[key]


def test_select_writes_a_file_and_is_seeded(capsys, groups_file, tmp_path):
    def select(name, seed):
        out = tmp_path / name
        command = ["select", str(groups_file), "--k", "2", "--selector", "random"]
        assert cli.main([*command, "--seed", str(seed), "--out", str(out)]) == 0
        return out.read_text()

    assert select("a", 0) == select("b", 0)
    assert len({select("c", seed) for seed in range(5)}) > 1
    assert capsys.readouterr().out == ""


def test_select_tells_which_group_is_wrong(capsys, groups_file, tmp_path):
    assert "--k: expected a whole number >= 1" in refused(capsys, "select", groups_file, "--k", "0")
    lines = groups_file.read_text().splitlines()
    bare = json.loads(lines[1])
    del bare["embeddings"]
    groups_file.write_text("\n".join([lines[0], json.dumps(bare)]))
    assert "group 2: opt-select needs embeddings" in refused(capsys, "select", groups_file)
    del bare["scores"]
    groups_file.write_text(json.dumps(bare))
    assert "group 1: scores are missing" in refused(capsys, "select", groups_file)
    groups_file.write_text('{"prompt": "p", "responses": ["a"], "scores": ["high"]}')
    assert f"{groups_file}:1: scores[0]: expected a finite number" in refused(
        capsys, "select", groups_file
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"responses": ["\ud800", "b"]}, "got '\\ud800' without its other half"),
        ({"prompt": "\udc00\ud83d"}, "got '\\udc00' without its other half"),
        ({"meta": {"a": ["\udfff"]}}, "expected text that UTF-8 can hold"),
        ({"scores": [1.0, 10**400]}, "scores[1]: expected a finite number, got 1000"),
        ({"scores": [-(10**400), 1]}, "scores[0]: expected a finite number, got -1000"),
        ({"embeddings": [[1.0], [10**400]]}, "embeddings[1]: expected finite numbers"),
        ({"embeddings": [[10**400], [1.0, 2.0]]}, "embeddings"),
        ({"embeddings": [10**400, 1]}, "embeddings: expected 2 rows of equally many numbers"),
        ({"embeddings": 10**400}, "embeddings: expected 2 rows of equally many numbers"),
        ({"meta": {"a": float("inf")}}, "meta: expected finite numbers"),
        ({"token_ids": [[1], [float("nan")]]}, "token_ids: expected finite numbers"),
    ],
)
def test_what_no_group_can_hold_is_told_in_one_line(capsys, tmp_path, changes, message):
    path, out = tmp_path / "groups.jsonl", tmp_path / "selected.jsonl"
    record = {"prompt": "p", "responses": ["a", "b"], "scores": [1.0, 2.0], **changes}
    path.write_text(json.dumps(record))
    for more in ([], ["--out", out]):
        error = refused(capsys, "select", path, "--selector", "bottom-k", *more)
        assert f"{path}:1: " in error
        assert message in error
        assert len(error) < 400
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "p", "responses": ["a"], "scores": [%s]}' % ("1" * 5000), "fewer digits"),
        ("[" * 100_000, "not nested so deeply"),
    ],
)
def test_json_that_python_does_not_read_is_told_in_one_line(capsys, tmp_path, text, message):
    path = tmp_path / "groups.jsonl"
    path.write_text(text)
    error = refused(capsys, "select", path, "--selector", "bottom-k")
    assert f"{path}:1: expected " in error
    assert message in error


def test_escaped_text_comes_out_as_it_went_in(capsys, tmp_path):
    path = tmp_path / "groups.jsonl"
    record = {"prompt": "\\ud800", "responses": ["\U0001f600", "é"], "scores": [1, 2]}
    path.write_text(json.dumps(record))
    assert "\\ud83d\\ude00" in path.read_text()
    assert cli.main(["select", str(path), "--selector", "bottom-k"]) == 0
    after = json.loads(capsys.readouterr().out)
    assert {key: after[key] for key in record} == record
    path.write_text(json.dumps(record, ensure_ascii=False), "utf-8")
    command = [sys.executable, "-m", "pyfast.cli", "select", str(path), "--selector", "bottom-k"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("pyfast: error: standard output: its encoding, ascii, cannot")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("selector", ["opt-select", "coreset", "bottom-k", "random"])
@pytest.mark.parametrize("k", [5, 6, 100])
def test_k_at_or_above_the_pool_takes_all_of_it(capsys, groups_file, selector, k):
    assert cli.main(["select", str(groups_file), "--k", str(k), "--selector", selector]) == 0
    out, err = capsys.readouterr()
    for line in out.splitlines():
        after = json.loads(line)
        assert {after["positive"], *after["negatives"]} == set(range(6))
        assert len(after["negatives"]) == 5
    assert err.count("\n") == (k > 5)
    assert (
        k == 5
        or f"all others became negatives in 3 of 3 groups, which have fewer than k = {k}" in err
    )


LINE = (
    '{"id":12345678901234567890123, "weight":1.0,\t"small": 1e-7, "embeddings": [[1.0,2], '
    '[0.10000000000000000001, -0], [3e0,4]], "responses": ["a","\\u00e9 \\/ }", "b"], '
    '"source": {"positive": [1, {"negatives": null}]}, "scores":[1.50, 2, 0], "prompt": "p" %s}'
)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", ', "positive": 1, "negatives": [2]'),
        (', "negatives": null ,"note": ""', ', "negatives": [2] ,"note": "", "positive": 1'),
        (', "positive":0,"negatives":[ 1 ], "z": []', ', "positive":1,"negatives":[2], "z": []'),
        (', "negatives":[], "\\u0070ositive": 2', ', "negatives":[2], "\\u0070ositive": 1'),
    ],
)
def test_lines_come_out_as_they_went_in(capsys, tmp_path, before, after):
    """Whatever else stands in a line: its order, its spaces, its numbers to the letter."""
    path, out = tmp_path / "groups.jsonl", tmp_path / "out.jsonl"
    bare = '{"prompt":"q","responses":["a","b"],"scores":[0,1]}'
    text = f"\ufeff{LINE % before}\r\n\r\n  {bare}  "  # a mark, a blank line, no end to the last
    path.write_text(text, "utf-8", newline="")
    command = ["select", str(path), "--k", "1", "--selector", "bottom-k"]
    assert cli.main([*command, "--out", str(out)]) == 0
    expected = LINE.replace(" %s", " %s" if before else "%s") % after
    expected += (
        '\n{"prompt":"q","responses":["a","b"],"scores":[0,1], "positive": 1, "negatives": [0]}\n'
    )
    assert out.read_bytes().decode() == expected
    assert cli.main(command) == 0
    assert capsys.readouterr().out == expected


def test_fields_are_set_in_any_object():
    from pyfast.tables.json_text import with_fields

    generator = random.Random(0)
    values = [
        1,
        -2.5e-300,
        "}{",
        '\\"',
        None,
        True,
        [],
        {},
        [{"a": [1]}],
        {"b": {"a": 0}},
        "\u2028",
    ]
    for _ in range(300):
        names = generator.sample(["a", "b", "positive", "negatives", "\u00e4", "", "}", '"'], 5)
        given = {name: generator.choice(values) for name in names[: generator.randrange(6)]}
        text = json.dumps(
            given,
            indent=generator.choice([None, 1]),
            separators=generator.choice([None, (",", ":"), (" , ", " : ")]),
            ensure_ascii=generator.random() < 0.5,
        )
        made = with_fields(text, {"positive": 3, "negatives": [4, 5]})
        assert list(json.loads(made).items()) == list(
            {**given, "positive": 3, "negatives": [4, 5]}.items()
        )


def test_standard_input_is_a_groups_file(capsys, groups_file, monkeypatch):
    command = ["--k", "2", "--selector", "coreset"]
    assert cli.main(["select", str(groups_file), *command]) == 0
    expected = capsys.readouterr().out
    with groups_file.open() as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        assert cli.main(["select", "-", *command]) == 0
    assert capsys.readouterr().out == expected
    groups_file.write_text("\n\n[]")
    with groups_file.open() as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        assert "error: standard input:3: expected a group object" in refused(capsys, "select", "-")
    monkeypatch.setattr(sys, "stdin", None)
    assert "standard input: it is closed" in refused(capsys, "select", "-")


def test_errors_count_the_lines_of_the_file(capsys, tmp_path):
    path = tmp_path / "groups.jsonl"
    path.write_text(
        '\n{"prompt": "p", "responses": ["a"], "scores": [1]}\r\n \n'
        '{"prompt": "p", "responses": ["a"]}'
    )
    message = refused(capsys, "select", path, "--selector", "bottom-k")
    assert f"{path}:4: group 2: scores are missing" in message


def test_one_response_has_no_negatives(capsys, tmp_path):
    path = tmp_path / "groups.jsonl"
    record = {"prompt": "p", "responses": ["a"], "scores": [1.0], "embeddings": [[1.0, 2.0]]}
    path.write_text(json.dumps(record))
    for selector in ("opt-select", "coreset", "bottom-k", "random"):
        assert cli.main(["select", str(path), "--selector", selector]) == 0
        assert json.loads(capsys.readouterr().out)["negatives"] == []


def test_env_tells_versions(capsys):
    assert cli.main(["env"]) == 0
    text = capsys.readouterr().out
    for label in (
        "python",
        "pyfast-align",
        "numpy",
        "torch",
        "threads",
        "extension",
        "gpu",
        "kernels",
        "demo model",
    ):
        assert label in text
