"""Bad inputs of the log-det selectors, their baselines and hard preference: one message each."""

import numpy as np
import pytest

from pyfast import select

V = np.arange(12.0).reshape(6, 2)
H = np.arange(6.0)
PAIRS = [[0, 1], [2, 3], [4, 5]]
STATE = select.logdet(V, 2).state


def with_value(array: np.ndarray, at: tuple[int, ...], value: float) -> np.ndarray:
    changed = array.copy()
    changed[at] = value
    return changed


CASES = {
    "k zero": (lambda: select.logdet(V, 0), ValueError, "k: expected at least 1, got 0"),
    "k large": (lambda: select.logdet(V, 7), ValueError, "k: expected at most the 6 points, got 7"),
    "k large in a group": (
        lambda: select.logdet(V, 3, offsets=[0, 4, 6]),
        ValueError,
        "k: expected at most the 2 points in group 1, got 3",
    ),
    "gamma zero": (
        lambda: select.logdet(V, 1, 0.0),
        ValueError,
        "gamma: expected a number above 0, got 0.0",
    ),
    "gamma NaN": (
        lambda: select.logdet(V, 1, np.nan),
        ValueError,
        "gamma: expected a finite number, got nan",
    ),
    "gamma complex": (
        lambda: select.logdet(V, 1, np.complex128(0.1 + 5j)),
        TypeError,
        "gamma: expected a float, got complex128",
    ),
    "gamma past float64": (
        lambda: select.logdet(V, 1, 10**400),
        ValueError,
        "gamma: expected a number that float64 holds, got a larger int",
    ),
    "gamma that float64 does not hold": (
        lambda: select.logdet(V, 1, 2**53 + 1),
        ValueError,
        f"gamma: expected a number that float64 holds exactly, got {2**53 + 1}",
    ),
    "gamma that float64 does not hold, by numpy": (
        lambda: select.logdet(V, 1, np.int64(2**53 + 1)),
        ValueError,
        f"gamma: expected a number that float64 holds exactly, got {2**53 + 1}",
    ),
    "gamma text": (lambda: select.logdet(V, 1, "1"), TypeError, "gamma: expected a float, got str"),
    "scale negative": (
        lambda: select.logdet(V, 1, scale=-1.0),
        ValueError,
        "scale: expected a number above 0, got -1.0",
    ),
    "NaN vector": (
        lambda: select.logdet(with_value(V, (3, 1), np.nan), 2),
        ValueError,
        "V: expected a finite number, got nan at row 3, column 1",
    ),
    "inf vector in a batch": (
        lambda: select.logdet(np.stack([V, with_value(V, (3, 1), np.inf)]), 2),
        ValueError,
        "V: expected a finite number, got inf at group 1, row 3, column 1",
    ),
    "NaN vector with exact": (
        lambda: select.logdet(with_value(V, (3, 1), np.nan), 2, exact=True),
        ValueError,
        "V: expected a finite number, got nan at row 3, column 1",
    ),
    "lengths overflow": (
        lambda: select.logdet(V * 1e200, 2),
        ValueError,
        "the squared length of candidate 0 times scale / gamma overflows; scale the vectors down",
    ),
    "no columns in ragged groups": (
        lambda: select.logdet(np.empty((6, 0)), 2, offsets=[0, 3, 6]),
        ValueError,
        "V: expected no empty group or axis, got shape (6, 0)",
    ),
    "one axis": (
        lambda: select.logdet(H, 2),
        ValueError,
        "V: expected shape (n, d) for one group or (B, n, d) for a batch, got (6,)",
    ),
    "state of another type": (
        lambda: select.logdet(V, 2, state={}),
        TypeError,
        "state: expected a LogDetState or None, got dict",
    ),
    "state of other columns": (
        lambda: select.logdet(V[:, :1], 2, state=STATE),
        ValueError,
        "state: expected vectors of 1 numbers, got 2",
    ),
    "state of another gamma": (
        lambda: select.logdet(V, 2, 0.5, state=STATE),
        ValueError,
        "gamma: expected the state's 0.1, got 0.5",
    ),
    "state of another scale": (
        lambda: select.logdet(V, 2, scale=2.0, state=STATE),
        ValueError,
        "scale: expected the state's 1.0, got 2.0",
    ),
    "state for a batch": (
        lambda: select.logdet(V[None], 2, state=STATE),
        ValueError,
        "state: expected one group, got a batch or offsets",
    ),
    "state without an array": (
        lambda: select.LogDetState.from_arrays({"vectors": V}),
        ValueError,
        "state: expected an array named 'factor'",
    ),
    "state of wrong shapes": (
        lambda: select.LogDetState.from_arrays({**STATE.to_arrays(), "factor": V}),
        ValueError,
        "state: expected vectors (m, d), factor (m, m) and numbers (3,), got (2, 2), (6, 2)",
    ),
    "state with NaN": (
        lambda: select.LogDetState.from_arrays(
            {**STATE.to_arrays(), "factor": np.full((2, 2), np.nan)}
        ),
        ValueError,
        "state: expected finite numbers and positive pivots",
    ),
    "too many subsets": (
        lambda: select.logdet(np.ones((60, 2)), 20, exact=True),
        ValueError,
        "exact: expected at most 1000000 subsets, got 4191844505805495 (20 of 60 vectors)",
    ),
    "mass without columns in ragged groups": (
        lambda: select.mass_dpo(np.empty((6, 0)), H, H, k=1, offsets=[0, 3, 6]),
        ValueError,
        "features: expected no empty group or axis, got shape (6, 0)",
    ),
    "mass k": (
        lambda: select.mass_dpo(V, H, H, k=6),
        ValueError,
        "k: expected at most the 5 negatives, got 6",
    ),
    "mass k in a group": (
        lambda: select.mass_dpo(V, H, H, k=2, offsets=[0, 4, 6]),
        ValueError,
        "k: expected at most the 1 negatives of group 1, got 2",
    ),
    "mass logps": (
        lambda: select.mass_dpo(V, H[:5], H),
        ValueError,
        "policy_logps: expected shape (6,), one value per point, got (5,)",
    ),
    "mass NaN logp": (
        lambda: select.mass_dpo(V, H, with_value(H, (2,), np.nan)),
        ValueError,
        "ref_logps: expected a finite number, got nan at row 2",
    ),
    "mass NaN feature": (
        lambda: select.mass_dpo(with_value(V, (5, 0), np.nan), H, H),
        ValueError,
        "features: expected a finite number, got nan at row 5, column 0",
    ),
    "mass scores overflow": (
        lambda: select.mass_dpo(V, with_value(H, (2,), 1e308), with_value(H, (2,), -1e308)),
        ValueError,
        "the scores beta (h_i - h_preferred) overflow",
    ),
    "mass preferred": (
        lambda: select.mass_dpo(V, H, H, preferred=6),
        ValueError,
        "preferred: expected 0 to 5, got 6",
    ),
    "mass preferred of a group": (
        lambda: select.mass_dpo(V, H, H, preferred=[0, 2], k=1, offsets=[0, 4, 6]),
        ValueError,
        "preferred: expected 0 to 1, got 2 for group 1",
    ),
    "mass preferred of the wrong shape": (
        lambda: select.mass_dpo(V, H, H, preferred=[0, 2]),
        ValueError,
        "preferred: expected an int, got shape (2,)",
    ),
    "mass preferred float": (
        lambda: select.mass_dpo(V, H, H, preferred=1.0),
        TypeError,
        "preferred: expected an int or integers, got float64",
    ),
    "mass curvature": (
        lambda: select.mass_dpo(V, H, H, curvature="hessian"),
        ValueError,
        "curvature: expected one of 'unit', 'fisher', got 'hessian'",
    ),
    "mass beta": (
        lambda: select.mass_dpo(V, H, H, beta=0),
        ValueError,
        "beta: expected a number above 0, got 0.0",
    ),
    "pairs of floats": (
        lambda: select.active_dpo(V, [[0.0, 1.0]], 1),
        TypeError,
        "pairs: expected integers, got float64",
    ),
    "pairs of three": (
        lambda: select.active_dpo(V, [[0, 1, 2]], 1),
        ValueError,
        "pairs: expected shape (P, 2), got (1, 3)",
    ),
    "pair out of range": (
        lambda: select.active_dpo(V, [[0, 1], [2, 6]], 1),
        ValueError,
        "pairs: expected two different rows of sketches (0 to 5), got [2, 6] at pair 1",
    ),
    "pair of one response": (
        lambda: select.apo(V, [[3, 3]], 1),
        ValueError,
        "pairs: expected two different rows of embeddings (0 to 5), got [3, 3] at pair 0",
    ),
    "more pairs than there are": (
        lambda: select.active_dpo(V, PAIRS, 4),
        ValueError,
        "k: expected 1 to 3, got 4",
    ),
    "sketches of one axis": (
        lambda: select.active_dpo(H, PAIRS, 1),
        ValueError,
        "sketches: expected shape (M, d), got (6,)",
    ),
    "NaN sketch": (
        lambda: select.active_dpo(with_value(V, (4, 1), np.nan), PAIRS, 1),
        ValueError,
        "sketches: expected a finite number, got nan at row 4, column 1",
    ),
    "sketches overflow": (
        lambda: select.active_dpo(with_value(V, (4, 1), 1e200), PAIRS, 1),
        ValueError,
        "sketches: the squared length of row 4 overflows; scale the rows down",
    ),
    "normalize": (
        lambda: select.active_dpo(V, PAIRS, 1, None, "rows"),
        ValueError,
        "normalize: expected one of 'response', 'pair', got 'rows'",
    ),
    "lam": (
        lambda: select.active_dpo(V, PAIRS, 1, lam=0.0),
        ValueError,
        "lam: expected a number above 0, got 0.0",
    ),
    "lam of another state": (
        lambda: select.active_dpo(V, PAIRS, 1, STATE),
        ValueError,
        "gamma: expected the state's 0.1, got 1.0",
    ),
    "state and refresh": (
        lambda: select.active_dpo(V, PAIRS, 1, STATE, lam=0.1, refresh=PAIRS),
        ValueError,
        "refresh: expected no state beside it; it builds V anew",
    ),
    "aplp shapes": (
        lambda: select.aplp(H, V[:5], 1),
        ValueError,
        "rewards: expected shape (6, 2), got (5, 2)",
    ),
    "aplp NaN": (
        lambda: select.aplp(with_value(H, (3,), np.nan), V, 1),
        ValueError,
        "entropies: expected a finite number, got nan at row 3",
    ),
    "aplp infinite reward": (
        lambda: select.aplp(H, with_value(V, (3, 1), np.inf), 1),
        ValueError,
        "rewards: expected a finite number, got inf at row 3, column 1",
    ),
    "aplp of nothing": (
        lambda: select.aplp([], np.empty((0, 2)), 1),
        ValueError,
        "entropies: expected shape (P,) with P >= 1, got (0,)",
    ),
    "aplp entropies of two axes": (
        lambda: select.aplp(V, V, 1),
        ValueError,
        "entropies: expected shape (P,) with P >= 1, got (6, 2)",
    ),
    "aplp shortlist": (
        lambda: select.aplp(H, V, 3, shortlist=2),
        ValueError,
        "shortlist: expected 3 to 6, got 2",
    ),
    "aplp prompts that are no numbers": (
        lambda: select.aplp(H, V, 1, prompts=H),
        TypeError,
        "prompts: expected integers, got float64",
    ),
    "aplp prompts of another shape": (
        lambda: select.aplp(H, V, 1, prompts=[1, 2]),
        ValueError,
        "prompts: expected shape (6,), got (2,)",
    ),
    "aplp one prompt of two entropies": (
        lambda: select.aplp([0.5, 0.25, 0.125], V[:3], 1, prompts=[4, 9, 4]),
        ValueError,
        "entropies: expected one for all pairs of prompt 4, got 0.5 at 0 and 0.125 at 2",
    ),
    "aplp one of unknown prompts": (
        lambda: select.aplp(H, V, 1, per_prompt="one"),
        ValueError,
        "prompts: expected the prompt of each pair beside per_prompt='one'",
    ),
    "aplp one of too few prompts": (
        lambda: select.aplp(np.ones(6), V, 3, prompts=[0, 0, 1, 1, 1, 1], per_prompt="one"),
        ValueError,
        "k: expected 1 to 2, got 3",
    ),
    "hard one response": (
        lambda: select.hard_preference(H, 1.0, offsets=[0, 5, 6]),
        ValueError,
        "rewards: expected at least 2 responses, got 1 in group 1",
    ),
    "hard draws": (
        lambda: select.hard_preference(H, 1.0, 6, replace=False),
        ValueError,
        "draws: expected 1 to 5, got 6",
    ),
    "hard gamma complex": (
        lambda: select.hard_preference(H, np.complex128(1 + 5j)),
        TypeError,
        "gamma: expected a float, got complex128",
    ),
    "hard draws past 64 bits": (
        lambda: select.hard_preference(H, 1.0, 2**63),
        ValueError,
        f"draws: expected 1 to {2**62}, got {2**63}",
    ),
    "hard gamma": (
        lambda: select.hard_preference(H, np.inf),
        ValueError,
        "gamma: expected a finite number, got inf",
    ),
    "hard overflow": (
        lambda: select.hard_preference(H * 1e300, 1e20),
        ValueError,
        "gamma: gamma times rewards overflows; scale the rewards down",
    ),
    "hard ties": (
        lambda: select.hard_preference([[1.0, 0.0], [2.0, 2.0]], 1.0),
        ValueError,
        "rewards: expected a negative, got none of group 1: all score as the preferred one "
        "(leave the group out, or pass keep_ties=True)",
    ),
    "hard ties of one group": (
        lambda: select.hard_preference([2.0, 2.0], 1.0),
        ValueError,
        "rewards: expected a negative, got none: all score as the preferred one "
        "(leave the group out, or pass keep_ties=True)",
    ),
    "hard draws beside ties": (
        lambda: select.hard_preference([2.0, 2.0, 1.0, 0.0], 1.0, 3, replace=False),
        ValueError,
        "draws: expected 1 to 2, got 3",
    ),
    "name of a schedule": (
        lambda: select.hard_preference_gamma(0.5, schedule="step"),
        ValueError,
        "schedule: expected one of 'linear', 'levels', 'constant', got 'step'",
    ),
    "schedule": (
        lambda: select.hard_preference_gamma(1.5),
        ValueError,
        "progress: expected 0 to 1, got 1.5",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_message(name: str) -> None:
    call, error, words = CASES[name]
    with pytest.raises(error) as raised:
        call()
    assert words in str(raised.value)


def test_a_pickled_state_is_not_opened(tmp_path) -> None:
    path = tmp_path / "evil.npz"
    np.savez(path, vectors=np.array([{}], object), factor=np.eye(1), numbers=np.ones(3))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        select.LogDetState.load(path)


def test_the_extension_itself_refuses_wrong_arrays() -> None:
    from pyfast._core import logdet_groups, logdet_one, logdet_pairs, mass_dpo

    none, square = np.empty((0, 2)), np.empty((0, 0))
    pairs, ones = np.array([[0, 1]]), np.ones(6)
    for call, words in [
        (lambda: logdet_one(V.T, 1, 1, 1, none, square, 0, 1), "V: expected a C-contiguous"),
        (lambda: logdet_one(V, 7, 1, 1, none, square, 0, 1), "k: expected 1 to "),
        (lambda: logdet_one(V, 1, 1, 1, V, square, 0, 1), "factor: expected one row"),
        (
            lambda: logdet_one(V, 1, 1, 1, np.ones((1, 3)), np.eye(1), 0, 1),
            "vectors: expected 2 columns",
        ),
        (lambda: logdet_groups(V, np.array([0, 5]), 1, 1, 1, 1), "offsets: expected"),
        (lambda: logdet_groups(V, np.array([0, 5, 6]), 2, 1, 1, 1), "k: expected 1 to "),
        (
            lambda: logdet_pairs(V, np.array([[0, 6]]), ones, ones[:1], 1, 1, none, square, 0, 1),
            "pairs: expected rows of sketches",
        ),
        (
            lambda: logdet_pairs(V, pairs, ones, ones, 1, 1, none, square, 0, 1),
            "pairs: expected (P, 2)",
        ),
        (
            lambda: mass_dpo(V, H, H, np.array([6]), np.array([0, 6]), 1, 1, 1, False, 1),
            "preferred: expected a position",
        ),
        (
            lambda: mass_dpo(V[:5], H, H, np.array([0]), np.array([0, 6]), 1, 1, 1, False, 1),
            "features: expected one row per response",
        ),
    ]:
        with pytest.raises(TypeError) as raised:
            call()
        assert words in str(raised.value)
