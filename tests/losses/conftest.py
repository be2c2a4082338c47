import re

import pytest
import torch


@pytest.fixture
def raises():
    """Expect an error that says exactly this."""
    return lambda kind, message: pytest.raises(kind, match=f"^{re.escape(message)}$")


@pytest.fixture
def group():
    """Log-probs in double whose scores at beta = 1 are (1, -1, 0, 0.5), and rewards."""
    ref = torch.tensor([-4.0, -4.0, -4.0, -4.0], dtype=torch.float64)
    scores = torch.tensor([1.0, -1.0, 0.0, 0.5], dtype=torch.float64)
    return ref + scores, ref, torch.tensor([3.0, 0.0, 2.0, 1.0], dtype=torch.float64)
