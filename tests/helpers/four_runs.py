"""A run of each recipe that takes a second or two, and how far two runs are from each other."""

import json

import numpy as np

CANDIDATES = ["good day", "bad rain", "the sun is nice", "awful", "a happy dog"]
TOPICS = ["dog", "day", "rain", "sun", "sad dog", "love", "the sad rain"]


def write_settings(folder, recipe, base, model):
    """Write a recipe's settings and files to a folder; return the settings' file."""
    folder.mkdir(exist_ok=True)
    made = {"ampo": _ampo, "ampo-rounds": _rounds, "active-dpo": _active}.get(recipe)
    values = made(base) if made else {"mass-dpo": _mass, "hps": _hps}[recipe](folder, model)
    path = folder / "config.json"
    path.write_text(json.dumps(values))
    return path


def _ampo(base):
    optimisation = {"steps": 4, "groups_per_step": 3, "lr": 0.002}
    return {**base, "optimisation": optimisation}


def _rounds(base):
    optimisation = {"epochs": 1, "groups_per_step": 3, "lr": 0.002}
    rounds = {"rounds": 2, "reference": "round"}
    return {**base, "optimisation": optimisation, "rounds": rounds}


def _active(base):
    base = {name: section for name, section in base.items() if name != "selection"}
    return {
        **base,
        "sampling": {"responses": 3, "max_new_tokens": 8, "temperature": 1.0},
        "active": {"rounds": 2, "labels": 5, "dim": 128, "fidelity": 4, "sketch_tokens": 64},
        "loss": {"beta": 0.5},
        "optimisation": {"epochs": 1, "groups_per_step": 3, "lr": 0.002},
    }


def _mass(folder, model):
    rows = [
        {"prompt": f"about {topic}", "responses": CANDIDATES, "positive": i % 5, "split": split}
        for i, (topic, split) in enumerate(
            zip(TOPICS, ("train",) * 5 + ("validation", "test"), strict=True)
        )
    ]
    return {
        **_common(folder, model, rows),
        "selection": {"k": 2, "reselect": "epoch", "gamma": 1e-3},
        "loss": {"beta": 1.0},
        "evaluation": {"bootstrap": 200, "every": 2},
    }


def _hps(folder, model):
    rows = [
        {
            "prompt": f"about {topic}",
            "responses": CANDIDATES,
            "scores": [float((3 * i + j) % 5) for j in range(5)],
        }
        for i, topic in enumerate(TOPICS[:5])
    ]
    heldout = folder / "pairs.jsonl"
    pairs = [
        {"prompt": f"the {topic}", "responses": CANDIDATES[:2], "positive": i % 2}
        for i, topic in enumerate(TOPICS[:3])
    ]
    heldout.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    values = _common(folder, model, rows)
    values["data"]["heldout"] = str(heldout)
    return {
        **values,
        "sampling": {"max_new_tokens": 6, "responses": 4},
        "scoring": {"reward": "made"},
        "sft": {"epochs": 1.0, "batch": 3, "lr": 0.002},
        "evaluation": {"reward": "vader", "responses": 2, "bootstrap": 100},
    }


def _common(folder, model, rows):
    groups = folder / "groups.jsonl"
    groups.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "data": {"groups": str(groups)},
        "policy": {"model": str(model), "lora_rank": 2, "lora_alpha": 4, "device": "cpu"},
        "optimisation": {"epochs": 2, "groups_per_step": 3, "lr": 0.002},
        "run": {"seed": 3, "checkpoint_every": 2, "threads": 1},
    }


def largest_differences(one, two):
    """Compare the files of two runs, as `nursery.contents` gives them.

    Returns by file the largest difference of a number, as a part of it where it is above 1;
    everything else must be the same.
    """
    assert set(one) == set(two)
    found = {}
    for name in one:
        if name == "environment.json" or name.endswith("state.json"):
            continue  # how many processes; digests
        if name.endswith(".safetensors"):
            from safetensors.torch import load

            a, b = (
                {key: value.double().numpy() for key, value in load(raw).items()}
                for raw in (one[name], two[name])
            )
        elif name.endswith(".jsonl"):
            a, b = (
                [json.loads(line) for line in raw.splitlines()] for raw in (one[name], two[name])
            )
        else:
            a, b = json.loads(one[name]), json.loads(two[name])
        found[name] = _difference(a, b, name)
        if name == "metrics.jsonl":
            losses = [[line.get("loss") for line in lines] for lines in (a, b)]
            found[f"{name}: loss"] = _difference(*losses, name)
    return found


def _difference(a, b, place):
    if isinstance(a, dict):
        assert a.keys() == b.keys(), place
        return max((_difference(a[key], b[key], f"{place}: {key}") for key in a), default=0.0)
    if isinstance(a, list):
        assert len(a) == len(b), place
        pairs = enumerate(zip(a, b, strict=True))
        return max((_difference(x, y, f"{place}[{i}]") for i, (x, y) in pairs), default=0.0)
    if isinstance(a, np.ndarray):
        return float((np.abs(a - b) / np.maximum(1, np.abs(a))).max(initial=0.0))
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) / max(1, abs(a))
    assert a == b, place
    return 0.0
