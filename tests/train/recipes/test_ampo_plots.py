"""AMPO's figure 2, from a run's files."""

import dataclasses
import json

import numpy as np
import pytest

from pyfast import cli
from pyfast.train.data.group import Group, write_groups
from pyfast.train.errors import UserError
from pyfast.train.recipes.ampo import plots, selection
from pyfast.train.recipes.ampo.settings import AmpoSettings


def make_group(n=12, seed=0, **changes):
    generator = np.random.default_rng(seed)
    embeddings = generator.normal(size=(n, 6)).astype(np.float32)
    scores = generator.random(n).tolist()
    chosen = selection.choose(selection.SelectionConfig(k=3), scores, embeddings, seed=1)
    fields = {
        "prompt": f"prompt {seed} for $5", "responses": [f"answer {i}" for i in range(n)],
        "scores": scores, "embeddings": embeddings, "positive": chosen.positive,
        "negatives": chosen.negatives, "meta": {"step": 1, "selector": "opt-select"},
    }  # fmt: skip
    return Group(**{**fields, **changes})


@pytest.fixture
def run(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    groups = [make_group(seed=0), make_group(seed=1), make_group(seed=2, embeddings=None)]
    write_groups(out / "groups.jsonl", groups)
    settings = AmpoSettings(selection=selection.SelectionConfig(k=3))
    (out / "config.json").write_text(json.dumps(settings.to_dict()))
    return out


def test_figure_2_is_drawn_the_same_each_time(run, capsys):
    assert cli.main(["plot", str(run), "--tsne", "0, 1"]) == 0
    assert capsys.readouterr().out == f"{run / 'selections.png'}\n"
    first = (run / "selections.png").read_bytes()
    assert cli.main(["plot", str(run), "--tsne", "0,1"]) == 0
    assert (run / "selections.png").read_bytes() == first
    cli.main(["plot", str(run), "--tsne", "1"])
    assert (run / "selections.png").read_bytes() != first


def test_each_column_is_its_selectors_choice():
    group = make_group()
    config = selection.SelectionConfig(k=3, exact=True)
    figure = plots.selection_maps([group], config, [5])
    axes = figure.axes[:3]
    for ax, selector in zip(axes, plots.SHOWN, strict=True):
        mine = dataclasses.replace(config, selector=selector, exact=selector == "opt-select")
        expected = selection.choose(mine, group.scores, group.embeddings, seed=5)
        negatives = expected.negatives
        if selector == "opt-select":  # the run's own
            negatives = group.negatives
        others, chosen, best = (part.get_array() for part in ax.collections)
        assert chosen.tolist() == pytest.approx([group.scores[i] for i in negatives])
        assert best.tolist() == [max(group.scores)]
        assert len(others) + len(chosen) + 1 == len(group.responses)


def test_a_few_responses_have_a_plane_too():
    points = plots.tsne(make_group(n=4).embeddings)
    assert points.shape == (4, 2)
    assert np.isfinite(points).all()


@pytest.mark.parametrize("distinct", [1, 2, 3])
def test_responses_that_are_the_same_have_a_plane_too(distinct):
    rows = np.repeat(make_group(n=3).embeddings[:distinct], 12 // distinct, axis=0)
    points = plots.tsne(rows)
    assert points.shape == (12, 2)
    assert np.isfinite(points).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2", "group 2: expected embeddings and scores of three responses or more"),
        ("3", "group: expected 0..2, got 3"),
        ("", "--tsne: expected whole numbers with commas between, got ''"),
        ("0,-1", "--tsne: expected whole numbers"),
    ],
)
def test_what_cannot_be_drawn_is_told(run, capsys, text, message):
    assert cli.main(["plot", str(run), "--tsne", text]) == 2
    assert message in capsys.readouterr().err
    assert not (run / "selections.png").exists()


def test_scikit_learn_is_asked_for(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.manifold", None)
    with pytest.raises(UserError, match="t-SNE needs the package scikit-learn"):
        plots.tsne(make_group().embeddings)
