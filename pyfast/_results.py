"""What the result objects of all rooms share: equality by value."""

from dataclasses import fields
from typing import Any, ClassVar

import numpy as np


class ByValue:
    """Base of frozen dataclasses that hold arrays: `==` compares every field by its numbers.

    Two results are equal if they are of one class and each field is: arrays (and CPU tensors) as
    `numpy.array_equal` says, so that NaN equals nothing, whatever their dtypes; all else by `==`.
    They cannot be hashed, as arrays cannot. Pass ``eq=False`` to the dataclass decorator.
    """

    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return all(
            _equal(getattr(self, f.name), getattr(other, f.name))
            for f in fields(self)  # type: ignore[arg-type]
        )


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    if _is_tensor(a) or _is_tensor(b):
        if not (_is_tensor(a) and _is_tensor(b)) or a.shape != b.shape or a.device != b.device:
            return False
        return bool((a == b).all())
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)):
            return False
        return bool(np.array_equal(a, b))
    return bool(a == b)


def _is_tensor(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "device")
