"""Models and tokenizers from folders and the hub: whole, finite, and without code of their own."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from pyfast.train.errors import UserError

HARMLESS = re.compile(r"(^|\.)(inv_freq|position_ids|masked_bias)$")
"""Buffers that old checkpoints hold and that are made anew."""

_SHOWN = 3


def tokenizer(source: str, setting: str, **settings: Any) -> Any:
    """Load a tokenizer; an error names the setting and the source in one line."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False, **settings)
    except Exception as error:
        raise _refusal(setting, source, error) from None


def weights(kind: Any, source: str, setting: str, *, ignore: str | None = None, **how: Any) -> Any:
    """Load a model of which every weight is in the checkpoint, and every weight of it is used.

    transformers starts missing weights at random, in each process differently, and tells so in a
    log alone.

    Parameters
    ----------
    kind : type
        AutoModelForCausalLM or one of its kin.
    source : str
        Folder or hub id.
    setting : str
        What errors begin with.
    ignore : str, optional
        Pattern of the weights that may be missing or left over.
    how : dict
        Other arguments of ``from_pretrained``.

    Raises
    ------
    UserError
        In one line: what cannot be loaded and why, or which weights are missing, left over or of
        another shape; or if it is an adapter, under which transformers tells nothing of the model.
    """
    if adapter_file(source, setting) is not None:
        raise UserError(f"{setting}: {source!r} is an adapter, expected a whole model")
    try:
        model, report = kind.from_pretrained(
            source,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused here, by name
            **how,
        )
    except Exception as error:
        raise _refusal(setting, source, error) from None
    allowed = re.compile(ignore) if ignore else None

    def bad(names: Iterable[str]) -> list[str]:
        return [
            n
            for n in sorted(names)
            if not HARMLESS.search(n) and not (allowed and allowed.match(n))
        ]

    mismatched = [
        f"{name} ({list(found)} instead of {list(wanted)})"
        for name, found, wanted in sorted(report["mismatched_keys"])
    ]
    wrong = [
        f"{what}: {few(names)}"
        for what, names in (
            ("weights missing from it", bad(report["missing_keys"])),
            ("weights of another shape", mismatched),
            ("weights that the model does not have", bad(report["unexpected_keys"])),
            ("errors", [one_line(message) for message in report.get("error_msgs") or []]),
        )
        if names
    ]
    if wrong:
        raise UserError(
            f"{setting}: {source!r} does not fit {type(model).__name__}; " + "; ".join(wrong)
        )
    return model


def adapter_file(source: str, setting: str) -> str | None:
    """Return the settings file of an adapter in peft's layout, or None if `source` is none."""
    from transformers.utils import find_adapter_config_file

    folder = Path(source)
    if folder.is_dir():
        file = folder / "adapter_config.json"
        return str(file) if file.is_file() else None
    try:
        found: str | None = find_adapter_config_file(source)
    except Exception as error:
        raise _refusal(setting, source, error) from None
    return found


def check_finite(model: torch.nn.Module, setting: str) -> None:
    """Refuse a model with weights that are not finite numbers, by their names."""
    bad = [
        name
        for name, value in model.named_parameters()
        if value.is_floating_point() and not value.is_meta and not torch.isfinite(value).all()
    ]
    if bad:
        raise UserError(f"{setting}: weights that are not finite: {few(bad)}")


def one_line(error: BaseException | str) -> str:
    """Return an error's message in one line: its first, and the next if that only leads to it."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return f"{text} {lines[1]}" if text.endswith(":") and len(lines) > 1 else text


def few(names: list[str]) -> str:
    """Return the first names, and how many more there are."""
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _refusal(setting: str, source: str, error: Exception) -> UserError:
    if "trust_remote_code" in str(error):
        return UserError(
            f"{setting}: {source!r} needs code of its own to be run, which is not supported"
        )
    return UserError(f"{setting}: cannot load {source!r}: {one_line(error)}")
