"""The projection of any vectors: where they lie decides what computes, the bits are the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyfast import _arguments as args
from pyfast import _native
from pyfast._threads import resolve_threads
from pyfast.sketch.reference import CHUNK

DIMS = tuple(2**i for i in range(7, 21))
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_BLOCK = 1 << 24  # numbers that are converted at a time


def project(
    v: Any, dim: int = 65536, seed: int = 0, *, module: int = 0, n_threads: int | None = None
) -> Any:
    """Project vectors to `dim` numbers so that inner products are kept: XOR stripes, version 1.

    With v cut into stripes of `dim` numbers, ``y[w] = sum_g (-1)^S(g,w) v[g dim + (w XOR X(g))]``,
    X and S drawn by Philox4x32-10. ``E<y, y'> = <v, v'>``, for unit vectors at cosine c with a
    standard deviation of about ``sqrt((1 + c^2) / dim)``.

    Parameters
    ----------
    v : array or tensor, shape (B, p) or (p,)
        float16, bfloat16, float32 or float64; float64 is rounded to float32. Any memory layout;
        a CPU array or tensor, or one on a GPU that Triton serves.
    dim : int
        Numbers in a sketch: a power of two, 2^7 to 2^20.
    seed : int
        0 to 2^64 - 1. Only sketches of one seed, dim and module can be compared.
    module : int
        0 to 2^32 - 1: sketches of different modules draw independently, to be added up.
    n_threads : int, optional
        Threads to use; default :func:`pyfast.get_num_threads`. The bits do not depend on it.

    Returns
    -------
    float32 array or tensor, shape (B, dim) or (dim,)
        Of the kind of `v`, where `v` lies.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of its range, shape or type, or a number is not finite.

    Notes
    -----
    The same bits from numpy (`reference.project`), every instruction set, thread count, batch size
    and GPU; docs/xor-stripes.md is the specification.

    Examples
    --------
    >>> import numpy as np
    >>> from pyfast import sketch
    >>> v = np.ones(1000, np.float32)
    >>> float(np.sum(sketch.project(v, dim=1024) ** 2))  # a single stripe keeps lengths
    1000.0
    """
    dim = check_dim(dim)
    seed = args.check_seed(seed)
    module = args.check_int(module, "module", 0, 2**32 - 1)
    threads = resolve_threads(n_threads)
    rows, flat = _as_rows(v)
    out: Any
    if (rows.shape[1] - 1) // dim >= 2**32:
        raise ValueError(f"v: expected at most {2**32 * dim} columns for dim={dim}")
    if isinstance(rows, torch.Tensor):
        tensor = torch.zeros(len(rows), dim, device=rows.device)
        add_projection(rows, tensor, seed, module, threads)
        out, finite = tensor, bool(torch.isfinite(tensor).all())
    else:
        array = np.zeros((len(rows), dim), np.float32)
        _add_array(rows, array, seed, module, threads)
        out, finite = array, _native.first_invalid(array, False) < 0
    if not finite:
        _raise_not_finite(rows)
    return out[0] if flat else out


def check_dim(dim: int) -> int:
    """Return a sketch's size: a power of two, 2^7 to 2^20."""
    dim = args.check_int(dim, "dim", DIMS[0], DIMS[-1])
    if dim not in DIMS:
        raise ValueError(f"dim: expected a power of two, got {dim}")
    return dim


def add_projection(
    v: torch.Tensor, out: torch.Tensor, seed: int, module: int, threads: int
) -> None:
    """Add the sketch of each row of v (B, p) to out (B, dim), float32 and contiguous, in place."""
    if v.device.type == "cpu":
        _add_array(v, out.numpy(), seed, module, threads)
        return
    from pyfast.kernels import runtime

    reason = runtime.why_unusable()
    if reason is not None:
        raise ValueError(f"v: expected a CPU tensor, got one on {v.device}: {reason}")
    from pyfast.kernels import sketch as kernels

    kernels.add_sketch(v, out, seed, module)


def _add_array(v: Any, out: NDArray[np.float32], seed: int, module: int, threads: int) -> None:
    """Do so for a numpy array or CPU tensor of any float dtype and layout."""
    if _is_plain(v):
        _native.sketch_add(np.asarray(v), out, seed, module, 0, threads)
        return
    rows, columns = v.shape
    dim = out.shape[1]
    width = CHUNK * dim * max(1, _BLOCK // (CHUNK * dim * max(rows, 1)))  # whole chunks
    for start in range(0, columns, width):
        block = _as_float32(v[:, start : start + width])
        _native.sketch_add(block, out, seed, module, start // dim, threads)


def _as_float32(block: Any) -> NDArray[np.float32]:
    """Return numbers of any float dtype and layout as the native core takes them."""
    if isinstance(block, torch.Tensor):
        block = block.float().contiguous().cpu().numpy()
    with np.errstate(over="ignore"):  # the caller looks for infinity
        return np.require(block, np.float32, ["C", "A"])


def _is_plain(v: Any) -> bool:
    """Tell whether the native core can read `v` where it lies."""
    if isinstance(v, torch.Tensor):
        return v.dtype == torch.float32 and v.is_contiguous()
    return bool(v.dtype == np.float32 and v.dtype.isnative and v.flags.c_contiguous) and bool(
        v.flags.aligned
    )


def _as_rows(v: Any) -> tuple[Any, bool]:
    """Return `v` as (B, p), and whether it was one vector."""
    rows: Any
    if isinstance(v, torch.Tensor):
        if v.dtype not in _FLOATS or v.layout != torch.strided:
            raise TypeError(f"v: expected a dense tensor of floats, got {v.dtype}, {v.layout}")
        if v.requires_grad and torch.is_grad_enabled():
            raise TypeError("v: sketches carry no gradient; pass v.detach()")
        rows = v.detach()
    else:
        rows = args.as_array(v, "v")
        if rows.dtype.kind != "f" or rows.dtype.itemsize > 8:
            raise TypeError(f"v: expected floats, float16 to float64, got {rows.dtype}")
    if rows.ndim not in (1, 2) or 0 in rows.shape:
        raise ValueError(f"v: expected shape (B, p) or (p,), not empty, got {tuple(rows.shape)}")
    return (rows[None], True) if rows.ndim == 1 else (rows, False)


def _raise_not_finite(rows: Any) -> None:
    """Name the first number that made a sketch overflow or become NaN."""
    for b in range(len(rows)):
        row = rows[b]
        for start in range(0, len(row), _BLOCK):
            bad = ~np.isfinite(_as_float32(row[start : start + _BLOCK]))
            if bad.any():
                at = start + int(bad.argmax())
                raise ValueError(
                    f"v: expected finite float32 numbers, got {float(row[at])} at row {b}, "
                    f"column {at}"
                )
    raise ValueError("v: its sums overflow float32; scale it down")
