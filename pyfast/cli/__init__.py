"""The command line, a module a command: ``pyfast train``, ``pyfast select`` and the others.

Only what a command needs is imported, and only when it runs: torch and transformers take seconds.
Whatever goes wrong is told in one line; ``--debug`` shows where it came from.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shlex
import sys
import textwrap
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from pyfast.cli._common import Help, Parser
from pyfast.train.errors import UserError, WaitingError
from pyfast.train.processes import of_environment

COMMANDS = {
    "train": "train",
    "sweep": "sweep",
    "compare": "compare",
    "evaluate": "evaluate",
    "sample": "sample",
    "select": "select",
    "score": "stages",
    "embed": "stages",
    "export": "stages",
    "data": "data",
    "label": "label",
    "plot": "plot",
    "env": "env",
    "completion": "completion",
}
"""The commands, in the order of the help, and the module of each."""

DONE, UNEXPECTED, USERS, WAITING, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit statuses: done; a fault that is perhaps ours; what the user can mend; a run that stopped to
wait for labels; Ctrl-C."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments after the program's name; default: those of this process.

    Returns
    -------
    int
        Exit status: 0 done; 2 what the user can mend (settings, files, a full disk, too little
        memory), 1 anything else, 3 a run waits for labels, all told in one line; 130 interrupted.
        With ``--debug`` or ``PYFAST_DEBUG=1`` the traceback comes before that line.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get("PYFAST_DEBUG", "0") not in ("", "0")
    _open_streams()
    try:
        status = _run([argument for argument in arguments if argument != "--debug"])
        sys.stdout.flush()  # or a full disk would be told after the end
        return status
    except BrokenPipeError:  # `pyfast select ... | head` is no error
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (or the exit would flush into the pipe)
        return DONE
    except KeyboardInterrupt:
        if _place()[0] == 0:
            print(_interrupted(arguments), file=sys.stderr)
        return INTERRUPTED
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):  # --help and --version
            return stop.code or DONE
        return _told(stop, debug)  # code of the user's that gave up
    except Exception as error:
        return _told(error, debug)


def __getattr__(name: str) -> Any:
    if name in COMMANDS.values():
        return import_module(f"pyfast.cli.{name}")
    if name == "DEMO_CONFIG":
        return import_module("pyfast.cli.train").DEMO_CONFIG
    raise AttributeError(f"module 'pyfast.cli' has no attribute {name!r}")


def _run(arguments: list[str]) -> int:
    if arguments[:1] != ["train"] and of_environment()[1] > 1:
        raise UserError("only pyfast train runs in several processes; start this one alone")
    parsed = parser(arguments).parse_args(arguments)
    status: int = parsed.run(parsed)
    return status


def _open_streams() -> None:
    """Give the process the standard streams that it was started without (``2>&-``)."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    # Tables and file names come out on any terminal, what it lacks as \\N escapes.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _told(error: BaseException, debug: bool) -> int:
    """Tell an error in one line, after its traceback where that was asked for."""
    if getattr(error, "shared", False) and of_environment()[0] > 0 and not debug:
        return _message(error)[1]  # the first process of the run tells it
    if debug:
        traceback.print_exception(error)
    message, status = _message(error)
    kind = "waiting" if status == WAITING else "error"
    print(f"pyfast: {kind}: {' '.join(message.split())}", file=sys.stderr)
    _drop_unwritten()
    return status


def _message(error: BaseException) -> tuple[str, int]:
    """Return an error's line, and the exit status that goes with it."""
    kind, said = type(error).__name__, str(error)
    if isinstance(error, UserError):
        return said, WAITING if isinstance(error, WaitingError) else USERS
    if isinstance(error, OSError) and error.strerror:
        where = error.filename2 or error.filename
        place = f"{os.fsdecode(where)}: " if isinstance(where, str | bytes | os.PathLike) else ""
        return f"{place}{error.strerror}", USERS
    code = re.search(r"\(os error (\d+)\)", said) if kind == "SafetensorError" else None
    if code:  # safetensors tells a full disk, say, by an error of its own
        return f"weights: {os.strerror(int(code[1]))}", USERS
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError" or "can't allocate" in said:
        return (
            "not enough memory; fewer or shorter responses (--responses, --max-new-tokens) or a "
            "smaller model take less"
        ), USERS
    said = textwrap.shorten(said, 300, placeholder="...")
    return f"unexpected {kind}: {said} (--debug shows where it came from)", UNEXPECTED


def _drop_unwritten() -> None:
    """Keep what standard output could not take (a full disk) from failing again at the exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def _place() -> tuple[int, int]:
    """Return which process of a run this is, and of how many, whatever a launcher has set."""
    try:
        return of_environment()
    except UserError:  # told by the command itself
        return 0, 1


def _interrupted(arguments: list[str]) -> str:
    again = shlex.join(["pyfast", *arguments])
    if arguments[:1] == ["train"] and _place()[1] > 1:
        return (
            "\npyfast: interrupted; to go on from the last checkpoint, run the launcher's command "
            "again"
        )
    if arguments[:1] == ["train"]:
        return f"\npyfast: interrupted; to go on from the last checkpoint, run again: {again}"
    return "\npyfast: interrupted"


class _Version(argparse.Action):
    """Look the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"pyfast {version('pyfast-align')}")
        parser.exit()


def parser(arguments: Sequence[str] = ()) -> Parser:
    """Return the parser of the command that the arguments begin with, or of all commands."""
    made = Parser(
        "pyfast",
        formatter_class=Help,
        description="Select which sampled responses to train on, and train on them.",
        epilog="'pyfast COMMAND --help' describes each command with examples.\n"
        "exit status: 0 done, 1 a fault of ours, 2 what you can mend, 3 labels are waited for,\n"
        "130 interrupted",
    )
    made.add_argument(
        "--version", action=_Version, nargs=0, help="show program's version number and exit"
    )
    made.add_argument(
        "--debug",
        action="store_true",
        help="show the traceback of an error too, of any command (or PYFAST_DEBUG=1)",
    )
    commands = made.add_subparsers(required=True, metavar="COMMAND")
    named = COMMANDS.get(arguments[0]) if arguments else None
    for module in dict.fromkeys(COMMANDS.values() if named is None else [named]):
        import_module(f"pyfast.cli.{module}").add(commands)
    return made
