"""The command ``glefld``, also ``python -m jobs``: calls the job that its first argument names.

Imports nothing slow: help, version and mistyped commands are answered at once.
"""

import importlib
import sys
from collections.abc import Iterable
from itertools import groupby
from typing import NoReturn, get_args

from glefld import __version__
from jobs.commands import COMMANDS, Shell, caller

SHELLS: tuple[Shell, ...] = get_args(Shell)


def main() -> None:
    """Run the command that ``sys.argv`` names. Exit status 2 if there is no such command."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(help_text())
    elif name == "--version":
        print(f"glefld {__version__}")
    elif name == "--print-completion":
        print_completion(arguments)
    elif name in COMMANDS:
        from jobs.cli import run_command

        run_command(importlib.import_module(f"jobs.{COMMANDS[name].module}"), arguments)
    else:
        refuse(f"there is no command {name!r}", name, COMMANDS)


def help_text() -> str:
    """Return what ``--help`` prints: all commands by what they are for, on one screen."""
    width = max(map(len, COMMANDS)) + 2
    lines = [
        f"usage: {called()} COMMAND [OPTIONS]",
        "",
        "Fashion landmark detection: from raw archives to models to predictions.",
    ]
    for group, commands in groupby(COMMANDS.values(), lambda command: command.group):
        lines += [group, *(f"  {command.name:{width}}{command.line}" for command in commands)]
    lines += [
        "",
        f"{called()} COMMAND --help explains its options. Others: --version,",
        f"--print-completion {{{','.join(SHELLS)}}} for completion with the tab key.",
    ]
    return "\n".join(lines)


def print_completion(arguments: list[str]) -> None:
    """Print a script by which a shell completes commands and their options."""
    given = arguments[0] if arguments else ""
    shell = next((known for known in SHELLS if known == given), None)
    if shell is None:
        refuse(f"--print-completion {given}: name a shell, one of {', '.join(SHELLS)}", given, SHELLS)
    from jobs.cli import guard
    from jobs.completion import script

    guard(lambda: print(script(shell)))


def called() -> str:
    """Return how this process was called, for messages."""
    return caller() or "glefld"


def refuse(problem: str, given: str, names: Iterable[str]) -> NoReturn:
    """Print what is wrong and the name that is nearest to what was given, and exit with status 2."""
    from jobs.nearest import did_you_mean

    print(f"error: {problem}{did_you_mean(given, names)}", file=sys.stderr)
    print(f"{called()} --help lists the commands", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
