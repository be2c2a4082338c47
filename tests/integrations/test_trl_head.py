"""Our head inside TRL's own trainers, at the versions that have a place for it."""

import os

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

trl = pytest.importorskip("trl")

from packaging.version import Version  # noqa: E402
from trl.trainer import utils  # noqa: E402

from pyfast.integrations import _trl_head  # noqa: E402
from pyfast.integrations.trl import fast_head  # noqa: E402

NAMES = ("_ChunkedLogProbFunction", "_use_triton")
known = pytest.mark.skipif(
    Version(trl.__version__) < Version("1.15"), reason="TRL has no fused head before 1.15"
)


def functions():
    return [getattr(utils, name, None) for name in NAMES]


@pytest.mark.skipif(Version(trl.__version__) >= Version("1.15"), reason="it is known")
def test_older_versions_are_refused():
    before = functions()
    with pytest.raises(RuntimeError, match=r"expected TRL 1\.15 or 1\.16, got"), fast_head():
        pass
    assert functions() == before


@known
@pytest.mark.parametrize("version", ["1.17.0", "2.0.0.dev0", "1.9.2"])
def test_versions_that_are_not_known_are_refused(monkeypatch, version):
    monkeypatch.setattr(trl, "__version__", version)
    before = functions()
    with pytest.raises(RuntimeError, match=f"got {version}"), fast_head():
        pass
    assert functions() == before


@known
def test_what_was_changed_is_put_back():
    before = functions()

    def fails():
        with fast_head():
            assert functions()[0] is not before[0]
            with fast_head():
                pass
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert functions() == before
    one, other = fast_head(), fast_head()  # as two threads would have them
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert functions()[0] is not before[0]
    other.__exit__(None, None, None)
    assert functions() == before


def made_up(dtype=torch.float32, bias=True):
    torch.manual_seed(0)
    hidden = (3 * torch.randn(23, 16)).to(dtype).requires_grad_()
    weight = torch.randn(77, 16).to(dtype).requires_grad_()
    shift = torch.randn(77).to(dtype).requires_grad_() if bias else None
    targets = torch.randint(0, 77, (23,))
    with torch.no_grad():  # some targets are the likeliest ones, also with p < 1/2
        likeliest = (hidden.float() @ weight.float().T).argmax(1)
    targets[::2] = likeliest[::2]
    return hidden, weight, shift, targets


class Plain:
    """All logits at once, in float64."""

    @staticmethod
    def apply(hidden, weight, shift, targets, temperature, chunk, softcap, scale, outputs):
        z = hidden @ weight.T
        z = (z if shift is None else z + shift) * scale
        z = (z if softcap is None else softcap * torch.tanh(z / softcap)) / temperature
        logps = z.log_softmax(1)
        entropy = -(logps.exp() * logps).sum(1)
        own = logps[torch.arange(len(z)), targets]
        return own, entropy, None, z.mean(1).detach(), z.argmax(1) == targets


@known
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bonus", [True, False])
def test_all_outputs_and_gradients_are_theirs(
    monkeypatch, bonus, bias, softcap, scale, temperature
):
    monkeypatch.setattr(_trl_head, "_TILE", 10)
    theirs = utils._ChunkedLogProbFunction
    found = []
    for head in (Plain, theirs, _trl_head._Head(theirs)):
        hidden, weight, shift, targets = made_up(bias=bias)
        if head is Plain:
            hidden, weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
            shift = None if shift is None else shift.detach().double().requires_grad_()
        outputs = ("log_probs", "entropy", "mean_logits", "is_top1")
        logps, *rest = head.apply(
            hidden, weight, shift, targets, temperature, 32, softcap, scale, outputs
        )
        places = torch.arange(len(logps))
        loss = (logps * places).sum()
        if bonus:  # of the entropy, as GRPO has it
            loss = loss + 3 * (rest[0] * places.flip(0)).sum()
        loss.backward()
        gradients = [x.grad for x in (hidden, weight, shift) if x is not None]
        found.append([logps, *(x for x in rest if x is not None), *gradients])
    assert len(found[0]) == len(found[1]) == len(found[2])
    for true, a, b in zip(*found, strict=True):
        assert a.dtype == b.dtype
        allowed = (a.double() - true.double()).abs().max() + 1e-6 * true.double().abs().max()
        assert (b.double() - true.double()).abs().max() <= 2 * allowed
    assert 5 < found[0][3].sum() < 23


