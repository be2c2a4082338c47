"""Sentence embeddings by a small transformer: mean over tokens, then length 1."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyfast.train.errors import UserError
from pyfast.train.files import resolve
from pyfast.train.policy import pretrained

_SETTING = "scoring.encoder"

_NO_PART = (
    r"pooler\.|cls\.|lm_head\.|mlm_head\.|classifier\.|head\.|predictions\."
    r"|vocab_(transform|layer_norm|projector)\.|(discriminator|generator)_(predictions|lm_head)\."
)
"""Weights after the last hidden states, which is all that the mean is taken of."""


class SentenceEncoder:
    """A frozen sentence encoder (Reimers & Gurevych 2019, mean pooling).

    Parameters
    ----------
    spec : str
        A folder, a hub id or ``pkg://PACKAGE/PATH`` of a transformers encoder.
    device : torch.device or str
    """

    def __init__(self, spec: str, device: torch.device | str = "cpu") -> None:
        from transformers import AutoModel

        path = resolve(spec)
        if path is None and spec[:1] in ("", ".", "/", "~"):
            raise UserError(f"{_SETTING}: no such folder: {spec}")
        source = str(path or spec)
        self.model: Any = pretrained.weights(
            AutoModel, source, _SETTING, ignore=_NO_PART, dtype=torch.float32
        )
        self.tokenizer: Any = pretrained.tokenizer(source, _SETTING)
        pretrained.check_finite(self.model, _SETTING)
        self.model.requires_grad_(False).eval().to(device)
        self.device = torch.device(device)

    @torch.inference_mode()
    def encode(self, texts: list[str], batch_size: int = 64) -> NDArray[np.float32]:
        """Embed texts.

        Parameters
        ----------
        texts : list of str, length n
            Longer texts are cut at the encoder's own limit.
        batch_size : int
            Texts encoded at once.

        Returns
        -------
        float32 array (n, d)
            Rows of Euclidean length 1.
        """
        rows = []
        for start in range(0, len(texts), batch_size):
            batch = self.tokenizer(
                texts[start : start + batch_size],
                padding=True,
                truncation=True,
                max_length=min(self.tokenizer.model_max_length, 512),
                return_tensors="pt",
            ).to(self.device)
            hidden = self.model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
            rows.append(torch.nn.functional.normalize(mean, dim=-1))
        result: NDArray[np.float32] = torch.cat(rows).float().cpu().numpy()
        return result
