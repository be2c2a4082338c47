"""The sweeps of the papers' tables and figures are ones that `pyfast sweep` takes."""

from pathlib import Path

import pytest

from pyfast.cli import train
from pyfast.train.runs.sweeps import read_sweep

FILES = sorted((Path(__file__).parents[3] / "benchmarks" / "papers").glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_run_of_a_papers_sweep_has_settings_that_go_together(path):
    planned = read_sweep(path, train.recipe, train.DEMOS)
    seeds = {run.settings.run.seed for run in planned}
    assert len(seeds) >= 3
    assert len(planned) % len(seeds) == 0


def test_ampos_tables_compare_what_the_paper_does():
    def values(name, path):
        (file,) = [file for file in FILES if file.stem == name]
        found = [run.settings.get(path) for run in read_sweep(file, train.recipe, train.DEMOS)]
        return sorted(set(found))

    selectors = ["bottom-k", "coreset", "opt-select"]
    assert set(selectors) < set(values("ampo-table1", "selection.selector"))
    assert values("ampo-figure3", "sampling.temperature") == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert values("ampo-figure3", "evaluation.temperature") == [0.8]
    assert values("ampo-figure3-evaluation", "sampling.temperature") == [0.8]
    assert values("ampo-figure4", "selection.selector") == selectors
    margins = values("ampo-figure4", "loss.margin")
    assert (margins[0], margins[-1]) == (1.0, 3.0)
    for run in read_sweep(FILES[0].with_name("ampo-table1.json"), train.recipe, train.DEMOS):
        if run.settings.selection.selector == "worst":  # SimPO as it is
            assert run.settings.loss.implicit_reward == "simpo"
            assert run.settings.loss.alpha == 0
