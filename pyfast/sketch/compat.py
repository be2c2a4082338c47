"""For users of TRAK and LESS: the projector's signature, and the folder that LESS reads."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyfast._files import write_folder
from pyfast.sketch._fingerprint import listed
from pyfast.sketch._pool import NOT_FINITE, SketchPool
from pyfast.sketch._project import check_dim, project


class TrakProjector:
    """XOR stripes behind the signature of TRAK's projectors.

    Parameters
    ----------
    grad_dim : int
        Numbers in a gradient.
    proj_dim : int
        Numbers in a sketch: a power of two, 2^7 to 2^20.
    seed : int
        0 to 2^64 - 1.
    proj_type : str
        "rademacher" or "normal" (also TRAK's enumeration): the same projection for both.
    device : str or torch.device
        Where gradients come from.
    **unused
        block_size, max_batch_size, dtype, ...: what other projectors need.

    Notes
    -----
    TRAK's own matrices have entries of variance 1; a sketch is shorter by sqrt(proj_dim), so that
    inner products are those of the gradients.

    Examples
    --------
    >>> projector = TrakProjector(1000, 128, 0, "rademacher", "cpu")
    >>> projector.project(torch.ones(2, 1000), model_id=0).shape
    torch.Size([2, 128])
    """

    def __init__(
        self,
        grad_dim: int,
        proj_dim: int,
        seed: int,
        proj_type: str,
        device: str | torch.device,
        **unused: Any,
    ) -> None:
        if str(getattr(proj_type, "value", proj_type)) not in ("rademacher", "normal"):
            raise ValueError(f"proj_type: expected 'rademacher' or 'normal', got {proj_type!r}")
        self.grad_dim, self.proj_dim = grad_dim, check_dim(proj_dim)
        self.seed, self.proj_type, self.device = seed, proj_type, torch.device(device)

    def project(self, grads: Tensor | Mapping[str, Tensor], model_id: int = 0) -> Tensor:
        """Project a batch of gradients.

        Parameters
        ----------
        grads : float tensor (B, grad_dim), or mapping of tensors (B, ...)
            The tensors of a mapping are laid side by side in its order.
        model_id : int
            Every model has a projection of its own.

        Returns
        -------
        tensor (B, proj_dim)
            In the dtype of the gradients.
        """
        if isinstance(grads, Mapping):
            grads = torch.cat([part.flatten(1) for part in grads.values()], dim=1)
        if grads.ndim != 2 or grads.shape[1] != self.grad_dim:
            raise ValueError(
                f"grads: expected shape (B, {self.grad_dim}), got {tuple(grads.shape)}"
            )
        sketch: Tensor = project(grads.detach(), self.proj_dim, self.seed, module=model_id)
        return sketch.to(grads.dtype)

    def free_memory(self) -> None:
        """Do nothing: no matrix is kept."""


def write_less(pool: SketchPool, folder: str | Path) -> Path:
    """Write a pool as LESS stores gradients, for its matching and selection scripts.

    Parameters
    ----------
    pool : SketchPool
        Its responses in the order of the data set.
    folder : str or Path
        Gets ``dim{K}/all_orig.pt``, rows of length 1, and ``dim{K}/all_unormalized.pt``.

    Returns
    -------
    Path
        The folder ``dim{K}``.

    Raises
    ------
    ValueError
        If it is there already.

    Notes
    -----
    A gradient that is not finite becomes a row of zeros, with a warning: LESS would rank NaN first.

    LESS's gradient is of the mean loss over tokens, ours of the summed log-probability: rows are
    divided by minus the response's length. Its main variant, training gradients scaled by
    Adam's state, is not this and not in a pool: docs/sketch-pools.md says how to make it from
    `LoraGradients.gradients`.
    """
    target = Path(folder) / f"dim{pool.sketches.shape[1]}"
    if target.exists():
        raise ValueError(f"folder: {target} is there already")
    bad = np.flatnonzero(pool.flags == NOT_FINITE).tolist()
    if bad:
        warnings.warn(
            f"pool: the gradients of {len(bad)} responses are not finite; their rows become "
            f"zeros, which have a score of 0 with everything: {listed(bad, 8)}",
            stacklevel=2,
        )
    rows = torch.from_numpy(pool.rows(slice(None)))
    rows[bad] = 0
    rows /= -torch.from_numpy(pool.lengths).clamp(min=1)[:, None]

    def fill(beside: Path) -> None:
        torch.save(rows, beside / "all_unormalized.pt")
        torch.save(torch.nn.functional.normalize(rows, dim=1), beside / "all_orig.pt")

    write_folder(target, fill)
    return target


__all__ = ["TrakProjector", "write_less"]
