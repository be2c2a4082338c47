import json

import numpy as np
import pytest
from matplotlib import image

from pyfast.train.data.group import Group, write_groups
from pyfast.train.errors import UserError
from pyfast.train.recipes.ampo import Ampo
from pyfast.train.reports import drawing, plots


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


def test_pictures_of_large_runs_are_of_the_same_size(run_folder):
    """Neither a row a prompt nor 65,536 pixels; the curves show their running means."""
    generator = np.random.default_rng(1)
    for name in ("eval_before.jsonl", "eval_after.jsonl"):
        scores = generator.random((3000, 2))
        many = [Group(f"p{i}", ["a", "b"], row.tolist()) for i, row in enumerate(scores)]
        write_groups(run_folder / name, many)
    line = json.loads((run_folder / "metrics.jsonl").read_text().splitlines()[0])
    with (run_folder / "metrics.jsonl").open("w") as stream:
        stream.writelines(json.dumps({**line, "step": i}) + "\n" for i in range(1, 3001))
    for path in plots.plot_run(run_folder):
        height, width = image.imread(path).shape[:2]
        assert height < 1000
        assert width < 1500
        assert path.stat().st_size < 500_000


def test_the_order_of_differences_says_how_many_improved(run_folder):
    before = [Group(f"p{i}", ["a"], [0.5]) for i in range(100)]
    after = [Group(f"p{i}", ["a"], [0.6 if i < 70 else 0.5 - (i >= 80)]) for i in range(100)]
    figure = plots.score_distributions(before, after)
    labels = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert labels == ["better: 70 %", "worse: 20 %", "mean -0.13"]
    plots.plt.close(figure)


def test_a_running_run_and_a_killed_one_are_drawn_as_far_as_they_are(run_folder):
    for name in ("metrics.jsonl", "groups.jsonl"):
        path = run_folder / name
        path.write_text(path.read_text() + path.read_text().splitlines()[0][:20])
    assert len(plots.plot_run(run_folder)) == 2
    with pytest.raises(UserError, match=r"group: expected 0\.\.0, got 1"):
        plots.plot_run(run_folder, group=1)


def test_a_step_without_negatives_leaves_a_gap(run_folder):
    path = run_folder / "metrics.jsonl"
    path.write_text(path.read_text() + json.dumps({"step": 6, "scores/mean": 0.5}) + "\n")
    assert len(plots.plot_run(run_folder)) == 2


@pytest.mark.parametrize("scores", [[0.0, 0.0], [1e12, 1e12], [-1e-300, 1e-300], [1e200, -1e200]])
def test_any_scores_are_drawn(run_folder, scores):
    for name in ("eval_before.jsonl", "eval_after.jsonl"):
        write_groups(run_folder / name, [Group("p", ["a", "b"], scores)])
    assert len(plots.plot_run(run_folder)) == 3


