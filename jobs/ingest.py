"""Raw archives of a data set to Parquet shards with a manifest. Killed and started again, it goes on where it was."""

import dataclasses
import time
from typing import Annotated, Literal

import ray
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from glefld import storage
from glefld.datasets import Dataset
from glefld.schema import Manifest
from jobs.cli import Root, main, resolve_root, resolve_url, start_ray
from pipelines.ingest import IngestOptions, ingest


@dataclasses.dataclass(frozen=True)
class Options:
    """Where the raw data is and how it is stored."""

    dataset: Dataset
    """Layout of the raw data."""
    source: str
    """Folder with the lists and img.zip (or .tar, .tar.gz, an unpacked img), or one archive of all; path or URL."""
    output: str | None = None
    """Folder to write, path or URL. Default: <root>/data/<dataset>."""
    root: Root = None
    margin: float | Literal["full"] = 0.25
    """What to store around the box, as a part of its size on each side; `full` stores the whole photo."""
    landmark_tolerance: float = 0.1
    """How far outside its box a landmark may lie, as a part of the box's size, before its row is turned away."""
    shard_mib: Annotated[int, tyro.conf.arg(metavar="MIB")] = 256
    """Size to aim at for one Parquet file of a large data set."""
    dedupe: bool = False
    """Keep train free of photos whose very bytes stand in val or test too."""


def run(options: Options) -> None:
    if options.margin != "full" and not 0 <= options.margin <= 10:
        raise ValueError(f"--margin must be between 0 and 10, or full, not {options.margin}")
    if options.landmark_tolerance < 0:
        raise ValueError(f"--landmark-tolerance must not be negative, as {options.landmark_tolerance} is")
    if options.shard_mib < 1:
        raise ValueError(f"--shard-mib must be at least 1, not {options.shard_mib}")
    output = (
        resolve_url(options.output, "--output")
        if options.output
        else storage.join(resolve_root(options.root), "data", options.dataset)
    )
    chosen = IngestOptions(
        dataset=options.dataset,
        source=resolve_url(options.source, "--source"),
        margin=options.margin,
        landmark_tolerance=options.landmark_tolerance,
        shard_mib=options.shard_mib,
        dedupe=options.dedupe,
    )
    start_ray()
    ray.data.DataContext.get_current().enable_progress_bars = False
    console = Console()
    start = time.monotonic()
    with Progress(
        TextColumn("ingest"), BarColumn(), MofNCompleteColumn(), TextColumn("rows"), TimeRemainingColumn()
    ) as bar:
        task = bar.add_task("rows", total=None)
        manifest, finished = ingest(
            chosen, output, lambda done, total: bar.update(task, completed=done, total=total)
        )
    if finished:
        console.print(f"{output} is finished already: nothing was done", soft_wrap=True)
    print_summary(console, manifest, None if finished else manifest.rows_in / (time.monotonic() - start))
    console.print(output, soft_wrap=True)


def print_summary(console: Console, manifest: Manifest, rows_per_second: float | None) -> None:
    table = Table("", "rows", title=f"{manifest.dataset}, content {manifest.content_hash[:16]}")
    table.columns[1].justify = "right"
    table.add_row("listed", f"{manifest.rows_in:,}", end_section=True)
    for split, rows in manifest.splits.items():
        table.add_row(split, f"{rows:,}")
    table.add_section()
    for reason, rows in manifest.rejects.items():
        table.add_row(f"rejected: {reason}", f"{rows:,}")
    table.add_row("rejected", f"{sum(manifest.rejects.values()):,}", end_section=True)
    table.add_row("photos in several splits", f"{len(manifest.photos_in_several_splits):,}")
    table.add_row("shards", f"{len(manifest.shards):,}")
    table.add_row("MiB", f"{sum(shard.bytes for shard in manifest.shards) / 2**20:,.1f}")
    if rows_per_second is not None:
        table.add_row("rows a second", f"{rows_per_second:,.0f}")
    console.print(table)


if __name__ == "__main__":
    main(Options, run)
