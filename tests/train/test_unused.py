"""Settings that nothing reads are told, and refused as flags; each such one changes nothing."""

import dataclasses
import json

import numpy as np
import pytest

from pyfast import cli
from pyfast.train import config, unused
from pyfast.train.errors import UserError
from pyfast.train.recipes.active_dpo.settings import ActiveDpoSettings
from pyfast.train.recipes.ampo import selection
from pyfast.train.recipes.ampo.settings import AmpoSettings
from pyfast.train.recipes.hps import hard_negatives
from pyfast.train.recipes.hps.settings import HpsSettings
from pyfast.train.recipes.mass_dpo.settings import MassDpoSettings

OTHER = {
    "draws": 4, "importance": "q", "schedule": "constant", "gamma_low": -50.0, "gamma_high": 9.0,
    "score_scale": "zscore", "valid_as_negatives": True,
}  # fmt: skip


def plans(negatives, likelihood):
    """Return what 30 groups would forward, and with which weights."""
    rng, found = np.random.default_rng(0), []
    for number in range(30):
        scores = rng.normal(size=6)
        heads = hard_negatives.heads_of(negatives, scores, None, [0, 1, 2])
        made = hard_negatives.plan(
            negatives, scores, heads, negatives.gamma(number / 30), lambda head, n=number: n + head,
            likelihood=likelihood,
        )  # fmt: skip
        weights = None if made.weights is None else made.weights.tolist()
        found.append((made.responses, weights))
    return found


@pytest.mark.parametrize("base", ["dpo", "exo"])
@pytest.mark.parametrize("mode", ["hps", "bt", "pl"])
def test_what_hps_declares_without_effect_is_what_changes_no_plan(mode, base):
    base_values = {"negatives": {"mode": mode}, "loss": {"base": base}}
    plain = config.from_dict(HpsSettings, base_values)
    expected = plans(plain.negatives, base == "dpo")
    for field, value in OTHER.items():
        changed = config.from_dict(HpsSettings, base_values, {f"negatives.{field}": value})
        same = plans(changed.negatives, base == "dpo") == expected
        assert same == (f"negatives.{field}" in unused.unused(changed)), field


def test_a_pairwise_loss_is_averaged_whatever_the_importance():
    some = {"negatives": {"draws": 3}, "loss": {"base": "exo"}}
    plain = config.from_dict(HpsSettings, some)
    for importance in ("none", "mean", "q"):
        changed = config.from_dict(HpsSettings, some, {"negatives.importance": importance})
        same = plans(changed.negatives, False) == plans(plain.negatives, False)
        assert same == ("negatives.importance" in unused.unused(changed))


@pytest.mark.parametrize("selector", selection.SELECTORS)
def test_what_ampo_declares_without_effect_changes_no_choice(selector):
    rng = np.random.default_rng(1)
    groups = [(rng.random(12).tolist(), rng.normal(size=(12, 8)).astype("f4")) for _ in range(60)]

    def chosen(settings):
        return [
            selection.choose(settings.selection, scores, points, seed).indices
            for seed, (scores, points) in enumerate(groups)
        ]

    few = {"selection": {"selector": selector, "k": 5, "n_init": 1}}
    plain = config.from_dict(AmpoSettings, few)
    for field, value in {"n_init": 9, "k": 3}.items():
        changed = config.from_dict(AmpoSettings, few, {f"selection.{field}": value})
        same = chosen(changed) == chosen(plain)
        assert same == (f"selection.{field}" in unused.unused(changed)), field


