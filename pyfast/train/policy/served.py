"""Sampling elsewhere: a round's responses from a server that has the round's adapter.

The server speaks OpenAI's protocol, and loads adapters as vLLM does (``/v1/load_lora_adapter``). It
gets a prompt's tokens, so that no other chat template comes in between, and gives texts, which our
tokenizer makes tokens again. Log-probs are never the server's: what is learnt is what our scorer
says of those tokens.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyfast._files import write_folder
from pyfast.tables.http_client import ServerError
from pyfast.tables.server import Drawn, Server
from pyfast.train.config import SamplingConfig
from pyfast.train.errors import UserError

if TYPE_CHECKING:
    from pyfast.train.context import Context
    from pyfast.train.policy.sampling import Samples

Answer = Callable[[list[list[int]], int, Any, list[int]], "list[Samples]"]
"""As `Policy.answer`: ``answer(prompts, n, config, seeds)``."""

_FAR = 1.0  # nats a token by which a server's greedy answer may be less likely than our own
_SHORT = 16
_SETTING = "sampling.server"
_WHOLE = {
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""Nothing is cut off the policy's distribution or added to it. All of it is said: what is not, vLLM
takes from the model's generation_config.json."""


@contextlib.contextmanager
def sampler(
    ctx: Context, config: Any, name: str, prompt: str, is_needed: Callable[[], bool]
) -> Iterator[Answer]:
    """Give what samples by the policy as it stands: the policy, or a server with its adapter.

    Parameters
    ----------
    ctx : Context
    config : SamplingConfig
        With ``server`` and what goes with it.
    name : str
        Of the adapter's folder below ``kept/``, where the server reads it.
    prompt : str
        The first one: what a server says to it is looked at.
    is_needed : callable
        Whether anything is to be sampled: a server is not asked else, and need not be there.

    Raises
    ------
    UserError
        If the server cannot be reached, refuses the adapter, or answers as another model would.
        Nothing of what was kept is lost.
    """
    if config.server is None or not ctx.once(is_needed):
        yield ctx.policy.answer
        return
    folder = ctx.folder / "kept" / name
    adapter = ctx.once(lambda: _load(ctx, config, folder, prompt))

    def answer(prompts: list[list[int]], n: int, how: Any, seeds: list[int]) -> list[Samples]:
        return _answer(ctx, config, adapter, prompts, n, how, seeds)

    try:
        yield answer
    finally:
        if ctx.team.is_first:
            with contextlib.suppress(UserError, OSError):  # it is of no use to anybody now
                _call(config, "unload_lora_adapter", {"lora_name": adapter}, retries=0)
            shutil.rmtree(folder, ignore_errors=True)


def _load(ctx: Context, config: Any, folder: Path, probe: str) -> str:
    """Let the server load the policy's adapter; return its name there."""
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed meanwhile
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_folder(folder, ctx.policy.save_adapter)
    path = str(folder.resolve())
    # Two runs of one seed begin with the same weights: neither is to unload the other's.
    weights = (folder / "adapter_model.safetensors").read_bytes()
    name = f"pyfast-{hashlib.sha256(weights + os.fsencode(path)).hexdigest()[:16]}"
    with contextlib.suppress(UserError):  # left there by a run that was killed
        _call(config, "unload_lora_adapter", {"lora_name": name}, retries=0)
    _call(config, "load_lora_adapter", {"lora_name": name, "lora_path": path})
    _check(ctx, config, name, ctx.tokens.prompt(probe))
    return name


def _check(ctx: Context, config: Any, name: str, prompt: list[int]) -> None:
    """Refuse a server whose likeliest answer is none that the policy would give."""
    import torch

    greedy = SamplingConfig(max_new_tokens=_SHORT, temperature=0.0, merge=False)
    (ours,) = ctx.policy.answer([prompt], 1, greedy, [0])
    (theirs,) = _answer(ctx, config, name, [prompt], 1, greedy, [0])
    with torch.no_grad():
        likely = [
            float(ctx.policy.logps(prompt, found.token_ids)[0]) / len(found.token_ids[0])
            for found in (ours, theirs)
        ]
    if not likely[1] > likely[0] - _FAR:
        raise UserError(
            f"{_SETTING}: {config.server} answers as another model than policy.model would: to "
            f"the first prompt {theirs.texts[0]!r}, where the policy says {ours.texts[0]!r} "
            f"({likely[1]:.2f} and {likely[0]:.2f} nats a token)"
        )


def _answer(
    ctx: Context,
    config: Any,
    name: str,
    prompts: list[list[int]],
    n: int,
    how: Any,
    seeds: list[int],
) -> list[Samples]:
    server = _server(config, model=name, n=n, max_tokens=how.max_new_tokens,
                     temperature=how.temperature, extra=_WHOLE, exact=True)  # fmt: skip
    try:
        drawn = server(prompts, [seed % 2**31 for seed in seeds])  # what all servers take
    except ServerError as error:
        raise _refused(error) from None
    return [_samples(ctx, found) for found in drawn]


def _samples(ctx: Context, drawn: Drawn) -> Samples:
    """Make tokens of texts: with an end, unless they were cut."""
    from pyfast.train.policy.sampling import Samples

    tokens, finished = [], []
    for text, reason in zip(drawn.responses, drawn.finish_reasons, strict=True):
        try:
            row = ctx.tokens.response(text)
        except UserError as error:
            raise UserError(f"{_SETTING}: a response: {error}") from None
        if reason == "length" and len(row) > 1 and row[-1] == ctx.tokens.end:
            row = row[:-1]
        tokens.append(row)
        finished.append(reason != "length")
    return Samples(tokens, drawn.responses, finished)


def _call(config: Any, endpoint: str, body: dict[str, Any], retries: int | None = None) -> None:
    server = _server(config, retries=config.server_retries if retries is None else retries)
    try:
        server.call(endpoint, body)
    except ServerError as error:
        raise _refused(error, endpoint) from None


def _refused(error: ServerError, endpoint: str | None = None) -> UserError:
    text = f"{_SETTING}: {error}"
    if endpoint is not None and "status 404" in text:
        text += " (vLLM: --enable-lora, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True)"
    return UserError(f"{text}; what was sampled is kept, and the same command goes on from there")


def _server(config: Any, model: str = "", **options: Any) -> Server:
    key = None
    if config.server_key_env is not None:
        key = os.environ.get(config.server_key_env)
        if not key:
            raise UserError(
                f"sampling.server_key_env: the environment has no {config.server_key_env}"
            )
    options = {"retries": config.server_retries, "keep_empty": True, **options}
    try:
        return Server(config.server, model, chat=False, key=key, **options)
    except (ValueError, TypeError) as error:
        raise UserError(f"{_SETTING}: {error}") from None
