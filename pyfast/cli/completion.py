"""``pyfast completion``: commands, flags and choices for a shell's completion."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from pyfast.cli._common import Help

BASH = """# pyfast completion bash: commands, flags and choices; files elsewhere.
_pyfast() {
  local cur prev path word key
  cur="${COMP_WORDS[COMP_CWORD]}" prev="${COMP_WORDS[COMP_CWORD-1]}" path=""
  for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    if _pyfast_words "${path:+$path }$word" > /dev/null; then path="${path:+$path }$word"; fi
  done
  key="${path:+$path }$prev"
  if [[ $prev == --* && $cur != -* ]]; then
    COMPREPLY=($(compgen -W "$(_pyfast_values "$key")" -- "$cur"))
    return
  fi
  COMPREPLY=($(compgen -W "$(_pyfast_words "$path")" -- "$cur"))
}
_pyfast_words() {
  case "$1" in
@WORDS@
    *) return 1 ;;
  esac
}
_pyfast_values() {
  case "$1" in
@VALUES@
    *) ;;
  esac
}
complete -o default -F _pyfast pyfast
"""
ZSH = "autoload -U +X compinit && compinit -u\nautoload -U +X bashcompinit && bashcompinit\n"


def add(commands: Any) -> None:
    """Add the command to the parser."""
    completion = commands.add_parser(
        "completion",
        formatter_class=Help,
        help="print what completes commands and flags in a shell",
        description="Print a script that completes commands, flags and choices in a shell.",
        epilog=(
            "examples:\n"
            '  eval "$(pyfast completion bash)"      # in ~/.bashrc\n'
            '  eval "$(pyfast completion zsh)"       # in ~/.zshrc\n'
            "  pyfast completion fish > ~/.config/fish/completions/pyfast.fish"
        ),
    )
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    completion.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the script, made from the parsers of all commands."""
    from pyfast.cli import parser

    found = list(_parsers(parser()))
    if arguments.shell == "fish":
        print("\n".join(_fish(found)))
        return 0
    words = [f"    {path!r}) echo {' '.join(_words(one))!r} ;;" for path, one in found]
    values = [
        f"    {f'{path} {flag}'.strip()!r}) echo {' '.join(map(str, action.choices))!r} ;;"
        for path, one in found
        for action in one._actions
        if action.choices and not isinstance(action, argparse._SubParsersAction)
        for flag in action.option_strings
    ]
    script = BASH.replace("@WORDS@", "\n".join(words)).replace("@VALUES@", "\n".join(values))
    print((ZSH if arguments.shell == "zsh" else "") + script, end="")
    return 0


def _parsers(
    parser: argparse.ArgumentParser, path: str = ""
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield a parser and those of its commands, each with the words that lead to it."""
    yield path, parser
    for name, below in _commands(parser).items():
        yield from _parsers(below, f"{path} {name}".strip())


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _words(parser: argparse.ArgumentParser) -> list[str]:
    """Return what may stand behind a command: commands, choices of arguments, flags."""
    words = list(_commands(parser))
    for action in parser._actions:
        if not action.option_strings and action.choices:
            words += [str(word) for word in action.choices if str(word) not in words]
        words += [flag for flag in action.option_strings if flag.startswith("--")]
    return words


def _fish(found: list[tuple[str, argparse.ArgumentParser]]) -> Iterator[str]:
    """Yield the lines of fish: what is offered, and behind which words."""
    for path, parser in found:
        below = " ".join(_commands(parser))
        seen = " ".join(f"; and __fish_seen_subcommand_from {word}" for word in path.split())
        here = f"not __fish_seen_subcommand_from {below}" if below else "true"
        when = f"{here}{seen}"
        names = [word for word in _words(parser) if not word.startswith("--")]
        if names:
            yield f"complete -c pyfast -n {when!r} -f -a {' '.join(names)!r}"
        for action in parser._actions:
            for flag in action.option_strings:
                if flag.startswith("--"):
                    values = " ".join(map(str, action.choices or ()))
                    takes = f" -x -a {values!r}" if values else ""
                    yield f"complete -c pyfast -n {when!r} -l {flag[2:]}{takes}"
