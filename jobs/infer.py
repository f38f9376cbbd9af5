"""Landmarks of photos with a trained checkpoint, to Parquet. Killed and started again, it goes on."""

import dataclasses
import os
from pathlib import PurePosixPath
from typing import Annotated, Any

import ray
import tyro
from rich.console import Console
from rich.table import Column, Table

from glefld import storage
from glefld.errors import UserError
from glefld.recipe import Precision
from glefld.schema import Split
from jobs.cli import (
    Device,
    Root,
    RowBar,
    main,
    on_cluster,
    resolve_checkpoint,
    resolve_root,
    resolve_url,
    show_own_progress,
    start_ray,
    use_gpu,
)
from pipelines.archives import public_url
from pipelines.infer.overlays import write_overlays
from pipelines.infer.run import InferOptions, Workers, find_finished, finish, infer, make_plan


@dataclasses.dataclass(frozen=True)
class Options:
    """Which photos, which model, and where the predictions go."""

    checkpoint: str
    """A checkpoint's folder, or a run's (its best one): path, URL or MLflow model (models:/NAME@ALIAS, runs:/ID)."""
    input: str
    """A folder or prefix of photos, a .zip, .tar or .tar.gz of them, one photo, or an ingested data set."""
    output: str | None = None
    """Folder to write, path or URL. Default: <root>/predictions/<name of the input>."""
    root: Root = None
    boxes: str | None = None
    """Parquet or CSV file of the garments to look at, one a row: uri (path within --input) and x1, y1, x2, y2 (or a
    list, box) in the upright photo's pixels. Only these are predicted. Default: each photo, whole."""
    split: Split | None = None
    """Of a data set, this split only. Default: all."""
    overlays: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Draw the first N predictions, and a contact sheet of them, into <output>/overlays."""
    num_workers: int | None = None
    """Workers, each with a model of its own. Default: one for each GPU, or one for each machine."""
    device: Device = "auto"
    threads: int | None = None
    """Threads a worker decodes and computes with. Default: this machine's CPUs, shared out."""
    batch_size: int = 32
    """Garments a worker takes at a time."""
    shard_rows: int = 2048
    """Rows of one Parquet file, which a worker writes in one go."""
    precision: Precision = "fp32"
    """Of the forward pass. auto: bf16 where the hardware multiplies it, else fp32."""


def run(options: Options) -> None:
    for name in ("num_workers", "threads", "batch_size", "shard_rows"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    if options.overlays < 0:
        raise UserError(f"--overlays must not be negative, as {options.overlays} is")
    source = resolve_url(options.input, "--input").rstrip("/")
    output = (
        resolve_url(options.output, "--output")
        if options.output
        else storage.join(resolve_root(options.root), "predictions", PurePosixPath(public_url(source)).stem)
    )
    chosen = InferOptions(
        checkpoint=resolve_checkpoint(options.checkpoint, "--checkpoint", options.root),
        input=source,
        boxes=resolve_url(options.boxes, "--boxes") if options.boxes else None,
        split=options.split,
        shard_rows=options.shard_rows,
        precision=options.precision,
    )
    console = Console()
    rate = None
    if (manifest := find_finished(chosen, output)) is not None:
        console.print(f"{output} is finished already: nothing was predicted", soft_wrap=True)
    else:
        plan = make_plan(chosen, output)
        start_ray()
        show_own_progress()
        workers = choose_workers(options)
        with RowBar(console, "infer") as bar:
            infer(plan, output, workers, bar)
        rate = bar.rows_per_second()
        manifest = finish(plan, output)
    sheet = write_overlays(chosen, output, options.overlays) if options.overlays else None
    console.print(summary(manifest, rate))
    console.print(f"predictions   {output}", soft_wrap=True)
    if sheet is not None:
        console.print(f"contact sheet {sheet}", soft_wrap=True)


def choose_workers(options: Options) -> Workers:
    """As asked for, else what this machine and the cluster have. UserError for more GPU workers than GPUs."""
    gpus = int(ray.cluster_resources().get("GPU", 0))
    # A cluster whose workers have yet to be added has neither machines nor GPUs now.
    machines = max(1, sum(node["Alive"] and node["Resources"].get("CPU", 0) >= 1 for node in ray.nodes()))
    gpu = use_gpu(options.device)
    number = options.num_workers or max(1, gpus if gpu else machines)
    if gpu and number > gpus and not on_cluster():
        raise UserError(f"--num-workers {number}, but the cluster has {gpus} GPUs: ask for {gpus} at most")
    threads = options.threads or max(1, (os.cpu_count() or 1) // -(-number // machines))
    return Workers(number, threads, gpu, options.batch_size)


def summary(manifest: dict[str, Any], rows_per_second: float | None) -> Table:
    """What came in and what became of it."""
    table = Table("", Column("number", justify="right"), title=f"model {manifest['model']}")
    table.add_row("photos", f"{manifest['photos']:,}")
    table.add_row("garments", f"{manifest['rows']:,}", end_section=True)
    table.add_row("ok", f"{manifest['ok']:,}")
    for reason, rows in manifest["errors"].items():
        table.add_row(f"error: {reason}", f"{rows:,}")
    table.add_row("errors", f"{sum(manifest['errors'].values()):,}", end_section=True)
    for what, files in manifest["skipped"].items():
        if files:
            table.add_row(f"skipped: {what}", f"{files:,}")
    table.add_row("shards", f"{len(manifest['shards']):,}")
    if rows_per_second is not None:
        table.add_row("garments a second", f"{rows_per_second:,.1f}")
    table.add_row("content", manifest["content_hash"][:16])
    return table


if __name__ == "__main__":
    main(Options, run)
