"""axolotl's DPO trainer for groups of any size: what a configuration's `trainer_cls` names.

It is `pyfast.integrations.trl.MultiPreferenceTrainer` on top of axolotl's own trainer, whose
optimisers, schedules, checkpoints and tags it keeps.
"""

from __future__ import annotations

import re
from typing import Any

from axolotl.core.trainers.dpo.trainer import AxolotlDPOTrainer
from trl import DPOConfig

from pyfast.integrations.trl import MultiPreferenceTrainer

__all__ = ["AxolotlMultiPreferenceTrainer"]

_LOOKED_AT = 16
_LIST = re.compile(r"""\[(['"]).*\1\]""", re.DOTALL)
"""What Python writes for a list of texts."""


class AxolotlMultiPreferenceTrainer(MultiPreferenceTrainer, AxolotlDPOTrainer):
    """axolotl's DPO trainer for a chosen response and any number set against it.

    Parameters
    ----------
    *args, data_collator, **others
        As axolotl gives them: the model, its reference and, by name, ``args``, ``train_dataset``,
        ``processing_class`` and more. A subclass adds ``loss``, ``loss_kwargs``, ``selector`` and
        ``share`` of `pyfast.integrations.trl.MultiPreferenceTrainer`, for which a configuration has
        no words.

    Raises
    ------
    ValueError
        If the configuration says another ``rl`` than ``dpo``, pads pairs (``pad_to_multiple_of``)
        or speaks of axolotl's losses, or if lists of responses have become texts.

    Examples
    --------
    >>> class Swepo(AxolotlMultiPreferenceTrainer):                             # doctest: +SKIP
    ...     def __init__(self, *args, **others):
    ...         super().__init__(*args, loss="swepo", **others)
    """

    def __init__(self, *args: Any, data_collator: Any = None, **others: Any) -> None:
        if not isinstance(others.get("args"), DPOConfig):
            found = type(others.get("args")).__name__
            raise ValueError(f"args: expected a DPOConfig (rl: dpo), got {found}")
        if data_collator is not None:
            raise ValueError(
                "data_collator: expected None (no pad_to_multiple_of), because batches hold groups"
            )
        super().__init__(*args, **others)

    def _prepare_dataset(self, dataset: Any, processing_class: Any, *others: Any) -> Any:
        """Select and tokenize; a start token that a template has written already comes once."""
        _refuse_lists_as_text(dataset)
        dataset = super()._prepare_dataset(dataset, processing_class, *others)
        start = getattr(processing_class, "bos_token_id", None)
        return dataset if start is None else dataset.map(_started_once, fn_kwargs={"start": start})


def _started_once(row: Any, start: int) -> dict[str, Any]:
    ids = row["prompt_ids"]
    return {"prompt_ids": ids[1:] if list(ids[:2]) == [start, start] else ids}


def _refuse_lists_as_text(dataset: Any) -> None:
    """Stop where a dataset's `type` has formatted a list of responses as one text."""
    rows = [row.get("rejected") for row, _ in zip(dataset, range(_LOOKED_AT), strict=False)]
    if rows and all(isinstance(text, str) and _LIST.search(text) for text in rows):
        raise ValueError(
            f"rejected: expected lists of responses, got the text of one: {rows[0]!r}; axolotl's "
            "types of datasets write pairs, so leave `type` out and give what is to be read"
        )
