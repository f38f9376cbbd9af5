"""The stages that start whole jobs as a user does, on this machine or on the cluster that RAY_ADDRESS names."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from glefld import storage, tracking
from glefld.errors import UserError
from glefld.redaction import redacted
from glefld.temporary import temporary_folder
from pipelines.benchmark import ceilings, material, planning
from pipelines.benchmark.processes import Run, import_seconds, run_job, run_module
from pipelines.benchmark.stages import Bench, loop_rate, model_rate, resident_rate, steady
from pipelines.benchmark.timing import Measurement, interleave
from pipelines.infer.inputs import open_input

#: The jobs whose imports are timed.
IMPORTED = ("ingest", "train", "infer", "evaluate")
#: Shards that the photos of inference are cut into: when each appears tells the rate once the model is loaded.
SHARDS = 8
#: MLflow experiment of the trainings that are measured.
EXPERIMENT = "glefld-benchmark-runs"


@dataclasses.dataclass(frozen=True)
class Jobs:
    """What every stage of whole jobs gets. ``call`` runs a function here, or on a machine of the cluster."""

    bench: Bench
    call: Callable[..., Any]
    on_cluster: bool

    @property
    def tracking_uri(self) -> str:
        """Where the jobs log to: that of their root."""
        return tracking.tracking_uri(self.place("root"), self.on_cluster)

    def place(self, name: str) -> str:
        return self.bench.material.place(name)

    def interleave(self, cases: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
        return interleave(cases, self.bench.options.repeats, warm_up=False)


def prepare_tracking(jobs: Jobs) -> None:
    """Make the tracking store, which takes seconds the first time, before anything is measured."""
    manifest = jobs.bench.material.manifest()
    handle = tracking.start_run(
        jobs.tracking_uri,
        options=jobs.bench.options,
        manifest=manifest,
        data=jobs.bench.material.data,
        name="benchmark",
        experiment=EXPERIMENT,
    )
    tracking.finish(handle, "FINISHED")


def ingest(jobs: Jobs) -> dict[str, Measurement]:
    """Seconds of the whole ingest job, and the peak memory of its driver."""
    bench = jobs.bench
    found = bench.material
    assert found.source is not None
    plan = material.ingest_plan(found, jobs.place("ingest-plan"))
    rows = sum(shard.rows for shard in plan.shards)
    photos = material.cropped(plan)
    cpus, seconds = bench.resources.cpus, bench.options.seconds
    runs: list[Run] = []

    def ours() -> float:
        output = jobs.place("ingest")
        runs.append(run_job("ingest", material.ingest_arguments(found.dataset, str(found.source), output)))
        storage.remove_tree(output)
        return runs[-1].seconds

    cases = {
        "ours": ours,
        "ceiling": lambda: (
            rows / float(jobs.call(ceilings.recode_rate, ceilings.recode_turbo, photos, cpus, seconds))
        ),
    }
    archive, names, crops = material.crops(plan, rows)
    if bench.options.peers and archive.kind in ("zip", "folder"):
        table = jobs.place("crops.parquet")
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"name": names, "crop": crops}), sink)
        storage.write_bytes(table, sink.getvalue().to_pybytes())

        def peer() -> float:
            output = jobs.place("cropped")
            run = run_module("pipelines.benchmark.crop_script", [archive.url, table, output, str(cpus)])
            storage.remove_tree(output)
            return run.seconds

        cases["peer"] = peer
    figures = jobs.interleave(cases)
    return {
        "ingest": Measurement(
            "s",
            "lower",
            figures["ours"],
            figures["ceiling"],
            f"libjpeg-turbo decodes, crops and encodes the rows, {cpus} threads",
            figures.get("peer"),
            f"a Pillow script of {cpus} processes",
            also=_memory(runs),
            facts={"rows": rows},
        )
    }


def _memory(runs: Sequence[Run]) -> dict[str, list[float]]:
    return {
        "driver's peak memory, MiB": [run.driver_mib for run in runs],
        "all processes' private memory, MiB": [run.mib for run in runs],
    }


@dataclasses.dataclass(frozen=True)
class _Inference:
    run: Run
    rows: int
    shard_rows: int

    @property
    def shards(self) -> list[float]:
        """When each shard was first seen."""
        return sorted(at for name, at in self.run.seen.items() if name.endswith(".parquet"))

    @property
    def rate(self) -> float:
        """Rows per second from the first shard to the last; of the whole job if they were not seen apart."""
        first, last = self.shards[0], self.shards[-1]
        return (
            (self.rows - self.shard_rows) / (last - first) if last > first else self.rows / self.run.seconds
        )

    @property
    def ready(self) -> float:
        """Seconds until the first row could be computed: the first shard's time less its rows'."""
        return self.shards[0] - self.run.began - self.shard_rows / self.rate

    @property
    def exit(self) -> float:
        """Seconds from the last shard to the end of the job."""
        return self.run.ended - self.shards[-1]


def _infer(jobs: Jobs, photos: str, rows: int, name: str) -> _Inference:
    output = jobs.place(name)
    shard_rows = max(1, rows // SHARDS)
    arguments = ["--checkpoint", jobs.bench.material.checkpoint, "--input", photos, "--output", output]
    run = run_job("infer", [*arguments, "--shard-rows", str(shard_rows)], watch=output)
    storage.remove_tree(output)
    return _Inference(run, rows, shard_rows)


def _photo_rows(jobs: Jobs, photos: str) -> int:
    return len(open_input(photos, None, None, jobs.place("staging")).rows)


def infer(jobs: Jobs) -> dict[str, Measurement]:
    """Seconds of the whole inference job, and its rate once it is ready, both against the model alone."""
    photos = jobs.bench.material.photos
    rows = _photo_rows(jobs, photos)
    runs: list[_Inference] = []
    alone: list[float] = []

    def ours() -> float:
        runs.append(_infer(jobs, photos, rows, "infer"))
        return runs[-1].run.seconds

    def model() -> float:
        alone.append(float(jobs.call(model_rate, jobs.bench)))
        return rows / alone[-1]

    figures = jobs.interleave({"ours": ours, "ceiling": model})
    facts = {"photos": rows, "shard_rows": runs[0].shard_rows}
    return {
        "infer": Measurement(
            "s",
            "lower",
            figures["ours"],
            figures["ceiling"],
            "the model alone, in one process",
            also={"ready, s": [r.ready for r in runs], "exit, s": [r.exit for r in runs]}
            | _memory([r.run for r in runs]),
            facts=facts,
        ),
        "infer/ready": Measurement(
            "images/s",
            "higher",
            [r.rate for r in runs],
            alone,
            "the model alone, in one process",
            facts=facts,
        ),
    }


def _train(jobs: Jobs, name: str, rows: int, *more: str) -> tuple[Run, str]:
    """Train for one epoch. Returns the process's run and the MLflow run's id."""
    options = jobs.bench.options
    arguments = [
        "--dataset",
        options.dataset,
        "--data",
        jobs.bench.material.data,
        "--root",
        jobs.place("root"),
    ]
    arguments += ["--name", name, "--model", options.model, "--preset", options.preset, "--random-weights"]
    arguments += ["--rows", str(rows), "--epochs", "1", "--precision", options.precision]
    arguments += ["--experiment", EXPERIMENT, *more]
    for option, value in (("--batch-size", options.batch_size), ("--input-size", options.input_size)):
        if value is not None:
            arguments += [option, str(value)]
    run = run_job("train", arguments)
    folder = storage.join(jobs.place("root"), "runs", name)
    found = storage.read_json(storage.join(folder, "run.json"))["run_id"]
    storage.remove_tree(folder)
    return run, found


def epoch(jobs: Jobs) -> dict[str, Measurement]:
    """Rows per second of jobs.train, against the same loop on batches that are on the device."""
    bench = jobs.bench
    _, recipe = bench.options.system()
    rows = min(bench.options.rows, bench.material.manifest().splits["train"])
    count = 0

    def trained(*more: str) -> float:
        nonlocal count
        count += 1
        _, run_id = _train(jobs, f"epoch-{count}", rows, *more)
        logged = tracking.history(jobs.tracking_uri, run_id, "images_per_second")
        return steady([value.value for value in logged])

    cases: dict[str, Callable[[], float]] = {
        "ours": trained,
        "ceiling": lambda: float(jobs.call(resident_rate, bench)),
        "the same loop with data, in one process": lambda: float(jobs.call(loop_rate, bench)),
    }
    workers = bench.resources.cpus
    if not bench.resources.gpu and 1 < workers <= recipe.batch_size:
        cases[f"{workers} workers of 1 thread"] = lambda: trained(
            "--num-workers", str(workers), "--cpus-per-worker", "1"
        )
    figures = jobs.interleave(cases)
    return {
        "epoch": Measurement(
            "images/s",
            "higher",
            figures["ours"],
            figures["ceiling"],
            "the same loop on batches that are on the device, in one process",
            also={f"{n}, images/s": f for n, f in figures.items() if n not in ("ours", "ceiling")},
            facts=bench.facts() | {"rows": rows, "cpus": workers},
        )
    }


def evaluate(jobs: Jobs) -> dict[str, Measurement]:
    """Seconds of the whole evaluation of the val split."""
    found = jobs.bench.material
    rows = found.manifest().splits["val"]
    runs: list[Run] = []
    arguments = ["--dataset", found.dataset, "--data", found.data, "--checkpoint", found.checkpoint]
    arguments += ["--split", "val", "--root", jobs.place("root"), "--experiment", EXPERIMENT]

    def ours() -> float:
        runs.append(run_job("evaluate", arguments))
        return runs[-1].seconds

    figures = jobs.interleave(
        {"ours": ours, "ceiling": lambda: rows / float(jobs.call(model_rate, jobs.bench))}
    )
    return {
        "evaluate": Measurement(
            "s",
            "lower",
            figures["ours"],
            figures["ceiling"],
            "the model alone, in one process",
            also=_memory(runs),
            facts={"rows": rows},
        )
    }


def start(jobs: Jobs) -> dict[str, Measurement]:
    """Seconds from the command to the first loss, from the last epoch to the end, and of importing each job."""
    _, recipe = jobs.bench.options.system()
    rows = min(4 * recipe.batch_size, jobs.bench.material.manifest().splits["train"])
    ends: list[float] = []
    runs: list[Run] = []

    def first_loss() -> float:
        run, run_id = _train(jobs, f"start-{len(runs)}", rows, "--log-steps", "1")
        losses = tracking.history(jobs.tracking_uri, run_id, "loss")
        epochs = tracking.history(jobs.tracking_uri, run_id, "val_error")
        if not losses or not epochs:
            raise UserError(
                f"MLflow at {redacted(jobs.tracking_uri)} has no loss of the training that was timed"
            )
        runs.append(run)
        ends.append(run.ended - max(value.time for value in epochs))
        return min(value.time for value in losses) - run.began

    cases: dict[str, Callable[[], float]] = {"ours": first_loss}
    for job in IMPORTED:
        cases[f"import jobs.{job}, s"] = lambda job=job: import_seconds(f"jobs.{job}")  # type: ignore[misc]
    figures = jobs.interleave(cases)
    return {
        "start": Measurement(
            "s",
            "lower",
            figures.pop("ours"),
            also=figures | {"last epoch to exit, s": ends, "whole job, s": [run.seconds for run in runs]},
            facts=jobs.bench.facts() | {"rows": rows},
        )
    }


def plan(jobs: Jobs) -> dict[str, Measurement]:
    """Microseconds and memory of planning an ingest of many rows, on the driver's machine."""
    options = jobs.bench.options
    with temporary_folder() as local:
        return {"plan": planning.measure(options.plan_rows, options.repeats, jobs.place("plan"), local)}


