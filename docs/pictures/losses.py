"""The losses of one family: what a negative's gap costs, and how gradients are shared."""

import numpy as np
import torch
from _style import BAD, GOOD, PICK, QUIET, axes, save

from pyfast import losses

gaps = torch.linspace(-6, 6, 121)
figure, (left, right) = axes(8.4, 3.2, 2)
for negatives, colour in ((1, PICK), (3, GOOD), (7, BAD)):
    logps = torch.zeros(len(gaps), 1 + negatives)
    logps[:, 0] = gaps
    value = losses.plackett_luce_top1(logps, torch.zeros_like(logps), beta=1.0, reduction="none")
    left.plot(gaps, value, c=colour, label=f"{negatives} negative{'s' * (negatives > 1)}")
left.set(
    xlabel="s of the chosen response - s of its negatives",
    ylabel="loss",
    title="plackett_luce_top1",
)
left.legend()
rewards = torch.tensor([0.9, 0.6, 0.4, 0.2, 0.1])
policy = torch.zeros(5, requires_grad=True)
bars = {
    "S-DPO": losses.plackett_luce_top1(policy, torch.zeros(5), beta=1.0),
    "SWEPO": losses.swepo(policy, torch.zeros(5), rewards, beta=1.0, positives="top"),
    "HPS, gamma 5": losses.hps(policy, torch.zeros(5), rewards, beta=1.0, gamma=5.0),
}
for number, ((name, loss), colour) in enumerate(zip(bars.items(), (PICK, QUIET, BAD), strict=True)):
    (gradient,) = torch.autograd.grad(loss, policy)
    right.bar(np.arange(5) + 0.27 * (number - 1), -gradient, 0.25, color=colour, label=name)
right.axhline(0, c=QUIET, lw=0.7)
right.set(xlabel="response (reward)", ylabel="push on log pi", title="at the start of training")
right.set_xticks(range(5), [f"{r:.1f}" for r in rewards.tolist()])
right.legend()
save(figure, __file__)
