"""ms-swift: our trainers do not run in its process, and files are the way.

ms-swift takes the constructors of TRL's trainers away when it is imported, and asks for TRL below
1.0, so it is no part of the test environment (what it reads of an exported file is in
tests/tables/test_other_readers.py).
"""

import pytest

trl = pytest.importorskip("trl")

from pyfast.integrations.grpo import GroupLossGRPOTrainer  # noqa: E402
from pyfast.integrations.trl import MultiPreferenceTrainer  # noqa: E402


@pytest.mark.parametrize(
    ("ours", "theirs", "more"),
    [(MultiPreferenceTrainer, trl.DPOTrainer, []), (GroupLossGRPOTrainer, trl.GRPOTrainer, [len])],
)
def test_a_trainer_without_its_constructor_is_refused(monkeypatch, ours, theirs, more):
    monkeypatch.delattr(theirs, "__init__")
    wanted = f"{theirs.__name__} has no __init__.*`pyfast export --format swift`"
    with pytest.raises(RuntimeError, match=wanted):
        ours("no such model", *more)
