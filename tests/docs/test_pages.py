"""README and docs: their blocks run, their commands parse, their links and pictures are there."""

import contextlib
import importlib
import json
import re
import sys
from pathlib import Path
from unittest import SkipTest

import pytest

pytest.importorskip("sybil")
sys.path.insert(0, str(Path(__file__).parent))

import blocks

IN_TRL = {"trl.md", "grpo.md", "axolotl.md"}


def name(page):
    return str(page.relative_to(blocks.ROOT))


def having(found):
    """Return the pages of which something is found, those of TRL marked slow."""
    return [
        pytest.param(page, id=name(page), marks=[pytest.mark.slow] * (page.name in IN_TRL))
        for page in blocks.PAGES
        if found(page)
    ]


@pytest.mark.parametrize("page", having(blocks.examples))
def test_blocks_run_as_written(page, request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = blocks.examples(page)
    if blocks.needs_model(page):
        found[0].namespace["tiny_model"] = str(request.getfixturevalue("tiny_model"))
    for example in found:
        with contextlib.suppress(SkipTest):  # whose reason is shown by the list of blocks
            example.evaluate()


@pytest.mark.parametrize("page", having(blocks.commands))
def test_commands_are_ones_that_the_parser_takes(page):
    from pyfast import cli
    from pyfast.train.errors import UserError

    for words in blocks.commands(page):
        try:
            cli.parser().parse_args([word for word in words if word not in ("...", "RUN")])
        except (UserError, SystemExit) as error:
            if not isinstance(error, SystemExit) or error.code:  # --help is no mistake
                pytest.fail(f"{' '.join(words)}: {error}")


@pytest.mark.parametrize("page", [pytest.param(page, id=name(page)) for page in blocks.PAGES])
def test_links_and_pictures_are_there(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith(("http", "#")):
            assert (page.parent / link.split("#")[0]).exists(), link


def is_there(dotted):
    """Tell whether a name of ours is one: a module, or a word of the module that it begins with."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        folder = blocks.ROOT.joinpath(*parts[:count])
        for module in (folder.with_suffix(".py"), folder / "__init__.py"):
            if module.exists():
                text = module.read_text("utf-8")
                return all(re.search(rf"\b{part}\b", text) for part in parts[count:])
    return False


@pytest.mark.parametrize("page", [pytest.param(page, id=name(page)) for page in blocks.PAGES])
def test_what_is_named_in_code_is_there(page):
    text = page.read_text(encoding="utf-8")
    for dotted in re.findall(r"`(pyfast(?:\.\w+)+)(?:\(.*?\))?`", text):
        assert is_there(dotted.replace("pyfast.kernels", "kernels")), dotted
    for path in re.findall(r"`((?:benchmarks|tests|docs|examples|csrc|kernels)/[\w./-]+)`", text):
        assert (blocks.ROOT / path).exists(), path


def test_a_name_that_is_gone_is_found():
    assert is_there("pyfast.train.evaluation.blinded.read")
    assert is_there("pyfast.set_num_threads")
    assert not is_there("pyfast.train.blinded.read")
    assert not is_there("pyfast.select.opt_selects")


def test_every_page_is_in_the_navigation():
    navigation = (blocks.ROOT / "zensical.toml").read_text("utf-8")
    for page in blocks.PAGES[1:]:
        assert f'"{page.relative_to(blocks.ROOT / "docs").as_posix()}"' in navigation


def test_a_block_that_is_not_run_says_why():
    assert "not run: None" not in blocks.listing()
    assert blocks.listing().count(": run: ") > 40


@pytest.mark.parametrize("name", ["performance", "results"])
def test_pages_of_figures_are_what_their_scripts_make_of_them(name, monkeypatch):
    monkeypatch.syspath_prepend(str(blocks.ROOT / "docs"))
    made = importlib.import_module(name).page()
    assert (blocks.ROOT / "docs" / f"{name}.md").read_text("utf-8") == made


def test_rows_of_the_papers_stand_beside_ours_of_the_same_name(monkeypatch):
    monkeypatch.syspath_prepend(str(blocks.ROOT / "docs"))
    results = importlib.import_module("results")
    papers = json.loads((blocks.ROOT / "docs" / "figures" / "papers.json").read_text("utf-8"))
    assert {path.stem for path in results.KEPT.glob("*.json")} <= set(papers)
    for name, told in papers.items():
        assert (results.KEPT.parent / f"{name}.json").exists()
        columns = len(told["paper"]["columns"])
        assert all(len(row) == columns for row in told["paper"]["rows"].values())
        path = results.KEPT / f"{name}.json"
        if not path.exists():
            continue
        rows = json.loads(path.read_text("utf-8"))["comparison"]["rows"]
        assert set(told["paper"]["rows"]) <= {row["label"] for row in rows}
        for metric in told["shown"].values():
            assert any(metric in row["metrics"] for row in rows), metric
        assert told["reading"]


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(path, id=path.stem)
        for path in sorted((blocks.ROOT / "docs" / "pictures").glob("[a-z]*.py"))
    ],
)
def test_pictures_come_from_their_scripts(script, tmp_path, monkeypatch):
    """Each script draws its picture again, of the same size, from the package as it is."""
    pytest.importorskip("matplotlib")
    import runpy

    monkeypatch.syspath_prepend(str(script.parent))
    import _style

    drawn = []
    save = _style.save
    monkeypatch.setattr(_style, "save", lambda f, s: drawn.append(save(f, s, tmp_path)))
    runpy.run_path(str(script))
    (made,) = drawn
    kept = script.with_suffix(".svg")
    assert made.stat().st_size == pytest.approx(kept.stat().st_size, rel=0.3)


def test_readme_is_short():
    assert len((blocks.ROOT / "README.md").read_text("utf-8").splitlines()) < 150
