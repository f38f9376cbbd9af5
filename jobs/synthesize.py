"""Render a synthetic raw data set in a benchmark's layout, to try the jobs without real photos."""

import dataclasses
import itertools
import os
import time
from functools import partial
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from glefld import storage
from glefld.errors import UserError
from glefld.synthetic import deepfashion2
from glefld.synthetic.deepfashion import Summary, SyntheticLayout, write_dataset
from jobs import cli
from jobs.progress import RowBar


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the rendering job."""

    layout: SyntheticLayout | Literal["deepfashion2"]
    """Raw layout: fld, deepfashion (coarse lists), deepfashion-fine, or deepfashion2 (several garments per photo)."""
    count: Annotated[int, tyro.conf.arg(metavar="N")]
    """Number of photos."""
    output: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for img.zip and the lists, or deepfashion2's train.zip and validation.zip; path or URL. Default:
    <root>/raw/<layout>."""
    root: cli.Root = None
    seed: int = 0
    """Random seed. The same seed writes the same bytes; a larger --count continues the same sequence."""
    irregularities: int = 0
    """Number of faulty rows to plant of each kind, listed in planted.json. Not for deepfashion2."""
    processes: int = os.cpu_count() or 1
    """Number of rendering processes."""


def run(options: Options) -> None:
    """Render the data set and print what was written. Raises UserError if an option is wrong."""
    output, named = cli.resolve_output(options.output, options.root, lambda: f"raw/{options.layout}")
    storage.require_writable(output, named, folder=True)
    if options.layout == "deepfashion2" and options.irregularities:
        raise UserError("--irregularities needs a layout with lists: omit it for deepfashion2")
    start = time.perf_counter()
    done = itertools.count(1)
    with RowBar(Console(), "rendering") as bar:
        write = partial(
            deepfashion2.write_dataset
            if options.layout == "deepfashion2"
            else partial(write_dataset, layout=options.layout, irregularities=options.irregularities),
            seed=options.seed,
            processes=options.processes,
            on_photo=lambda: bar(next(done), options.count),
        )
        summary = write(output, count=options.count)
    show(summary, output, time.perf_counter() - start)


def show(summary: Summary, output: str, seconds: float) -> None:
    """Print a table of what was written."""
    table = Table(title=f"{output}: {summary.photos:,} photos in {seconds:.1f} s")
    table.add_column("rows of")
    table.add_column("number", justify="right")
    for name, number in (summary.splits | summary.views | summary.categories | summary.planted).items():
        table.add_row(name, f"{number:,}")
    table.add_row("archives, bytes", f"{summary.archive_bytes:,}")
    Console().print(table)


if __name__ == "__main__":
    cli.main(Options, run)
