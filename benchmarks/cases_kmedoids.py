"""Cases of one large k-medoids problem."""

import kmedoids
import numpy as np
import peers
from harness import Case, optional
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pyfast import select

RNG = np.random.default_rng(0)


def given_distances_case(n: int = 10_000, k: int = 50, n_threads: int = 1) -> Case:
    """One problem with its distances given, from the same start as kmedoids' FasterPAM."""
    rng = np.random.default_rng(0)  # the same problem for every number of threads
    D = peers.unit_distances(rng.normal(size=(n, 16)).astype(np.float32))
    D = (D + D.T) / 2
    start = rng.choice(n, k, replace=False)

    def check(ours: object, theirs: object) -> str:
        # On several threads the peer swaps in another order, and ends elsewhere; ours does not.
        serial = theirs
        if n_threads > 1:
            serial = kmedoids.fasterpam(D, start.astype(np.uint64), n_cpu=1)
        assert ours.cost <= serial.loss * (1 + 1e-6)
        return f"cost {ours.cost:.3f}, peer's {theirs.loss:.3f}, {ours.n_swaps} swaps"

    return Case(
        f"k-medoids n={n} k={k}, distances given" + f", {n_threads} threads" * (n_threads > 1),
        unit="problem",
        items=1,
        ours=lambda: select.kmedoids(D, k, metric="precomputed", init=start, n_threads=n_threads),
        theirs=lambda: kmedoids.fasterpam(D, start.astype(np.uint64), n_cpu=n_threads),
        peer="fasterpam (C order)",
        check=check,
        target=300e-3,
        bytes=1.0 * n * n * 4,
        repeats=4,
    )


def embeddings_case(n: int = 10_000, d: int = 384, k: int = 50) -> Case:
    """One problem from its embeddings, from the same start as numpy and kmedoids' FasterPAM."""
    points = latent_points(n, d)
    start = RNG.choice(n, k, replace=False)

    def theirs() -> float:
        D = peers.unit_distances(points)
        found = kmedoids.fasterpam(D, start.astype(np.uint64), n_cpu=1)
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
        peer="numpy + fasterpam",
        check=check,
        target=1.4,
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
        return f"cost {cost:.0f}, peer's {peer:.0f}"

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
    found = [given_distances_case(), given_distances_case(n_threads=2), embeddings_case()]
    if optional("onebatch"):
        found.append(sampled_case())
    if optional("banditpam"):
        found.append(bandit_case())
    return found
