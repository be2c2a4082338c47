"""ActiveDPO, APO and APLP against their definitions, over several rounds."""

from pathlib import Path

import numpy as np
import peak_memory
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfast import select
from pyfast.select import reference as ref


def pool(seed: int, prompts: int = 15, d: int = 40) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Three responses and so three pairs a prompt, as in the paper."""
    rng = np.random.default_rng(seed)
    sketches = rng.normal(size=(3 * prompts, d)) * rng.uniform(0.1, 10, size=(3 * prompts, 1))
    pairs = [(3 * x + a, 3 * x + b) for x in range(prompts) for a, b in ((0, 1), (0, 2), (1, 2))]
    return sketches, pairs


@pytest.mark.parametrize("normalize", ["response", "pair", None])
def test_rounds_carry_v_over(normalize: str | None, tmp_path: Path) -> None:
    state, chosen = None, np.empty((0, 40))
    for t in range(4):
        sketches, pairs = pool(t)
        found = select.active_dpo(sketches, pairs, 6, state, normalize, 0.7)
        phi = ref.pair_vectors(sketches, pairs, normalize)
        assert found.indices.tolist() == ref.active_dpo(sketches, pairs, 6, chosen, normalize, 0.7)
        chosen = np.concatenate([chosen, phi[found.indices]])
        assert found.logdet == pytest.approx(ref.logdet_value(chosen, 0.7), rel=1e-9)
        assert found.state.vectors == pytest.approx(chosen, rel=1e-12, abs=1e-14)
        found.state.save(tmp_path / "v.npz")
        state = select.LogDetState.load(tmp_path / "v.npz")


def test_refresh_builds_v_from_the_old_pairs_under_the_new_policy() -> None:
    sketches, pairs = pool(0)
    old = pairs[:7]
    found = select.active_dpo(sketches, pairs[7:], 5, refresh=old)
    phi = ref.pair_vectors(sketches, old, "response")
    assert found.indices.tolist() == ref.active_dpo(sketches, pairs[7:], 5, phi)
    everything = np.concatenate(
        [phi, ref.pair_vectors(sketches, pairs[7:], "response")[found.indices]]
    )
    assert found.logdet == pytest.approx(ref.logdet_value(everything, 1.0), rel=1e-9)


def test_float32_and_memory_maps_give_the_same_bits(tmp_path: Path) -> None:
    sketches, pairs = pool(3, prompts=40, d=1500)
    narrow = sketches.astype(np.float32)
    np.save(tmp_path / "g.npy", narrow)
    mapped = np.load(tmp_path / "g.npy", mmap_mode="r")
    for normalize in ("response", "pair", None):
        expected = select.active_dpo(narrow.astype(np.float64), pairs, 30, None, normalize)
        for data, threads in (
            (narrow, 1),
            (mapped, 1),
            (narrow, 3),
            (np.asfortranarray(narrow), 2),
        ):
            found = select.active_dpo(data, pairs, 30, None, normalize, n_threads=threads)
            assert (found.indices == expected.indices).all()
            assert (found.gains == expected.gains).all()


@peak_memory.MEASURED
def test_lengths_of_pairs_stay_within_the_memory_that_is_stated(run_python) -> None:
    code = """
