import json

import numpy as np
import pytest
from matplotlib import image

from pyfast.train import plots
from pyfast.train.data import Group, write_groups
from pyfast.train.errors import UserError
from pyfast.train.recipes.ampo import Ampo


@pytest.fixture
def run_folder(tmp_path):
    generator = np.random.default_rng(0)
    settings = {"selection": {"k": 3, "selector": "opt-select"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    names = ["loss", "scores/mean", "scores/std", "scores/chosen", "scores/rejected", "lr"]
    names += ["rewards/chosen", "rewards/rejected", "rewards/margins", "negatives/effective"]
    names += ["grad_norm"]
    with (tmp_path / "metrics.jsonl").open("w") as stream:
        for step in range(1, 6):
            record = {"step": step, **{name: generator.random() for name in names}}
            stream.write(json.dumps(record) + "\n")
    group = Group(
        "costs $5 and $6",
        [f"y{i}" for i in range(9)],
        generator.random(9).tolist(),
        generator.normal(size=(9, 4)).astype(np.float32),
        positive=2,
        negatives=[0, 4, 5],
    )
    write_groups(tmp_path / "groups.jsonl", [group])
    return tmp_path


def test_an_unfinished_run_has_two_pictures_and_a_finished_one_three(run_folder):
    drawn = plots.plot_run(run_folder)
    assert [path.name for path in drawn] == ["training_curves.png", "selected_responses.png"]
    for name in ("eval_before.jsonl", "eval_after.jsonl"):
        write_groups(run_folder / name, [Group(f"p{i}", ["a", "b"], [0.1, 0.7]) for i in range(4)])
    drawn = plots.plot_run(run_folder)
    assert "heldout_scores.png" in [path.name for path in drawn]
    for path in drawn:
        pixels = image.imread(path)
        assert pixels.shape[0] > 400
        assert pixels.std() > 0.05  # not an empty page


def test_the_group_is_checked(run_folder):
    with pytest.raises(UserError, match=r"group: expected 0\.\.0, got 1"):
        plots.plot_run(run_folder, group=1)


def test_principal_plane_is_that_of_the_covariance():
    generator = np.random.default_rng(1)
    points = (generator.normal(size=(50, 4)) * [5, 2, 1, 0.5] + 3).astype(np.float32)
    plane, share = plots.principal_plane(points)
    values = np.linalg.eigvalsh(np.cov(points.T, bias=True))[::-1]
    np.testing.assert_allclose(plane.var(axis=0), values[:2], rtol=1e-5)
    np.testing.assert_allclose(share, values[:2] / values.sum(), rtol=1e-5)
    assert abs(np.corrcoef(plane.T)[0, 1]) < 1e-6
    assert (plane[np.abs(plane).argmax(axis=0), [0, 1]] > 0).all()


@pytest.mark.parametrize("shape", [(1, 4), (3, 1)])
def test_principal_plane_of_little(shape):
    plane, share = plots.principal_plane(np.ones(shape, np.float32))
    assert plane.shape == (shape[0], 2)
    assert (plane == 0).all()
    assert (share == 0).all()


def test_the_table_has_its_numbers_in_columns():
    part = {"mean": 0.5, "low": 0.25, "high": 0.75}
    summary = {
        "recipe": "ampo",
        "selector": "coreset",
        "seed": 4,
        "steps": 24,
        "heldout": {
            "before": part,
            "after": part,
            "difference": {"mean": -0.1, "low": -0.2, "high": 0.05},
            "prompts": 16,
            "prompts_improved": 3,
            "responses_per_prompt": 8,
            "confidence": 0.95,
        },
    }
    lines = Ampo.table(summary).splitlines()
    assert lines[0] == "ampo · coreset · seed 4 · 24 steps"
    assert "95 % CI" in lines[2]
    assert lines[4].split() == ["before", "0.500", "[0.250,", "0.750]"]
    assert lines[6].split()[-3:] == ["-0.100", "[-0.200,", "+0.050]"]
    assert len({len(line) for line in lines[1:8]}) == 1
    assert "no held-out prompts" in Ampo.table({**summary, "heldout": None})