@pytest.mark.parametrize(
    ("kind", "values", "names"),
    [
        (HpsSettings, {"sft.lr": 1.0, "sft.data": "x"}, {"sft.lr", "sft.data"}),
        (HpsSettings, {"sft.lr": 1.0, "sft.epochs": 1.0}, set()),
        (AmpoSettings, {"policy.training": "full", "policy.lora_rank": 3}, {"policy.lora_rank"}),
        (
            AmpoSettings,
            {"selection.exact": True, "selection.search": "eager"},
            {"selection.search"},
        ),
        (
            MassDpoSettings,
            {"selection.method": "dmpo", "selection.gamma": 2.0},
            {"selection.gamma"},
        ),
        (MassDpoSettings, {"selection.gamma": 2.0}, set()),
        (ActiveDpoSettings, {"oracle.btl_scale": 3.0}, {"oracle.btl_scale"}),
        (ActiveDpoSettings, {"oracle.btl_scale": 3.0, "oracle.oracle": "btl"}, set()),
        (ActiveDpoSettings, {"active.method": "apo", "active.lam": 3.0}, set()),
        (ActiveDpoSettings, {"active.method": "random", "active.lam": 3.0}, {"active.lam"}),
        (ActiveDpoSettings, {"active.per_prompt": "one"}, {"active.per_prompt"}),
        (AmpoSettings, {"evaluation.every": 2}, {"evaluation.every"}),
        (AmpoSettings, {"evaluation.every": 2, "data.heldout": "h.txt"}, set()),
        (HpsSettings, {"evaluation.every": 2, "evaluation.responses": 9}, {"evaluation.every"}),
        (ActiveDpoSettings, {"evaluation.every": 2}, {"evaluation.every"}),
        (MassDpoSettings, {"evaluation.every": 2}, set()),
        (
            MassDpoSettings,
            {"optimisation.steps": 5, "optimisation.epochs": 2.0},
            {"optimisation.epochs"},
        ),
        (HpsSettings, {"optimisation.epochs": 2.0}, set()),
        (MassDpoSettings, {"run.save_embeddings": False}, {"run.save_embeddings"}),
        (HpsSettings, {"sampling.temperature": 0.5}, {"sampling.temperature"}),
        (HpsSettings, {"sampling.temperature": 0.5, "evaluation.temperature": None}, set()),
        (ActiveDpoSettings, {"run.save_embeddings": False}, {"run.save_embeddings"}),
        (AmpoSettings, {"run.save_embeddings": False}, set()),
        (ActiveDpoSettings, {"text.max_response": 9}, {"text.max_response"}),
        (ActiveDpoSettings, {"scoring.encoder": "x"}, {"scoring.encoder"}),
        (ActiveDpoSettings, {"scoring.encoder": "x", "active.method": "apo"}, set()),
        (AmpoSettings, {"text.max_response": 9, "sft.epochs": 1.0}, set()),
        (HpsSettings, {"text.max_response": 9}, set()),
        (ActiveDpoSettings, {"sampling.server_retries": 1}, {"sampling.server_retries"}),
        (
            ActiveDpoSettings,
            {"sampling.server_retries": 1, "sampling.server": "http://localhost:1"},
            set(),
        ),
    ],
)
def test_what_other_settings_make_idle(kind, values, names):
    settings = config.from_dict(kind, {}, values)
    assert set(unused.unused(settings)) == names
    assert not unused.unused(unused.effective(settings))
    kept = {name: value for name, value in values.items() if name not in names}
    assert unused.effective(settings) == config.from_dict(kind, {}, kept)


def test_what_is_asked_of_an_evaluation_without_heldout_prompts_is_told(capsys):
    values = {"evaluation.responses": 9, "evaluation.reward": "vader"}
    unused.tell(config.from_dict(AmpoSettings, {}, values), flags=list(values))
    told = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in told] == list(values)
    assert all("data.heldout is not given" in line for line in told)
    unused.tell(config.from_dict(AmpoSettings, {}, {**values, "data.heldout": "h.txt"}))
    unused.tell(config.from_dict(MassDpoSettings, {}, {"evaluation.bootstrap": 200}))
    assert capsys.readouterr().err == ""


def test_idle_names_are_settings():
    for kind in (HpsSettings, AmpoSettings, MassDpoSettings, ActiveDpoSettings):
        settings = config.from_dict(
            kind, {}, {"policy.training": "full"} if kind is HpsSettings else {}
        )
        for name in settings.idle():
            section, _, field = name.partition(".")
            part = getattr(settings, section, None)
            assert part is None or field in {item.name for item in dataclasses.fields(part)}


def test_a_flag_without_effect_is_refused_and_a_file_s_is_told(tmp_path, capsys):
    flags = ["train", "hps", "--groups", "none.jsonl", "--out", str(tmp_path / "r")]
    assert cli.main([*flags, "--mode", "bt", "--draws", "4"]) == 2
    assert "negatives.draws: it has no effect here: negatives.mode bt" in capsys.readouterr().err
    path = tmp_path / "base.json"
    path.write_text(json.dumps({"recipe": "hps", "negatives": {"draws": 4}}))
    assert cli.main([*flags, "--config", str(path), "--mode", "bt"]) == 2
    said = capsys.readouterr().err
    assert "negatives.draws = 4 has no effect: negatives.mode bt draws nothing" in said
    assert "none.jsonl" in said  # it went on, to what is not there


def test_a_sweep_refuses_runs_that_are_the_same_in_effect(tmp_path):
    from pyfast.cli.train import DEMOS, recipe
    from pyfast.train.runs.sweeps import read_sweep

    path = tmp_path / "sweep.json"
    grid = {"negatives.mode": ["hps", "bt"], "negatives.draws": [1, 4]}
    path.write_text(json.dumps({"recipe": "hps", "config": "demo", "grid": grid}))
    with pytest.raises(UserError, match=r"are the same run: they differ in negatives\.draws"):
        read_sweep(path, recipe, DEMOS)
