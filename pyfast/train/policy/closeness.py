"""Whether two ways of making the same logits agree, up to rounding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def differences(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return how much logits differ token by token, as a fraction of their length.

    Parameters
    ----------
    ours, theirs : float tensors (..., T, V)
        Of the same tokens. The length is that around the mean over the vocabulary, which a softmax
        does not see.

    Returns
    -------
    float32 tensor (..., T)
    """
    ours, theirs = (x.float() - x.float().mean(-1, keepdim=True) for x in (ours, theirs))
    length = theirs.norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
    return (ours - theirs).norm(dim=-1) / length  # type: ignore[no-any-return]


def agree(found: Tensor, model: Any) -> tuple[bool, float]:
    """Return whether differences (rows, T) are rounding, and how large they are.

    In half precision rounding alone may send a token to another expert, so that of each row's
    tokens the median counts there; in wider types every token does.
    """
    dtype = model.get_output_embeddings().weight.dtype
    half = torch.finfo(dtype).bits < 32
    worst = float((found.median(dim=-1).values if half else found).max())
    return worst <= max(1e-3, 8 * torch.finfo(dtype).eps), worst
