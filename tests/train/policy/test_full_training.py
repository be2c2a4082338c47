"""Training all weights: the reference stays the model as loaded, and a run resumes exactly."""

import copy
import json
import shutil

import pytest
import torch
from one_at_a_time import PROMPT, RESPONSES, plain_logp

from pyfast import losses
from pyfast.train import config as configs
from pyfast.train import loop
from pyfast.train.config import SamplingConfig
from pyfast.train.data.group import read_groups
from pyfast.train.errors import UserError
from pyfast.train.policy import loading
from pyfast.train.policy.policy import Policy
from pyfast.train.policy.reference_cache import reference_key, reference_logps
from pyfast.train.recipes.ampo import Ampo, AmpoSettings

pytestmark = pytest.mark.usefixtures("one_thread")


def full_policy(tiny, **changes):
    return Policy(tiny.model(**changes), tiny.tokenizer(), training="full")


def shaken(policy):
    """Change all weights, as training does."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return policy


@pytest.mark.parametrize("tied", [False, True])
def test_the_reference_is_the_model_as_loaded(tiny, tied):
    loaded = tiny.model(tie_word_embeddings=tied).eval()
    policy = shaken(full_policy(tiny, tie_word_embeddings=tied))
    expected = torch.stack([plain_logp(loaded, PROMPT, y) for y in RESPONSES])
    reference = policy.logps(PROMPT, RESPONSES, reference=True)
    torch.testing.assert_close(reference, expected, rtol=1e-5, atol=1e-5)
    assert not reference.requires_grad
    moved = torch.stack([plain_logp(policy.model, PROMPT, y) for y in RESPONSES])
    torch.testing.assert_close(policy.logps(PROMPT, RESPONSES), moved, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(moved, expected, atol=0.1)
    with policy.merged():  # there is nothing to fold in, and nothing to be wrong meanwhile
        assert torch.equal(policy.logps(PROMPT, RESPONSES, reference=True), reference)
    logps, features = policy.logps_and_features(PROMPT, RESPONSES, reference=True)
    torch.testing.assert_close(logps, expected, rtol=1e-5, atol=1e-5)
    fresh = Policy(tiny.model(tie_word_embeddings=tied), tiny.tokenizer())
    torch.testing.assert_close(features, fresh.logps_and_features(PROMPT, RESPONSES)[1])


@pytest.mark.parametrize("how", ["none", "selective", "full"])
def test_gradients_of_all_weights_are_those_of_plain_backpropagation(tiny, how):
    policy = Policy(tiny.model(), tiny.tokenizer(), training="full", gradient_checkpointing=how)
    policy.model.double()
    plain = copy.deepcopy(policy.model)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0], dtype=torch.float64)
    (weights * policy.logps(PROMPT, RESPONSES)).sum().backward()
    sum(
        w * plain_logp(plain, PROMPT, y) for w, y in zip(weights, RESPONSES, strict=True)
    ).backward()
    assert len(policy.trainable()) == len(list(plain.parameters()))
    for name, parameter in plain.named_parameters():
        found = policy.trainable()[name].grad
        torch.testing.assert_close(found, parameter.grad, rtol=1e-4, atol=1e-5)


def test_answers_are_the_trained_models(tiny):
    policy = shaken(full_policy(tiny))
    config = SamplingConfig(responses=3, max_new_tokens=6, temperature=1.0)
    (answers,) = policy.answer([PROMPT], 3, config, [7])
    again = Policy(copy.deepcopy(policy.model), tiny.tokenizer())
    (expected,) = again.answer([PROMPT], 3, config, [7])
    assert answers == expected
    assert policy.why_not_merged is None


def test_the_cache_knows_the_reference_and_not_the_policy(tiny, tmp_path):
    fresh, moved = full_policy(tiny), shaken(full_policy(tiny))
    assert reference_key(fresh) == reference_key(moved)
    groups = [(PROMPT, RESPONSES)]
    (first,) = reference_logps(moved, groups, folder=tmp_path, progress=False)
    assert torch.equal(first, fresh.logps(PROMPT, RESPONSES).detach())


def test_half_precision_and_unknown_ways_are_refused(tiny):
    with pytest.raises(UserError, match=r"^policy\.training: full training expects float32"):
        Policy(tiny.model().bfloat16(), tiny.tokenizer(), training="full")
    with pytest.raises(UserError, match=r"^policy\.training: expected lora or full, got 'all'"):
        Policy(tiny.model(), tiny.tokenizer(), training="all")


def settings_of(tiny_settings, **changes):
    changes = {k.replace("__", "."): v for k, v in changes.items()}
    return configs.from_dict(
        AmpoSettings,
        tiny_settings,
        {"policy.training": "full", "optimisation.lr": 0.003, **changes},
    )


def contents(out):
    kept = [p for p in out.rglob("*") if p.suffix in (".jsonl", ".json", ".safetensors")]
    return {str(p.relative_to(out)): p.read_bytes() for p in kept if p.name != "timings.jsonl"}


def test_a_run_trains_saves_and_resumes(tiny_settings, tmp_path, monkeypatch):
    settings = settings_of(tiny_settings)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    loop.run(Ampo, settings, Ampo.read(settings), whole)
    assert not (whole / "adapter").exists()

    # the loss of the last step, by the model before it and a copy of the model as loaded
    *_, group = read_groups(whole / "groups.jsonl")
    loaded = loading.load(settings.policy, seed=3).model
    picked = [group.positive, *group.negatives]
    policy = loading.load(settings.policy, seed=3)
    ids = policy.prompt_ids(group.prompt)
    reference = torch.stack([plain_logp(loaded, ids, group.token_ids[i]) for i in picked])
    found = torch.tensor([group.ref_logps[i] for i in picked])
    torch.testing.assert_close(found, reference, rtol=1e-5, atol=1e-5)
    logps = torch.tensor([group.policy_logps[i] for i in picked])
    scores = torch.tensor([group.scores[i] for i in picked])
    loss = losses.swepo(logps, reference.detach(), scores, beta=0.1, alpha=1.0, positives="top")
    last = json.loads((whole / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert last["rewards/margins"] != 0

    # the model that is saved is the one that answered last
    saved = loading.load(configs.PolicyConfig(model=str(whole / "model"), device="cpu"), seed=3)
    answers = read_groups(whole / "eval_after.jsonl")
    ids = saved.prompt_ids(answers[0].prompt)
    sampling = settings.sampling
    seed = loop.Context(saved, 3, whole).seed("evaluate", 0)
    (again,) = saved.answer([ids], 4, sampling, [seed])
    assert again.texts == answers[0].responses

    class KilledError(Exception):
        pass

    real, seen = loop.learn, []

    def learn(*arguments):
        seen.append(1)
        if len(seen) == 6:
            raise KilledError
        return real(*arguments)

    monkeypatch.setattr(loop, "learn", learn)
    with pytest.raises(KilledError):
        loop.run(Ampo, settings, Ampo.read(settings), cut)
    assert (cut / "checkpoint" / "step-4").is_dir()
    monkeypatch.setattr(loop, "learn", real)
    loop.run(Ampo, settings, Ampo.read(settings), cut)
    assert contents(cut) == contents(whole)


def test_more_steps_train_the_model_on(tiny_settings, tmp_path):
    out = tmp_path / "run"
    settings = settings_of(tiny_settings, optimisation__steps=2)
    loop.run(Ampo, settings, Ampo.read(settings), out)
    first = (out / "model" / "model.safetensors").read_bytes()
    settings = settings_of(tiny_settings, optimisation__steps=3)
    loop.run(Ampo, settings, Ampo.read(settings), out)
    assert (out / "model" / "model.safetensors").read_bytes() != first
    shutil.rmtree(out / "model")
    (out / "summary.json").unlink()
    loop.run(Ampo, settings, Ampo.read(settings), out)  # a kill before the model was written
    assert (out / "model" / "model.safetensors").exists()