STAGES: dict[str, Callable[[Jobs], dict[str, Measurement]]] = {
    "ingest": ingest,
    "infer": infer,
    "epoch": epoch,
    "evaluate": evaluate,
    "start": start,
    "plan": plan,
}
#: By how much a figure may grow with the number of rows and still count as flat.
FLAT = 1.1


def growth(jobs: Jobs) -> dict[str, Any]:
    """Run ingest and infer on rendered photos of each number of rows. Returns their time and peak memory by job.

    ``rows_per_second`` of a size is that of the rows that it has more than the size before, without the start of the
    job. Flat: from the first such step to the last, the seconds a row grow by at most 10 %, and so does the peak of all
    processes' private memory, from the smallest size to the largest.
    """
    options, work = jobs.bench.options, jobs.bench.material.work
    sizes = [options.rows * factor for factor in options.grow]
    raw = {rows: material.render(work, f"raw-{rows}", rows, jobs.bench.resources.cpus) for rows in sizes}
    found: dict[str, dict[int, list[Run]]] = {
        job: {rows: [] for rows in sizes} for job in ("ingest", "infer")
    }
    for _ in range(options.repeats):
        for rows in sizes:
            output = jobs.place("grown")
            found["ingest"][rows].append(
                run_job("ingest", material.ingest_arguments("fld", raw[rows], output))
            )
            storage.remove_tree(output)
            photos = storage.join(raw[rows], "img.zip")
            found["infer"][rows].append(_infer(jobs, photos, rows, "grown-predictions").run)
    return {job: grown(options.grow, runs) for job, runs in found.items()}


