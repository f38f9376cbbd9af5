"""Photos to predictions in Parquet shards: a fixed plan, a Ray Data graph over it, the manifest last."""

import dataclasses
import hashlib
import itertools
import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
import torch

from glefld import storage
from glefld.data.dataset import MANIFEST
from glefld.errors import BadBox, BadPhoto, UserError
from glefld.models import checkpoint
from glefld.models.checkpoint import ModelCard
from glefld.predict import (
    Bad,
    Crop,
    Prediction,
    Predictor,
    checkpoint_hash,
    prediction_schema,
    prepare,
    require_landmarks,
)
from glefld.recipe import Precision
from glefld.schema import Split
from pipelines import resumable as tasks
from pipelines.archives import public_url
from pipelines.infer.inputs import GARMENTS, Input, Photo, Photos, content_hash, open_input

STAGING = "_staging"
FOOTER = b"glefld.infer"
PREDICTIONS_VERSION = 1
#: Rows a Parquet row group, and so what a worker holds of its output at a time.
ROW_GROUP = 256


@dataclasses.dataclass(frozen=True)
class InferOptions:
    """All that decides what the predictions are; ``jobs.infer`` explains each."""

    checkpoint: str
    input: str
    boxes: str | None = None
    split: Split | None = None
    shard_rows: int = 2048
    precision: Precision = "fp32"

    def public(self) -> dict[str, Any]:
        """The options as the manifest keeps them: without credentials, with what their files held."""
        return {
            **dataclasses.asdict(self),
            "checkpoint": model_name(self.checkpoint),
            "input": public_url(self.input),
            "boxes": f"{public_url(self.boxes)}@{content_hash(self.boxes)}" if self.boxes else None,
        }


@dataclasses.dataclass(frozen=True)
class Workers:
    """Who does it, which leaves the result as it is (but for rounding)."""

    number: int
    threads: int
    gpu: bool
    batch_size: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """The garments, the shards they are cut into, and ``key``, a hash of what decides the content."""

    key: str
    options: InferOptions
    input: Input
    card: ModelCard

    def shards(self) -> list[tuple[str, pa.Table]]:
        """Path and rows of each shard."""
        starts = range(0, len(self.input.rows), self.options.shard_rows)
        return [
            (f"part-{i:05d}.parquet", self.input.rows.slice(start, self.options.shard_rows))
            for i, start in enumerate(starts)
        ]


@dataclasses.dataclass(frozen=True)
class Job:
    """What all workers of one inference share."""

    checkpoint: str
    model: str
    photos: Photos
    output: str
    plan: str
    precision: Precision
    threads: int
    gpu: bool
    batch_size: int


def model_name(url: str) -> str:
    """How predictions name their model: the checkpoint's URL and a hash of what it holds."""
    return f"{public_url(url)}@{checkpoint_hash(url)}"


def find_finished(options: InferOptions, output: str) -> dict[str, Any] | None:
    """The manifest that stands at ``output`` already, if any; UserError if it was made with other options."""
    if not storage.exists(storage.join(output, MANIFEST)):
        return None
    manifest = storage.read_json(storage.join(output, MANIFEST))
    found, wanted = manifest.get("options", {}), options.public()
    differing = [name for name in wanted if found.get(name) != wanted[name]]
    if differing or manifest.get("predictions_version") != PREDICTIONS_VERSION:
        words = ", ".join(f"{name} {found.get(name)!r} (now {wanted[name]!r})" for name in differing)
        raise UserError(
            f"{output} is finished already, made with {words or 'another release'}: give another --output, or delete it"
        )
    return manifest


