"""Completion of ``glefld`` by a shell: a script that knows all commands and options, so that the tab key is fast."""

import contextlib
import dataclasses
import importlib
import io
from collections.abc import Iterable
from typing import Annotated, Any, Union

import tyro

from jobs.commands import COMMANDS, SUBMITTED

#: What is added to tyro's script for bash: where it knows nothing, as of a file's name, bash completes by itself.
BASH = """
_glefld() {
  _tyro_glefld "$@"
  [[ -n "${COMPREPLY[*]}" ]] || COMPREPLY=()
}
complete -o bashdefault -o default -F _glefld glefld
"""


def script(shell: str) -> str:
    """Return the script for a shell: bash, zsh or fish. Imports every job, which takes seconds."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        tyro.cli(_choice(COMMANDS), prog="glefld", args=["--tyro-write-completion", shell, "-"])
    # tyro offers each further line of an option's help as a completion of its own.
    lines = [
        line.replace("\\n", " ") if line.startswith("COMPLETION_SPEC = ") else line
        for line in printed.getvalue().splitlines(keepends=True)
    ]
    return "".join(lines) + (BASH if shell == "bash" else "")


def _choice(names: Iterable[str]) -> Any:
    """Return the type of a choice between commands, as tyro takes it."""
    return Union[tuple(_command(name) for name in names)]  # noqa: UP007


def _command(name: str) -> Any:
    """Return the type of a command and its options, those of train's default system."""
    module = importlib.import_module(f"jobs.{COMMANDS[name].module}")
    if name == "train":
        kind, default = module.defaults("fpn", "landmarks", "best", "fld")
        return Annotated[kind, tyro.conf.subcommand(name, default=default)]
    if name == "submit":  # which parses its options itself
        fields = [
            ("address", str | None, dataclasses.field(default=None)),
            ("stop_on_interrupt", bool, dataclasses.field(default=False)),
            ("job", Annotated[_choice(SUBMITTED), tyro.conf.arg(name="")], dataclasses.field(kw_only=True)),
        ]
        return Annotated[dataclasses.make_dataclass("Submit", fields), tyro.conf.subcommand(name)]
    return Annotated[module.Options, tyro.conf.subcommand(name)]
