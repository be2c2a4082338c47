"""Greedy log-det against H^-1 as a d x d matrix, all subsets, and its own contract."""

from itertools import combinations
from pathlib import Path

import numpy as np
import peak_memory
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfast import select
from pyfast.select import reference as ref


def vectors(seed: int, n: int, d: int, kind: str) -> np.ndarray:
    rng = np.random.default_rng(seed)
    V = rng.normal(size=(n, d))
    if kind == "unit":
        V /= np.linalg.norm(V, axis=1, keepdims=True)
    elif kind == "duplicates":
        V[n // 2 :] = V[: n - n // 2]
    elif kind == "zeros":
        V[rng.random(n) < 0.5] = 0
    elif kind == "rank":
        V = V[:, :2] @ rng.normal(size=(2, d))
    elif kind == "spread":
        V *= 10.0 ** rng.uniform(-1.5, 1.5, size=(n, 1))
    return V


KINDS = ["plain", "unit", "duplicates", "zeros", "rank", "spread"]


def assert_gains(V: np.ndarray, found: select.LogDetResult, gamma: float, scale: float) -> None:
    """Among themselves the picks are in greedy order, with the gains of rational arithmetic."""
    picked = V[found.indices].astype(float)
    order, gains = ref.logdet_exact(picked, len(picked), gamma, scale)
    assert order == list(range(len(picked)))
    np.testing.assert_allclose(found.gains, gains, rtol=1e-11, atol=0)
    assert (np.diff(found.gains) <= 0).all()


def assert_contract(V: np.ndarray, found: select.LogDetResult, gamma: float, scale: float) -> None:
    indices = found.indices.tolist()
    assert len(set(indices)) == len(indices)
    assert all(0 <= i < len(V) for i in indices)
    assert_gains(V, found, gamma, scale)
    assert (found.gains >= 0).all()
    empty = V.shape[1] * np.log(gamma)
    whole = ref.logdet_value(V[indices].astype(float), gamma, scale)
    # The two parts may cancel, so the error is relative to what was summed.
    size = abs(empty) + found.gains.sum() + 1e-300
    assert abs(found.logdet - whole) <= 1e-9 * size
    assert abs(found.logdet - (empty + found.gains.sum())) <= 1e-14 * size


@pytest.mark.parametrize("kind", KINDS)
def test_follows_sherman_morrison(kind: str) -> None:
    for seed in range(25):
        rng = np.random.default_rng(seed)
        n, d = int(rng.integers(2, 60)), int(rng.integers(1, 70))
        k = int(rng.integers(1, min(n, 15) + 1))
        if kind in {"rank", "zeros", "duplicates"}:
            k = min(k, 2)  # beyond, ties are decided by rounding; see the contract tests
        gamma, scale = 10.0 ** rng.uniform(-2, 1), 10.0 ** rng.uniform(-2, 1)
        V = vectors(seed, n, d, kind)
        found = select.logdet(V, k, gamma, scale=scale)
        picks, gains = ref.logdet(V, k, gamma, scale)
        assert found.indices.tolist() == picks
        assert found.gains == pytest.approx(gains, rel=1e-7, abs=1e-11)
        assert_contract(V, found, gamma, scale)


@given(
    st.integers(1, 10).flatmap(
        lambda n: st.tuples(
            st.lists(st.integers(-2, 2), min_size=3 * n, max_size=3 * n),
            st.integers(1, n),
            st.sampled_from([0.01, 0.1, 1.0, 30.0]),
            st.sampled_from([1e-3, 1.0, 50.0]),
        )
    )
)
@settings(max_examples=300, deadline=None)
def test_any_small_grid(case: tuple[list[int], int, float, float]) -> None:
    coordinates, k, gamma, scale = case
    V = np.reshape(coordinates, (-1, 3)).astype(float)
    found = select.logdet(V, k, gamma, scale=scale)
    assert_contract(V, found, gamma, scale)
    narrow = select.logdet(V.astype(np.float32), k, gamma, scale=scale)
    assert narrow.indices.tolist() == found.indices.tolist()
    best = max(ref.logdet_value(V[list(s)], gamma, scale) for s in combinations(range(len(V)), k))
    empty = 3 * np.log(gamma)
    assert found.logdet - empty >= (1 - 1 / np.e) * (best - empty) - 1e-9
    exact = select.logdet(V, k, gamma, scale=scale, exact=True)
    assert exact.logdet == pytest.approx(best, rel=1e-9, abs=1e-9)
    assert exact.logdet >= found.logdet - 1e-9


def test_greedy_is_not_always_optimal() -> None:
    """Against MASS-DPO's Lemma 4.3: the longest vector first, then only what is left."""
    V = np.array([[1.0, 1.0], [1.39, 0.0], [0.0, 1.39]])
    greedy = select.logdet(V, 2, 0.1)
    exact = select.logdet(V, 2, 0.1, exact=True)
    assert greedy.indices.tolist() == [0, 1]
    assert exact.indices.tolist() == [1, 2]
    assert exact.logdet > greedy.logdet + 0.1


def test_exact_refuses_the_lengths_that_greedy_refuses() -> None:
    V = np.array([[1.0, 0.0], [0.0, 1.0], [1e160, 1e160], [-1e160, 1e160]])
    words = "times scale / gamma overflows; scale the vectors down"
    with pytest.raises(ValueError, match=f"squared length of candidate 2 {words}"):
        select.logdet(V, 2)
    with pytest.raises(ValueError, match=f"V: the squared length of row 2 {words}"):
        select.logdet(V, 2, exact=True)
    with pytest.raises(ValueError, match=f"V: the squared length of group 1, row 2 {words}"):
        select.logdet(np.stack([V / 1e80, V]), 2, exact=True)
    with pytest.raises(ValueError, match=f"V: the squared length of row 0 {words}"):
        select.logdet(V[:2], 2, 1e-300, scale=1e100, exact=True)


@peak_memory.MEASURED
def test_exact_with_many_picks_stays_within_the_memory_that_is_stated(run_python) -> None:
    code = """
import peak_memory
import numpy as np
from pyfast import select
n, k, d = 251, 250, 8
V = np.random.default_rng(0).normal(size=(n, d))
select.logdet(V[:6], 2, exact=True)
before = peak_memory.reset()
assert len(select.logdet(V, k, exact=True).indices) == k
grown = peak_memory.peak() - before
greedy = 2 * n * (k + 4) + k * (k + d + 640) + k * d
print(grown, 8 * (greedy + n * (d + 5 * n + 10 * k)))
"""
    grown, stated = map(int, run_python(code).split())
    assert grown <= stated + 4e6


def test_ties_go_to_the_lowest_index() -> None:
    assert select.logdet(np.ones((9, 4)), 9).indices.tolist() == list(range(9))
    assert select.logdet(np.zeros((9, 4)), 9).indices.tolist() == list(range(9))
    axes = np.tile(np.eye(5), (2, 1)) * np.where(np.arange(10) % 3 == 0, -3.0, 3.0)[:, None]
    assert select.logdet(axes, 10).indices.tolist() == list(range(10))
    # Equal in exact arithmetic, not in floating point: the same numbers in another order.
    rng = np.random.default_rng(0)
    row = rng.normal(size=200)
    shuffled = np.stack([rng.permutation(row) for _ in range(30)])
    assert select.logdet(shuffled, 1).indices.tolist() == [0]
    # Just outside the tolerance the longer one wins, just inside the first.
    assert select.logdet([[1.0], [1.0 + 1e-9]], 1).indices.tolist() == [1]
    assert select.logdet([[1.0], [1.0 + 1e-11]], 1).indices.tolist() == [0]


@pytest.mark.parametrize("size", [1e-150, 1e-30, 1e-15, 1e15, 1e30, 1e150])
def test_scale_of_the_vectors_does_not_matter_if_gamma_follows(size: float) -> None:
    V = vectors(0, 40, 30, "plain")
    power = 2.0 ** round(np.log2(size))  # exact
    expected = select.logdet(V, 12, 0.125)
    found = select.logdet(V * power, 12, 0.125 * power * power)
    assert found.indices.tolist() == expected.indices.tolist()
    assert (found.gains == expected.gains).all()


def test_tiny_gamma_and_more_picks_than_the_rank() -> None:
    V = vectors(1, 40, 30, "rank")
    for gamma in (1e-12, 1e-6, 1e6):
        found = select.logdet(V, 40, gamma)
        assert sorted(found.indices.tolist()) == list(range(40))
        assert_gains(V, found, gamma, 1.0)
        assert np.isfinite(found.logdet)


def test_state_saved_loaded_and_continued_equals_one_run(tmp_path: Path) -> None:
    for kind in KINDS:
        V = vectors(3, 50, 37, kind)
        whole = select.logdet(V, 20, 0.5, scale=2.0)
        first = select.logdet(V, 7, 0.5, scale=2.0)
        assert first.state is not None
        first.state.save(tmp_path / "state")
        state = select.LogDetState.load(tmp_path / "state")
        rest = np.delete(np.arange(50), first.indices)
        more = select.logdet(V[rest], 13, 0.5, scale=2.0, state=state)
        assert [*first.indices, *rest[more.indices]] == whole.indices.tolist()
        assert [*first.gains, *more.gains] == whole.gains.tolist()
        assert more.logdet == whole.logdet
        assert whole.state is not None
        assert more.state is not None
        for name, array in whole.state.to_arrays().items():
            assert (more.state.to_arrays()[name] == array).all()
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_state_counts_old_vectors_against_new_candidates() -> None:
    old, new = vectors(4, 12, 20, "plain"), vectors(5, 30, 20, "plain")
    state = select.logdet(old, 12, 0.3).state
    found = select.logdet(new, 9, 0.3, state=state)
    picks, gains = ref.logdet(new, 9, 0.3, 1.0, old)
    assert found.indices.tolist() == picks
    assert found.gains == pytest.approx(gains, rel=1e-9)
    everything = np.concatenate([old, new[found.indices]])
    assert found.logdet == pytest.approx(ref.logdet_value(everything, 0.3), rel=1e-9)
    assert found.state is not None
    assert (found.state.vectors[12:] == new[found.indices]).all()
    exact = select.logdet(new[:10], 3, 0.3, state=state, exact=True)
    best = max(
        ref.logdet_value(np.concatenate([old, new[list(s)]]), 0.3)
        for s in combinations(range(10), 3)
    )
    assert exact.logdet == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_for_every_layout_type_and_thread_count(kind: str) -> None:
    V = vectors(6, 400, 700, kind).astype(np.float32)
    expected = select.logdet(V, 30, n_threads=1)
    every_other = np.repeat(V, 2, axis=0)[::2]
    for data in (V, V.astype(np.float64), np.asfortranarray(V), every_other, V.astype(">f4")):
        for threads in (1, 2, 5):
            found = select.logdet(data, 30, n_threads=threads)
            assert (found.indices == expected.indices).all()
            assert (found.gains == expected.gains).all()
            assert found.logdet == expected.logdet


@pytest.mark.parametrize("size", [2.0**-40, 2.0**-30, 1.0, 2.0**40, 2.0**55])
@pytest.mark.parametrize("kind", [*KINDS, "close", "one long"])
def test_bounds_change_nothing(kind: str, size: float) -> None:
    """Float32 rows are bounded in float32 first where that is safe, float64 rows are not."""
    V = vectors(8, 300, 900, kind)
    if kind == "close":  # so nearly equal that float32 products cannot tell them apart
        V = V[0] + 1e-6 * V
    elif kind == "one long":
        V[77] *= 1e6
    V = (V * size).astype(np.float32)
    for gamma in (0.1 * size**2, 1e-5 * size**2):
        wide = select.logdet(V.astype(np.float64), 40, gamma)
        narrow = select.logdet(V, 40, gamma)
        assert (narrow.indices == wide.indices).all()
        assert (narrow.gains == wide.gains).all()
        rest = np.delete(V, wide.indices, axis=0)
        more = select.logdet(rest, 30, gamma, state=narrow.state)
        assert (
            more.indices == select.logdet(rest.astype(float), 30, gamma, state=wide.state).indices
        ).all()


def test_batch_and_ragged_equal_single_calls() -> None:
    rng = np.random.default_rng(7)
    V = rng.normal(size=(6, 20, 33))
    batch = select.logdet(V, 4, n_threads=3)
    exact = select.logdet(V[:, :7], 2, exact=True)
    assert batch.indices.shape == batch.gains.shape == (6, 4)
    assert batch.logdet.shape == (6,)
    assert batch.state is None
    sizes = [20, 4, 9]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    ragged = select.logdet(V.reshape(-1, 33)[: sum(sizes)], 4, offsets=offsets)
    for b in range(6):
        one = select.logdet(V[b], 4)
        assert (one.indices == batch.indices[b]).all()
        assert one.logdet == batch.logdet[b]
        assert exact.logdet[b] == select.logdet(V[b, :7], 2, exact=True).logdet
    for b in range(3):
        one = select.logdet(V.reshape(-1, 33)[offsets[b] : offsets[b + 1]], 4)
        assert (one.indices == ragged.indices[b]).all()
        assert (one.gains == ragged.gains[b]).all()


@pytest.mark.parametrize("level", ["baseline", "avx2", "avx512"])
def test_same_bits_at_every_simd_level(run_python, monkeypatch, level: str) -> None:
    code = """
import numpy as np
from pyfast import select
for n, d, k in [(200, 611, 25), (300, 37, 90), (400, 130, 150), (500, 64, 40)]:
    V = np.random.default_rng(0).normal(size=(n, d))
    V /= np.linalg.norm(V, axis=1, keepdims=True)
    for data in (V, V.astype(np.float32)):
        found = select.logdet(data, k)
        print(found.indices.tolist(), found.gains.tobytes().hex(), found.logdet.hex())
        print(found.state.factor.tobytes().hex()[-10_000:])
"""
    expected = run_python(code)
    monkeypatch.setenv("PYFAST_SIMD", level)
    try:
        found = run_python(code)
    except AssertionError as error:
        if "PYFAST_SIMD: expected a level of this machine" not in str(error):
            raise
        pytest.skip(f"no {level} here")
    assert found == expected


@peak_memory.MEASURED
def test_memory_stays_below_what_is_stated() -> None:
    """The rows are neither copied nor widened, and no d x d or n x n matrix is made."""
    V = np.random.default_rng(0).normal(size=(2000, 16384)).astype(np.float32)  # 131 MB
    select.logdet(V[:50], 2)
    before = peak_memory.reset()
    select.logdet(V, 10)
    grown = peak_memory.peak() - before
    stated = 8 * (2 * 2000 * 14 + 10 * (10 + 2 * 16384) + 10 * 16384)
    assert grown <= stated + 4e6