@pytest.mark.parametrize("name", ["training_curves.png", "heldout_scores.png", "metrics.jsonl"])
def test_pictures_are_not_drawn_over_what_a_link_stands_for(run_folder, tmp_path_factory, name):
    precious = tmp_path_factory.mktemp("elsewhere") / "precious"
    precious.write_text('{"step": 1}\n')
    (run_folder / name).unlink(missing_ok=True)
    (run_folder / name).symlink_to(precious)
    with pytest.raises(UserError, match=f"{name}: expected a regular file of the run, got a symb"):
        plots.plot_run(run_folder)
    assert precious.read_text() == '{"step": 1}\n'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.jsonl", "", "expected a line a step"),
        (
            "metrics.jsonl",
            '{"loss": 1}\n',
            "metrics.jsonl:1: step: expected a finite number, got None",
        ),
        ("metrics.jsonl", '{"step": 1, "loss": "x"}\n', "loss: expected a finite number, got 'x'"),
        ("metrics.jsonl", '{"step": 1, "loss": NaN}\n', "loss: expected a finite number, got nan"),
        ("metrics.jsonl", f'{{"step": 1{"0" * 400}}}\n', "step: expected a finite number"),
        ("metrics.jsonl", "[1]\n", "expected an object like"),
        ("config.json", "{", "config.json:1: expected JSON"),
        ("config.json", '{"selection": {"k": "many"}}', "selection.k: expected a whole number"),
        (
            "config.json",
            '{"architectures": ["Llama"]}',
            "selection: expected an object of settings",
        ),
        ("groups.jsonl", "", "groups.jsonl: expected at least one group"),
        ("groups.jsonl", '{"prompt": 1}\n', "groups.jsonl:1: prompt: expected a string"),
        (
            "groups.jsonl",
            '{"prompt": "p", "responses": ["a"], "embeddings": [[1]]}\n',
            "the map of responses needs embeddings, scores and a selection",
        ),
        ("eval_after.jsonl", '{"prompt": "p", "responses": ["a"]}\n', "scores are missing"),
        (
            "eval_after.jsonl",
            '{"prompt": "q", "responses": ["a"], "scores": [1]}\n',
            "have other prompts",
        ),
        ("eval_before.jsonl", "\n", "expected at least one group"),
    ],
)
def test_a_damaged_run_is_told(run_folder, name, text, message):
    for evaluated in ("eval_before.jsonl", "eval_after.jsonl"):
        write_groups(run_folder / evaluated, [Group("p", ["a", "b"], [0.1, 0.7])])
    (run_folder / name).write_text(text)
    with pytest.raises(UserError) as caught:
        plots.plot_run(run_folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def numbered(run_folder):
    return [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]


def write_lines(path, records, end="\n"):
    path.write_text("\n".join(json.dumps(record) for record in records) + end)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found[:2] + found[3:], r"metrics\.jsonl:3: step: expected 3; got 4"),
        (lambda found: [*found, found[-1]], r"metrics\.jsonl:6: step: expected 6; got 5"),
        (lambda found: found[::-1], r"metrics\.jsonl:2: step: expected 6; got 4"),
    ],
)
def test_steps_that_do_not_follow_each_other_are_told(run_folder, change, message):
    write_lines(run_folder / "metrics.jsonl", change(numbered(run_folder)))
    with pytest.raises(UserError, match=message):
        plots.plot_run(run_folder)


def test_what_a_file_lacks_is_told(run_folder, capsys):
    path = run_folder / "metrics.jsonl"
    plots.plot_run(run_folder)
    assert capsys.readouterr().err == ""
    found = numbered(run_folder)
    del found[1]["loss"], found[3]["loss"], found[3]["scores/std"]
    write_lines(path, found)
    plots.plot_run(run_folder)
    err = capsys.readouterr().err
    assert f"{path}: 2 of 5 lines, the first that of step 2, lack loss: gaps in the curves" in err
    assert f"{path}: 1 of 5 lines, the first that of step 4, lack scores/std: gaps" in err
    write_lines(path, found, end=' \n{"step": 6, "lo')
    plots.plot_run(run_folder)
    assert f"{path}: the last line is cut, and left out" in capsys.readouterr().err
    write_lines(path, found, end=' \n{"step": 6, "lo\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:6: expected an object like"):
        plots.plot_run(run_folder)


def test_what_no_line_has_is_told_in_the_picture_too(run_folder, capsys):
    found = numbered(run_folder)
    for record in found:
        del record["loss"], record["rewards/chosen"]
    figure = plots.training_curves(found, 3)
    drawing._tell_unmeasured(run_folder / "curves.png", figure)
    texts = [[text.get_text() for text in ax.texts] for ax in figure.axes]
    assert texts == [["not measured"], [], [], [], [], []]
    plots.plt.close(figure)
    assert capsys.readouterr().err.splitlines() == [
        "pyfast: curves.png: not measured: SWEPO loss",
        "pyfast: curves.png: not measured: Implicit rewards: chosen",
    ]


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
        "label": "coreset",
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
