"""How far annotators agree: the raw share, and Cohen's kappa."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from pyfast.label.desk import State


@dataclass(frozen=True)
class Agreement:
    """Two annotators, by the questions that both have answered.

    Attributes
    ----------
    annotators : tuple of str
    both : int
        Questions that both answered.
    same : int
        Of them, those with the same answer.
    kappa : float or None
        Cohen's; None where it is not defined: no question, or both always say one and the same.
    """

    annotators: tuple[str, str]
    both: int
    same: int
    kappa: float | None

    @property
    def raw(self) -> float | None:
        """The share of the same answers."""
        return self.same / self.both if self.both else None


def cohen(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Return Cohen's kappa of two annotators' answers, ``(p_o - p_e) / (1 - p_e)``.

    Parameters
    ----------
    first, second : sequence of str
        Their answers to the same questions.

    Returns
    -------
    float or None
        None where it is not defined.

    References
    ----------
    J. Cohen, A coefficient of agreement for nominal scales, 1960.
    """
    n = len(first)
    same = sum(x == y for x, y in zip(first, second, strict=True))
    counts = Counter(first), Counter(second)
    chance = sum(counts[0][answer] * counts[1][answer] for answer in counts[0])  # times n^2
    return None if chance == n * n else (n * same - chance) / (n * n - chance)


def pairs(state: State) -> list[Agreement]:
    """Compare every two annotators by what they said first, a skip being an answer like others."""
    names = list(dict.fromkeys(name for said in state.said.values() for name in said))
    found = []
    for one, two in combinations(names, 2):
        both = [
            (said[one].answer or "", said[two].answer or "")
            for said in state.said.values()
            if one in said and two in said
        ]
        first, second = [x for x, _ in both], [y for _, y in both]
        same = sum(x == y for x, y in both)
        found.append(Agreement((one, two), len(both), same, cohen(first, second)))
    return found


def table(state: State) -> str:
    """Return the comparison as text, and how many disagreements are left; empty of one alone."""
    found = pairs(state)
    if not found:
        return ""
    width = max(11, *(len(" - ".join(pair.annotators)) for pair in found))
    lines = [f"{'annotators':{width}}  both  same  agreement  kappa"]
    for pair in found:
        raw = "-" if pair.raw is None else f"{pair.raw:.3f}"
        kappa = "-" if pair.kappa is None else f"{pair.kappa:.3f}"
        names = " - ".join(pair.annotators)
        lines.append(f"{names:{width}}  {pair.both:4}  {pair.same:4}  {raw:>9}  {kappa:>5}")
    left = [key for key in state.disputed() if key not in state.said_again]
    mendable = sum(not (state.asked[key].taken or state.asked[key].written) for key in left)
    lines.append(f"{len(left)} disagreements stand; {mendable} can be asked again: --disagreements")
    return "\n".join(lines)
