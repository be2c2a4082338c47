"""GGUF files: converted once to float32 safetensors, which load in a second."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pyfast._files import write_folder
from pyfast.train.files import cache_dir, sha256
from pyfast.train.policy import pretrained


def gguf_folder(path: Path) -> Path:
    """Return a folder with a GGUF file's model as float32 safetensors, converted once.

    The folder lies in the user's cache, named by the file's content, and appears there whole or
    not at all.

    Parameters
    ----------
    path : Path
        A ``.gguf`` file of an architecture that transformers can read.

    Returns
    -------
    Path
        What ``from_pretrained`` of the model and of the tokenizer take.
    """
    folder = cache_dir() / "gguf" / f"{path.stem}-{sha256(path)[:16]}"
    if not folder.is_dir():
        write_folder(folder, lambda beside: _convert_gguf(path, beside))
    return folder


def _convert_gguf(path: Path, folder: Path) -> None:
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    where, name = str(path.parent), path.name
    tokenizer = pretrained.tokenizer(where, "policy.model", gguf_file=name)
    model = pretrained.weights(
        AutoModelForCausalLM, where, "policy.model", gguf_file=name, dtype=torch.float32
    )
    # The weights are plain float32 now, but still marked as quantized, which save_pretrained
    # refuses to write; so the three parts are written by hand. Tied tensors are stored once.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    once: dict[int, tuple[str, Tensor]] = {}
    for key, tensor in model.state_dict().items():
        once.setdefault(tensor.data_ptr(), (key, tensor.contiguous()))
    save_file(dict(once.values()), folder / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
