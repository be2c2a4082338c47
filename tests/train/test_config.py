import dataclasses
import json

import pytest

from pyfast.cli import train
from pyfast.train import config as configs
from pyfast.train.errors import UserError
from pyfast.train.recipes.ampo import AmpoSettings


def test_defaults_are_valid_and_survive_json(tmp_path):
    made = AmpoSettings()
    path = tmp_path / "config.json"
    path.write_text(json.dumps(made.to_dict()))
    assert configs.from_file(AmpoSettings, path) == made


@pytest.mark.parametrize("name", train.RECIPES)
def test_the_order_has_every_section_once(name):
    kind = train.recipe(name).Settings
    names = [item.name for item in dataclasses.fields(kind)]
    assert sorted(kind.order.split()) == sorted(names)
    assert list(kind().to_dict()) == ["recipe", *kind.order.split()]
    assert all(section.section == key for key, section in kind.sections().items())


def test_demo_settings_are_valid():
    from pyfast.cli import DEMO_CONFIG

    made = configs.from_file(AmpoSettings, DEMO_CONFIG)
    assert made.selection.k == 7
    assert made.sampling.responses == 32


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "expected an object of settings, got list"),
        ({"polcy": {}}, "polcy: unknown setting; expected one of recipe, data, text, policy"),
        ({"loss": {"betta": 1}}, "loss.betta: unknown setting; expected one of beta, alpha"),
        ({"loss": 3}, "loss: expected an object of settings, got 3"),
        ({"recipe": "dpo"}, "recipe: expected ampo, got 'dpo'"),
        ({"loss": {"beta": 0}}, "loss.beta: expected a number > 0, got 0"),
        ({"loss": {"beta": "x"}}, "loss.beta: expected a number, got 'x'"),
        ({"loss": {"beta": float("nan")}}, "loss.beta: expected a finite number, got nan"),
        ({"loss": {"alpha": -1}}, "loss.alpha: expected a number >= 0, got -1"),
        ({"loss": {"positives": "all"}}, "loss.positives: expected one of top, mean; got 'all'"),
        (
            {"optimisation": {"steps": 0}},
            "optimisation.steps: expected a whole number or null >= 1, got 0",
        ),
        (
            {"optimisation": {"steps": 1.5}},
            "optimisation.steps: expected a whole number or null, got 1.5",
        ),
        ({"optimisation": {"steps": True}}, "optimisation.steps: expected a whole number or null"),
        ({"optimisation": {"warmup": 2}}, "optimisation.warmup: expected a number <= 1, got 2"),
        ({"run": {"threads": 0}}, "run.threads: expected a whole number or null >= 1, got 0"),
        ({"run": {"save_embeddings": 1}}, "run.save_embeddings: expected true or false, got 1"),
        ({"policy": {"model": ""}}, "policy.model: expected a non-empty string"),
        ({"policy": {"model": None}}, "policy.model: expected a string, got None"),
        (
            {"selection": {"selector": "best"}},
            "selection.selector: expected one of opt-select, coreset, bottom-k, random, worst; got "
            "'best'",
        ),
        (
            {"sampling": {"responses": 4}, "selection": {"k": 4}},
            "selection.k: expected at most sampling.responses - 1 = 3",
        ),
    ],
)
def test_bad_settings_are_named(values, message):
    with pytest.raises(UserError) as caught:
        configs.from_dict(AmpoSettings, values)
    assert message in str(caught.value)


def test_flags_go_over_the_file():
    made = configs.from_dict(
        AmpoSettings, {"loss": {"beta": 1}}, {"loss.alpha": 2.0, "run.seed": 7}
    )
    assert (made.loss.beta, made.loss.alpha, made.run.seed) == (1.0, 2.0, 7)
    assert type(made.loss.beta) is float


def test_errors_of_a_file_name_it_and_errors_of_flags_do_not(tmp_path):
    path = tmp_path / "c.json"
    path.write_text('{"run": {"sed": 1}}')
    with pytest.raises(UserError, match=r"c\.json: run\.sed: unknown setting"):
        configs.from_file(AmpoSettings, path)
    path.write_text("{}")
    with pytest.raises(UserError, match=r"^run\.seed: expected"):
        configs.from_file(AmpoSettings, path, {"run.seed": -1})
    path.write_text('{\n"run": }')
    with pytest.raises(UserError, match=r"c\.json:2: expected JSON"):
        configs.from_file(AmpoSettings, path)
    with pytest.raises(UserError, match="No such file"):
        configs.from_file(AmpoSettings, tmp_path / "missing.json")


def test_differences_name_the_fields():
    old = configs.from_dict(AmpoSettings, {})
    assert configs.differences(old, configs.from_dict(AmpoSettings, {})) == {}
    new = configs.from_dict(AmpoSettings, {"loss": {"beta": 0.5}, "run": {"seed": 1}})
    assert configs.differences(old, new) == {"loss.beta": (0.1, 0.5), "run.seed": (0, 1)}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"run": {"threads": 100_000}}, "run.threads: expected a whole number or null <= 1024"),
        (
            {"optimisation": {"steps": 10**30}},
            "optimisation.steps: expected a whole number or null <= 9007",
        ),
        ({"optimisation": {"lr": 10**400}}, "optimisation.lr: expected a number, got 1000"),
        ({"selection": {"n_init": 2**53 + 1}}, "selection.n_init: expected a whole number <="),
        ({"policy": {"model": "\ud800"}}, "policy.model: expected text that UTF-8 can hold"),
        ({"data": {"prompts": "a\0b"}}, "data.prompts: expected no zero byte"),
        ({"loss": {"positives": ["top"]}}, "loss.positives: expected a string, got ['top']"),
        ({"loss": {"beta": "x" * 9999}}, "loss.beta: expected a number, got 'xxx"),
    ],
)
def test_settings_that_nothing_can_hold(values, message):
    with pytest.raises(UserError) as caught:
        configs.from_dict(AmpoSettings, values)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 200
