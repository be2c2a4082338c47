"""What starting up loads; what `pyfast env` and `pyfast completion` tell."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pyfast import cli

CLI_PAGE = Path(__file__).parents[1] / "docs" / "reference" / "cli.md"


def loaded_after(code):
    """Return the modules that a fresh interpreter has loaded after some code, beside numpy's."""
    script = f"""
import json, sys
import numpy
before = set(sys.modules)
{code}
print("\\n" + json.dumps(sorted(set(sys.modules) - before)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_selectors_load_nothing_that_takes_as_long_as_numpy():
    loaded = loaded_after("import pyfast.select")
    assert "pyfast.select" in loaded
    slow = {"importlib.metadata", "email", "fractions", "decimal", "tempfile", "socket", "torch"}
    assert not loaded & slow


def test_help_of_a_command_loads_that_command_alone():
    loaded = loaded_after("from pyfast import cli; cli.main(['select', '--help'])")
    ours = {name for name in loaded if name.startswith("pyfast.")}
    assert "pyfast.cli.select" in ours
    assert not {name for name in ours if name.startswith("pyfast.train.recipes")}
    assert not {name for name in ours if name.startswith("pyfast.cli.")} - {
        "pyfast.cli.select",
        "pyfast.cli._common",
    }
    assert not loaded & {"tqdm", "importlib.metadata", "torch"}


BARE = """
import importlib.util, sys

OTHERS = set("{others}".split())
find = importlib.util.find_spec
importlib.util.find_spec = (
    lambda name, *of: None if name.split(".")[0] in OTHERS else find(name, *of)
)


class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in OTHERS:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Nothing())
from pyfast import cli

