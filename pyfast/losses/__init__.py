"""Losses for preference optimisation over groups of responses, ragged or not.

Importing this package loads torch.

What all losses share
---------------------
A *group* is one prompt with its responses, the chosen one first. A loss takes the log-probabilities
of the responses under the policy and under the reference, and makes an implicit reward s_i of each:

- ``reward="dpo"``: s = beta (log pi - log pi_ref) = beta h
- ``reward="length_normalized"``: s = beta h / lengths
- ``reward="simpo"``: s = beta (log pi) / lengths, without a reference (Meng et al., SimPO, 2024)
- ``reward="kto"``: s = beta l h, where l are normalising factors given as `lengths` (HPS, eq. 18)

Parameters that mean the same everywhere:

policy_logps : Tensor
    log pi(y|x), summed over the tokens of each response, the chosen response first in its group.
    One group (n,), a batch of equal groups (B, n), or ragged groups end to end (T,) with `offsets`.
    float16 and bfloat16 are computed in float32, float64 in float64. A response without a finite
    value belongs to no group: an infinite or missing log-prob is refused, with its place.
ref_logps : Tensor or None
    log pi_ref(y|x), in the shape and on the device of `policy_logps`; not used by "simpo".
    Gradients flow here too, so compute it under ``torch.no_grad()`` if the reference is frozen.
rewards : Tensor, optional
    r_i, in the shape and on the device of `policy_logps`, in a floating-point dtype of their own;
    without gradient. "hps" needs them, "bt" and "pl" take the order of the group without them.
beta : float
    Scale of the implicit rewards, above 0.
margin : float
    The m above: by how much the chosen response has to win. Any finite number.
weighting : {"mean", "bt", "pl", "hps"}
    Which pairs of a group count, and how much: :mod:`pyfast.losses.pairs`.
gamma : float
    Of the weighting "hps", any finite number: above 0 the high-scored negatives weigh more.
keep_ties : bool
    Whether responses that tie with the chosen one's reward are negatives to "hps" all the same.
reward : {"dpo", "simpo", "length_normalized", "kto"}
    How s is made of the log-probs: see :mod:`pyfast.losses`.
lengths : Tensor, optional
    Tokens of each response, above 0, in the shape of `policy_logps`, integers or not.
offsets : Tensor, optional
    (B+1,) int32 or int64, from 0 to T; group g starts at offsets[g]. On the CPU or with the
    log-probs.
reduction : {"mean", "sum", "none"}
    Over groups. "none" gives () for one group, else (B,).
backend : {"auto", "reference", "triton"}
    What computes; see :func:`pyfast.losses.fused.contrast`.
metrics : mutable mapping, optional
    Filled with detached scalars by TRL's names, from the same scores; see
    :func:`pyfast.losses.metrics.preference_metrics`. A loss that ranks whole groups by `rewards`
    takes the response that ranks first as the chosen one there, and says so.
validate : bool
    Whether to look at values. The host waits for the device once then; inside torch.compile and
    torch.func.vmap values are never looked at. Shapes, dtypes and devices are always checked.

Losses are float32, or float64 where a log-prob is float64. TypeError and ValueError name the
argument, the place, and what was expected.
"""

from pyfast.losses.gradients import advantages
from pyfast.losses.hard_preference import hps
from pyfast.losses.linear import SequenceLogps, sequence_logps
from pyfast.losses.lists import lipo_lambda, plackett_luce
from pyfast.losses.pairs import dmpo, dpo_k, exo, ipo, nca, slic, sppo
from pyfast.losses.preference import dpo, plackett_luce_top1, swepo
from pyfast.losses.unpaired import kto

__all__ = [
    "SequenceLogps",
    "advantages",
    "dmpo",
    "dpo",
    "dpo_k",
    "exo",
    "hps",
    "ipo",
    "kto",
    "lipo_lambda",
    "nca",
    "plackett_luce",
    "plackett_luce_top1",
    "sequence_logps",
    "slic",
    "sppo",
    "swepo",
]
