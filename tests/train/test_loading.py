import pytest
import torch
from one_at_a_time import PROMPT, RESPONSES, plain_logp

from pyfast.train import gguf, loading
from pyfast.train.config import PolicyConfig
from pyfast.train.errors import UserError


def test_loading_and_saving(tiny_model, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    policy = loading.load(PolicyConfig(model=str(tiny_model), lora_rank=2, device="cpu"), seed=0)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(0.1)
    policy.save_adapter(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").exists()
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
