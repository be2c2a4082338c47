import numpy as np
import pytest
import torch

from pyfast.train.encoder import SentenceEncoder
from pyfast.train.errors import UserError


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
