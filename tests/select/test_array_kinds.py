"""The same numbers in other libraries' arrays, and those that are refused with what to do."""

import numpy as np
import pytest
import scipy.sparse

from pyfast import select

# The sanitizers' environment has neither: the core never sees their arrays, numpy's views of them.
pd, torch = pytest.importorskip("pandas"), pytest.importorskip("torch")

X = np.random.default_rng(0).integers(0, 2, (12, 4)).astype(np.float32)
X[:, 0] = np.arange(12) % 5


class OfDLPack:
    """An array of a library that speaks DLPack alone."""

    def __init__(self, array, device=1):
        self._array, self._device = array, device

    def __dlpack_device__(self):
        return (self._device, 0)

    def __dlpack__(self, **kwargs):
        return self._array.__dlpack__(**kwargs)


KINDS = {
    "lists": lambda a: a.tolist(),
    "torch": torch.from_numpy,
    "torch, strided": lambda a: torch.from_numpy(np.repeat(a, 2, axis=1))[:, ::2],
    "torch, half": lambda a: torch.from_numpy(a).half(),
    "DLPack": OfDLPack,
    "DLPack, pinned": lambda a: OfDLPack(a, 3),
    "pandas": pd.DataFrame,
    "pandas, whole and broken": lambda a: pd.DataFrame(a).astype({0: "int64", 1: "float64"}),
    "pandas, nullable": lambda a: pd.DataFrame(a).astype("Int32"),
    "pandas, nullable floats": lambda a: pd.DataFrame(a).astype({2: "Float64"}),
    "pandas, of Arrow": lambda a: pd.DataFrame(a).astype("double[pyarrow]"),
    "pandas, sparse": lambda a: pd.DataFrame(a).astype(pd.SparseDtype("float32", 0.0)),
    "memory of another order": np.asfortranarray,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_choices(kind):
    if "Arrow" in kind:
        pytest.importorskip("pyarrow")
    wanted = select.kmedoids(X, 3)
    found = select.kmedoids(KINDS[kind](X), 3)
    assert found == wanted
    assert found.predict(KINDS[kind](X)).tolist() == wanted.predict(X).tolist()
    rewards = np.linspace(0, 1, 12)
    given = KINDS[kind](X)
    assert select.opt_select(given, rewards, k=3) == select.opt_select(X, rewards, k=3)
    assert select.logdet(given, 3) == select.logdet(X, 3)


TRUTHS = {
    "numpy": lambda a: a,
    "torch": torch.from_numpy,
    "pandas": pd.DataFrame,
    "pandas, nullable": lambda a: pd.DataFrame(a).astype("boolean"),
    "pandas, mixed": lambda a: pd.DataFrame(a).astype({0: "float64"}),
}


@pytest.mark.parametrize("kind", TRUTHS)
def test_truth_values_are_points(kind):
    truths = np.random.default_rng(1).random((12, 6)) < 0.5
    wanted = select.kmedoids(truths.astype(np.float32), 3, metric="manhattan")
    assert select.kmedoids(TRUTHS[kind](truths), 3, metric="manhattan") == wanted
    near = select.kmedoids(TRUTHS[kind](truths), 3)
    assert near == select.kmedoids(truths.astype(np.float32), 3)
    with pytest.raises(TypeError, match="rewards: expected real numbers"):
        select.bottom_k(truths[:, 0], 2)
    with pytest.raises(TypeError, match="X: expected real numbers"):
        select.kmedoids(np.eye(3) == 0, 2, metric="precomputed")


def test_a_series_of_rewards():
    rewards = pd.Series(np.linspace(0, 1, 12), index=range(100, 112))
    assert select.bottom_k(rewards, 3) == select.bottom_k(rewards.to_numpy(), 3)
    assert select.bottom_k(rewards.astype("Float64"), 3) == select.bottom_k(rewards.to_numpy(), 3)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (scipy.sparse.csr_matrix(X), r"got a sparse csr_matrix of shape \(12, 4\); X.toarray\(\)"),
        (scipy.sparse.coo_array(X), r"got a sparse coo_array .* X.toarray\(\) makes one"),
        (torch.from_numpy(X).to_sparse(), r"got a sparse Tensor .* X.to_dense\(\) makes one"),
        (torch.from_numpy(X).to_sparse_csr(), r"got a sparse Tensor .* X.to_dense\(\) makes one"),
        (OfDLPack(X, 2), "expected an array on the CPU, got OfDLPack on a device .DLPack's number"),
        (OfDLPack(X, 8), "copy it to the CPU first"),
        (torch.empty(12, 4, device="meta"), "expected a CPU tensor"),
        (torch.zeros(3, 2, dtype=torch.complex64), "X: expected real numbers"),
        (torch.from_numpy(X).requires_grad_(), "X.detach"),
        (torch.from_numpy(X).bfloat16(), r"float\(\)"),
        (pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]}), "X: column 'b': expected real numbers"),
        (pd.DataFrame({"a": [1.0, 2.0], "b": pd.Categorical([1, 2])}), "X: column 'b': expected"),
        (pd.DataFrame({"a": pd.to_datetime(["2020-01-01", "2021-01-01"])}), "X: expected real"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_refused(value, message):
    with pytest.raises(TypeError, match=message):
        select.kmedoids(value, 2)


def test_numbers_of_frames_are_not_rounded_or_made_up():
    mixed = pd.DataFrame({"a": [2**53 + 1, 0, 5], "b": [0.5, 1.0, 2.0]})
    with pytest.raises(ValueError, match=r"X: column 'a': .* float64 holds exactly"):
        select.kmedoids(mixed, 2)
    missing = pd.DataFrame({"a": pd.array([1, None, 3], "Int64"), "b": [0.5, 1.0, 2.0]})
    with pytest.raises(ValueError, match=r"X: column 'a': expected a number in every row, .* 1$"):
        select.kmedoids(missing, 2)
    with pytest.raises(ValueError, match="X: expected a finite number, got nan at row 2, column 1"):
        select.kmedoids(pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [0.5, 1.0, np.nan]}), 2)
