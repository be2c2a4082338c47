import json

import pytest
import torch
from one_at_a_time import PROMPT, RESPONSES, plain_logp

from pyfast.train.config import PolicyConfig
from pyfast.train.errors import UserError
from pyfast.train.policy import gguf, loading


def test_loading_and_saving(tiny_model, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    policy = loading.load(PolicyConfig(model=str(tiny_model), lora_rank=2, device="cpu"), seed=0)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(0.1)
    policy.save_adapter(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").exists()
    names = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert len(names) > 4
    assert names == sorted(names)  # of a set, in each process another order
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    loaded = PeftModel.from_pretrained(base, tmp_path).eval()
    expected = policy.logps(PROMPT, RESPONSES)
    actual = torch.stack([plain_logp(loaded, PROMPT, y) for y in RESPONSES])
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: "./nowhere", "no such file or folder: ./nowhere"),
        (lambda p: str(p / "x.gguf"), "no such file or folder"),
        (lambda p: str(p), "cannot load"),
    ],
)
def test_models_that_are_not_there(tmp_path, make, message):
    with pytest.raises(UserError, match=r"^policy\.model: ") as caught:
        loading.load(PolicyConfig(model=make(tmp_path)), seed=0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_gguf_file_is_converted_once(tmp_path, monkeypatch):
    converted = []

    def convert(path, folder):
        converted.append(path)
        (folder / "config.json").write_text("{}")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(gguf, "_convert_gguf", convert)
    file = tmp_path / "small.gguf"
    file.write_bytes(b"one")
    folder = gguf.gguf_folder(file)
    assert gguf.gguf_folder(file) == folder
    assert folder.is_relative_to(tmp_path / "cache" / "pyfast")
    file.write_bytes(b"two")  # other content, other folder
    assert gguf.gguf_folder(file) != folder
    assert len(converted) == 2


def with_weights(tmp_path, model_folder, change, shard_size=None):
    """Return a copy of a model's folder with other weights in it."""
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "changed"
    shutil.copytree(model_folder, folder)
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return folder


def load_tiny(folder):
    return loading.load(PolicyConfig(model=str(folder), lora_rank=2, device="cpu"), seed=0)


def renamed(change):
    return lambda weights: {change(name): value for name, value in weights.items()}


def put(name, value):
    return lambda weights: {**weights, name: value}


def in_place(name, value):
    def change(weights):
        weights[name][0, 0] = value
        return weights

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: {n: t for n, t in w.items() if ".layers.1." not in n},
            r"weights missing from it: model\.layers\.1\..* and 6 more",
        ),
        (lambda w: {n: t for n, t in w.items() if n != "lm_head.weight"}, r"from it: lm_head\.wei"),
        (renamed(lambda n: f"module.{n}"), r"does not have: module\.lm_head\.weight.* more"),
        (renamed(lambda n: f"model.model.{n}"), r"weights missing from it: .* and \d+ more"),
        (put("value_head.weight", torch.ones(2)), r"does not have: value_head\.weight$"),
        (
            put("model.norm.weight", torch.ones(7)),
            r"of another shape: model\.norm\.weight \(\[7\] instead of \[32\]\)",
        ),
        (in_place("lm_head.weight", torch.nan), r"not finite: lm_head\.weight$"),
        (in_place("model.embed_tokens.weight", torch.inf), r"finite: model\.embed_tokens\.weight$"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, tiny_model, change, message):
    folder = with_weights(tmp_path, tiny_model, change)
    with pytest.raises(UserError, match=message) as caught:
        load_tiny(folder)
    assert str(caught.value).startswith("policy.model: ")
    assert "\n" not in str(caught.value)


def test_one_prefix_is_known_to_transformers(tmp_path, tiny_model):
    expected = load_tiny(tiny_model).logps(PROMPT, RESPONSES)
    folder = with_weights(tmp_path, tiny_model, renamed(lambda n: f"model.{n}"))
    assert torch.equal(load_tiny(folder).logps(PROMPT, RESPONSES), expected)


@pytest.mark.parametrize(
    "change",
    [
        put("model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(4)),
        put("model.position_ids", torch.arange(4)),
    ],
)
def test_buffers_that_are_made_anew_are_no_weights(tmp_path, tiny_model, change):
    load_tiny(with_weights(tmp_path, tiny_model, change))


def test_a_tied_head_need_not_be_stored(tmp_path, tiny):
    model = tiny.model(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    expected = torch.stack([plain_logp(model.eval(), PROMPT, y) for y in RESPONSES])
    torch.testing.assert_close(load_tiny(tmp_path).logps(PROMPT, RESPONSES), expected)


def test_shards(tmp_path, tiny, tiny_model):
    tiny.model().save_pretrained(tmp_path, max_shard_size="20KB")
    tiny.tokenizer().save_pretrained(tmp_path)
    shards = sorted(tmp_path.glob("model-0*.safetensors"))
    assert len(shards) > 2
    expected = load_tiny(tiny_model).logps(PROMPT, RESPONSES)
    assert torch.equal(load_tiny(tmp_path).logps(PROMPT, RESPONSES), expected)
    shards[1].unlink()
    with pytest.raises(UserError, match=r"cannot load .*model-00002-of") as caught:
        load_tiny(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_model_with_code_of_its_own(tmp_path, tiny_model):
    import json
    import shutil

    folder = tmp_path / "remote"
    shutil.copytree(tiny_model, folder)
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModel": "mine.M"}}
    settings["auto_map"]["AutoModelForCausalLM"] = "mine.M"
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "mine.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(UserError, match="needs code of its own to be run, which") as caught:
        load_tiny(folder)
    assert "\n" not in str(caught.value)


def test_two_processes_load_the_same_bits(tiny_model, run_python):
    code = f"""
import hashlib
from pyfast.train.policy import loading
from pyfast.train.config import PolicyConfig
policy = loading.load(PolicyConfig(model={str(tiny_model)!r}, lora_rank=2, device="cpu"), seed=0)
digest = hashlib.sha256()
for name, tensor in policy.model.state_dict().items():
    digest.update(name.encode() + tensor.numpy().tobytes())
print(digest.hexdigest())
"""
    assert run_python(code) == run_python(code)
