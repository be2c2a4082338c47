"""The command line, a module a command: ``pyfast train``, ``pyfast select`` and the others.

Only what a command needs is imported, and only when it runs: torch and transformers take seconds.
Whatever goes wrong is told in one line; ``--debug`` shows where it came from.
"""

from __future__ import annotations

import io
import os
import shlex
import sys
import textwrap
import traceback
from collections.abc import Sequence
from importlib.metadata import version

from pyfast.cli import (
    compare,
    data,
    env,
    evaluate,
    label,
    plot,
    sample,
    select,
    stages,
    sweep,
    train,
)
from pyfast.cli._common import Help, Parser
from pyfast.cli.train import DEMO_CONFIG as DEMO_CONFIG
from pyfast.train.errors import UserError, WaitingError

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
        print(_interrupted(arguments), file=sys.stderr)
        return INTERRUPTED
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):  # --help and --version
            return stop.code or DONE
        return _told(stop, debug)  # code of the user's that gave up
    except Exception as error:
        return _told(error, debug)


def _run(arguments: list[str]) -> int:
    parsed = _parser().parse_args(arguments)
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


def _interrupted(arguments: list[str]) -> str:
    again = shlex.join(["pyfast", *arguments])
    if arguments[:1] == ["train"]:
        return f"\npyfast: interrupted; to go on from the last checkpoint, run again: {again}"
    return "\npyfast: interrupted"


def _parser() -> Parser:
    parser = Parser(
        "pyfast",
        formatter_class=Help,
        description="Select which sampled responses to train on, and train on them.",
        epilog="'pyfast COMMAND --help' describes each command with examples.",
    )
    parser.add_argument("--version", action="version", version=f"pyfast {version('pyfast-align')}")
    parser.add_argument(
        "--debug",
        action="store_true",
        help="show the traceback of an error too, of any command (or PYFAST_DEBUG=1)",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (
        train,
        sweep,
        compare,
        evaluate,
        label,
        sample,
        select,
        stages,
        data,
        plot,
        env,
    ):
        command.add(commands)
    return parser
