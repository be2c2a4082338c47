import numpy as np
import pytest
import torch

from pyfast.train.errors import UserError
from pyfast.train.scoring.encoder import SentenceEncoder


def test_embeddings_are_mean_pooled_and_of_length_1(tiny_encoder):
    encoder = SentenceEncoder(str(tiny_encoder))
    texts = ["good day", "bad sad dog not", "a", ""]
    rows = encoder.encode(texts, batch_size=3)
    assert rows.shape == (4, 16)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    for text, row in zip(texts, rows, strict=True):  # one at a time: no padding
        ids = torch.tensor([encoder.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            mean = encoder.model(input_ids=ids).last_hidden_state[0].mean(0).numpy()
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-6)


def test_long_texts_are_cut(tiny_encoder):
    rows = SentenceEncoder(str(tiny_encoder)).encode(["good " * 500])
    assert np.isfinite(rows).all()


def test_a_missing_encoder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"scoring\.encoder: cannot load"):
        SentenceEncoder(str(tmp_path))


def changed(tmp_path, folder, change):
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, tmp_path / "changed")
    file = tmp_path / "changed" / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return str(tmp_path / "changed")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: {n: t for n, t in w.items() if "layer.0.output" not in n},
            "missing from it: enc",
        ),
        (lambda w: {f"module.{n}": t for n, t in w.items()}, r"does not have: module\.emb.* more"),
        (lambda w: {**w, "encoder.layer.7.x": torch.ones(1)}, r"not have: encoder\.layer\.7\.x"),
        (lambda w: {n: t * torch.nan for n, t in w.items()}, r"not finite: embeddings\.word"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, tiny_encoder, change, message):
    with pytest.raises(UserError, match=rf"^scoring\.encoder: .*{message}") as caught:
        SentenceEncoder(changed(tmp_path, tiny_encoder, change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda w: {n: t for n, t in w.items() if not n.startswith("pooler.")},
        lambda w: {**w, "cls.predictions.bias": torch.ones(1)},
    ],
)
def test_parts_after_the_last_hidden_states_do_not_matter(tmp_path, tiny_encoder, change):
    expected = SentenceEncoder(str(tiny_encoder)).encode(["good day"])
    rows = SentenceEncoder(changed(tmp_path, tiny_encoder, change)).encode(["good day"])
    np.testing.assert_array_equal(rows, expected)


def test_an_adapter_is_no_encoder(tmp_path, tiny_encoder):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    model = AutoModel.from_pretrained(tiny_encoder)
    get_peft_model(model, LoraConfig(target_modules=["query"])).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"scoring\.encoder: .* is an adapter, expected a"):
        SentenceEncoder(str(tmp_path))