def make_plan(options: InferOptions, output: str) -> Plan:
    """Read the input's index; UserError in one line for an input or a checkpoint that cannot be used."""
    inside = storage.absolute(output).rstrip("/") + "/"
    if inside.startswith(storage.absolute(options.input).rstrip("/") + "/"):
        raise UserError(
            f"--output {output} lies in --input, whose next run would read it: choose another place"
        )
    _, card = checkpoint.load(options.checkpoint)
    require_landmarks(options.checkpoint, card)
    found = open_input(options.input, options.boxes, options.split, storage.join(output, STAGING))
    digest = hashlib.sha256(json.dumps([PREDICTIONS_VERSION, options.public(), ROW_GROUP]).encode())
    for batch in found.rows.to_batches():
        digest.update(batch.serialize())
    return Plan(digest.hexdigest(), options, found, card)


def infer(plan: Plan, output: str, workers: Workers, progress: Callable[[int, int], None]) -> None:
    """Write the shards that an earlier, interrupted run has not finished.

    Ray must be running. ``progress(done, all)`` counts rows. UserError if ``output`` holds shards of another plan.
    """
    finished = read_reports(plan, output)
    clean_parts(output)
    total = len(plan.input.rows)
    done = sum(report["rows"] for report in finished.values())
    progress(done, total)
    todo = [{"path": path, "rows": to_bytes(rows)} for path, rows in plan.shards() if path not in finished]
    if not todo:
        return
    reports = tasks.reports(
        todo,
        ShardWriter,
        fn_constructor_kwargs={"job": make_job(plan, output, workers)},
        compute=ray.data.ActorPoolStrategy(
            size=min(workers.number, len(todo)), max_tasks_in_flight_per_actor=2
        ),
        num_cpus=1,
        num_gpus=1 if workers.gpu else 0,
        max_task_retries=tasks.RETRIES,
    )
    for report in reports:
        done += report["rows"]
        progress(done, total)


def make_job(plan: Plan, output: str, workers: Workers) -> Job:
    return Job(
        checkpoint=plan.options.checkpoint,
        model=model_name(plan.options.checkpoint),
        photos=plan.input.photos,
        output=output,
        plan=plan.key,
        precision=plan.options.precision,
        threads=workers.threads,
        gpu=workers.gpu,
        batch_size=workers.batch_size,
    )


def finish(plan: Plan, output: str) -> dict[str, Any]:
    """Count what the shards hold against the plan, and write the manifest."""
    reports = read_reports(plan, output)
    tasks.require_all([path for path, _ in plan.shards()], reports, output)
    shards = [{"path": path, **reports[path]} for path, _ in plan.shards()]
    errors: Counter[str] = Counter()
    for shard in shards:
        del shard["plan"]
        errors.update(shard["errors"])
    rows, ok = (sum(shard[name] for shard in shards) for name in ("rows", "ok"))
    assert rows == len(plan.input.rows) == ok + errors.total(), (rows, ok, errors)
    manifest = {
        "predictions_version": PREDICTIONS_VERSION,
        "rows": rows,
        "photos": len(set(plan.input.rows["uri"].to_pylist())),
        "ok": ok,
        "errors": dict(sorted(errors.items())),
        "skipped": plan.input.skipped,
        "options": plan.options.public(),
        "model": model_name(plan.options.checkpoint),
        "model_card": dataclasses.asdict(plan.card),
        "shards": shards,
        "content_hash": hashlib.sha256(
            "".join(shard["content_hash"] for shard in shards).encode()
        ).hexdigest(),
    }
    storage.write_json(storage.join(output, MANIFEST), manifest)
    storage.remove_tree(storage.join(output, STAGING))
    clean_parts(output)
    return manifest


