"""``pyfast sample``: responses to the prompts in files, from a model here or from a server."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from typing import Any

from pyfast.cli._common import flags_named, need
from pyfast.cli.stages import run_work, stage_parser
from pyfast.train.errors import UserError


def add(commands: Any) -> None:
    """Add the command to the parser."""
    sample = stage_parser(
        commands,
        "sample",
        "sample responses to the prompts in files",
        "Draw N responses to every row's prompt: columns responses and finish_reasons. With\n"
        "--server from any server of OpenAI's protocol (vLLM, SGLang, llama.cpp, ...), else from\n"
        "a model that is loaded here. What is done of a file is kept in FILE.parts until all is.",
        "pyfast sample prompts.jsonl --model ./my-model --n 8 --out samples.jsonl\n"
        "  pyfast sample prompts.jsonl --server http://localhost:8000 --model qwen --out samples/",
    )
    sample.add_argument(
        "--model",
        metavar="TEXT",
        required=True,
        help="folder, hub id, .gguf file or peft adapter; with --server what it calls the model",
    )
    sample.add_argument("--n", type=int, metavar="N", default=8, help="responses (default: 8)")
    sample.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        default=512,
        help="longest response (default: 512)",
    )
    sample.add_argument(
        "--temperature", type=float, metavar="X", default=1.0, help="of sampling (default: 1)"
    )
    sample.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="of sampling (default: 0; a server is sent none unless one is given)",
    )
    sample.add_argument(
        "--rows",
        type=int,
        metavar="N",
        default=32,
        help="prompts of a unit of work: an interruption loses less than so many, and a model here "
        "answers so many at once (default: 32)",
    )
    here = sample.add_argument_group("a model here")
    here.add_argument("--device", metavar="TEXT", default="auto", help="(default: auto)")
    here.add_argument("--dtype", metavar="TEXT", default="float32", help="(default: float32)")
    server = sample.add_argument_group("a server")
    server.add_argument("--server", metavar="URL", help="such as http://localhost:8000")
    server.add_argument(
        "--key-env", metavar="NAME", help="environment variable that holds the server's key"
    )
    server.add_argument(
        "--extra",
        metavar="JSON",
        help='more fields of each request, such as {"top_p": 1.0, "top_k": -1}: what is not said '
        "is the server's default (vLLM: the model's generation_config.json)",
    )
    server.add_argument(
        "--completions", action="store_true", help="ask /completions, without a chat template"
    )
    server.add_argument(
        "--timeout",
        type=float,
        metavar="SECONDS",
        default=300.0,
        help="without a byte, after which a request has failed (default: 300)",
    )
    server.add_argument(
        "--retries",
        type=int,
        metavar="N",
        default=5,
        help="after failures that may pass (429, 5xx, no connection; default: 5)",
    )
    server.add_argument(
        "--concurrency", type=int, metavar="N", default=8, help="requests at a time (default: 8)"
    )
    server.add_argument(
        "--keep-empty", action="store_true", help="keep choices without text as empty responses"
    )
    sample.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    need("pyarrow", "tqdm")
    from pyfast.tables import stages
    from pyfast.tables.units import Work

    if arguments.rows < 1:
        raise UserError(f"--rows: expected at least 1, got {arguments.rows}")
    adds: tuple[str, ...] = ("responses", "finish_reasons")
    names = ("model", "n", "max_new_tokens", "temperature", "seed", "rows")
    settings = {name: getattr(arguments, name) for name in names}
    if arguments.server is not None:
        sampler = _of_server(arguments)
        settings |= {name: getattr(arguments, name) for name in ("server", "extra", "completions")}
    else:
        with flags_named():
            sampler = _of_model(arguments)
        settings |= {"dtype": arguments.dtype}
        adds += ("token_ids",)
    work = Work(
        "sample",
        lambda table: stages.sample(table, sampler),
        dict.fromkeys(("prompt", *stages.OF_RESPONSES)),
        adds,
        settings,
        arguments.rows,
    )
    return run_work(work, arguments.files, arguments.out)


def _of_server(arguments: argparse.Namespace) -> Callable[..., Any]:
    from pyfast.tables.server import Server

    key = None
    if arguments.key_env is not None:
        key = os.environ.get(arguments.key_env)
        if not key:
            raise UserError(f"--key-env: the environment has no {arguments.key_env}")
    try:
        extra = json.loads(arguments.extra or "{}")
    except ValueError as error:
        raise UserError(f"--extra: expected JSON; {error}") from None
    if not isinstance(extra, dict):
        raise UserError(f"--extra: expected a JSON object, got {arguments.extra}")
    try:
        return Server(
            arguments.server,
            arguments.model,
            n=arguments.n,
            max_tokens=arguments.max_new_tokens,
            temperature=arguments.temperature,
            seed=arguments.seed,
            extra=extra,
            chat=not arguments.completions,
            key=key,
            timeout=arguments.timeout,
            retries=arguments.retries,
            concurrency=arguments.concurrency,
            keep_empty=arguments.keep_empty,
        )
    except (ValueError, TypeError) as error:
        name, _, reason = str(error).partition(": ")
        flag = {"url": "server", "max_tokens": "max-new-tokens"}.get(name, name)
        raise UserError(f"--{flag}: {reason}") from None


def _of_model(arguments: argparse.Namespace) -> Callable[..., Any]:
    """Return the sampler of a model that is loaded here; each prompt has a seed of its own."""
    need("torch", "transformers", "peft")
    from pyfast.tables.server import Drawn
    from pyfast.train.config import PolicyConfig, SamplingConfig
    from pyfast.train.policy import loading
    from pyfast.train.seeds import derive

    for name, value, usual in (
        ("--key-env", arguments.key_env, None),
        ("--extra", arguments.extra, None),
        ("--completions", arguments.completions, False),
    ):
        if value != usual:
            raise UserError(f"{name}: expected only with --server")
    if arguments.n < 1:
        raise UserError(f"--n: expected at least 1, got {arguments.n}")
    config = SamplingConfig(
        max_new_tokens=arguments.max_new_tokens, temperature=arguments.temperature
    )
    seed = arguments.seed or 0
    policy = loading.load(
        PolicyConfig(model=arguments.model, device=arguments.device, dtype=arguments.dtype), seed
    )

    def sampler(prompts: list[Any]) -> list[Drawn]:
        ids, seeds = [], []
        for row, prompt in enumerate(prompts):
            if not isinstance(prompt, str):
                raise ValueError(f"prompt: expected a text for a model here, in row {row}")
            ids.append(policy.prompt_ids(prompt))
            seeds.append(derive(seed, "sample", prompt))
        with policy.model.disable_adapter():  # the model as it was given
            found = policy.sample(
                ids,
                arguments.n,
                max_new_tokens=config.max_new_tokens,
                temperature=config.temperature,
                seeds=seeds,
            )
        return [
            Drawn(
                samples.texts,
                ["stop" if finished else "length" for finished in samples.finished],
                samples.token_ids,
            )
            for samples in found
        ]

    return sampler
