"""The commands of ``glefld``: one table, which the help, the dispatcher, completion and ``submit`` read."""

import sys
from pathlib import Path
from typing import Literal, NamedTuple

#: The shells that complete commands with the tab key.
Shell = Literal["bash", "zsh", "fish"]


class Command(NamedTuple):
    """One command, which the module ``jobs.<module>`` runs."""

    name: str
    group: str
    line: str
    """What it does, for ``glefld --help``."""
    on_cluster: bool = True
    """Whether ``glefld submit`` takes it to a cluster."""

    @property
    def module(self) -> str:
        return self.name.replace("-", "_")


USE, MAKE, DATA, CLUSTER = "use a model", "make a model", "data", "cluster and machine"

#: By name, in the order of the help.
COMMANDS = {
    command.name: command
    for command in (
        Command("predict", USE, "landmarks of a few photos, at once", on_cluster=False),
        Command("infer", USE, "landmarks of up to millions of photos, to Parquet"),
        Command("evaluate", USE, "score a model on a split, beside published figures"),
        Command("export", USE, "a model as one ONNX file, for other programs", on_cluster=False),
        Command("train", MAKE, "train a system, or a detector; --resume continues a run"),
        Command("compare", MAKE, "train several systems alike, for one table"),
        Command("synthesize", DATA, "render garments with exact annotations"),
        Command("ingest", DATA, "raw archives, COCO or CSV to a data set in Parquet"),
        Command("inspect", DATA, "a page about a data set, and what is probably wrong in it"),
        Command("export-dataset", DATA, "a data set back to COCO keypoints and pictures"),
        Command("submit", CLUSTER, "run a command on a Ray cluster and follow its log", on_cluster=False),
        Command("benchmark", CLUSTER, "measure each stage on this machine or cluster"),
        Command("doctor", CLUSTER, "check this machine, its storage and its servers", on_cluster=False),
    )
}
#: What ``glefld submit`` can run.
SUBMITTED = tuple(name for name, command in COMMANDS.items() if command.on_cluster)


def caller() -> str | None:
    """Return how this process was called: ``glefld`` or ``python -m jobs``; None if it was in another way."""
    if Path(sys.argv[0]).stem == "glefld":
        return "glefld"
    main = getattr(sys.modules["__main__"], "__spec__", None)
    return "python -m jobs" if main is not None and main.name == "jobs.__main__" else None
