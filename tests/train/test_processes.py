"""Several processes of one run give what one gives; what goes wrong in one stops all."""

import os

import pytest
from four_runs import largest_differences, write_settings
from nursery import Nursery, contents

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

RECIPES = ("ampo", "ampo-rounds", "active-dpo", "hps", "mass-dpo")


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        nursery = Nursery(folder, None)
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def of_recipe(nursery, make_settings, tiny_model):
    """Return a function that makes the nursery one of a recipe's runs; and its folder."""

    def choose(recipe):
        folder = nursery.folder / recipe
        folder.mkdir(exist_ok=True)
        nursery.config = write_settings(folder, recipe, make_settings(folder), tiny_model)
        nursery.recipe = recipe.removesuffix("-rounds")
        return folder

    return choose


@pytest.fixture(scope="module")
def finished(nursery, of_recipe):
    """Return a function that gives the files of a recipe's run by one or two processes."""
    known = {}

    def files(recipe, processes):
        if (recipe, processes) not in known:
            out = of_recipe(recipe) / f"run-by-{processes}"
            statuses, logs = nursery.run_together(out, processes=processes)
            assert statuses == [0] * processes, logs
            known[recipe, processes] = contents(out)
        of_recipe(recipe)
        return known[recipe, processes]

    return files


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_processes_give_what_one_gives(finished, recipe):
    """Three groups a step, so that the processes have unequal shares, and sum in another order."""
    differences = largest_differences(finished(recipe, 1), finished(recipe, 2))
    learnt = {
        name: difference
        for name, difference in differences.items()
        if name.endswith(".safetensors") or name in ("groups.jsonl", "metrics.jsonl: loss")
    }
    assert {"adapter/adapter_model.safetensors", "metrics.jsonl: loss"} <= set(learnt)
    assert max(learnt.values()) < 1e-6, differences
    # Rewards and margins are differences of log-probs of some 40 nats, which float32 holds to 4e-6.
    assert max(differences.values()) < 1e-5, differences
