"""Gradients from their factors: made and sketched where they lie, and never kept on a CPU."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyfast import _native
from pyfast.sketch._project import add_projection


def products(wide: Tensor, narrow: Tensor, threads: int) -> Tensor:
    """Return each ``sum_t wide[b, t] narrow[b, t]^T``: (R, T, d), (R, T, r) -> (R, d, r), float32.

    On a CPU each number is one chain of fused multiply-adds, t ascending: the same bits for every
    thread count, instruction set and number of responses.
    """
    if wide.device.type != "cpu":
        return torch.bmm(wide.transpose(1, 2), narrow)
    out = torch.empty(len(wide), wide.shape[2], narrow.shape[2])
    _native.products(wide.contiguous().numpy(), narrow.contiguous().numpy(), out.numpy(), threads)
    return out


def add_products(
    wide: Tensor, narrow: Tensor, out: Tensor, seed: int, module: int, threads: int
) -> NDArray[np.float64]:
    """Add the sketch of each of `products` to out (R, dim) in place; return their squared lengths.

    The same bits as `products` and `add_projection`.
    """
    if wide.device.type != "cpu":
        flat = products(wide, narrow, threads).view(len(wide), -1)
        add_projection(flat, out, seed, module, threads)
        lengths: NDArray[np.float64] = flat.double().square().sum(dim=1).cpu().numpy()
        return lengths
    return _native.sketch_add_products(
        wide.contiguous().numpy(), narrow.contiguous().numpy(), out.numpy(), seed, module, threads
    )
