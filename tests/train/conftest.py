"""The settings of a run that takes a second."""

import json

import pytest


@pytest.fixture(scope="session")
def make_settings(tiny_model, tiny_encoder):
    """Return a function that writes prompts to a folder and returns a run's settings.

    The run takes a second or two on the made-up model.
    """

    def make(folder):
        prompts, heldout = folder / "prompts.jsonl", folder / "heldout.txt"
        topics = ["dog", "day", "rain", "sun", "sad dog"]
        lines = [json.dumps({"prompt": f"tell me about {topic}"}) for topic in topics]
        prompts.write_text("\n".join(lines))
        heldout.write_text("tell me about the sad rain\ntell me about love\nabout a day\n")
        return {
            "data": {"prompts": str(prompts), "heldout": str(heldout)},
            "policy": {"model": str(tiny_model), "lora_rank": 2, "lora_alpha": 4, "device": "cpu"},
            "sampling": {"responses": 8, "max_new_tokens": 8, "temperature": 1.0},
            "scoring": {"reward": "vader", "encoder": str(tiny_encoder)},
            "selection": {"k": 3, "n_init": 2},
            "optimisation": {"steps": 6, "lr": 0.02},
            "evaluation": {"responses": 4, "bootstrap": 200},
            "run": {"seed": 3, "checkpoint_every": 2, "threads": 1},
        }

    return make


@pytest.fixture
def tiny_settings(make_settings, tmp_path):
    """Return the settings of a run whose prompts lie in `tmp_path`."""
    return make_settings(tmp_path)


@pytest.fixture(scope="session")
def make_active_settings(make_settings):
    """Return a function like `make_settings`' for the recipe in rounds."""

    def make(folder):
        settings = make_settings(folder)
        del settings["selection"]
        return {
            **settings,
            "sampling": {"responses": 3, "max_new_tokens": 8, "temperature": 1.0},
            "active": {"rounds": 3, "labels": 4, "dim": 128, "fidelity": 4},
            "loss": {"beta": 0.5},
            "optimisation": {"epochs": 2, "groups_per_step": 2, "lr": 0.02},
        }

    return make
