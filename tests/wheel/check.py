"""An installed wheel beside its own reference: ``python check.py [first|last]``.

No test framework and no compiler are needed. "first" and "last" say when torch is imported; the
picks have to be the same, and the ones of numpy's plain page.
"""

import shutil
import sys

import numpy as np


def choose(select):
    """Choose by several selectors; the slow reference has to agree."""
    rng = np.random.default_rng(0)
    embeddings, rewards = rng.normal(size=(40, 24)), rng.random(40)
    medoids = select.kmedoids(embeddings, 5, weights=rewards, n_init=4)
    distances = np.linalg.norm(embeddings[:, None] - embeddings[medoids.medoids][None], axis=2)
    np.testing.assert_allclose((rewards * distances.min(1)).sum(), medoids.cost, rtol=1e-9)
    logdet = select.logdet(embeddings, 6, gamma=0.1)
    indices, _ = select.reference.logdet_exact(embeddings, 6, 0.1)
    assert logdet.indices.tolist() == list(indices)
    one = select.opt_select(embeddings, rewards, k=7, n_threads=1)
    two = select.opt_select(embeddings, rewards, k=7, n_threads=2)
    assert one.negatives.tolist() == two.negatives.tolist()
    return [medoids.medoids.tolist(), logdet.indices.tolist(), one.negatives.tolist()]


def runtimes():
    """Return the OpenMP runtimes of this process, where the system tells."""
    try:
        with open("/proc/self/maps") as stream:
            return {line.split("/")[-1].strip() for line in stream if "omp" in line.lower()}
    except OSError:
        return set()


def main(order=None):
    """Check, and print what was chosen: the same line whenever torch is imported."""
    if order == "first":
        import torch
    from pyfast import select
    from pyfast._native import build_info

    chosen = choose(select)
    built = build_info()
    found = {name for name in ("cc", "gcc", "g++", "clang") if shutil.which(name)}
    told = f"{built['threads']} threads, {built['simd']}, {built['compiler']}"
    print(f"torch {order}: {told}; compilers here: {found or 'none'}", file=sys.stderr)
    if built["threads"] == "std" and order is None:
        assert not runtimes(), runtimes()
    if order == "last":
        import torch
    if order is not None:
        ours = torch.from_numpy(np.random.default_rng(1).normal(size=(64, 64)))
        assert torch.isfinite(ours @ ours).all()
        assert choose(select) == chosen
        print(f"OpenMP runtimes: {sorted(runtimes())}", file=sys.stderr)
    print(chosen)


if __name__ == "__main__":
    main(*sys.argv[1:])
