import math
import re

import pytest
import torch
from torch.overrides import TorchFunctionMode

from pyfast.losses import dpo, plackett_luce_top1, swepo


def raises(kind, message):
    """Expect an error that says exactly this."""
    return pytest.raises(kind, match=f"^{re.escape(message)}$")


def pl(policy, ref=None, **arguments):
    return plackett_luce_top1(policy, torch.zeros_like(policy) if ref is None else ref, **arguments)


# Tensors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [[0.0, 1.0], None, torch.zeros(2).numpy()])
def test_policy_logps_not_a_tensor(value):
    with raises(TypeError, f"policy_logps must be a torch.Tensor, got {type(value).__name__}"):
        dpo(value, torch.zeros(2))


def test_ref_logps_not_a_tensor():
    with raises(TypeError, "ref_logps must be a torch.Tensor, got list"):
        plackett_luce_top1(torch.zeros(2), [0.0, 1.0])


def test_rewards_not_a_tensor():
    with raises(TypeError, "rewards must be a torch.Tensor, got list"):
        swepo(torch.zeros(2), torch.zeros(2), [0.0, 1.0])


def test_offsets_not_a_tensor():
    with raises(TypeError, "offsets must be a torch.Tensor, got list"):
        pl(torch.zeros(2), offsets=[0, 2])


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_values_must_be_floating(which, dtype):
    arguments = [torch.zeros(2) for _ in range(3)]
    arguments[which] = arguments[which].to(dtype)
    name = ("policy_logps", "ref_logps", "rewards")[which]
    floats = "(float16, bfloat16, float32, float64)"
    with raises(TypeError, f"{name} must have a floating-point dtype {floats}, got {dtype}"):
        swepo(*arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16, torch.bool])
def test_offsets_must_be_integers(dtype):
    with raises(TypeError, f"offsets must have an integer dtype (int32, int64), got {dtype}"):
        pl(torch.zeros(2), offsets=torch.tensor([0, 2]).to(dtype))


def test_ref_logps_of_another_length():
    with raises(ValueError, "ref_logps must have the shape of policy_logps (4, 3), got (4, 2)"):
        pl(torch.zeros(4, 3), torch.zeros(4, 2))


def test_ref_logps_are_not_broadcast():
    with raises(ValueError, "ref_logps must have the shape of policy_logps (4, 3), got (4, 1)"):
        pl(torch.zeros(4, 3), torch.zeros(4, 1))


def test_rewards_of_another_shape():
    with raises(ValueError, "rewards must have the shape of policy_logps (6,), got (2, 3)"):
        swepo(torch.zeros(6), torch.zeros(6), torch.zeros(2, 3))


@pytest.mark.parametrize("which", [1, 2])
def test_mixed_devices(which):
    arguments = [torch.zeros(2) for _ in range(3)]
    arguments[which] = arguments[which].to("meta")
    name = ("policy_logps", "ref_logps", "rewards")[which]
    with raises(ValueError, f"{name} must be on the device of policy_logps (cpu), got meta"):
        swepo(*arguments)


def test_offsets_on_another_device():
    message = "offsets must be on the CPU or the device of policy_logps (cpu), got meta"
    with raises(ValueError, message):
        pl(torch.zeros(2), offsets=torch.tensor([0, 2], device="meta"))


# Layouts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (2, 3, 4)])
def test_wrong_rank(shape):
    message = f"policy_logps must be one group (n,) or a batch (B, n), got shape {shape}"
    with raises(ValueError, message):
        pl(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_nothing_in_it(shape):
    message = f"policy_logps must hold at least one response, got shape {shape}"
    with raises(ValueError, message):
        pl(torch.zeros(shape))


def test_batch_with_offsets():
    message = "policy_logps must be flat (T,) when offsets are given, got shape (2, 3)"
    with raises(ValueError, message):
        pl(torch.zeros(2, 3), offsets=torch.tensor([0, 3, 6]))


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 2)])
def test_offsets_of_a_wrong_shape(shape):
    message = f"offsets must have shape (B+1,) with B at least 1, got {shape}"
    with raises(ValueError, message):
        pl(torch.zeros(2), offsets=torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize("shape", [(3,), (1,), (4, 3)])
def test_dpo_takes_pairs(shape):
    with raises(ValueError, f"policy_logps must have groups of exactly 2, got shape {shape}"):
        dpo(torch.zeros(shape), torch.zeros(shape))


def test_dpo_takes_ragged_pairs():
    message = "offsets must make groups of exactly 2, got 3 responses in group 1"
    with raises(ValueError, message):
        dpo(torch.zeros(6), torch.zeros(6), offsets=torch.tensor([0, 2, 5, 6]))


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([1, 3, 5], "offsets must start at 0, got offsets[0] = 1"),
        ([-1, 3, 5], "offsets must start at 0, got offsets[0] = -1"),
        ([0, 3, 4], "offsets must end at the number of responses (5), got offsets[2] = 4"),
        ([0, 3, 6], "offsets must end at the number of responses (5), got offsets[2] = 6"),
        ([0, 4, 2, 5], "offsets must not decrease, got offsets[1] = 4 and offsets[2] = 2"),
        (
            [0, 2, 2, 5],
            "offsets must leave no group empty, got group 1 with offsets[1] = 2 and offsets[2] = 2",
        ),
        (
            [0, 0, 5],
            "offsets must leave no group empty, got group 0 with offsets[0] = 0 and offsets[1] = 0",
        ),
        (
            [0, 5, 5],
            "offsets must leave no group empty, got group 1 with offsets[1] = 5 and offsets[2] = 5",
        ),
    ],
)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_offsets_out_of_order(offsets, message, dtype):
    with raises(ValueError, message):
        pl(torch.zeros(5), offsets=torch.tensor(offsets, dtype=dtype))


