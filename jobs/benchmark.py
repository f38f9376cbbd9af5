"""Measure how fast this machine or cluster is: each stage against its ceiling and what one would write instead."""

import dataclasses
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console

from glefld import storage, tracking
from glefld.errors import UserError
from glefld.redaction import redacted
from glefld.scoring.tables import as_text
from jobs.cli import (
    Device,
    Root,
    available,
    base_options,
    main,
    on_cluster,
    resolve_checkpoint,
    resolve_root,
    resolve_url,
    start_ray,
    use_gpu,
)
from pipelines.benchmark import report
from pipelines.benchmark.options import TRACKED, BenchmarkOptions, Resources

if TYPE_CHECKING:
    from pipelines.benchmark.material import Material


@dataclasses.dataclass(frozen=True)
class Options(BenchmarkOptions):
    """Options of the benchmark."""

    device: Device = "auto"
    output: str | None = None
    """Folder for benchmark.json, benchmark.txt and benchmark.png, path or URL. Default: only print the tables."""
    experiment: str | None = None
    """MLflow experiment to log the result to. Default: it is not logged."""
    root: Root = None


def run(options: Options) -> None:
    """Measure; print, write and log the result. Raises UserError if an option is wrong or a job fails."""
    urls = {
        name: resolve_url(value, f"--{name}")
        for name in ("source", "data", "photos", "work")
        if (value := getattr(options, name)) is not None
    }
    if options.checkpoint is not None:
        urls["checkpoint"] = resolve_checkpoint(options.checkpoint, "--checkpoint", options.root)
    chosen = base_options(options, BenchmarkOptions, **urls)
    chosen.check()
    if on_cluster() and chosen.work is None:
        raise UserError(
            "--work: a cluster needs a folder that all its machines share, such as s3://bucket/benchmark"
        )
    output = resolve_url(options.output, "--output") if options.output else None
    for option, url in (("--output", output), ("--work", chosen.work)):
        if url is not None:
            storage.require_writable(url, option, folder=True)
    if set(TRACKED) & set(chosen.stages):
        tracking.require_answer(tracking.tracking_uri(chosen.work or "", on_cluster()))
    uri = ""
    if options.experiment is not None:
        uri = tracking.tracking_uri(resolve_root(options.root), on_cluster())
        tracking.require_answer(uri)
    resources = choose_resources(options)

    from pipelines.benchmark.run import benchmark, workplace

    console = Console()
    with workplace(chosen, resources.cpus) as made:
        result = benchmark(
            chosen, made, resources, on_cluster(), lambda stage: console.print(f"measuring {stage}")
        )
        result["options"] = redacted(dataclasses.asdict(options))
        # Print and write the result before logging, which can fail with the MLflow server.
        console.print(as_text(report.tables(result)), soft_wrap=True, highlight=False)
        if output is not None:
            write(result, output)
            console.print(f"written to {output}", soft_wrap=True)
        if options.experiment is not None:
            log(result, options, made, uri)


def choose_resources(options: Options) -> Resources:
    """Choose what stages in one process use. Raises UserError for a GPU or a number of CPUs that there is not."""
    found = available()
    gpu = use_gpu(options.device, found.get("GPU", 0))
    largest = int(found["CPU"])
    if on_cluster():
        import ray

        start_ray()
        largest = int(
            max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
        )
    cpus = options.cpus or largest
    if cpus < 1 or (cpus > largest and not on_cluster()):
        raise UserError(
            f"--cpus {cpus}: this machine has {largest} CPUs"
            if cpus
            else "--cpus: the cluster has no machine yet, say N"
        )
    return Resources(cpus, gpu)


def write(result: dict[str, Any], output: str) -> None:
    """Write the result as JSON, tables and chart to a folder."""
    storage.write_json(storage.join(output, "benchmark.json"), result)
    storage.write_bytes(storage.join(output, "benchmark.txt"), as_text(report.tables(result)).encode())
    picture = io.BytesIO()
    report.chart(result).savefig(picture, format="png")
    storage.write_bytes(storage.join(output, "benchmark.png"), picture.getvalue())


def metrics(stages: Mapping[str, Any]) -> dict[str, float]:
    """Return the stages' figures and ratios as metrics; figures end with their unit, as ``step/ours_images_per_s``."""
    found: dict[str, float | None] = {}
    for stage, value in stages.items():
        unit = value["unit"].replace("/", "_per_")
        for figure in ("ours", "ceiling", "peer"):
            found |= {
                f"{stage}/{figure}_{unit}": value[figure],
                f"{stage}/of_{figure}": value.get(f"of_{figure}"),
            }
    return {name: value for name, value in found.items() if value is not None}


def log(result: dict[str, Any], options: Options, made: "Material", uri: str) -> None:
    """Log the result to a new MLflow run: figures and ratios as metrics, tables, JSON and chart as artifacts."""
    handle = tracking.start_run(
        uri,
        options=options,
        manifest=made.manifest(),
        data=made.data,
        name="benchmark",
        experiment=options.experiment,
    )
    with tracking.logged_run(handle) as run_log:
        run_log.log(metrics(result["stages"]), step=0)
        run_log.log_text(as_text(report.tables(result)), "benchmark.txt")
        run_log.log_dict(result, "benchmark.json")
        run_log.log_figure(report.chart(result), "benchmark.png")
    Console().print(f"MLflow     {tracking.where(handle)}", soft_wrap=True)


if __name__ == "__main__":
    main(Options, run)
