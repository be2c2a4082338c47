"""What a loss says about each response: its slope in the log-probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def advantages(
    loss: Callable[..., Tensor], policy_logps: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    r"""Return the advantages with which a policy-gradient step is a step on a group loss.

    .. math:: a_i = -\frac{\partial L_g}{\partial \log\pi(y_i|x)}, \qquad
              \nabla_\theta L_g = -\sum_i a_i \nabla_\theta \log\pi_\theta(y_i|x)

    for the group g that holds y_i. So any trainer that maximises
    ``sum_i a_i log pi(y_i)`` takes the gradient of the loss, exactly as long as the policy is the
    one that `policy_logps` are of (an importance ratio of 1). After that it is an approximation:
    the slopes stay those of the old policy.

    Parameters
    ----------
    loss : callable
        A loss of `pyfast.losses`, or any function with `reduction` that takes log-probs first.
    policy_logps : Tensor
        In the layout of the loss. Its graph is left alone.
    *args, **kwargs
        The loss's other arguments; ``reduction`` is "sum", so that a group's advantages do not
        depend on how many groups there are.

    Returns
    -------
    Tensor
        In the shape and dtype of `policy_logps`, without graph. A loss that depends on differences
        alone gives every group a sum of 0.

    Raises
    ------
    TypeError
        If `loss` is no function, or ``reduction`` is given.
    TypeError, ValueError
        What the loss raises.

    Examples
    --------
    >>> from pyfast import losses
    >>> logps = torch.tensor([-12.0, -12.0])
    >>> losses.advantages(losses.dpo, logps, logps, beta=0.1)  # beta sigmoid(0)
    tensor([ 0.0500, -0.0500])
    """
    if not callable(loss):
        raise TypeError(f"loss: expected a function, such as losses.swepo, got {loss!r}")
    if "reduction" in kwargs:
        raise TypeError("reduction: expected none; advantages are of each group's own loss")
    with torch.inference_mode(False), torch.enable_grad():
        leaf = policy_logps.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(leaf, *args, reduction="sum", **kwargs), leaf)
    return -slope