def test_offsets_of_no_responses():
    message = (
        "offsets must leave no group empty, got group 0 with offsets[0] = 0 and offsets[1] = 0"
    )
    with raises(ValueError, message):
        pl(torch.zeros(0), offsets=torch.tensor([0, 0]))


# Values -------------------------------------------------------------------------------------

HINT = "(leave a response without a value out of its group)"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_values_must_be_finite(which, value):
    arguments = [torch.zeros(3, 4) for _ in range(3)]
    arguments[which][1, 2] = value
    name = ("policy_logps", "ref_logps", "rewards")[which]
    with raises(ValueError, f"{name} must be finite, got {value} in group 1, position 2 {HINT}"):
        swepo(*arguments)


def test_place_in_one_group():
    message = f"policy_logps must be finite, got nan in group 0, position 1 {HINT}"
    with raises(ValueError, message):
        dpo(torch.tensor([0.0, math.nan]), torch.zeros(2))


@pytest.mark.parametrize(
    ("index", "group", "position"), [(0, 0, 0), (2, 0, 2), (3, 1, 0), (4, 2, 0), (9, 2, 5)]
)
def test_place_in_ragged_groups(index, group, position):
    policy = torch.zeros(10)
    policy[index] = -math.inf
    message = f"policy_logps must be finite, got -inf in group {group}, position {position} {HINT}"
    with raises(ValueError, message):
        pl(policy, torch.zeros(10), offsets=torch.tensor([0, 3, 4, 10]))


def test_first_of_several_bad_values_is_named():
    policy = torch.zeros(2, 3, dtype=torch.bfloat16)
    policy[0, 2] = policy[1, 0] = math.inf
    with raises(ValueError, f"policy_logps must be finite, got inf in group 0, position 2 {HINT}"):
        pl(policy, torch.zeros(2, 3))


# Settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0, 0.0, -0.1, math.nan, math.inf])
@pytest.mark.parametrize("loss", [dpo, plackett_luce_top1, swepo])
def test_beta_out_of_range(loss, beta):
    tensors = [torch.zeros(2)] * (3 if loss is swepo else 2)
    with raises(ValueError, f"beta must be finite and greater than 0, got {beta}"):
        loss(*tensors, beta=beta)


@pytest.mark.parametrize("beta", ["0.1", None, True, torch.tensor(0.1)])
def test_beta_not_a_number(beta):
    with raises(TypeError, f"beta must be a number, got {type(beta).__name__}"):
        dpo(torch.zeros(2), torch.zeros(2), beta=beta)


@pytest.mark.parametrize("alpha", [-1e-9, math.nan, math.inf])
def test_alpha_out_of_range(alpha):
    with raises(ValueError, f"alpha must be finite and at least 0, got {alpha}"):
        swepo(*[torch.zeros(2)] * 3, alpha=alpha)


def test_alpha_not_a_number():
    with raises(TypeError, "alpha must be a number, got NoneType"):
        swepo(*[torch.zeros(2)] * 3, alpha=None)


@pytest.mark.parametrize("loss", [dpo, plackett_luce_top1, swepo])
def test_unknown_reduction(loss):
    tensors = [torch.zeros(2)] * (3 if loss is swepo else 2)
    with raises(ValueError, "reduction must be one of mean, sum, none, got 'avg'"):
        loss(*tensors, reduction="avg")


def test_unknown_positives():
    with raises(ValueError, "positives must be one of mean, top, got 'best'"):
        swepo(*[torch.zeros(2)] * 3, positives="best")


# Cost ---------------------------------------------------------------------------------------


def test_good_input_waits_for_the_device_once():
    class Reads(TorchFunctionMode):
        names = ()

        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func.__name__ in {"__bool__", "__int__", "item", "tolist", "nonzero", "__float__"}:
                self.names = (*self.names, func.__name__)
            return func(*args, **(kwargs or {}))

    values = [torch.zeros(7) for _ in range(3)]
    with Reads() as reads:
        swepo(*values, offsets=torch.tensor([0, 3, 7]))
    assert reads.names == ("__bool__",)