import peak_memory
import numpy as np
from pyfast import select
M, P, k, d = 999, 999, 5, 16384
sketches = np.random.default_rng(0).random((M, d), np.float32)
pairs = np.stack([np.arange(P), np.roll(np.arange(P), 1)], axis=1)
select.active_dpo(sketches[:20], pairs[1:20], 2, normalize="pair")
before = peak_memory.reset()
select.active_dpo(sketches, pairs, k, normalize="pair")
grown = peak_memory.peak() - before
print(grown, 8 * (P * (k + 6) + 2 * k * d + k * k + M + 5 * 65_536))
"""
    grown, stated = map(int, run_python(code).split())
    assert grown <= stated + 4e6


@peak_memory.MEASURED
def test_a_pool_of_long_sketches_is_not_copied() -> None:
    rng = np.random.default_rng(0)
    sketches = rng.normal(size=(900, 32768)).astype(np.float32)  # 118 MB; 236 MB as float64
    pairs = np.stack([np.arange(900), np.roll(np.arange(900), 1)], axis=1)
    select.active_dpo(sketches[:20], pairs[1:20], 2)
    before = peak_memory.reset()
    found = select.active_dpo(sketches, pairs, 20)
    grown = peak_memory.peak() - before
    assert len(set(found.indices.tolist())) == 20
    assert grown <= 8 * (900 * 25 + 2 * 20 * 32768) + 6e6


def test_zero_sketches_and_equal_pairs() -> None:
    sketches, pairs = pool(1, prompts=4)
    sketches[:6] = 0
    for normalize in ("response", "pair", None):
        found = select.active_dpo(sketches, pairs, 12, None, normalize)
        assert sorted(found.indices.tolist()) == list(range(12))
        assert sorted(found.indices.tolist()[-6:]) == list(range(6))
    reversed_twins = [(0, 1), (7, 8), (8, 7), (7, 8)]
    assert select.active_dpo(sketches, reversed_twins, 4).indices.tolist() == [1, 2, 3, 0]


def test_without_normalisation_a_scale_of_the_sketches_is_one_of_lam() -> None:
    sketches, pairs = pool(7)
    scaled = select.active_dpo(0.25 * sketches, pairs, 12, None, None, 1.0)
    other = select.active_dpo(sketches, pairs, 12, None, None, 16.0)
    assert scaled.indices.tolist() == other.indices.tolist()
    assert scaled.gains == pytest.approx(other.gains, rel=1e-9)
    sketches *= 0.03  # short beside lam
    plain = select.active_dpo(sketches, pairs, 12, None, None, 1.0)
    scaled = select.active_dpo(128 * sketches, pairs, 12, None, None, 1.0)
    assert plain.indices.tolist() != scaled.indices.tolist()
    for normalize in ("response", "pair"):
        plain = select.active_dpo(sketches, pairs, 12, None, normalize)
        scaled = select.active_dpo(128 * sketches, pairs, 12, None, normalize)
        assert plain.indices.tolist() == scaled.indices.tolist()


def test_apo_is_the_criterion_on_raw_embeddings() -> None:
    embeddings, pairs = pool(5)
    found = select.apo(embeddings, pairs, 9, lam=2.0)
    assert found.indices.tolist() == ref.active_dpo(embeddings, pairs, 9, None, None, 2.0)
    again = select.apo(embeddings, pairs, 3, found.state, lam=2.0)
    phi = ref.pair_vectors(embeddings, pairs, None)
    assert again.indices.tolist() == ref.logdet(phi, 3, 2.0, 1.0, phi[found.indices])[0]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),  # entropy
            st.integers(0, 4),  # pairs
        ),
        min_size=1,
        max_size=6,
    ).filter(lambda prompts: any(n for _, n in prompts)),
    st.booleans(),
    st.integers(0, 2**64 - 1),
    st.data(),
)
@settings(max_examples=200, deadline=None)
def test_aplp_follows_the_reference(pool, one, seed, data) -> None:
    entropies = [float(e) for e, n in pool for _ in range(n)]
    prompts = [10 - x for x, (_, n) in enumerate(pool) for _ in range(n)]
    order = data.draw(st.permutations(range(len(prompts))))
    entropies, prompts = [entropies[i] for i in order], [prompts[i] for i in order]
    rewards = data.draw(
        st.lists(
            st.lists(st.integers(-3, 3), min_size=2, max_size=2),
            min_size=len(prompts),
            max_size=len(prompts),
        )
    )
    most = len(set(prompts)) if one else len(prompts)
    k = data.draw(st.integers(1, most))
    shortlist = data.draw(st.integers(k, most))
    how = "one" if one else "all"
    found = select.aplp(
        entropies, rewards, k, prompts=prompts, shortlist=shortlist, per_prompt=how, seed=seed
    )
    assert found.indices.tolist() == ref.aplp(entropies, rewards, k, shortlist, prompts, one, seed)


def test_aplp_never_cuts_inside_a_prompt() -> None:
    # Three pairs a prompt as in ActiveDPO, the surest pair of each last; two prompts make 5 pairs.
    entropies = np.repeat([0.2, 0.9, 0.5, 0.7], 3)
    rewards = np.zeros((12, 2))
    rewards[:, 0] = [50, 50, 50, 1, 2, 30, 40, 40, 40, 3, 4, 20]
    for prompts in (None, np.repeat([5, 6, 7, 8], 3)):
        found = select.aplp(entropies, rewards, 2, prompts=prompts, shortlist=5)
        assert found.indices.tolist() == [5, 11]
        found = select.aplp(entropies, rewards, 2, prompts=prompts, shortlist=3)
        assert found.indices.tolist() == [5, 4]
    one = {"prompts": np.repeat([5, 6, 7, 8], 3), "per_prompt": "one"}
    assert select.aplp(entropies, rewards, 2, shortlist=2, **one).indices.tolist() == [5, 11]
    assert set(select.aplp(entropies, rewards, 3, shortlist=3, **one).indices.tolist()) < {
        *(5, 11),
        *(6, 7, 8),
    }


def test_aplp_ties_go_by_seed_and_not_by_position() -> None:
    seen = np.zeros(60)
    for seed in range(200):
        prompts = np.repeat(np.arange(20), 3)
        found = select.aplp(np.ones(60), np.zeros((60, 2)), 6, prompts=prompts, seed=seed)
        assert len(set(found.indices.tolist())) == 6
        assert len({*prompts[found.indices]}) <= 4  # twelve pairs were kept: four prompts
        seen[found.indices] += 1
    assert seen.min() > 5  # 20 expected
    assert seen.max() < 45


def test_aplp_default_shortlist() -> None:
    entropies, rewards = np.arange(10.0), np.zeros((10, 2))
    rewards[:, 0] = [99, 99, 99, 99, 1, 2, 3, 4, 5, 6]
    assert select.aplp(entropies, rewards, 3).indices.tolist() == [9, 8, 7]
    kept = select.aplp(entropies, rewards, 5).indices.tolist()
    assert sorted(kept[:4]) == [0, 1, 2, 3]
    assert kept[4] == 9
    big = select.aplp(entropies, [[1e308, -1e308]] * 10, 2)
    assert {*big.indices.tolist()} < {6, 7, 8, 9}
