"""Cases of one large k-medoids problem."""

import sys

import kmedoids
import numpy as np
import peers
from harness import Case, optional, verdict
from numpy.typing import NDArray
from scaling import Size, measure_apart
from threadpoolctl import threadpool_limits

from pyfast import select

RNG = np.random.default_rng(0)


def given_distances_cases(n: int = 10_000, k: int = 50) -> list[Case]:
    """One problem with its distances given, from the same start as kmedoids' FasterPAM.

    The peer is faster on the transposed matrix, which costs nothing: the distances are symmetric.
    """
    rng = np.random.default_rng(0)
    D = peers.unit_distances(rng.normal(size=(n, 16)).astype(np.float32))
    D = (D + D.T) / 2
    start = rng.choice(n, k, replace=False)
    theirs = start.astype(np.uint64)

    def ours(threads: int):
        return lambda: select.kmedoids(D, k, metric="precomputed", init=start, n_threads=threads)

    def check(ours: object, found: object) -> str:
        # On several threads the peer swaps in another order, and ends elsewhere; ours does not.
        serial = kmedoids.fasterpam(D.T, theirs, n_cpu=1)
        assert ours.cost <= serial.loss * (1 + 1e-6), (ours.cost, serial.loss)
        return f"cost {ours.cost:.3f}, peer's {found.loss:.3f}, {ours.n_swaps} swaps"

    def same(two: object, one: object) -> str:
        assert two.cost == one.cost
        assert np.array_equal(two.medoids, one.medoids)
        assert np.array_equal(two.labels, one.labels)
        return "the same medoids, labels and cost"

    name = f"k-medoids n={n} k={k}, distances given"
    common = {"unit": "problem", "items": 1, "bytes": 1.0 * n * n * 4, "repeats": 4}
    found = [
        Case(
            name + f", {threads} threads" * (threads > 1),
            ours=ours(threads),
            theirs=lambda given=given, threads=threads: kmedoids.fasterpam(
                given, theirs, n_cpu=threads
            ),
            peer=f"fasterpam ({order})",
            check=check,
            target=200e-3 if threads == 1 else None,
            **common,
        )
        for threads in (1, 2)
        for order, given in (("C order", D), ("transposed", D.T))
    ]
    found.append(
        Case(
            f"{name}, 2 threads",
            ours=ours(2),
            theirs=ours(1),
            peer="ours, 1 thread",
            check=same,
            target_ratio=1,
            **common,
        )
    )
    return found


def embeddings_case(n: int = 10_000, d: int = 384, k: int = 50) -> Case:
    """One problem from its embeddings, from the same start as numpy and kmedoids' FasterPAM."""
    points = latent_points(n, d)
    start = RNG.choice(n, k, replace=False)

    def theirs() -> float:
        D = peers.unit_distances(points)
        # D is symmetric; transposed it is read faster.
        found = kmedoids.fasterpam(D.T, start.astype(np.uint64), n_cpu=1)
        return peers.exact_cost(points, found.medoids)

    def check(ours: object, theirs: float) -> str:
        cost = peers.exact_cost(points, ours.medoids)
        assert abs(ours.cost - cost) <= 1e-5 * cost
        # Float32 distances round differently: a near tie may go the other way.
        assert cost <= theirs * (1 + 1e-3)
        return f"cost {cost:.1f}, peer's {theirs:.1f}"

    return Case(
        f"k-medoids n={n} d={d} k={k}, from embeddings",
        unit="problem",
        items=1,
        ours=lambda: select.kmedoids(points, k, init=start, n_threads=1),
        theirs=theirs,
        peer="numpy + fasterpam (transposed)",
        check=check,
        target=1.4,
        target_ratio=2.5,
        bytes=2.0 * n * n * 4,
        multiply_adds=n * n / 2 * d,
        repeats=4,
    )


def sampled_case(n: int = 100_000, d: int = 384, k: int = 50) -> Case:
    """More points than a matrix of distances has room for, on two cores."""
    points = latent_points(n, d)
    OneBatchPAM = optional("onebatch").OneBatchPAM

    def theirs() -> object:
        with threadpool_limits(2):
            return OneBatchPAM(n_medoids=k, random_state=0).fit(points).medoid_indices_

    def check(ours: object, theirs: NDArray[np.int64]) -> str:
        cost, peer = peers.exact_cost(points, ours.medoids), peers.exact_cost(points, theirs)
        assert abs(ours.cost - cost) <= 1e-5 * cost
        assert cost <= peer
        return f"cost {cost:.0f}, peer's {peer:.0f}; {peak_memory(n, d, k)}"

    return Case(
        f"k-medoids n={n} d={d} k={k}, from embeddings, 2 threads",
        unit="problem",
        items=1,
        ours=lambda: select.kmedoids(points, k, n_threads=2),
        theirs=theirs,
        peer="onebatch",
        check=check,
        target=2.5,
        multiply_adds=2.0 * k * n * d,  # each point against the medoids, before and after
        repeats=2,
    )


def peak_memory(n: int, d: int, k: int) -> str:
    """Say by how much a fresh process grows at its peak in the sampled case; points not counted."""
    if not sys.platform.startswith("linux"):
        return "peak memory is measured on Linux alone"
    peak = measure_apart(Size("kmedoids", n, d, k, threads=2), 0).peak_bytes
    return f"peak memory {peak / 1e9:.2f} GB beside the points, {verdict('< 1 GB', peak < 1e9)}"


def bandit_case(n: int = 2000, d: int = 16, k: int = 10) -> Case:
    """BanditPAM, which samples the distances that it needs."""
    points = latent_points(n, d)
    BanditPAM = optional("banditpam").KMedoids

    def theirs() -> NDArray[np.int64]:
        found = BanditPAM(n_medoids=k, algorithm="BanditPAM")
        found.fit(points, "L2")
        return np.asarray(found.medoids)

    def check(ours: object, theirs: NDArray[np.int64]) -> str:
        cost, peer = peers.exact_cost(points, ours.medoids), peers.exact_cost(points, theirs)
        assert cost <= peer * (1 + 1e-2)  # another local optimum
        return f"cost {cost:.1f}, peer's {peer:.1f}"

    return Case(
        f"k-medoids n={n} d={d} k={k}, from embeddings",
        unit="problem",
        items=1,
        ours=lambda: select.kmedoids(points, k, n_init=3, n_threads=1),
        theirs=theirs,
        peer="BanditPAM",
        check=check,
        multiply_adds=n * n / 2 * d,
        repeats=2,
    )


def latent_points(n: int, d: int) -> NDArray[np.float32]:
    """Sixteen directions that matter, and noise."""
    latent = RNG.normal(size=(n, 16)) @ RNG.normal(size=(16, d))
    return (latent + RNG.normal(size=(n, d))).astype(np.float32)


def cases() -> list[Case]:
    """All of them whose peer is installed."""
    found = [*given_distances_cases(), embeddings_case()]
    if optional("onebatch"):
        found.append(sampled_case())
    if optional("banditpam"):
        found.append(bandit_case())
    return found
