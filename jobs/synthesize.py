"""Write a raw data set of rendered garments in a benchmark's layout, to try the jobs without photographs."""

import dataclasses
import os
import time
from functools import partial
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from glefld import storage
from glefld.errors import UserError
from glefld.synthetic import deepfashion2
from glefld.synthetic.deepfashion import Summary, SyntheticLayout, write_dataset
from jobs import cli


@dataclasses.dataclass(frozen=True)
class Options:
    layout: SyntheticLayout | Literal["deepfashion2"]
    """Whose raw layout: fld, deepfashion (the coarse lists), deepfashion-fine, or deepfashion2 (several garments a
    photo)."""
    count: Annotated[int, tyro.conf.arg(metavar="N")]
    """How many photos."""
    output: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Where img.zip and the lists go, or train.zip and validation.zip of deepfashion2; a path or URL. Default:
    <root>/raw/<layout>."""
    root: cli.Root = None
    seed: int = 0
    """The same seed writes the same bytes; a larger count goes on where a smaller one ended."""
    irregularities: int = 0
    """How many of each kind of irregular row to plant; planted.json names them. Not for deepfashion2."""
    processes: int = os.cpu_count() or 1
    """How many processes draw."""


def run(options: Options) -> None:
    output = (
        cli.resolve_url(options.output, "--output")
        if options.output
        else storage.join(cli.resolve_root(options.root), "raw", options.layout)
    )
    if options.layout == "deepfashion2" and options.irregularities:
        raise UserError("--irregularities is for the layouts with lists: leave it out for deepfashion2")
    start = time.perf_counter()
    with Progress() as progress:
        task = progress.add_task("drawing", total=options.count)
        write = partial(
            deepfashion2.write_dataset
            if options.layout == "deepfashion2"
            else partial(write_dataset, layout=options.layout, irregularities=options.irregularities),
            seed=options.seed,
            processes=options.processes,
            on_photo=lambda: progress.advance(task),
        )
        summary = write(output, count=options.count)
    show(summary, output, time.perf_counter() - start)


def show(summary: Summary, output: str, seconds: float) -> None:
    table = Table(title=f"{output}: {summary.photos:,} photos in {seconds:.1f} s")
    table.add_column("rows of")
    table.add_column("number", justify="right")
    for name, number in (summary.splits | summary.views | summary.categories | summary.planted).items():
        table.add_row(name, f"{number:,}")
    table.add_row("archives, bytes", f"{summary.archive_bytes:,}")
    Console().print(table)


if __name__ == "__main__":
    cli.main(Options, run)
