"""How faithful sketches are: exact inner products beside sketched ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyfast._files import written_whole
from pyfast.sketch._batches import Response
from pyfast.sketch._collector import LoraGradients
from pyfast.sketch._guards import check_distinct

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Drift:
    """How far one model's gradients are from another's, response by response.

    Attributes
    ----------
    least_cosine, mean_cosine : float
        Of the angle between the two gradients of a response.
    largest_relative_error : float
        Length of the difference by the length of the other model's gradient.
    """

    least_cosine: float
    mean_cosine: float
    largest_relative_error: float


@dataclass(frozen=True)
class FidelityReport:
    """Exact Gram against sketched Gram; all inner products are those of unit vectors.

    Attributes
    ----------
    responses, pairs, size, dim : int
        Responses compared, pairs of them, numbers in a gradient and in a sketch.
    rms_error, largest_error : float
        Of the sketched cosine, over the pairs.
    theory : float
        ``sqrt(mean((1 + cos^2) / dim))``, what rms_error is expected to be at most.
    largest_norm_error : float
        Relative error of a sketch's length.
    least_cosine, largest_cosine : float
        Range of the exact cosines.
    silent : list of str
        Matrices whose gradient is zero in every response (A, while B is 0).
    drift : Drift or None
        Against another model, where asked.
    """

    responses: int
    pairs: int
    size: int
    dim: int
    rms_error: float
    largest_error: float
    theory: float
    largest_norm_error: float
    least_cosine: float
    largest_cosine: float
    silent: list[str]
    drift: Drift | None

    def __str__(self) -> str:
        lines = [
            f"{self.responses} responses, {self.pairs} pairs: p = {self.size} to {self.dim}",
            f"exact cosines        {self.least_cosine:+.4f} to {self.largest_cosine:+.4f}",
            f"error of cosines     {self.rms_error:.5f} rms, {self.largest_error:.5f} at most",
            f"theory               {self.theory:.5f} (ratio {self.rms_error / self.theory:.3f})",
            f"error of lengths     {self.largest_norm_error:.2%} at most",
            f"matrices without any {len(self.silent)}",
        ]
        if self.drift is not None:
            lines.append(
                f"drift                cosine {self.drift.least_cosine:.6f} at least, "
                f"{self.drift.mean_cosine:.6f} on average, relative error "
                f"{self.drift.largest_relative_error:.2e} at most"
            )
        return "\n".join(lines)

    def save(self, path: str | Path) -> None:
        """Write the report as JSON, whole or not at all."""
        with written_whole(Path(path)) as beside:
            beside.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> FidelityReport:
        """Read a report.

        Parameters
        ----------
        path : str or Path
            Of the JSON that `save` wrote.

        Raises
        ------
        ValueError
            If there is no report.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            drift = None if found["drift"] is None else Drift(**found["drift"])
            return cls(**{**found, "drift": drift})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"path: expected a fidelity report at {path} ({error})") from None


def fidelity(
    collector: LoraGradients,
    responses: Sequence[Response],
    *,
    against: LoraGradients | None = None,
    max_tokens: int = 4096,
) -> FidelityReport:
    """Compare exact and sketched inner products of some responses' gradients.

    Parameters
    ----------
    collector : LoraGradients
        Of the run.
    responses : sequence of (prompt_ids, response_ids)
        At least two that have tokens; about 32 tell enough. Their gradients are held in memory:
        R x p x 4 bytes, twice that with `against`. (`collect` keeps those that it reports on in a
        file.)
    against : LoraGradients, optional
        Of the same adapter on another model, float32 beside bfloat16 say: adds `Drift`.
    max_tokens : int
        Tokens of a batch, padding included.

    Returns
    -------
    FidelityReport
        Print it, or save it.

    Raises
    ------
    ValueError
        If a gradient is not finite or zero (the message names matrix and response), or those of
        different responses are all equal, or `against` has other matrices.
    """
    if sum(len(response) > 0 for _, response in responses) < 2:
        raise ValueError("responses: expected at least two that have tokens")
    matrices = (collector.names, collector.places)
    if against is not None and (against.names, against.places) != matrices:
        raise ValueError("against: expected the same LoRA matrices as collector")
    exact, sketches = _run(collector, responses, max_tokens)
    check_distinct(sketches, [(list(p), list(r)) for p, r in responses if len(r) > 0])
    drift = None
    if against is not None:
        try:
            drift = _drift(exact, _run(against, responses, max_tokens)[0])
        except ValueError as reason:
            raise ValueError(f"against: {reason}") from None
    return compare(collector, exact, sketches, drift)


def _run(
    collector: LoraGradients, responses: Sequence[Response], max_tokens: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return gradients and sketches, (R, p) and (R, dim), of the responses that have tokens."""
    rows = [number for number, (_, response) in enumerate(responses) if len(response) > 0]
    exact = np.empty((len(rows), collector.size), np.float32)
    sketches = np.empty((len(responses), collector.dim), np.float32)
    wanted = dict(zip(rows, exact, strict=True))
    for numbers, batch in collector.stream(responses, max_tokens, gradients=wanted):
        sketches[numbers] = batch.sketches.cpu().numpy()
    return exact, sketches[rows]


def compare(
    collector: LoraGradients,
    gradients: NDArray[np.float32],
    sketches: NDArray[np.float32],
    drift: Drift | None = None,
) -> FidelityReport:
    """Report on the gradients (R, p) and sketches (R, dim) of R >= 2 responses."""
    cosines, lengths = _cosines(gradients)
    sketched = sketches / lengths[:, None]
    above = np.triu_indices(len(sketched), 1)
    error = (sketched @ sketched.T - cosines)[above]
    silent = [
        name
        for name, place in zip(collector.names, collector.places, strict=True)
        if not gradients[:, place].any()
    ]
    return FidelityReport(
        responses=len(sketched),
        pairs=len(error),
        size=collector.size,
        dim=collector.dim,
        rms_error=float(np.sqrt(np.mean(error**2))),
        largest_error=float(np.abs(error).max()),
        theory=float(np.sqrt(np.mean(1 + cosines[above] ** 2) / collector.dim)),
        largest_norm_error=float(np.abs(np.linalg.norm(sketched, axis=1) - 1).max()),
        least_cosine=float(cosines[above].min()),
        largest_cosine=float(cosines[above].max()),
        silent=silent,
        drift=drift,
    )


def _blocks(size: int) -> list[slice]:
    return [slice(start, start + (1 << 18)) for start in range(0, size, 1 << 18)]


def _cosines(gradients: NDArray[np.float32]) -> tuple[Doubles, Doubles]:
    """Return the cosines and the lengths, summed in float64."""
    gram = np.zeros((len(gradients), len(gradients)))
    for block in _blocks(gradients.shape[1]):
        some = gradients[:, block].astype(np.float64)
        gram += some @ some.T
    lengths = np.sqrt(np.diag(gram))
    return gram / np.outer(lengths, lengths), lengths


def _drift(gradients: NDArray[np.float32], other: NDArray[np.float32]) -> Drift:
    sums = np.zeros((4, len(gradients)))
    for block in _blocks(gradients.shape[1]):
        a, b = gradients[:, block].astype(np.float64), other[:, block].astype(np.float64)
        sums += [(a * a).sum(1), (b * b).sum(1), (a * b).sum(1), ((a - b) ** 2).sum(1)]
    cosines = sums[2] / np.sqrt(sums[0] * sums[1])
    errors = np.sqrt(sums[3] / sums[1])
    return Drift(float(cosines.min()), float(cosines.mean()), float(errors.max()))
