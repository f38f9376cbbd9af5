"""Check this machine, its packages and servers, and a root folder. The exit status is 1 if there is a problem."""

import dataclasses
from collections import Counter

from rich.console import Console
from rich.markup import escape

from glefld import storage
from jobs.cli import Root, chosen_root, main, on_cluster

STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the examination."""

    root: Root = None


def run(options: Options) -> None:
    """Print a line for each finding. SystemExit with status 1 if one of them is a problem."""
    from pipelines.doctor import examine

    console = Console()
    named = "--root" if options.root else "the root (--root or GLEFLD_ROOT)"
    counted: Counter[str] = Counter()
    for finding in examine(storage.absolute(chosen_root(options.root)), named, on_cluster()):
        counted[finding.status] += 1
        style = STYLES[finding.status]
        console.print(
            f"[{style}]{finding.status:8}[/] {finding.subject:15} {escape(finding.text)}",
            soft_wrap=True,
            highlight=False,
        )
    problems, warnings = counted["problem"], counted["warning"]
    console.print(f"{problems} problem{'s' * (problems != 1)}, {warnings} warning{'s' * (warnings != 1)}")
    if problems:
        raise SystemExit(1)


if __name__ == "__main__":
    main(Options, run)
