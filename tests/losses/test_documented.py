"""Docstrings that are put together: every argument of every loss, once, and in order."""

import inspect
import re

import pytest

from pyfast import losses
from pyfast.losses._documented import documented

NAMED = sorted(set(losses.__all__) - {"SequenceLogps", "advantages", "sequence_logps"})


@pytest.mark.parametrize("name", NAMED)
def test_every_argument_is_explained(name):
    loss = getattr(losses, name)
    text = inspect.getdoc(loss)
    headings = re.findall(r"^(\w+)\n-+$", text, re.MULTILINE)
    assert headings == ["Parameters", "Returns", "Raises", "Notes", "Examples"]
    entries = text.partition("Parameters\n")[2].partition("\n\nReturns")[0]
    explained = re.findall(r"^(\w[\w, ]*) : \S.*\n    \S", entries, re.MULTILINE)
    in_order = [each for names in explained for each in names.split(", ")]
    assert in_order == list(inspect.signature(loss).parameters)


def test_what_a_loss_says_itself_goes_first():
    assert "Scores to rank by" in losses.plackett_luce.__doc__
    assert losses.plackett_luce.__doc__.count("rewards : Tensor") == 1
    assert "Scale of the implicit rewards" in losses.plackett_luce.__doc__
    # Two names in one entry stay together.
    assert losses.kto.__doc__.count("desirable_weight, undesirable_weight : float") == 1


def test_without_docstrings_nothing_is_done():
    def bare(policy_logps):
        return policy_logps

    assert documented(bare) is bare
    assert bare.__doc__ is None


def test_an_argument_that_nobody_explains_is_noticed():
    def loss(policy_logps, temperature):
        """Say nothing of the temperature."""

    with pytest.raises(KeyError, match="temperature"):
        documented(loss)