sys.exit(cli.main(sys.argv[1:]))
"""
OTHERS = (
    "accelerate datasets gguf markdown_it matplotlib pandas peft pyarrow sacrebleu safetensors "
    "scipy sklearn starlette tokenizers torch tqdm transformers triton trl uvicorn vaderSentiment "
    "yaml"
)


def bare(folder, *arguments):
    """Run a command where no package but numpy can be imported."""
    script = BARE.format(others=OTHERS)
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["train", "ampo", "--help"], ["completion", "bash"], ["env", "--json"]],
)
def test_help_completion_and_env_need_numpy_alone(tmp_path, arguments):
    done = bare(tmp_path, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_select_needs_numpy_alone(tmp_path):
    row = {"prompt": "p", "responses": ["a", "b", "c", "d"], "scores": [0.1, 0.9, 0.2, 0.4]}
    row["embeddings"] = [[0.0], [1.0], [2.0], [4.0]]
    (tmp_path / "groups.jsonl").write_text(json.dumps(row) + "\n")
    done = bare(tmp_path, "select", "groups.jsonl", "--k", "2")
    assert (done.returncode, done.stderr) == (0, "")
    chosen = json.loads(done.stdout)
    assert chosen["positive"] == 1
    assert len(chosen["negatives"]) == 2


@pytest.mark.parametrize(
    ("arguments", "extras"),
    [
        ("score a.jsonl --reward vader", "tables"),
        ("embed a.jsonl", "tables,train"),
        ("select a.jsonl --selector logdet", "tables"),
        ("train ampo --prompts prompts.txt --reward os:strerror", "train"),
        ("compare runs", "train"),
    ],
)
def test_what_is_missing_is_told_with_its_extra(tmp_path, arguments, extras):
    (tmp_path / "prompts.txt").write_text("one\n")
    done = bare(tmp_path, *arguments.split())
    assert done.returncode == 2, done.stderr
    assert f"(try: pip install 'pyfast-align[{extras}]')" in done.stderr


def test_what_select_says_without_loading_ampo_is_what_ampo_says():
    from pyfast.cli import select
    from pyfast.train.recipes.ampo import selection

    defaults = selection.SelectionConfig()
    assert select.LINE_BY_LINE == selection.SELECTORS
    assert (defaults.k, defaults.n_init) == (select.K, select.N_INIT)
    arguments = cli.parser(["select"]).parse_args(["select", "x"])
    assert arguments.selector == defaults.selector


def test_every_command_is_in_help_and_on_the_page(capsys):
    assert cli.main(["--help"]) == 0
    text, page = capsys.readouterr().out, CLI_PAGE.read_text(encoding="utf-8")
    for command in cli.COMMANDS:
        assert re.search(rf"^    {command}\s", text, re.MULTILINE)
        assert command in page
    for status in (cli.DONE, cli.UNEXPECTED, cli.USERS, cli.WAITING, cli.INTERRUPTED):
        assert f"| {status} |" in page
        assert f"{status} " in text


def test_env_says_what_works_and_why_not(capsys, monkeypatch):
    find = importlib.util.find_spec
    gone = ("pyarrow", "triton")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in gone else find(name)
    )
    assert cli.main(["env", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["works"]["selectors"] is None
    assert told["works"]["stages over files"] == (
        "pyarrow missing (pip install 'pyfast-align[tables]')"
    )
    assert told["works"]["Triton kernels"] == "triton is not installed"
    assert told["python"].startswith("3.")
    assert cli.main(["env"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  selectors         yes" in lines
    assert any(line.startswith("  Triton kernels    no: triton is not") for line in lines)


def test_env_finds_a_core_that_chooses_wrongly(capsys, monkeypatch):
    from pyfast import select

    monkeypatch.setattr(select, "kmedoids", lambda *_: 1 / 0)
    cli.main(["env", "--json"])
    assert json.loads(capsys.readouterr().out)["works"]["selectors"].startswith("ZeroDivision")


def test_env_tells_a_level_that_this_machine_has_not(capsys, monkeypatch):
    from pyfast import _native

    def refused():
        raise ValueError("PYFAST_SIMD: expected a level of this machine (baseline), got foo")

    monkeypatch.setattr(_native, "build_info", refused)
    assert cli.main(["env", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["extension"].endswith("got foo")


CASES = [
    (["pyfast", "se"], {"select"}),
    (["pyfast", "train", ""], {"ampo", "hps", "--help"}),
    (["pyfast", "select", "a.jsonl", "--sel"], {"--selector"}),
    (["pyfast", "select", "--selector", "mass"], {"mass-dpo"}),
    (["pyfast", "train", "ampo", "--training", "fu"], {"full"}),
    (["pyfast", "export", "a.jsonl", "--format", ""], {"pairs", "numbered"}),
    (["pyfast", "train", "ampo", "--demo", "--se"], {"--selector", "--seed"}),
]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("completion")
    found = {}
    for shell in ("bash", "zsh", "fish"):
        command = [sys.executable, "-m", "pyfast.cli", "completion", shell]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[shell] = folder / f"pyfast.{shell}"
        found[shell].write_text(done.stdout)
    return found


@pytest.mark.parametrize(("words", "offered"), CASES)
def test_bash_completes(scripts, words, offered):
    given = " ".join(repr(word) for word in words)
    code = f"""
        source {scripts["bash"]}
        COMP_WORDS=({given}) COMP_CWORD={len(words) - 1}
        _pyfast
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert offered <= set(done.stdout.split())
    if words[-1]:
        assert all(word.startswith(words[-1]) for word in done.stdout.split())


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
@pytest.mark.parametrize(("words", "offered"), CASES)
def test_fish_completes(scripts, words, offered):
    code = f"source {scripts['fish']}; complete -C {' '.join(words)!r}"
    done = subprocess.run(["fish", "-c", code], capture_output=True, text=True, check=True)
    found = {line.split("\t")[0] for line in done.stdout.splitlines()}
    assert offered - {"--help"} <= found


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_takes_the_script(scripts):
    code = f"source {scripts['zsh']}; which _pyfast"
    done = subprocess.run(["zsh", "-f", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "compgen" in done.stdout


def test_weights_that_the_disk_does_not_take_are_the_users_to_mend(tmp_path):
    """Safetensors tells it by an error of its own, which is no OSError."""
    torch = pytest.importorskip("torch")
    save_file = pytest.importorskip("safetensors.torch").save_file
    with pytest.raises(Exception, match="os error") as caught:
        save_file({"a": torch.ones(4)}, str(tmp_path / "none" / "weights.safetensors"))
    assert cli._message(caught.value) == ("weights: No such file or directory", 2)
