"""Inside torch.autocast everything is what it is outside, to the bit."""

import contextlib
import inspect
from itertools import product

import pytest
import torch

from pyfast import losses
from pyfast.losses import metrics, reference, sequence_logps

TYPES = [torch.bfloat16, torch.float16]


def autocast(dtype, on):
    return torch.autocast("cpu", dtype) if on else contextlib.nullcontext()


def test_the_labels_own_logit_is_not_rounded():
    generator = torch.Generator().manual_seed(0)
    head = 0.05 * torch.randn(4096, 576, generator=generator)
    labels = torch.randint(4096, (300,), generator=generator)
    hidden = torch.randn(300, 576, generator=generator) + 20 * head[labels]
    exact = (hidden.double() @ head.double().t()).log_softmax(-1)
    exact = exact.gather(1, labels[:, None]).sum()
    for dtype, backend in product(TYPES, ["auto", "reference"]):
        with torch.autocast("cpu", dtype):
            found = sequence_logps(hidden, head, labels, backend=backend)
        assert found.dtype == torch.float32
        assert abs(found - exact) < 1e-3, (dtype, backend)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("train_head", [False, True])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_log_probs_and_gradients(dtype, backend, train_head, given):
    generator = torch.Generator().manual_seed(1)
    rows, weight = torch.randn(9, 16, generator=generator), torch.randn(70, 16, generator=generator)
    labels = torch.randint(70, (9,), generator=generator)

    def run(forward, backward):
        hidden = rows.to(given).requires_grad_()
        head = weight.clone().requires_grad_(train_head)
        with autocast(dtype, forward):
            found = sequence_logps(hidden, head, labels, softcap=9.0, details=True, backend=backend)
            loss = found.logps + 0.5 * found.token_logps.square().sum()
        wanted = [hidden, head] if train_head else [hidden]
        with autocast(dtype, backward):
            gradients = torch.autograd.grad(loss, wanted)
        return found.logps, found.token_logps, found.entropy, *gradients

    expected = run(False, False)
    for forward, backward in [(True, False), (False, True), (True, True)]:
        for one, other in zip(run(forward, backward), expected, strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one, other), (forward, backward)


GROUP = {
    "policy_logps": torch.tensor([[-4.7, -6.1, -3.3, -5.2], [-1.2, -0.4, -2.9, -7.7]]),
    "ref_logps": torch.tensor([[-4.1, -5.9, -3.8, -5.6], [-1.9, -0.3, -2.2, -7.1]]),
    "rewards": torch.tensor([[0.93, 0.11, 0.52, 0.37], [0.81, 0.23, 0.64, 0.49]]),
    "lengths": torch.tensor([[4, 7, 3, 5], [2, 1, 3, 9]]),
    "desirable": torch.tensor([[True, False, True, False], [True, False, False, True]]),
}


def _calls():
    """Every public function over groups, with the arguments of GROUP that it takes."""
    for room, names in ((losses, losses.__all__), (metrics, dir(metrics))):
        for name in names:
            function = getattr(room, name)
            if not inspect.isfunction(function) or name.startswith("_"):
                continue
            known = inspect.signature(function).parameters
            loss_of_another = name == "advantages"
            if "policy_logps" in known and "groups" not in known and not loss_of_another:
                yield pytest.param(function, known, id=name)


@pytest.mark.parametrize(("function", "known"), list(_calls()))
@pytest.mark.parametrize("dtype", TYPES)
def test_losses_of_groups(function, known, dtype):
    def run(on):
        size = 2 if function is losses.dpo else 4
        given = {n: value[:, :size].clone() for n, value in GROUP.items() if n in known}
        policy = given["policy_logps"].requires_grad_()
        with autocast(dtype, on):
            found = function(**given)
        if isinstance(found, dict):
            return list(found.values())
        if not isinstance(found, torch.Tensor) or not found.requires_grad:
            return [torch.as_tensor(found)]
        with autocast(dtype, on):
            return [found, *torch.autograd.grad(found, policy)]

    for one, other in zip(run(True), run(False), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_the_references_second_derivative():
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(3, 4, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(5, 4, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.tensor([0, 4, 2])

    def logps(rows, weight):
        return reference.token_logps(rows, weight, None, labels)[0]

    assert torch.autograd.gradcheck(logps, (rows, weight))
    assert torch.autograd.gradgradcheck(logps, (rows, weight))
