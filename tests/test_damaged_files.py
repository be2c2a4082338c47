"""Whatever stands in a file that the command line reads: one line, an exit status, no traceback."""

import json
import random
import shutil
import warnings

import numpy as np
import pytest

from pyfast import cli
from pyfast.train import config as configs
from pyfast.train.recipes.ampo import AmpoSettings

VALUES = [
    None, True, 0, -1, 1.5, 10**30, -(10**400), 1e308, float("nan"), float("inf"), "", "x", "a\0b",
    "\ud800", "../../x", "é" * 300, [], [1], [[]], {}, {"a": {}},
]  # fmt: skip


def bytes_of(text):
    """Damages that do not look at what the content means."""
    data = text if isinstance(text, bytes) else text.encode()
    half = len(data) // 2
    noise = random.Random(0).randbytes(300)
    yield "empty", b""
    yield "space", b" \n\n\t\n"
    yield "half", data[:half]
    yield "no end", data[:-2]
    yield "noise", noise
    yield "noise in it", data[:half] + noise + data[half:]
    yield "zeros", bytes(100)
    yield "zeros at the end", data + bytes(100)
    yield "utf-16", data.decode("latin-1").encode("utf-16")
    yield "utf-16 without mark", data.decode("latin-1").encode("utf-16-le")
    yield "utf-8 mark twice", b"\xef\xbb\xbf" * 2 + data
    yield "latin-1", data.replace(b'"p', b'"\xe9p').replace(b"a", b"\xff")
    yield "deep lists", b"[" * 100_000
    yield "deep objects", b'{"a":' * 100_000
    yield "many digits", b'{"a": ' + b"1" * 5000 + b"}"
    yield "a number", b"3"
    yield "a string", b'"x"'
    yield "null", b"null"
    yield "a list", b"[]"
    yield "twice", data.rstrip() + data
    yield "a name twice", b'{"run": {}, "run": {}, "prompt": "a", "prompt": "b"}'
    yield "pickle", b"\x80\x04\x95" + data
    yield "gzip", b"\x1f\x8b\x08" + noise


def values_of(record):
    """Damages of one value, at every key and one level below: JSON texts."""
    for key in record:
        for value in VALUES:
            yield f"{key}={value!r:.20}", json.dumps({**record, key: value})
        yield f"without {key}", json.dumps({k: v for k, v in record.items() if k != key})
        below = record[key]
        if isinstance(below, dict):
            for inner in below:
                for value in VALUES:
                    changed = {**record, key: {**below, inner: value}}
                    yield f"{key}.{inner}={value!r:.20}", json.dumps(changed)
        if isinstance(below, list) and below:
            for value in VALUES:
                yield f"{key}[0]={value!r:.20}", json.dumps({**record, key: [value, *below[1:]]})


@pytest.fixture
def one_line(capsys):
    """Return a function that runs a command: it works, or tells what is wrong in one line."""

    def run(name, *arguments):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            status = cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        errors = [line for line in err.splitlines() if "error" in line]
        assert status in (0, 2), f"{name}: {status}, {err}"
        assert "Traceback" not in err, f"{name}: {err}"
        if status:
            assert out == "", name
            assert len(errors) == 1, f"{name}: {err}"
            assert errors[0].startswith("pyfast: error: "), f"{name}: {err}"
            assert err.splitlines()[-1] == errors[0], f"{name}: {err}"
            assert len(errors[0]) < 1000, f"{name}: {len(errors[0])}"
        return status

    return run


def sweep(one_line, path, text, values, *command, least):
    """Put each damaged content in a file's place, run, and put the file back."""
    refused = 0
    contents = [*bytes_of(text), *((name, t.encode()) for name, t in values)]
    for name, content in contents:
        path.write_bytes(content)
        refused += one_line(f"{path.name}, {name}", *command) == 2
    path.unlink()
    refused += one_line(f"{path.name}, missing", *command) == 2
    path.mkdir()
    refused += one_line(f"{path.name}, a folder", *command) == 2
    path.rmdir()
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert refused >= least, f"{path.name}: only {refused} of {len(contents) + 2} are refused"


GROUP = {
    "prompt": "p",
    "responses": ["a", "b", "c"],
    "scores": [0.1, 0.5, 0.3],
    "embeddings": [[1.0, 2.0], [3.0, 4.0], [0.0, 1.0]],
    "token_ids": [[1], [2], [3]],
    "policy_logps": [-1.0, None, -2.0],
    "ref_logps": [-1.0, None, -2.0],
    "positive": 1,
    "negatives": [0, 2],
    "meta": {"step": 1},
}


