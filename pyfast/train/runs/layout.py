"""What lies in a run folder, by name; all of it in the folder itself."""

from __future__ import annotations

import stat
from pathlib import Path

from pyfast.train.errors import UserError

RUN_MARK = "environment.json"
"""The first file of a run folder, by which it is known as one."""

MODELS = {"policy.model": "policy", "scoring.encoder": "encoder"}
SCORERS = {
    "scoring.reward": "reward", "evaluation.reward": "judge", "oracle.oracle_reward": "oracle",
}  # fmt: skip
"""The models whose fingerprints `RUN_MARK` has under these names, by their settings."""

APPENDED = ("metrics.jsonl", "groups.jsonl")
"""The files of a run folder that grow by a line a step or a group."""

LABELS = "labels.jsonl"
"""The answers of an oracle: a file that grows too, and is never cut back."""

ANNOTATIONS = "annotations.jsonl"
"""What people said of the run's questions: a file that grows too, and is never cut back."""

TIMES = "timings.jsonl"
"""Seconds of each step: a file that grows too, but differs from run to run."""

FILES = (
    ".lock", RUN_MARK, "config.json", *APPENDED, TIMES, LABELS, "eval_before.jsonl",
    "eval_after.jsonl", "summary.json", "training_curves.png", "heldout_scores.png",
    "selected_responses.png", "heldout_curves.png", "rounds.png", "selections.png", "wandb.json",
    ANNOTATIONS, ".annotations.lock", "eval_before.jsonl.sha256", "eval_after.jsonl.sha256",
)  # fmt: skip
TRAINED = ("adapter", "model")
"""What a run has trained: one of these folders."""

FOLDERS = (*TRAINED, "checkpoint", "evaluation", "kept", "questions", "sft", "tensorboard", "wandb")


def check_own(out: Path) -> None:
    """Refuse a run folder that leads elsewhere: what a run writes or removes lies in its folder.

    The folder itself may be a link. In one that somebody else has made, a link of one of a run's
    names could stand for any file.
    """
    for names, is_right, kind in (
        (FILES, stat.S_ISREG, "regular file"),
        (FOLDERS, stat.S_ISDIR, "folder"),
    ):
        for path in (out / name for name in names):
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:
                continue
            if not is_right(mode):
                got = "a symbolic link" if stat.S_ISLNK(mode) else "something else"
                raise UserError(f"{path}: expected a {kind} of the run, got {got}")
