"""Where the gradients of one backward pass go: into sketches, or whole into memory."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyfast._threads import get_num_threads
from pyfast.sketch._products import add_products, products
from pyfast.sketch._project import add_projection


class Sketches:
    """A sink that adds sketches to some rows of a batch's."""

    def __init__(
        self,
        places: list[slice],
        seed: int,
        rows: list[int],
        sketches: Tensor,
        norms: NDArray[np.float64],
        whole: Mapping[int, NDArray[np.float32]],
    ) -> None:
        self._places, self._seed = places, seed
        self._rows, self._sketches, self._norms = rows, sketches, norms
        self._whole = [(at, whole[row]) for at, row in enumerate(rows) if row in whole]
        self._threads = get_num_threads()

    def factors(self, number: int, wide: Tensor, narrow: Tensor) -> None:
        rows, threads = self._rows, self._threads
        every = len(rows) == len(self._sketches)
        out = self._sketches if every else self._sketches[rows]
        self._norms[rows, number] = add_products(wide, narrow, out, self._seed, number, threads)
        if not every:
            self._sketches[rows] = out
        for at, gradient in self._whole:
            tile = products(wide[at : at + 1], narrow[at : at + 1], threads)
            gradient[self._places[number]] = tile.view(-1).cpu().numpy()

    def whole(self, number: int, gradient: Tensor) -> None:
        (row,) = self._rows
        flat = gradient.view(1, -1).to(self._sketches.device)
        add_projection(flat, self._sketches[row : row + 1], self._seed, number, self._threads)
        self._norms[row, number] = float(flat.double().square().sum())
        for _, kept in self._whole:
            kept[self._places[number]] = gradient.reshape(-1).cpu().numpy()


class Whole:
    """A sink that keeps gradients."""

    def __init__(self, places: list[slice], rows: list[int], out: Tensor) -> None:
        self._places, self._rows, self._out = places, rows, out
        self._threads = get_num_threads()

    def factors(self, number: int, wide: Tensor, narrow: Tensor) -> None:
        tile = products(wide, narrow, self._threads)
        self._out[self._rows, self._places[number]] = tile.view(len(self._rows), -1)

    def whole(self, number: int, gradient: Tensor) -> None:
        self._out[self._rows, self._places[number]] = gradient.view(1, -1).to(self._out.device)