class ShardWriter:
    """A Ray Data actor: the model and its DALI pipeline, loaded once, and one shard after another through them."""

    def __init__(self, job: Job) -> None:
        self.job = job
        torch.set_num_threads(job.threads)
        device = torch.device(
            "cuda" if job.gpu else "cpu"
        )  # Ray hides no GPU from a worker that asked for none
        self.predictor = Predictor(job.checkpoint, device, job.batch_size, job.threads, job.precision)
        self.schema = prediction_schema(self.predictor.card.labels.landmark_set)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return tasks.or_error(lambda: self.write(row))

    def write(self, row: dict[str, Any]) -> int:
        """Write the shard at ``path`` from ``rows``, an Arrow stream of garments; returns how many they were."""
        rows = pa.ipc.open_stream(row["rows"]).read_all()
        digest = hashlib.sha256()
        errors: Counter[str] = Counter()
        count = 0
        # Unnamed, so that nothing is left behind by a worker that is killed.
        with tempfile.TemporaryFile() as file:
            with pq.ParquetWriter(file, self.schema, compression="zstd") as writer:
                predictions = self._predict(rows)
                while batch := list(itertools.islice(predictions, ROW_GROUP)):
                    table = pa.RecordBatch.from_pylist(batch, self.schema)
                    digest.update(table.serialize())
                    writer.write_batch(table)
                    errors.update(r["error"].partition(":")[0] for r in batch if r["status"] == "error")
                    count += len(batch)
                assert count == len(rows), (count, len(rows))
                report = {
                    "plan": self.job.plan,
                    "rows": count,
                    "ok": count - errors.total(),
                    "errors": dict(errors),
                    "content_hash": digest.hexdigest(),
                }
                writer.add_key_value_metadata({FOOTER: json.dumps(report).encode()})
            file.flush()
            storage.put(f"/dev/fd/{file.fileno()}", storage.join(self.job.output, row["path"]))
        return count

    def _predict(self, rows: pa.Table) -> Iterator[dict[str, Any]]:
        photos = self.job.photos.read(rows)
        boxes = rows["box"].to_pylist()
        size = self.predictor.card.input_size
        crops = (_crop(photo, box, size) for photo, box in zip(photos, boxes, strict=True))
        answers = self.predictor.predict(crops)
        for garment, answer in zip(rows.select(GARMENTS.names).to_pylist(), answers, strict=True):
            row = {**garment, "model": self.job.model}
            if isinstance(answer, Prediction):
                landmarks = answer.landmarks.ravel()
                found = {"box": answer.box, "landmarks": landmarks, "score": answer.score, "status": "ok"}
                yield row | found
            else:
                box = row["box"] or [math.nan] * 4
                yield row | {"box": box, "status": "error", "error": f"{answer.reason}: {answer.detail}"}


def _crop(photo: Photo, box: list[float] | None, size: int) -> Crop | Bad:
    if isinstance(photo.data, BadPhoto):
        return photo.data
    try:
        return prepare(photo.data, size, box, photo.origin)
    except (BadPhoto, BadBox) as bad:
        return bad


def to_bytes(rows: pa.Table) -> bytes:
    """A table as an Arrow stream, as which Ray carries it."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return sink.getvalue().to_pybytes()


def read_reports(plan: Plan, output: str) -> dict[str, dict[str, Any]]:
    """The footer's report of each shard that is there, by its path, with its ``bytes``.

    UserError if the output holds Parquet files of another plan.
    """
    planned = {path for path, _ in plan.shards()}
    fs, root = storage.filesystem(output)
    fs.invalidate_cache()
    reports = {}
    for entry in fs.ls(root, detail=True) if fs.isdir(root) else ():
        name = os.path.basename(entry["name"])
        if not name.endswith(".parquet"):
            continue
        report = {}
        if name in planned:
            try:
                with fs.open(entry["name"], "rb") as file:
                    report = json.loads((pq.read_metadata(file).metadata or {}).get(FOOTER, b"{}"))
            except pa.ArrowInvalid:
                continue  # cut short, as some clients leave a file silently: it is written again
        if report.get("plan") != plan.key:
            raise UserError(
                f"{output} holds {name}, which is not of this inference (another checkpoint, other options, or an "
                "input that has changed): give another --output, or delete it"
            )
        reports[name] = {**report, "bytes": entry["size"]}
    return reports


def clean_parts(output: str) -> None:
    """Remove what a killed run had begun to write; only local files leave such beginnings."""
    if storage.is_local(output):
        for part in Path(storage.filesystem(output)[1]).glob("**/_part-*"):
            part.unlink(missing_ok=True)
