"""Checks of meaning that every selector shares: arrays, group layouts, counts and names.

Each error names the argument, the place and what was expected. Nothing is changed silently:
numbers are only converted where no value changes (integers and float16 widen).
"""

import operator
from dataclasses import dataclass
from numbers import Number
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyfast import _native

Floats = NDArray[np.float32] | NDArray[np.float64]
Indices = NDArray[np.int64]

# Above every count that makes sense, and small enough for the native core's arithmetic.
MOST = 2**62


@dataclass(frozen=True)
class Layout:
    """How a call's groups were given: one group, a batch of equal ones, or ragged ones.

    ``offsets`` has shape (B+1,), int64: group b owns the rows ``offsets[b]:offsets[b+1]``.
    """

    kind: Literal["one", "batch", "ragged"]
    offsets: Indices

    @property
    def count(self) -> int:
        return len(self.offsets) - 1

    @property
    def sizes(self) -> Indices:
        return np.diff(self.offsets)

    def place(self, row: int) -> str:
        """Name row `row` of the flat layout for an error message."""
        if self.kind == "one":
            return f"row {row}"
        group = int(np.searchsorted(self.offsets, row, side="right")) - 1
        return f"group {group}, row {row - int(self.offsets[group])}"

    def per_group(self, values: NDArray[Any]) -> Any:
        """Return (B, ...) values as the caller expects them: without B for one group."""
        if self.kind != "one":
            return values
        return values[0] if values.ndim > 1 else values[0].item()

    def per_point(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return flat (T,) values in the shape of the groups: (n,), (B, n) or (T,)."""
        return values.reshape(self.count, -1) if self.kind == "batch" else values


def as_array(value: ArrayLike, name: str) -> NDArray[Any]:
    """Return an array-like or CPU torch tensor as a numpy array, without importing torch."""
    if type(value) is np.ndarray:  # as most are: a call takes microseconds
        return value
    kind = type(value).__module__.partition(".")[0]
    if kind == "torch":
        return _of_torch(value, name)
    parts = value if isinstance(value, (list, tuple)) else [value]
    if any(isinstance(part, np.ma.MaskedArray) and np.ma.is_masked(part) for part in parts):
        raise ValueError(f"{name}: expected no masked values; leave them out or fill them in")
    _refuse_sparse(value, name)
    if kind == "pandas":
        return _of_pandas(value, name)
    if kind != "numpy" and hasattr(value, "__dlpack_device__"):
        return _of_dlpack(value, name)
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(
            f"{name}: expected one rectangular array; pass ragged groups end to end, "
            f"with offsets ({error})"
        ) from error
    except (RuntimeError, TypeError) as error:  # a list of such tensors
        raise TypeError(f"{name}: expected numbers that numpy can read ({error})") from error


def _of_torch(value: Any, name: str) -> NDArray[Any]:
    """View a tensor, which can be seen unless it is on a device, needs gradients or is bfloat16."""
    try:
        return np.asarray(value)
    except (RuntimeError, TypeError) as error:  # in torch's words, which do not name the argument
        _refuse_sparse(value, name)
        raise TypeError(
            f"{name}: expected a CPU tensor that numpy can view; "
            f"try {name}.detach().float().cpu() ({error})"
        ) from error


def _refuse_sparse(value: Any, name: str) -> None:
    if type(value) in (list, tuple):
        return
    kind = type(value)
    if kind.__module__.startswith(("scipy.sparse", "sparse")) and hasattr(value, "nnz"):
        dense = "toarray()" if hasattr(value, "toarray") else "todense()"
    elif kind.__module__.partition(".")[0] == "torch" and "sparse" in str(
        getattr(value, "layout", "")
    ):
        dense = "to_dense()"
    else:
        return
    raise TypeError(
        f"{name}: expected a dense array, got a sparse {kind.__name__} of shape "
        f"{tuple(value.shape)}; {name}.{dense} makes one, if memory holds it"
    )


def _of_dlpack(value: Any, name: str) -> NDArray[Any]:
    """View an array of another library; what is on a device is refused."""
    try:
        device = int(value.__dlpack_device__()[0])
        if device not in _ON_THE_CPU:
            raise TypeError(
                f"{name}: expected an array on the CPU, got {type(value).__name__} on a device "
                f"(DLPack's number {device}); copy it to the CPU first"
            )
        return np.asarray(value) if hasattr(value, "__array__") else np.from_dlpack(value)
    except (RuntimeError, BufferError, ValueError, AttributeError) as error:
        raise TypeError(f"{name}: expected an array that numpy can view ({error})") from error


_ON_THE_CPU = (1, 3, 11)
"""DLPack's numbers of memory that the CPU reads: its own, and CUDA's and ROCm's pinned one."""


def _of_pandas(value: Any, name: str) -> NDArray[Any]:
    """Return a frame or series as numpy reads it; of several types, no number is rounded."""
    if getattr(value, "ndim", 0) != 2:
        return _of_column(value, name)
    kinds = {str(kind) for kind in value.dtypes}
    if len(kinds) == 1 and isinstance(value.dtypes.iloc[0], np.dtype):
        return np.asarray(value)
    columns = []
    for place, label in enumerate(value.columns):
        column = _of_column(value.iloc[:, place], f"{name}: column {label!r}")
        columns.append(as_floats(column, f"{name}: column {label!r}", booleans=True))
    return np.stack(columns, axis=1) if columns else np.empty(value.shape)


def _of_column(value: Any, name: str) -> NDArray[Any]:
    if isinstance(value.dtype, np.dtype):
        return np.asarray(value)
    if getattr(value.dtype, "kind", "O") not in "iufb":  # categories, texts, dates
        raise TypeError(f"{name}: expected real numbers, got {value.dtype}")
    if value.isna().any():
        place = int(np.asarray(value.isna()).argmax())
        raise ValueError(f"{name}: expected a number in every row, got none in row {place}")
    return np.asarray(value.to_numpy(value.dtype.type if value.dtype.kind != "b" else bool))


def as_floats(value: ArrayLike, name: str, *, booleans: bool = False) -> Floats:
    """Return `value` as a C-contiguous float32 or float64 array; other numbers widen exactly.

    With `booleans`, truth values become 0 and 1.
    """
    array = as_array(value, name)
    if array.dtype == np.float16 or (booleans and array.dtype == np.bool_):
        array = array.astype(np.float32)
    elif array.dtype.kind in "iu":
        array = _widened(array, name)
    elif array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise TypeError(
            f"{name}: expected real numbers, float32 or float64, got {array.dtype}"
            f"{_for_objects(array, name)}"
        )
    if array.flags.c_contiguous and array.flags.aligned and array.dtype.isnative:
        return array
    return np.require(array, array.dtype.newbyteorder("="), ["C_CONTIGUOUS", "ALIGNED"])


def _for_objects(array: NDArray[Any], name: str) -> str:
    """Say what makes numbers of Python objects, as columns of pandas hold them."""
    first = array.flat[0] if array.dtype == object and array.ndim and array.size else None
    if isinstance(first, (list, tuple, np.ndarray)):
        return f"; np.stack({name}) makes one array of vectors"
    return f"; try np.asarray({name}, float)" if isinstance(first, Number) else ""


def _widened(array: NDArray[Any], name: str) -> NDArray[np.float64]:
    """Return integers as float64; of those from 2**53 on it does not hold every one."""
    wide = array.astype(np.float64)
    for flat in np.flatnonzero(np.abs(wide) >= 2**53).tolist() if array.itemsize == 8 else []:
        place = np.unravel_index(flat, array.shape)
        if int(wide[place]) != int(array[place]):
            at = ", ".join(str(i) for i in place)
            raise ValueError(
                f"{name}: expected numbers that float64 holds exactly, got {array[place]} at [{at}]"
            )
    return wide


def check_values(array: Floats, name: str, layout: Layout, *, nonnegative: bool = False) -> None:
    """Raise a ValueError that names the first NaN, infinite or (if asked) negative value."""
    flat = _native.first_invalid(array, nonnegative)
    if flat < 0:
        return
    value = array.reshape(-1)[flat]
    width = array.size // int(layout.offsets[-1])
    place = layout.place(flat // width)
    if width > 1:
        place += f", column {flat % width}"
    expected = "a finite number >= 0" if nonnegative else "a finite number"
    raise ValueError(f"{name}: expected {expected}, got {value} at {place}")


def layout_of(array: NDArray[Any], name: str, rank: int, offsets: ArrayLike | None) -> Layout:
    """Tell one group (`rank` axes), a batch (one more axis) and ragged groups (offsets) apart."""
    one, batch, flat = {1: ("(n,)", "(B, n)", "(T,)"), 2: ("(n, d)", "(B, n, d)", "(T, d)")}[rank]
    if offsets is not None:
        if array.ndim != rank:
            raise ValueError(
                f"{name}: with offsets, expected the groups end to end in shape {flat}, "
                f"got {array.shape}"
            )
        _check_axes(array, name)
        return Layout("ragged", check_offsets(offsets, array.shape[0]))
    if array.ndim == rank:
        layout = Layout("one", np.array([0, array.shape[0]]))
    elif array.ndim == rank + 1:
        count, size = array.shape[:2]
        layout = Layout("batch", np.arange(count + 1, dtype=np.int64) * size)
    else:
        raise ValueError(
            f"{name}: expected shape {one} for one group or {batch} for a batch, got {array.shape}"
        )
    _check_axes(array, name)
    return layout


def _check_axes(array: NDArray[Any], name: str) -> None:
    if 0 in array.shape:
        raise ValueError(f"{name}: expected no empty group or axis, got shape {array.shape}")


def check_offsets(offsets: ArrayLike, total: int | None) -> Indices:
    """Return ragged offsets as int64 of shape (B+1,), rising from 0 (to `total`, if known)."""
    array = as_array(offsets, "offsets")
    if array.dtype.kind not in "iu":
        raise TypeError(f"offsets: expected integers, got {array.dtype}")
    if array.ndim != 1 or len(array) < 2:
        raise ValueError(f"offsets: expected shape (B+1,) with B >= 1, got {array.shape}")
    array = np.ascontiguousarray(array, dtype=np.int64)
    if total is None:
        total = int(array[-1])
    if array[0] != 0 or array[-1] != total:
        raise ValueError(
            f"offsets: expected to rise from 0 to {total}, got {array[0]} to {array[-1]}"
        )
    sizes = np.diff(array)
    if (sizes <= 0).any():
        group = int(np.argmax(sizes <= 0))
        raise ValueError(
            f"offsets: group {group} is empty or runs backwards "
            f"({array[group]} to {array[group + 1]})"
        )
    return array


def like_points(value: ArrayLike, name: str, layout: Layout) -> NDArray[np.float64]:
    """Return one float64 per point, flat: `value` has shape (n,), (B, n) or (T,) by layout."""
    array = as_floats(value, name)
    total = int(layout.offsets[-1])
    shape = (layout.count, total // layout.count) if layout.kind == "batch" else (total,)
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, one value per point, got {array.shape}")
    return array.reshape(-1).astype(np.float64)


def check_int(value: int, name: str, low: int, high: int = MOST) -> int:
    """Return `value` as an int within [low, high], or raise naming it."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}") from None
    if not low <= number <= high:
        limit = f"at least {low}" if number < low and high == MOST else f"{low} to {high}"
        raise ValueError(f"{name}: expected {limit}, got {number}")
    return number


def check_k(k: int, layout: Layout) -> int:
    """Return k, at least 1 and at most the size of the smallest group."""
    number = check_int(k, "k", 1)
    group = int(np.argmin(layout.sizes))
    if number > layout.sizes[group]:
        where = "" if layout.kind == "one" else f" in group {group}"
        raise ValueError(f"k: expected at most the {layout.sizes[group]} points{where}, got {k}")
    return number


def check_finite(value: float, name: str) -> float:
    """Return `value` as a finite float, or raise naming it."""
    real = (int, float, np.integer, np.floating)
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, real):
        raise TypeError(f"{name}: expected a float, got {type(value).__name__}")
    given = int(value) if isinstance(value, np.integer) else value
    try:
        number = float(given)
    except OverflowError:
        raise ValueError(
            f"{name}: expected a number that float64 holds, got a larger int"
        ) from None
    if not np.isfinite(number):
        raise ValueError(f"{name}: expected a finite number, got {number}")
    if number != given:
        raise ValueError(f"{name}: expected a number that float64 holds exactly, got {given}")
    return number


def check_positive(value: float, name: str) -> float:
    """Return `value` as a finite float above 0, or raise naming it."""
    number = check_finite(value, name)
    if number <= 0:
        raise ValueError(f"{name}: expected a number above 0, got {number}")
    return number


def check_positions(value: int | ArrayLike, name: str, layout: Layout) -> Indices:
    """Return one position per group, shape (B,): `value` is one for all groups or one for each."""
    array = as_array(value, name)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected an int or integers, got {array.dtype}")
    if array.ndim > 0 and (layout.kind == "one" or array.shape != (layout.count,)):
        shape = "an int" if layout.kind == "one" else f"an int or shape ({layout.count},)"
        raise ValueError(f"{name}: expected {shape}, got shape {array.shape}")
    positions: Indices = np.array(np.broadcast_to(array, layout.count), np.int64)
    outside = (positions < 0) | (positions >= layout.sizes)
    if outside.any():
        group = int(np.argmax(outside))
        where = "" if layout.kind == "one" else f" for group {group}"
        raise ValueError(
            f"{name}: expected 0 to {layout.sizes[group] - 1}, got {positions[group]}{where}"
        )
    return positions


def check_name(value: str, name: str, allowed: tuple[str, ...]) -> str:
    """Return `value` if it is one of the `allowed` names."""
    if not isinstance(value, str) or value not in allowed:
        names = ", ".join(repr(a) for a in allowed)
        raise ValueError(f"{name}: expected one of {names}, got {value!r}")
    return value


def check_seed(seed: int) -> int:
    """Return a seed that fits 64 unsigned bits."""
    return check_int(seed, "seed", 0, 2**64 - 1)
