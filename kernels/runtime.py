"""Whether Triton kernels can run here, and if not, why; and on which device they run."""

import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any


def interpreting() -> bool:
    """Tell whether Triton was told to interpret kernels on the CPU (``TRITON_INTERPRET=1``)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def why_unusable() -> str | None:
    """Return None if kernels can run in this process, else the reason in one sentence."""
    for module in ("torch", "triton"):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed"
    if interpreting():
        return None
    import torch

    if not torch.cuda.is_available():
        return "torch sees no GPU (set TRITON_INTERPRET=1 to interpret kernels on the CPU)"
    return None


def launching_on(tensor: Any) -> AbstractContextManager[Any]:
    """Have Triton launch where a tensor lies: by itself it takes the current CUDA device."""
    if not tensor.is_cuda:
        return nullcontext()
    import torch

    return torch.cuda.device(tensor.device)