@pytest.mark.parametrize("selector", ["opt-select", "bottom-k"])
def test_groups_files(one_line, tmp_path, selector):
    path = tmp_path / "groups.jsonl"
    text = json.dumps(GROUP) + "\n"
    command = ["select", path, "--k", "1", "--selector", selector, "--out", tmp_path / "out"]
    sweep(one_line, path, text, values_of(GROUP), *command, least=120)


@pytest.fixture
def no_training(monkeypatch):
    """Stop where a run would begin, and call that success."""
    from pyfast.train import loop

    summary = {"recipe": "ampo", "label": "s", "seed": 0, "steps": 1, "heldout": None}
    monkeypatch.setattr(loop, "run", lambda kind, settings, inputs, out: summary)


def test_prompts_files(one_line, no_training, tmp_path):
    record = {"prompt": "tell me", "id": 1}
    for name in ("prompts.jsonl", "prompts.txt"):
        path = tmp_path / name
        command = ["train", "ampo", "--prompts", path, "--out", tmp_path / "run"]
        least = 25 if name.endswith("l") else 8
        sweep(one_line, path, json.dumps(record) + "\n", values_of(record), *command, least=least)


def test_configs(one_line, no_training, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a day\n")
    record = configs.from_dict(AmpoSettings, {"data": {"prompts": str(prompts)}}).to_dict()
    path = tmp_path / "config.json"
    command = ["train", "ampo", "--config", path, "--out", tmp_path / "run"]
    values = random.Random(3).sample(list(values_of(record)), 200)
    sweep(one_line, path, json.dumps(record), values, *command, least=150)


LINE = {
    "step": 1, "lr": 0.1, "grad_norm": 1.0, "loss": 0.5, "scores/mean": 0.5, "scores/std": 0.1,
    "scores/chosen": 1.0, "scores/rejected": 0.0, "rewards/chosen": 0.1, "rewards/rejected": 0.0,
    "rewards/margins": 0.1, "negatives/effective": 2.0,
}  # fmt: skip


@pytest.fixture
def run_folder(tmp_path):
    """A run folder of files alone."""
    out = tmp_path / "run"
    out.mkdir()
    evaluated = {"prompt": "p", "responses": ["a", "b"], "scores": [0.1, 0.7]}
    (out / "config.json").write_text(json.dumps(configs.from_dict(AmpoSettings, {}).to_dict()))
    (out / "metrics.jsonl").write_text(json.dumps(LINE) + "\n")
    (out / "groups.jsonl").write_text(json.dumps(GROUP) + "\n")
    for name in ("eval_before.jsonl", "eval_after.jsonl"):
        (out / name).write_text(json.dumps(evaluated) + "\n")
    return out


@pytest.mark.parametrize(
    "name",
    ["config.json", "metrics.jsonl", "groups.jsonl", "eval_before.jsonl", "eval_after.jsonl"],
)
def test_files_that_are_plotted(one_line, run_folder, monkeypatch, name):
    from pyfast.train.reports import plots

    # the pictures themselves take a while; the one of this file is made, and none is rendered
    draw = plots.draw
    ours = {"metrics.jsonl": "training_curves.png", "groups.jsonl": "selected_responses.png"}
    picture = ours.get(name, "heldout_scores.png")
    monkeypatch.setattr(plots.Figure, "savefig", lambda self, path: path.write_text("drawn"))
    monkeypatch.setattr(
        plots, "draw", lambda path, *rest: draw(path, *rest) if path.name == picture else path
    )
    path = run_folder / name
    text = path.read_text()
    values = [] if name == "config.json" else values_of(json.loads(text))
    few = {"metrics.jsonl": {"step": 1, "loss": 0.5}}
    if name in few:
        text = json.dumps(few[name]) + "\n"
        values = values_of(few[name])
    elif values:
        values = random.Random(1).sample(list(values), 25)
    sweep(one_line, path, text, values, "plot", run_folder, least=15)


def train_run(folder):
    return ["train", "ampo", "--config", folder / "mine.json", "--out", folder / "run"]


@pytest.fixture
def begun(tmp_path, monkeypatch, make_begun):
    """A run with two checkpoints, whose training would go on from there."""
    return make_begun(tmp_path)


@pytest.fixture
def make_begun(monkeypatch):
    import torch

    from pyfast.train import loop
    from pyfast.train.data.inputs import read_inputs
    from pyfast.train.runs import checkpoint, rundir

    def make(folder):
        (folder / "prompts.txt").write_text("a day\n")
        settings = {"data": {"prompts": str(folder / "prompts.txt")}, "run": {"threads": 1}}
        (folder / "mine.json").write_text(json.dumps(settings))
        config = configs.from_dict(AmpoSettings, settings)
        out = folder / "run"
        parameters = {"p": torch.nn.Parameter(torch.ones(4, 3))}

        def adam():
            return torch.optim.AdamW(parameters.values(), 0.1)

        def train(*_):
            checkpoint.restore(out, parameters, adam())

        optimiser = adam()
        with rundir.claim(out):
            rundir.open_run(config, read_inputs(config), 100, out)
            for step in (2, 4):
                parameters["p"].sum().backward()
                optimiser.step()
                for name in ("metrics.jsonl", "groups.jsonl", "timings.jsonl"):
                    checkpoint.append(out / name, json.dumps({"step": step}))
                checkpoint.save(out, step, parameters, optimiser)

        def run(kind, config, inputs, out):
            with rundir.claim(out):
                rundir.open_run(config, inputs, 100, out)
                train()
                shutil.copytree(keep, out, dirs_exist_ok=True)
            return {"recipe": "ampo", "label": "s", "seed": 0, "steps": 1, "heldout": None}

        keep = folder / "keep"
        shutil.copytree(out, keep)
        monkeypatch.setattr(loop, "run", run)
        return out

    return make


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("config.json", 15),
        ("environment.json", 30),
        ("metrics.jsonl", 5),
        ("groups.jsonl", 5),
        ("timings.jsonl", 0),
        ("checkpoint/step-4/state.json", 0),
        ("checkpoint/step-4/adapter.safetensors", 0),
        ("checkpoint/step-4/optimiser.safetensors", 0),
    ],
)
def test_files_that_a_run_goes_on_from(one_line, begun, tmp_path, name, least):
    path = begun / name
    content = path.read_bytes()
    values = []
    if path.suffix == ".json":
        values = list(values_of(json.loads(content)))
        values = random.Random(2).sample(values, min(60, len(values)))
    command = train_run(tmp_path)
    refused = 0
    for damage, text in [*bytes_of(content), *((n, v.encode()) for n, v in values)]:
        path.write_bytes(text)
        refused += one_line(f"{name}, {damage}", *command) == 2
        shutil.rmtree(begun)
        shutil.copytree(tmp_path / "keep", begun)
    path.unlink()
    path.mkdir()
    one_line(f"{name}, a folder", *command)
    assert refused >= least


