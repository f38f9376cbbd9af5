"""Raw archives of a data set to Parquet shards with a manifest. Killed and started again, it goes on."""

import dataclasses
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Column, Table

from glefld import storage
from glefld.datasets import Dataset
from glefld.errors import UserError
from glefld.schema import Manifest
from jobs.cli import Root, RowBar, main, resolve_root, resolve_url, show_own_progress, start_ray
from pipelines.ingest.plan import IngestOptions
from pipelines.ingest.run import find_finished, ingest, prepare


@dataclasses.dataclass(frozen=True)
class Options:
    """Where the raw data is and how it is stored."""

    dataset: Dataset
    """Layout of the raw data."""
    source: str
    """Folder with the lists and img.zip (.tar, .tar.gz, unpacked img), or one archive of all; path or URL.
    deepfashion2: train and validation, unpacked or a zip each. image-folder: a folder or an archive with train/, val/
    and, if any, test/, and in each a folder a class."""
    output: str | None = None
    """Folder to write, path or URL. Default: <root>/data/<dataset>."""
    root: Root = None
    margin: float | Literal["full"] = 0.25
    """What to store around the box, as a part of its size on each side; `full` stores the whole photo."""
    landmark_tolerance: float = 0.1
    """How far outside its box a landmark may lie, as a part of the box's size, for its row to be kept."""
    shard_mib: Annotated[int, tyro.conf.arg(metavar="MIB")] = 256
    """Size to aim at for one Parquet file of a large data set."""
    dedupe: bool = False
    """Keep train free of photos whose very bytes stand in val or test too."""


def run(options: Options) -> None:
    if options.margin != "full" and not 0 <= options.margin <= 10:
        raise UserError(f"--margin must be between 0 and 10, or full, not {options.margin}")
    if options.landmark_tolerance < 0:
        raise UserError(f"--landmark-tolerance must not be negative, as {options.landmark_tolerance} is")
    if options.shard_mib < 1:
        raise UserError(f"--shard-mib must be at least 1, not {options.shard_mib}")
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
    console = Console()
    if (manifest := find_finished(chosen, output)) is not None:
        console.print(f"{output} is finished already: nothing was done", soft_wrap=True)
        console.print(summary(manifest))
        return
    plan = prepare(chosen, output)
    start_ray()
    show_own_progress()
    with RowBar(console, "ingest") as bar:
        manifest = ingest(plan, output, bar)
    console.print(summary(manifest, bar.rows_per_second()))
    console.print(output, soft_wrap=True)


def summary(manifest: Manifest, rows_per_second: float | None = None) -> Table:
    """What came in and what became of it."""
    table = Table(Column(), Column(justify="right"), title=manifest.dataset, show_header=False)
    table.add_row("listed", f"{manifest.rows_in:,}", end_section=True)
    for split, rows in manifest.splits.items():
        table.add_row(split, f"{rows:,}")
    table.add_section()
    for reason, rows in manifest.rejects.items():
        table.add_row(f"rejected: {reason}", f"{rows:,}")
    table.add_row("rejected", f"{sum(manifest.rejects.values()):,}", end_section=True)
    if manifest.source["absent_lists"]:
        table.add_row(
            "lists that are not there", "\n".join(manifest.source["absent_lists"]), end_section=True
        )
    table.add_row("photos in several splits", f"{len(manifest.photos_in_several_splits):,}")
    table.add_row("shards", f"{len(manifest.shards):,}")
    table.add_row("MiB", f"{sum(shard.bytes for shard in manifest.shards) / 2**20:,.1f}")
    if rows_per_second is not None:
        table.add_row("rows a second", f"{rows_per_second:,.0f}")
    table.add_row("content", manifest.content_hash[:16])
    return table


if __name__ == "__main__":
    main(Options, run)
