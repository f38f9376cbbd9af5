"""Predict landmarks in photos and write them to Parquet. If killed, run it again to continue."""

import dataclasses
import os
from pathlib import PurePosixPath
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Column, Table

from glefld import storage
from glefld.errors import UserError, require_between
from glefld.prediction import BATCH_SIZE
from glefld.redaction import public_url
from jobs.cli import (
    Device,
    Root,
    available,
    base_options,
    count_machines,
    main,
    on_cluster,
    resolve_checkpoint,
    resolve_detector,
    resolve_output,
    resolve_url,
    start_ray,
    use_gpu,
)
from jobs.progress import RowBar, show_own_progress
from pipelines.infer.retry import plan_retry, retry
from pipelines.infer.run import InferenceWorkers, InferOptions, find_finished, infer, make_plan
from pipelines.train.workers import parse_workers


@dataclasses.dataclass(frozen=True)
class Options(InferOptions):
    """Options of the inference job."""

    output: str | None = None
    """Output folder, path or URL. Default: <root>/predictions/<name of the input>."""
    root: Root = None
    retry_errors: bool = False
    """Predict again what ended in an error in an earlier run's output, as after an outage of the storage, or when
    damaged photos have been replaced. The other options must be those of that run."""
    overlays: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Draw the first N predictions and a contact sheet of them to <output>/_overlays."""
    num_workers: str | None = None
    """Workers, each with its own copy of the model: N, or MIN-MAX for as many as there is work and room for. Default:
    one per GPU, or one per machine without GPUs."""
    readers: str | None = None
    """Processes of one CPU each that read and decode photos for the workers, on any machine of a cluster: N or MIN-MAX.
    Default: the workers' own threads do."""
    device: Device = "auto"
    threads: int | None = None
    """Threads per worker, for decoding and computing. Default: its machine's CPUs, divided among its workers."""
    batch_size: int = BATCH_SIZE
    """Garments per batch."""

    def check(self) -> None:
        super().check()
        require_between("--overlays", self.overlays, 0)
        if self.retry_errors and self.overlays:
            raise UserError(
                "--overlays does not go with --retry-errors: draw them by a run without it afterwards"
            )
        require_between("--batch-size", self.batch_size, 1)
        if self.num_workers is not None:
            parse_workers(self.num_workers)
        if self.readers is not None:
            parse_workers(self.readers, "--readers")
            if self.detects:
                raise UserError(
                    "--readers does not go with --boxes detect: the worker opens what it detects in"
                )
        if self.threads is not None:
            require_between("--threads", self.threads, 1)


def run(options: Options) -> None:
    """Predict, and print a summary. Raises UserError if an option is wrong or the output is another run's."""
    options.check()
    source = resolve_url(options.input, "--input").rstrip("/")
    output, named = resolve_output(
        options.output, options.root, lambda: f"predictions/{PurePosixPath(public_url(source)).stem}"
    )
    chosen = base_options(
        options,
        InferOptions,
        checkpoint=resolve_checkpoint(options.checkpoint, "--checkpoint", options.root),
        input=source,
        boxes=resolve_url(options.boxes, "--boxes")
        if options.boxes and not options.detects
        else options.boxes,
        detector=resolve_detector(options.detector, options.root) if options.detects else None,
    )
    if chosen.boxes and not chosen.detects and not storage.is_file(chosen.boxes):
        raise UserError(f"--boxes {public_url(chosen.boxes)}: there is no such file")
    console = Console()
    rate: float | None = None
    manifest: dict[str, Any] | None
    if options.retry_errors:
        manifest, rate = _retry(options, chosen, output, named, console)
        if manifest is None:
            console.print(
                f"{output} is not finished: run without --retry-errors to predict the rest", soft_wrap=True
            )
            return
    elif (manifest := find_finished(chosen, output)) is not None:
        console.print(f"{output} is already finished: nothing to predict", soft_wrap=True)
    else:
        storage.require_writable(output, named, folder=True)
        workers = choose_workers(options)
        plan = make_plan(chosen, output)
        if plan.whole_photos:
            console.print(
                "without --boxes each photo is taken whole; the model was trained on garments in their boxes "
                f"({plan.card.dataset}): expect less where a photo shows more than one garment, or see --boxes detect",
                soft_wrap=True,
            )
        start_ray()
        show_own_progress()
        with RowBar(console, "infer") as bar:
            manifest = infer(plan, output, workers, bar)
        rate = bar.rows_per_second()
    sheet = None
    if options.overlays:
        from pipelines.infer.overlays import write_overlays  # what draws is slow to import

        sheet = write_overlays(chosen, output, options.overlays)
    console.print(summary(manifest, rate))
    console.print(f"predictions   {output}", soft_wrap=True)
    if sheet is not None:
        console.print(f"contact sheet {sheet}", soft_wrap=True)


def _retry(
    options: Options, chosen: InferOptions, output: str, named: str, console: Console
) -> tuple[dict[str, Any] | None, float]:
    """Predict the errors of an output again. Returns its manifest if it is finished, and garments per second."""
    storage.require_writable(output, named, folder=True)
    workers = choose_workers(options)
    plan = plan_retry(chosen, output)
    start_ray()
    show_own_progress()
    with RowBar(console, "retry") as bar:
        manifest = retry(plan, output, workers, bar)
    return manifest, bar.rows_per_second()


def choose_workers(options: Options) -> InferenceWorkers:
    """Choose the workers from the options and what is available. UserError for more GPU workers than GPUs."""
    resources = available()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    machines = count_machines()
    gpu = use_gpu(options.device, gpus)
    least, most = parse_workers(options.num_workers or str(max(1, gpus if gpu else machines)))
    if gpu and not on_cluster():
        if least > gpus:
            raise UserError(f"--num-workers {least}, but this machine has {gpus} GPUs: lower --num-workers")
        most = min(most, gpus)
    sharing = -(-most // machines)
    # On a cluster each worker looks at its own machine, which need not be like this one.
    threads = None if on_cluster() else max(1, (os.cpu_count() or 1) // sharing)
    readers = parse_workers(options.readers, "--readers") if options.readers else None
    if readers is not None and least + readers[0] > cpus and not on_cluster():
        # Each waits for the other's results, so one stage without a process would be the end of both.
        raise UserError(
            f"{least} workers and {readers[0]} readers need more than this machine's {cpus} CPUs: leave out --readers"
        )
    return InferenceWorkers(
        least, most, options.threads or threads, gpu, options.batch_size, readers, sharing
    )


def summary(manifest: dict[str, Any], rows_per_second: float | None) -> Table:
    """Return a table of the photos, garments, errors and skipped files."""
    table = Table("", Column("number", justify="right"), title=f"model {manifest['model']}")
    table.add_row("photos", f"{manifest['photos']:,}")
    nothing = manifest["errors"].get("no_garment", 0)
    table.add_row("garments", f"{manifest['rows'] - nothing:,}", end_section=True)
    table.add_row("ok", f"{manifest['ok']:,}")
    for reason, rows in manifest["errors"].items():
        table.add_row(f"error: {reason}", f"{rows:,}")
    table.add_row("errors", f"{sum(manifest['errors'].values()):,}", end_section=True)
    for what, files in manifest["skipped"].items():
        if files:
            table.add_row(f"skipped: {what}", f"{files:,}")
    table.add_row("shards", f"{len(manifest['shards']):,}")
    if rows_per_second is not None:
        table.add_row("garments per second", f"{rows_per_second:,.1f}")
    table.add_row("content", manifest["content_hash"][:16])
    return table


if __name__ == "__main__":
    main(Options, run)
