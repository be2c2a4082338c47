import copy

import pytest
import torch
from one_at_a_time import PROMPT, RESPONSES, plain_logp

from pyfast.train.config import PolicyConfig
from pyfast.train.errors import UserError
from pyfast.train.policy import loading
from pyfast.train.policy.policy import Policy


def truth(model):
    with torch.no_grad():
        return torch.stack([plain_logp(model, PROMPT, y) for y in RESPONSES])


def shaken(model, seed=1):
    """Return a model whose trainable numbers are random, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.1 * noise.to(parameter.dtype))
    return model.eval()


def kinds():
    import peft

    all_linear = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    lora = {"r": 3, **all_linear}
    return {
        "lora": peft.LoraConfig(**lora),
        "rslora": peft.LoraConfig(use_rslora=True, lora_alpha=7, **lora),
        "dora": peft.LoraConfig(use_dora=True, **lora),
        "biases": peft.LoraConfig(bias="all", **lora),
        "dropout": peft.LoraConfig(lora_dropout=0.5, **lora),
        "modules to save": peft.LoraConfig(modules_to_save=["lm_head", "embed_tokens"], **lora),
        "embedding": peft.LoraConfig(r=3, target_modules=["embed_tokens", "q_proj", "lm_head"]),
        "tokens": peft.LoraConfig(trainable_token_indices=[5, 9], **lora),
        "no task": peft.LoraConfig(r=3, target_modules=["v_proj"]),
        "parameters": peft.LoraConfig(r=3, target_modules=[], target_parameters=["q_proj.weight"]),
        "ia3": peft.IA3Config(
            target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
        ),
        "loha": peft.LoHaConfig(r=2, target_modules=["q_proj", "up_proj"]),
        "oft": peft.OFTConfig(oft_block_size=4, target_modules=["q_proj"]),
        "vera": peft.VeraConfig(r=4, target_modules=["q_proj", "o_proj"]),
        "norms": peft.LNTuningConfig(target_modules=["input_layernorm"]),
    }


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("tied", [False, True])
def test_the_reference_has_the_adapter_that_a_model_came_with(tiny, kind, tied):
    from peft import get_peft_model

    model = shaken(get_peft_model(tiny.model(tie_word_embeddings=tied), kinds()[kind]))
    expected, bare = truth(model), truth(tiny.model(tie_word_embeddings=tied))
    assert not torch.allclose(expected, bare, atol=0.01)
    policy = Policy(model, tiny.tokenizer(), rank=2)
    assert policy.folded == ["default"]
    for reference in (True, False):
        logps = policy.logps(PROMPT, RESPONSES, reference=reference).detach()
        torch.testing.assert_close(logps, expected, rtol=1e-5, atol=1e-5)
    assert all("lora_" in name for name in policy.trainable())
    policy.logps(PROMPT, RESPONSES).sum().backward()
    assert all(p.grad is not None for p in policy.trainable().values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_the_sum_is_rounded_once(tiny, dtype):
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM")
    model = shaken(get_peft_model(tiny.model().to(dtype), settings))
    layer = model.base_model.model.model.layers[1].mlp.up_proj
    a, b = (part["default"].weight.double() for part in (layer.lora_A, layer.lora_B))
    exact = layer.base_layer.weight.double() + layer.scaling["default"] * b @ a
    wide = copy.deepcopy(model).float()
    policy = Policy(model, tiny.tokenizer(), rank=2)
    found = policy.model.base_model.model.model.layers[1].mlp.up_proj.base_layer.weight
    assert found.dtype == dtype
    limits = torch.finfo(dtype)
    spacing = torch.exp2(exact.abs().clamp(min=limits.tiny).log2().floor()) * limits.eps
    # half a spacing is what one rounding may move; float32's own error is far below a hundredth
    assert ((found.double() - exact).abs() <= 0.505 * spacing).all()
    logps = policy.logps(PROMPT, RESPONSES, reference=True)
    # as far from the truth as this type is anyway: 0.05 nats a token in bfloat16
    torch.testing.assert_close(logps, truth(wide), rtol=0.02, atol=0.3)


def test_adapters_added_by_transformers_itself(tiny):
    from peft import LoraConfig

    model = tiny.model()
    model.add_adapter(LoraConfig(r=3, target_modules=["q_proj", "down_proj"]), "sft")
    shaken(model)
    expected = truth(model)
    assert not torch.allclose(expected, truth(tiny.model()), atol=0.01)
    policy = Policy(model, tiny.tokenizer(), rank=2)
    assert policy.folded == ["sft"]
    reference = policy.logps(PROMPT, RESPONSES, reference=True)
    torch.testing.assert_close(reference, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("active", ["first", "second", ["first", "second"]])
@pytest.mark.parametrize("merged", [False, True])
def test_of_several_adapters_those_count_that_are_active(tiny, active, merged):
    from peft import LoraConfig, get_peft_model

    one, other = (LoraConfig(r=r, target_modules=["q_proj", "up_proj"]) for r in (2, 3))
    model = get_peft_model(tiny.model(), one, adapter_name="first")
    model.add_adapter("second", other)
    model.base_model.set_adapter(["first", "second"])
    shaken(model)
    model.base_model.set_adapter(active)
    expected = truth(model)
    if merged:
        model.merge_adapter()
    policy = Policy(model, tiny.tokenizer(), rank=2)
    assert policy.folded == ([active] if isinstance(active, str) else active)
    reference = policy.logps(PROMPT, RESPONSES, reference=True)
    torch.testing.assert_close(reference, expected, rtol=1e-5, atol=1e-5)


def test_adapters_of_mixed_kinds(tiny):
    from peft import LoHaConfig, LoraConfig, get_peft_model

    first = LoraConfig(r=2, target_modules=["q_proj"])
    model = get_peft_model(tiny.model(), first, adapter_name="one", mixed=True)
    model.add_adapter("other", LoHaConfig(r=2, target_modules=["q_proj", "v_proj"]))
    model.set_adapter(["one", "other"])
    shaken(model)
    expected = truth(model)
    policy = Policy(model, tiny.tokenizer(), rank=2)
    reference = policy.logps(PROMPT, RESPONSES, reference=True)
    torch.testing.assert_close(reference, expected, rtol=1e-5, atol=1e-5)


def state(model):
    """Return all of a model that a refusal must leave alone."""
    return {
        "weights": {n: (id(p), p.data_ptr(), p.requires_grad) for n, p in model.named_parameters()},
        "numbers": {n: t.clone() for n, t in model.state_dict().items()},
        "modules": {n: (id(m), type(m), m.training) for n, m in model.named_modules()},
        "attributes": {n: sorted(vars(m)) for n, m in model.named_modules()},
        "hooks": {
            n: [dict(h) for k, h in sorted(vars(m).items()) if k.endswith("_hooks")]
            for n, m in model.named_modules()
        },
        "config": model.config.to_dict(),
        "adapters": list(getattr(model, "peft_config", {})),
    }


def assert_untouched(model, before):
    after = state(model)
    for name, value in before.pop("numbers").items():
        assert torch.equal(after["numbers"][name].nan_to_num(7), value.nan_to_num(7)), name
    after.pop("numbers")
    assert after == before


def endless(tiny):
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = None
    return tokenizer


def refusals():
    """Return how a policy is refused: settings of the model, of the policy, and the message."""
    return {
        "no end token": ({"eos_token_id": None}, {}, "no end-of-sequence token"),
        "no such layer": (
            {},
            {"target_modules": "q_proj,W_pack"},
            r"target_modules: .*W_pack",
        ),
        "logits": ({"logit_scale": 0.5}, {}, "changes its logits"),
        "checkpointing": ({}, {"gradient_checkpointing": "full"}, "gradient_checkpointing"),
        "not finite": ({}, {}, r"not finite: \S*model\.embed_tokens\."),
    }


@pytest.mark.parametrize("adapter", ["none", "peft", "added", "merged", "dora"])
@pytest.mark.parametrize("why", refusals())
def test_a_model_that_is_refused_is_left_as_it_was(tiny, monkeypatch, adapter, why):
    from peft import LoraConfig, get_peft_model

    changes, settings, message = refusals()[why]
    model = tiny.model(**changes, tie_word_embeddings=True)
    model.train()
    model.model.layers[0].eval()
    model.lm_head.requires_grad_(False)
    handle = model.model.layers[0].register_forward_hook(lambda *_: None)
    lora = LoraConfig(
        r=2, target_modules=["q_proj", "embed_tokens"], use_dora=adapter == "dora", lora_dropout=0.1
    )
    wrapped = adapter in ("peft", "merged", "dora")
    outer = get_peft_model(model, lora) if wrapped else model
    if adapter == "added":
        model.add_adapter(lora)
    shaken(outer).train()
    if adapter == "merged":
        outer.merge_adapter()
    if why == "not finite":
        with torch.no_grad():
            model.get_input_embeddings().weight[3, 1] = torch.nan
    if why == "checkpointing":
        type(model).supports_gradient_checkpointing  # noqa: B018  it has the attribute
        monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    tokenizer = endless(tiny) if why == "no end token" else tiny.tokenizer()
    before = state(outer)
    with pytest.raises(UserError, match=message) as caught:
        Policy(outer, tokenizer, rank=2, **settings)
    assert str(caught.value).startswith("policy.")
    assert "\n" not in str(caught.value)
    assert_untouched(outer, before)
    handle.remove()
    assert not model.model.layers[0]._forward_hooks


def virtual(tiny, kind):
    import peft

    common = {"num_virtual_tokens": 3, "task_type": "CAUSAL_LM"}
    config = {
        "prompt": peft.PromptTuningConfig(**common),
        "prefix": peft.PrefixTuningConfig(**common),
        "adaption": peft.AdaptionPromptConfig(
            adapter_len=2, adapter_layers=1, task_type="CAUSAL_LM"
        ),
    }[kind]
    return peft.get_peft_model(tiny.model(), config)


@pytest.mark.parametrize("kind", ["prompt", "prefix", "adaption"])
def test_adapters_that_cannot_be_part_of_the_weights(tiny, kind):
    model = shaken(virtual(tiny, kind))
    before = state(model)
    with pytest.raises(UserError, match=r"virtual tokens|cannot be folded"):
        Policy(model, tiny.tokenizer(), rank=2)
    assert_untouched(model, before)


def test_adapters_that_are_off_are_not_dropped_silently(tiny):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny.model(), LoraConfig(r=2, target_modules=["q_proj"]))
    model.base_model.disable_adapter_layers()
    with pytest.raises(UserError, match="its adapters, default, are switched off"):
        Policy(model, tiny.tokenizer(), rank=2)


def test_something_else_is_named(tiny):
    with pytest.raises(UserError, match=r"expected a transformers causal .*, got Linear"):
        Policy(torch.nn.Linear(2, 2), tiny.tokenizer())


@pytest.mark.parametrize(
    ("names", "adapted"),
    [
        ("q_proj, v_proj", {"q_proj", "v_proj"}),
        ("self_attn.q_proj", {"q_proj"}),
        (
            "all-linear",
            {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
        ),
    ],
)
def test_target_modules_are_a_setting(tiny, names, adapted):
    policy = Policy(tiny.model(), tiny.tokenizer(), rank=2, target_modules=names)
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in policy.trainable()} == adapted


@pytest.fixture
def sft(tiny, tmp_path):
    """Return a function that saves an adapter, its base model and tokenizer beside it."""
    from peft import get_peft_model

    def save(kind="lora", base="base", **changes):
        settings = kinds()[kind] if isinstance(kind, str) else kind
        folder = tmp_path / "base"
        if not folder.exists():
            tiny.model(**changes).save_pretrained(folder)
            tiny.tokenizer().save_pretrained(folder)
        model = shaken(get_peft_model(tiny.model(**changes), settings))
        model.save_pretrained(tmp_path / "sft")
        rewrite(tmp_path / "sft", base_model_name_or_path=str(folder) if base == "base" else base)
        return tmp_path / "sft", model

    return save


def rewrite(folder, **changes):
    import json

    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def load(folder, **settings):
    return loading.load(
        PolicyConfig(model=str(folder), lora_rank=2, device="cpu", **settings), seed=0
    )


@pytest.mark.parametrize("kind", ["lora", "dora", "modules to save", "tokens", "ia3"])
def test_a_folder_with_an_adapter(sft, kind):
    folder, model = sft(kind)
    policy = load(folder)
    for reference in (True, False):
        logps = policy.logps(PROMPT, RESPONSES, reference=reference).detach()
        torch.testing.assert_close(logps, truth(model), rtol=1e-5, atol=1e-5)


def test_a_runs_adapter_on_an_sft_adapter(sft, tmp_path):
    """It names the SFT adapter as its base, so that it can be gone on from."""
    folder, _ = sft()
    policy = load(folder)
    shaken(policy.model)
    expected = policy.logps(PROMPT, RESPONSES)
    policy.save_adapter(tmp_path / "dpo")
    again = load(tmp_path / "dpo")
    reference = again.logps(PROMPT, RESPONSES, reference=True)
    torch.testing.assert_close(reference, expected.detach(), rtol=1e-5, atol=1e-5)


def test_an_adapter_on_weights_that_are_in_no_file_names_no_base(sft, tmp_path, tiny):
    _, model = sft()
    policy = Policy(model, tiny.tokenizer(), rank=2)
    policy.save_adapter(tmp_path / "dpo")
    with pytest.raises(UserError, match="is an adapter and names no base model"):
        load(tmp_path / "dpo")


def test_an_adapter_that_transformers_loads_silently(sft, tiny):
    from transformers import AutoModelForCausalLM

    folder, model = sft()
    expected = truth(model)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    policy = Policy(loaded, tiny.tokenizer(), rank=2)
    reference = policy.logps(PROMPT, RESPONSES, reference=True)
    torch.testing.assert_close(reference, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("where", ["beside the adapter", "from here"])
def test_a_relative_base(sft, tmp_path, monkeypatch, where):
    folder, model = sft()
    relative = "../base" if where == "beside the adapter" else "base"
    rewrite(folder, base_model_name_or_path=relative)
    if where == "from here":
        monkeypatch.chdir(tmp_path)
    reference = load(folder).logps(PROMPT, RESPONSES, reference=True)
    torch.testing.assert_close(reference, truth(model), rtol=1e-5, atol=1e-5)


def test_tokens_that_were_added_with_the_adapter(tiny, tmp_path):
    from peft import LoraConfig, get_peft_model

    tiny.model().save_pretrained(tmp_path / "base")
    model = tiny.model()
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    settings = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = shaken(get_peft_model(model, settings))
    model.save_pretrained(tmp_path / "sft", save_embedding_layers=True)
    tokenizer.save_pretrained(tmp_path / "sft")
    rewrite(tmp_path / "sft", base_model_name_or_path="../base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    policy = load(tmp_path / "sft")
    assert len(policy.tokenizer) == len(tokenizer)
    prompt, response = [5, len(tokenizer) - 1], [len(tokenizer) - 2, 3]
    logp = policy.logps(prompt, [response], reference=True)
    expected = plain_logp(model, prompt, response).detach()[None]
    torch.testing.assert_close(logp, expected, rtol=1e-5, atol=1e-5)


def test_a_relative_base_that_may_be_either_of_two(sft, tmp_path, monkeypatch, tiny):
    folder, _ = sft()
    rewrite(folder, base_model_name_or_path="base")
    tiny.model().save_pretrained(folder / "base")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"both of .* may be its base model, base"):
        load(folder)


@pytest.mark.parametrize("base", [None, "", "./gone", "/nowhere/model"])
def test_a_base_that_is_not_there(sft, base):
    folder, _ = sft(base=base)
    with pytest.raises(
        UserError, match=r"is an adapter.*(names no base model|no such file)"
    ) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def edit(folder, change):
    from safetensors.torch import load_file, save_file

    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: dict(list(w.items())[3:]), r"lacks the weights .*lora_A\.default\.weight"),
        (lambda w: {f"module.{n}": t for n, t in w.items()}, "lacks the weights .* and "),
        (lambda w: {**w, "base_model.model.extra": torch.ones(2)}, r"has too the weights .*extra"),
        (lambda w: {n: t[..., :1].contiguous() for n, t in w.items()}, "size mismatch for"),
    ],
)
def test_an_adapter_whose_weights_do_not_fit(sft, change, message):
    folder, _ = sft()
    edit(folder, change)
    with pytest.raises(UserError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_a_folder_with_virtual_tokens(tiny, tmp_path, sft, kind):
    sft()
    virtual(tiny, kind).save_pretrained(tmp_path / "virtual")
    rewrite(tmp_path / "virtual", base_model_name_or_path=str(tmp_path / "base"))
    with pytest.raises(UserError, match=r"(PROMPT|PREFIX)_TUNING cannot be folded"):
        load(tmp_path / "virtual")


def test_a_folder_with_a_model_and_an_adapter(sft, tmp_path):
    folder, _ = sft()
    (folder / "config.json").write_text((tmp_path / "base" / "config.json").read_text())
    with pytest.raises(UserError, match="holds a whole model and an adapter"):
        load(folder)


def test_an_adapter_on_the_hub(sft, tmp_path, run_python):
    """As the hub's cache holds it, without a network."""
    import shutil

    folder, model = sft()
    snapshot = tmp_path / "hub" / "models--somebody--sft" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(folder, snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0" * 40)
    code = f"""
import os
os.environ |= {{"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": {str(tmp_path / "hub")!r}}}
from pyfast.train.policy import loading
from pyfast.train.config import PolicyConfig
policy = loading.load(PolicyConfig(model="somebody/sft", lora_rank=2, device="cpu"), seed=0)
print(policy.model.name_or_path, *policy.logps({PROMPT}, {RESPONSES}, reference=True).tolist())
"""
    name, *logps = run_python(code).splitlines()[-1].split()
    assert name == "somebody/sft"
    torch.testing.assert_close(torch.tensor(list(map(float, logps))), truth(model))


def test_an_adapter_on_a_gguf_file(sft, tmp_path, monkeypatch):
    import shutil

    from pyfast.train.policy import gguf

    def convert(path, folder):
        shutil.copytree(tmp_path / "base", folder, dirs_exist_ok=True)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(gguf, "_convert_gguf", convert)
    folder, model = sft()
    (tmp_path / "small.gguf").write_bytes(b"small")
    rewrite(folder, base_model_name_or_path="../small.gguf")
    reference = load(folder).logps(PROMPT, RESPONSES, reference=True)
    torch.testing.assert_close(reference, truth(model), rtol=1e-5, atol=1e-5)
