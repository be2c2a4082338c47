import os

import pytest
import torch
import transformers

from pyfast.train.errors import UserError
from pyfast.train.policy import reference_cache
from pyfast.train.policy.reference_cache import reference_key, reference_logps

GROUPS = [([4, 9, 12], [[5, 6, 3], [8]]), ([6], [[4, 3]]), ([7, 7], [[9], [9, 9], [3]])]


@pytest.fixture
def counted(monkeypatch):
    """Return a function that makes the policy and counts how many groups it scores."""

    def count(policy):
        scored, logps = [], policy.logps
        monkeypatch.setattr(policy, "logps", lambda *a, **k: scored.append(a) or logps(*a, **k))
        return scored

    return count


def assert_same(found, expected):
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_computed_once_and_found_again(make_policy, counted, tmp_path):
    policy = make_policy()
    expected = [policy.logps(*group, reference=True) for group in GROUPS]
    scored = counted(policy)
    assert_same(reference_logps(policy, GROUPS, folder=tmp_path, progress=False), expected)
    assert len(scored) == 3
    # another order, one twice, and a new one
    new = ([4], [[5]])
    order = [GROUPS[2], new, GROUPS[0], GROUPS[2]]
    found = reference_logps(policy, order, folder=tmp_path, progress=False)
    assert_same([found[0], found[2], found[3]], [expected[2], expected[0], expected[2]])
    assert len(scored) == 4
    reference_logps(policy, order, folder=tmp_path, progress=False)
    assert len(scored) == 4


def test_another_adapter_has_the_same_reference(make_policy, counted, tmp_path):
    reference_logps(make_policy(), GROUPS, folder=tmp_path, progress=False)
    other = make_policy(adapter=0.1)
    scored = counted(other)
    reference_logps(other, GROUPS, folder=tmp_path, progress=False)
    assert scored == []


def test_the_key_tells_references_apart(make_policy, tiny):
    policy = make_policy()
    key = reference_key(policy)
    assert reference_key(make_policy()) == key
    assert reference_key(make_policy(tiny.chat_template)) != key
    assert reference_key(make_policy(rope_theta=20_000.0)) != key
    policy.tokenizer.add_tokens(["new"])
    assert reference_key(policy) != key
    policy = make_policy()
    with torch.no_grad():
        policy.model.get_base_model().lm_head.weight[0, 0] += 1e-3
    assert reference_key(policy) != key


def test_settings_that_change_nothing_are_not_in_the_key(make_policy, monkeypatch):
    policy = make_policy()
    key = reference_key(policy)
    config = policy.model.get_base_model().config
    config._name_or_path = "/another/copy"
    config.use_cache = not config.use_cache
    monkeypatch.setattr(transformers.configuration_utils, "__version__", "6.0.0")
    assert '"6.0.0"' in config.to_json_string(use_diff=False)
    assert reference_key(policy) == key


def test_two_runs_share_a_cache_that_they_fill_at_once(make_policy, tmp_path, monkeypatch):
    import safetensors.torch

    policy = make_policy()
    save, slow = safetensors.torch.save_file, []

    def while_another_writes(tensors, path):
        save(tensors, path)
        if not slow:
            slow.append(path)
            reference_logps(policy, GROUPS, folder=tmp_path, progress=False)

    monkeypatch.setattr(safetensors.torch, "save_file", while_another_writes)
    found = reference_logps(policy, GROUPS, folder=tmp_path, progress=False)
    assert len(slow) == 1
    assert_same(reference_logps(policy, GROUPS, folder=tmp_path, progress=False), found)
    assert len(list(tmp_path.glob("*/*"))) == 1


def test_what_killed_runs_left_is_cleared_away_in_time(make_policy, tmp_path):
    policy = make_policy()
    folder = tmp_path / reference_key(policy)
    folder.mkdir()
    old, young = folder / ".a.tmp-1-00000000.safetensors", folder / ".b.tmp-1-00000000.safetensors"
    old.write_bytes(b"half")
    young.write_bytes(b"half")
    os.utime(old, (0, 0))
    reference_logps(policy, GROUPS, folder=tmp_path, progress=False)
    assert not old.exists()
    assert young.exists()


def test_an_interrupt_keeps_what_is_done(make_policy, counted, tmp_path, monkeypatch):
    policy = make_policy()
    logps, calls = policy.logps, []

    def interrupted(*args, **settings):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return logps(*args, **settings)

    monkeypatch.setattr(policy, "logps", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reference_logps(policy, GROUPS, folder=tmp_path, progress=False)
    monkeypatch.setattr(policy, "logps", logps)
    scored = counted(policy)
    reference_logps(policy, GROUPS, folder=tmp_path, progress=False)
    assert len(scored) == 1


def test_long_runs_write_as_they_go(make_policy, tmp_path, monkeypatch):
    monkeypatch.setattr(reference_cache, "SECONDS_BETWEEN_WRITES", -1.0)
    policy = make_policy()
    first = reference_logps(policy, GROUPS, folder=tmp_path, progress=False)
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 3
    assert_same(reference_logps(policy, GROUPS, folder=tmp_path, progress=False), first)


def test_a_broken_file_is_named(make_policy, tmp_path):
    policy = make_policy()
    reference_logps(policy, GROUPS, folder=tmp_path, progress=False)
    (file,) = tmp_path.glob("*/*.safetensors")
    file.write_bytes(b"not tensors")
    with pytest.raises(UserError, match="expected reference log-probabilities") as caught:
        reference_logps(policy, GROUPS, folder=tmp_path, progress=False)
    assert str(caught.value).startswith(str(file))
