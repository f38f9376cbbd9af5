"""Ingest raw archives into a data set of Parquet shards with a manifest. If killed, run it again to continue."""

import dataclasses

from rich.console import Console
from rich.table import Column, Table

from glefld import storage
from glefld.schema import Manifest
from jobs.cli import (
    Root,
    base_options,
    main,
    resolve_output,
    resolve_url,
    start_ray,
)
from jobs.progress import RowBar, show_own_progress
from pipelines.ingest.plan import IngestOptions
from pipelines.ingest.run import find_finished, ingest, prepare


@dataclasses.dataclass(frozen=True)
class Options(IngestOptions):
    """Options of the ingest job."""

    output: str | None = None
    """Output folder, path or URL. Default: <root>/data/<dataset>."""
    root: Root = None


def run(options: Options) -> None:
    """Ingest, and print a summary. Raises UserError if an option is wrong or the output is another run's."""
    options.check()
    output, named = resolve_output(options.output, options.root, lambda: f"data/{options.dataset}")
    chosen = base_options(options, IngestOptions, source=resolve_url(options.source, "--source"))
    console = Console()
    if (manifest := find_finished(chosen, output)) is not None:
        console.print(f"{output} is already finished: nothing to do", soft_wrap=True)
        console.print(summary(manifest))
        return
    storage.require_writable(output, named, folder=True)
    plan = prepare(chosen, output, start_ray)
    for note in plan.source.get("notes", ()):
        console.print(note, soft_wrap=True, markup=False, highlight=False)
    start_ray()
    show_own_progress()
    with RowBar(console, "ingest") as bar:
        manifest = ingest(plan, output, bar)
    console.print(summary(manifest, bar.rows_per_second()))
    console.print(output, soft_wrap=True)


def summary(manifest: Manifest, rows_per_second: float | None = None) -> Table:
    """Return a table of the rows listed, accepted and rejected."""
    table = Table(Column(), Column(justify="right"), title=manifest.dataset, show_header=False)
    table.add_row("listed", f"{manifest.rows_in:,}", end_section=True)
    for split, rows in manifest.splits.items():
        table.add_row(split, f"{rows:,}")
    table.add_section()
    for reason, rows in manifest.rejects.items():
        table.add_row(f"rejected: {reason}", f"{rows:,}")
    table.add_row("rejected", f"{sum(manifest.rejects.values()):,}", end_section=True)
    if manifest.source["absent_lists"]:
        table.add_row("missing lists", "\n".join(manifest.source["absent_lists"]), end_section=True)
    table.add_row("photos in several splits", f"{len(manifest.photos_in_several_splits):,}")
    table.add_row("shards", f"{len(manifest.shards):,}")
    table.add_row("MiB", f"{sum(shard.bytes for shard in manifest.shards) / 2**20:,.1f}")
    if rows_per_second is not None:
        table.add_row("rows per second", f"{rows_per_second:,.0f}")
    table.add_row("content", manifest.content_hash[:16])
    return table


if __name__ == "__main__":
    main(Options, run)
