"""KTO: responses judged one by one as desirable or not, without pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from pyfast.losses._batch import Batch, Metrics, Reward
from pyfast.losses._checks import check_mask, check_number, check_one_number
from pyfast.losses._documented import documented
from pyfast.losses.fused import Reduction


@documented
def kto(
    policy_logps: Tensor,
    ref_logps: Tensor | None,
    *,
    beta: float = 0.1,
    desirable: Tensor | None = None,
    kl: float | Tensor = 0.0,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    reward: Reward = "dpo",
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
    reduction: Reduction = "mean",
    metrics: Metrics | None = None,
    validate: bool = True,
) -> Tensor:
    r"""KTO: each response's reward against a reference point, gains and losses weighted apart.

    .. math:: L = \frac1n \sum_i \begin{cases}
              \lambda_D \big(1 - \sigma(s_i - \beta z)\big) & y_i \text{ desirable} \\
              \lambda_U \big(1 - \sigma(\beta z - s_i)\big) & \text{otherwise} \end{cases}

    Parameters
    ----------
    desirable : Tensor, optional
        bool, in the shape of `policy_logps`; by default the first response of each group.
    kl : float or Tensor
        z, the estimate of KL(policy || reference) from responses to other prompts, from 0 on (an
        estimate below 0 is the caller's to clamp); one number, or a tensor of one on the CPU or the
        device of `policy_logps`. A constant to the gradient.
    desirable_weight, undesirable_weight : float
        lambda_D and lambda_U, above 0.

    Notes
    -----
    Ethayarajh et al., KTO, 2024, equation 8 with its l(y) = 1. The paper averages over responses;
    this is the mean over a group's, so that "mean" weighs groups alike. KTO's reward with other
    l(y), for any loss: ``reward="kto"``.

    Examples
    --------
    >>> policy, ref = torch.tensor([-3.0, -5.0]), torch.tensor([-4.0, -4.0])
    >>> kto(policy, ref, beta=1.0)
    tensor(0.2689)
    """
    check_number("desirable_weight", desirable_weight)
    check_number("undesirable_weight", undesirable_weight)
    batch = Batch.of(policy_logps, ref_logps, beta, reward, lengths, offsets, validate)
    groups = batch.groups
    if isinstance(kl, Tensor):
        check_one_number("kl", kl, policy_logps, values=validate)
        baseline: float | Tensor = kl.detach().reshape(()).to(batch.scores.dtype)
    else:
        check_number("kl", kl, zero=True)
        baseline = float(kl)
    if desirable is None:
        good = groups.chosen
    else:
        check_mask("desirable", desirable, policy_logps)
        good = desirable.reshape(-1)
    gain = batch.flat - batch.beta * baseline
    judged = torch.where(
        good,
        desirable_weight * torch.sigmoid(-gain),
        undesirable_weight * torch.sigmoid(gain),
    )
    return batch.finish(groups.mean(judged), metrics, reduction)