@known
def test_ties_nothing_scored_and_what_only_theirs_makes():
    theirs = utils._ChunkedLogProbFunction
    head = _trl_head._Head(theirs)
    outputs = ("log_probs", "is_top1")
    hidden, weight = torch.ones(3, 4), torch.ones(6, 4)
    targets = torch.tensor([0, 3, 5])
    for one in (theirs, head):  # of equals the first is the likeliest
        *_, top = one.apply(hidden, weight, None, targets, 1.0, 4, None, 1.0, outputs)
        assert top.tolist() == [True, False, False]
    nothing = hidden[:0].requires_grad_()
    logps, *_ = head.apply(nothing, weight, None, targets[:0], 1.0, 4, None, 1.0, outputs)
    logps.sum().backward()
    more = ("log_probs", "log_sum_sq_probs")
    with pytest.warns(UserWarning, match="TRL's own head makes log_sum_sq_probs"):
        *_, squares, _, _ = head.apply(hidden, weight, None, targets, 1.0, 4, None, 1.0, more)
    assert squares is not None


def trained(folder, where, rows, *, lora, swap, **changes):
    import contextlib

    settings = {
        "output_dir": str(folder), "max_steps": 4, "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2, "learning_rate": 3e-3, "report_to": "none",
        "use_cpu": True, "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True,
        "bf16": False, "gradient_checkpointing": False, **changes,
    }  # fmt: skip
    torch.manual_seed(0)
    trainer = trl.DPOTrainer(
        AutoModelForCausalLM.from_pretrained(where),
        args=trl.DPOConfig(**settings),
        train_dataset=rows,
        eval_dataset=rows.select(range(5)),
        processing_class=AutoTokenizer.from_pretrained(where),
        peft_config=LoraConfig(r=2, target_modules="all-linear") if lora else None,
    )
    with fast_head() if swap else contextlib.nullcontext():
        trainer.train()
        trainer.evaluate()
    return trainer.state.log_history


SCRIPTS = [(lora, {}) for lora in (True, False)]
if os.environ.get("TRITON_INTERPRET") != "1":  # which takes minutes
    SCRIPTS += [
        (True, {"precompute_ref_log_probs": True}),
        (True, {"loss_type": ["ipo"]}),
        (False, {"loss_type": ["sft"]}),
        (True, {"ld_alpha": 0.5}),
        (True, {"gradient_checkpointing": True}),
        (False, {"use_weighting": True}),
    ]


@known
@pytest.mark.parametrize(("lora", "changes"), SCRIPTS, ids=str)
def test_a_script_trains_as_it_did(tmp_path, tiny_model, pairs, lora, changes, monkeypatch):
    calls = []
    real = _trl_head.sequence_logps
    monkeypatch.setattr(
        _trl_head, "sequence_logps", lambda *a, **k: calls.append(1) or real(*a, **k)
    )
    before = functions()
    theirs = trained(tmp_path / "a", tiny_model, pairs, lora=lora, swap=False, **changes)
    assert not calls
    if changes.get("use_weighting"):
        with pytest.warns(UserWarning, match="TRL's own head makes log_sum_sq_probs"):
            ours = trained(tmp_path / "b", tiny_model, pairs, lora=lora, swap=True, **changes)
    else:
        ours = trained(tmp_path / "b", tiny_model, pairs, lora=lora, swap=True, **changes)
        assert len(calls) > 8
    assert functions() == before
    assert [a.keys() for a in theirs] == [b.keys() for b in ours]
    for a, b in zip(theirs, ours, strict=True):
        for name, value in a.items():
            if name == "rewards/accuracies" and a["step"] == 1:
                continue  # all rewards are 0 but for rounding
            if "runtime" not in name and "per_second" not in name and isinstance(value, float):
                assert b[name] == pytest.approx(value, rel=2e-4, abs=2e-4), (a.get("step"), name)


@known
def test_mixed_precision_is_no_further_from_float32_than_theirs(tmp_path, tiny_model, pairs):
    how = {"lora": True, "where": tiny_model, "rows": pairs}
    exact = trained(tmp_path / "a", swap=False, **how)
    theirs = trained(tmp_path / "b", swap=False, **how, bf16=True)
    ours = trained(tmp_path / "c", swap=True, **how, bf16=True)
    for a, b, c in zip(exact, theirs, ours, strict=True):
        if "loss" in a:
            allowed = abs(b["loss"] - a["loss"]) + 0.02
            assert c["loss"] == pytest.approx(a["loss"], abs=allowed)
