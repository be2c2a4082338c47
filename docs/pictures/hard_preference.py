"""Hard preference sampling: who is drawn as gamma climbs."""

import numpy as np
from _style import BAD, GOOD, PICK, QUIET, axes, save

from pyfast import select

rng = np.random.default_rng(0)
rewards = np.sort(rng.random(20))
figure, (left, right) = axes(8.4, 3.1, 2)
schedule = {-5: PICK, -3: GOOD, -1: "#8a9a5b", 1: "#c08a3e", 3: BAD}
for gamma, colour in schedule.items():
    q = select.hard_preference(rewards, gamma=gamma).probabilities
    left.plot(rewards[:-1], q[:-1], c=colour, label=f"gamma = {gamma}")
left.set(
    xlabel="reward of the negative",
    ylabel="q",
    ylim=(0, None),
    title="easy ones first, then hard ones",
)
left.legend()
steps = np.linspace(0, 1, 501)[:-1]
for name, colour in (("linear", PICK), ("levels", QUIET)):
    gammas = [select.hard_preference_gamma(p, schedule=name) for p in steps]
    right.plot(steps, gammas, c=colour, label=f'schedule="{name}"')
right.set(xlabel="share of the training", ylabel="gamma", title="the schedule")
right.legend()
save(figure, __file__)
