"""Reference log-probabilities of a data set: computed once, kept on disk.

They depend on the reference alone, so all epochs and all runs on the same data share them. A folder
of the cache belongs to one reference (weights, settings, tokenizer); in it, each group is found by
its tokens, so that a data set that has grown, or that shares groups with another, finds what is
already known. Chunks of groups are written as they are done: an interrupted run loses a minute.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from pyfast._files import SECONDS_TO_LIVE, clear_leftovers, written_whole
from pyfast.models.layout import Group
from pyfast.train.errors import UserError
from pyfast.train.files import cache_dir, to_json
from pyfast.train.policy import fingerprint
from pyfast.train.policy.policy import Policy

SECONDS_BETWEEN_WRITES = 60.0


def reference_logps(
    policy: Policy, groups: Sequence[Group], *, folder: Path | None = None, progress: bool = True
) -> list[Tensor]:
    """Return the reference's log pi(y|x) of every response, from the cache where it has them.

    Parameters
    ----------
    policy : Policy
        Its reference is the model with the adapter off.
    groups : sequence of (prompt, responses)
        Tokens: of the prompt, and of each of its responses.
    folder : Path, optional
        Where the cache lies; by default in the user's cache folder.
    progress : bool
        Show a progress bar over the groups that are not known yet.

    Returns
    -------
    list of float32 tensors (responses of the group,), on the CPU
        Nats; as `Policy.logps` of one group at a time gives them.

    Raises
    ------
    ValueError
        If a group, a prompt or a response is empty.
    UserError
        If a file of the cache is broken, with its name.
    """
    folder = (folder or cache_dir() / "reference") / reference_key(policy)
    keys = [group_key(group) for group in groups]
    known = _read(folder)
    missing = {key: group for key, group in zip(keys, groups, strict=True) if key not in known}
    fresh: dict[str, Tensor] = {}
    written_at = time.monotonic()
    try:
        bar = tqdm(missing.items(), "reference", unit="group", disable=not progress or not missing)
        for key, (prompt, responses) in bar:
            tokens = [list(response) for response in responses]
            fresh[key] = policy.logps(list(prompt), tokens, reference=True).cpu()
            if time.monotonic() - written_at > SECONDS_BETWEEN_WRITES:
                _write(folder, fresh)
                known |= fresh
                fresh, written_at = {}, time.monotonic()
    finally:  # after Ctrl-C too
        _write(folder, fresh)
    known |= fresh
    return [known[key] for key in keys]


def group_key(group: Group) -> str:
    """Return the SHA-256 of a group's tokens in hexadecimal."""
    prompt, responses = group
    text = to_json([[int(t) for t in prompt], [[int(t) for t in y] for y in responses]])
    return hashlib.sha256(text.encode()).hexdigest()


def reference_key(policy: Policy) -> str:
    """Return the SHA-256 of all that a reference's log-probabilities depend on but the data.

    See `fingerprint.of`; the adapter, which is off, has no part in it.
    """
    found = fingerprint.of(policy.reference_model, policy.tokenizer)
    return hashlib.sha256(to_json(found).encode()).hexdigest()


def _write(folder: Path, fresh: dict[str, Tensor]) -> None:
    """Write a chunk of groups, named by what is in it, whole or not at all."""
    if not fresh:
        return
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    clear_leftovers(folder, age=SECONDS_TO_LIVE)
    name = hashlib.sha256("".join(fresh).encode()).hexdigest()[:32]
    with written_whole(folder / f"{name}.safetensors") as beside:
        save_file(fresh, beside)


def _read(folder: Path) -> dict[str, Tensor]:
    """Read all the chunks of a reference."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    known: dict[str, Tensor] = {}
    for path in sorted(folder.glob("[!.]*.safetensors")):
        try:
            known |= load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: expected reference log-probabilities: {error}") from None
    return known
