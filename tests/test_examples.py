"""The examples run as they are written; `make test-examples` does so in new environments."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
ELSEWHERE = {"ray_data": "ray", "verl_advantages": "verl", "axolotl": "axolotl"}
"""Needs what is no part of the tests' environment."""


def fresh():
    """Return the script that runs examples in new environments."""
    where = Path(__file__).parent / "wheel" / "examples.py"
    found = importlib.util.spec_from_file_location("fresh_examples", where)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_every_example_says_how_to_install_and_run_it():
    script = fresh()
    for name in script.WANTED:
        install, command = script.said(name)
        assert install.startswith('".[') or install.split()[0] == "."
        assert f"examples/{name}." in command
    assert {path.stem for path in EXAMPLES.iterdir() if path.is_file()} == set(script.WANTED)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in fresh().WANTED if name != "plain_loop"])
def test_examples_of_the_integrations(tmp_path, monkeypatch, name):
    if (needs := ELSEWHERE.get(name)) and importlib.util.find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed")
    script = fresh()
    monkeypatch.setattr(script, "BUILD", tmp_path)
    _, command = script.said(name)
    with (tmp_path / "log").open("w") as log:
        files = script.made_up(tmp_path / "files")
        programs = Path(sys.executable).parent
        assert script.run(name, programs, command, files, log) == 0, (tmp_path / "log").read_text()
    assert re.search(script.WANTED[name], (tmp_path / "log").read_text())


def test_a_loop_of_ones_own(tiny_model, tmp_path):
    rows = [
        {
            "prompt": f"tell me about the {topic}",
            "responses": ["good day", "awful hate", "bad rain", "sad sad dog", "nice sun"],
            "scores": [0.9, 0.0, 0.2, 0.1, 0.8],
        }
        for topic in ("day", "dog", "rain")
    ]
    path = tmp_path / "groups.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    done = subprocess.run(
        [sys.executable, EXAMPLES / "plain_loop.py", tiny_model, path, "12"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    losses = [float(x) for x in re.findall(r"loss ([\d.]+)", done.stdout)]
    margins = [float(x) for x in re.findall(r"margin (-?[\d.]+)", done.stdout)]
    assert len(losses) == 12
    assert losses[-1] < losses[0] - 0.05
    assert margins[-1] > margins[0]
