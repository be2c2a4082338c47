"""The folder for Hugging Face's `kernels`, loaded by it and run in the interpreter."""

import sys

import pytest
import torch
from packaging.version import Version
from pyfast.kernels import hub_folder

kernels = pytest.importorskip("kernels")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = hub_folder.write(tmp_path_factory.mktemp("hub") / "pyfast")
    return folder, kernels.get_local_kernel(folder)


def test_it_loads_as_a_package_of_its_own(loaded):
    folder, module = loaded
    assert module.__file__ == str(folder / "build" / "torch-universal" / "__init__.py")
    assert module.contrast.__module__.startswith(module.__name__ + ".")
    assert "pyfast.kernels" not in module.contrast.__module__
    assert sorted(module.__all__) == sorted(
        n for names in hub_folder.PUBLIC.values() for n in names
    )
    assert module.why_unusable() is None  # they are interpreted here
    assert (folder / "README.md").read_text().startswith("---\nlicense: apache-2.0")
    assert Version(kernels.__version__) >= Version("0.17")


@pytest.mark.parametrize("shape", [(7, 5), (3, 130)])
def test_losses_and_slopes_are_the_references(loaded, shape):
    _, module = loaded
    torch.manual_seed(0)
    scores = torch.randn(shape)
    for ours, name in ((module.contrast, "contrast"), (module.listwise, "listwise")):
        loss, slope = ours(scores)
        x = scores.double().requires_grad_()
        if name == "contrast":  # log(1 + sum_rest exp(s - s_0))
            true = torch.logsumexp(x, 1) - x[:, 0]
        else:  # Plackett-Luce
            tails = x.flip(1).logcumsumexp(1).flip(1)
            true = (tails - x).sum(1)
        true.sum().backward()
        torch.testing.assert_close(loss.double(), true.detach(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(slope.double(), x.grad, rtol=1e-5, atol=1e-5)


def test_sketches_are_those_of_the_package(loaded):
    from pyfast.kernels.sketch import add_sketch

    _, module = loaded
    v = torch.randn(2, 300)
    found, wanted = torch.zeros(2, 256), torch.zeros(2, 256)
    module.add_sketch(v, found, 3)
    add_sketch(v, wanted, 3)
    assert torch.equal(found, wanted)
    assert found.abs().sum() > 0


def test_a_folder_that_holds_something_is_refused(loaded):
    folder, _ = loaded
    with pytest.raises(ValueError, match="expected a new or an empty folder"):
        hub_folder.write(folder)


def test_hugging_faces_package_is_not_shadowed():
    assert "site-packages" in sys.modules["kernels"].__file__