def grown(factors: Sequence[int], runs: dict[int, list[Run]]) -> dict[str, Any]:
    """Return medians by size, and whether they are flat. runs: by number of rows, rising, one size for each factor."""
    sizes: list[dict[str, Any]] = []
    for factor, (rows, done) in zip(factors, runs.items(), strict=True):
        seconds = [run.seconds for run in done]
        entry: dict[str, Any] = {
            "factor": factor,
            "rows": rows,
            "seconds": statistics.median(seconds),
            "seconds_min": min(seconds),
            "seconds_max": max(seconds),
            "repeats": len(done),
            "driver_mib": statistics.median(run.driver_mib for run in done),
            "mib": statistics.median(run.mib for run in done),
        }
        entry["seconds_a_row"] = entry["seconds"] / rows
        entry["kib_a_row"] = entry["mib"] * 1024 / rows
        more = entry["seconds"] - sizes[-1]["seconds"] if sizes else 0.0
        entry["rows_per_second"] = (rows - sizes[-1]["rows"]) / more if more > 0 else None
        sizes.append(entry)
    steps = [size["rows_per_second"] for size in sizes[1:]]
    whole = [size["seconds_a_row"] for size in sizes]
    known = len(steps) > 1 and all(steps)
    time_flat = steps[0] <= FLAT * steps[-1] if known else whole[-1] <= FLAT * whole[0]
    return {"sizes": sizes, "time_flat": time_flat, "memory_flat": sizes[-1]["mib"] <= FLAT * sizes[0]["mib"]}
