"""Loading the policy that a configuration names."""

from __future__ import annotations

import torch

from pyfast.train.config import PolicyConfig
from pyfast.train.errors import UserError
from pyfast.train.files import resolve
from pyfast.train.gguf import gguf_folder
from pyfast.train.policy import Policy


def load(config: PolicyConfig, seed: int) -> Policy:
    """Load the policy that a configuration names.

    Parameters
    ----------
    config : PolicyConfig
        ``model`` may be a folder, a hub id, a ``.gguf`` file, or ``pkg://PACKAGE/PATH`` of one.
    seed : int
        The run's seed; it sets the start of the adapter.

    Raises
    ------
    UserError
        If there is no such model, in one line.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = resolve(config.model)
    if path is None and (config.model.endswith(".gguf") or config.model[0] in "./~"):
        raise UserError(f"policy.model: no such file or folder: {config.model}")
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if path is not None and path.is_file():
            path = gguf_folder(path)
        source = str(path or config.model)
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, config.dtype))
        model.to(device)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"policy.model: cannot load {config.model!r}: {reason}") from None
    return Policy(
        model,
        tokenizer,
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        seed=seed,
        gradient_checkpointing=config.gradient_checkpointing,
    )