def test_summaries(one_line, begun, tmp_path, monkeypatch):
    from pyfast.train import loop

    monkeypatch.undo()
    monkeypatch.setattr(loop.loading, "load", None)
    part = {"mean": 0.5, "low": 0.1, "high": 0.7}
    heldout = {"before": part, "after": part, "difference": part, "prompts": 3}
    heldout |= {"responses_per_prompt": 4, "prompts_improved": 2, "confidence": 0.9}
    summary = {"recipe": "ampo", "label": "s", "seed": 0, "steps": 1, "heldout": heldout}
    path = begun / "summary.json"
    path.write_text(json.dumps(summary))
    assert one_line("whole", *train_run(tmp_path)) == 0
    for name, content in bytes_of(json.dumps(summary)):
        path.write_bytes(content)
        assert one_line(name, *train_run(tmp_path)) == 2
    for name, text in random.Random(4).sample(list(values_of(summary)), 60):
        path.write_text(text)
        one_line(name, *train_run(tmp_path))


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
)
@pytest.mark.parametrize("which", ["model", "encoder"])
def test_models(one_line, tiny_model, tmp_path, name, which):
    """Every file of a model's folder, damaged without regard to its meaning."""
    from pyfast.train.errors import UserError
    from pyfast.train.policy.loading import load
    from pyfast.train.scoring.encoder import SentenceEncoder

    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    path = folder / name
    content = path.read_bytes()
    for damage, text in bytes_of(content):
        path.write_bytes(text)
        try:
            if which == "model":
                load(configs.PolicyConfig(model=str(folder), device="cpu"), 0)
            else:
                SentenceEncoder(str(folder))
        except UserError as error:
            if "\n" in str(error):
                pytest.fail(f"{name}, {damage}: {error}")
        except Exception as error:
            pytest.fail(f"{name}, {damage}: {type(error).__name__}: {error}")


def test_numbers_are_seeded():
    """The noise is the same every time."""
    assert dict(bytes_of("x"))["noise"] == dict(bytes_of("x"))["noise"]
    assert np.frombuffer(dict(bytes_of("x"))["noise"], np.uint8).std() > 50
