"""Inference: from photos to Parquet shards of predictions, resumable through ``pipelines.resumable``."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import ray
import ray.data
import torch

from glefld.data.prefetch import ahead, in_threads
from glefld.errors import BadBox, BadPhoto, require_between
from glefld.models import checkpoint
from glefld.models.checkpoint import ModelCard
from glefld.models.precision import choose_precision
from glefld.predict import (
    PRECISION,
    Bad,
    Crop,
    Damaged,
    Prediction,
    Predictor,
    checkpoint_hash,
    prediction_schema,
    prepare,
    require_landmarks,
)
from glefld.recipe import Precision
from glefld.redaction import public_url
from glefld.schema import Split
from pipelines.infer.inputs import GARMENTS, Input, InputPhoto, Photos, file_hash, open_input
from pipelines.resumable import (
    KILLER,
    ROW_GROUP,
    ShardedOutput,
    content_hash,
    counted,
    from_bytes,
    require_outside,
    run_tasks,
    source_state,
    to_bytes,
)

#: Raise this when the same photos and checkpoint would give other rows.
PREDICTIONS_VERSION = 3
#: The packages that determine a model's input.
PIXELS = ("pillow", "simplejpeg", "opencv-python-headless", "nvidia-dali-cuda120")
#: Bytes of photos that are read ahead of the model, besides the range that is being read.
AHEAD_BYTES = 16 << 20
#: The same in photos, for what is not read at all.
MAX_AHEAD = 4096


@dataclasses.dataclass(frozen=True)
class InferOptions:
    """The options that determine the predictions."""

    checkpoint: str
    """Folder of a checkpoint, or of a run (its best one): path, URL or MLflow model (models:/NAME@ALIAS, runs:/ID)."""
    input: str
    """Folder or prefix of photos, a .zip, .tar or .tar.gz of them, one photo, or an ingested data set. Path or URL."""
    boxes: str | None = None
    """Parquet or CSV file with one row per garment: uri (path within --input) and x1, y1, x2, y2 (or box, a list of
    them) in pixels of the upright photo. Default: predict each photo as a whole."""
    split: Split | None = None
    """Predict only this split of a data set. Default: all splits."""
    shard_rows: int = 2048
    """Rows per Parquet file."""
    precision: Precision = PRECISION
    """Precision of the forward pass. auto: bf16 if a task measures the model to be faster in it, else fp32."""
    damaged: Damaged = "error"
    """JPEGs with damaged data, of which the decoder has to guess parts. error: a row with the error. answer: predict
    on the guess."""

    def check(self) -> None:
        """Raise UserError for a value out of range."""
        require_between("--shard-rows", self.shard_rows, 1)

    def public(self) -> dict[str, Any]:
        """Return the options for the manifest: without credentials, with hashes of the files that they name."""
        return {
            **dataclasses.asdict(self),
            "checkpoint": model_name(self.checkpoint),
            "input": public_url(self.input),
            "boxes": f"{public_url(self.boxes)}@{file_hash(self.boxes)}" if self.boxes else None,
        }


@dataclasses.dataclass(frozen=True)
class InferenceWorkers:
    """The workers and their resources. They change the predictions by rounding only."""

    number: int
    threads: int
    gpu: bool
    batch_size: int


@dataclasses.dataclass(frozen=True)
class InferencePlan:
    """The garments to predict, in shards. ``key`` hashes everything that determines the content."""

    key: str
    options: InferOptions
    input: Input
    card: ModelCard
    source_state: str

    @property
    def whole_photos(self) -> bool:
        """Whether no garment has a box, so that each photo is taken whole."""
        return self.input.photos.archive is not None and self.options.boxes is None

    def shards(self) -> list[tuple[str, pa.Table]]:
        """Return the path and rows of each shard."""
        starts = range(0, len(self.input.rows), self.options.shard_rows)
        return [
            (f"part-{i:05d}.parquet", self.input.rows.slice(start, self.options.shard_rows))
            for i, start in enumerate(starts)
        ]

    def paths(self) -> list[str]:
        """Return the path of each shard, relative to the output."""
        return [path for path, _ in self.shards()]


@dataclasses.dataclass(frozen=True)
class WriterSettings:
    """The settings that all workers of one inference job share."""

    checkpoint: str
    model: str
    photos: Photos
    output: ShardedOutput
    key: str
    precision: Precision
    damaged: Damaged
    threads: int
    gpu: bool
    batch_size: int


def output_at(url: str) -> ShardedOutput:
    """Return the folder of predictions at a URL; nothing is read or written."""
    return ShardedOutput(url, "infer")


def model_name(url: str) -> str:
    """Return the model's name in the predictions: the checkpoint's URL and a hash of its content."""
    return f"{public_url(url)}@{checkpoint_hash(url)}"


def find_finished(options: InferOptions, output: str) -> dict[str, Any] | None:
    """Return the manifest if ``output`` is finished and whole, else None.

    Raises UserError if it was made with other options, or from an input that has changed since.
    """
    return output_at(output).finished(
        options.public(), source_state([options.input]), lambda: make_plan(options, output).key
    )


def make_plan(options: InferOptions, output: str) -> InferencePlan:
    """Read the checkpoint's card and list the input.

    Raises UserError if one of them cannot be used, and for an ``output`` that holds something else.
    """
    options.check()
    require_outside(output, options.input, "--input")
    require_landmarks(options.checkpoint, checkpoint.read_card(options.checkpoint))
    place = output_at(output)
    with place.claimed():
        state = source_state([options.input])
        found = open_input(options.input, options.boxes, options.split, place.staging)
        # After what is told sooner: to build a model takes seconds.
        _, card = checkpoint.load(options.checkpoint)
    facts = [
        PREDICTIONS_VERSION,
        # What decodes and warps determines the pixels.
        *(importlib.metadata.version(name) for name in PIXELS),
        options.public(),
        found.version,
        ROW_GROUP,
    ]
    digest = hashlib.sha256(json.dumps(facts).encode())
    for batch in found.rows.to_batches():
        digest.update(batch.serialize())
    return InferencePlan(digest.hexdigest(), options, found, card, state)


def infer(
    plan: InferencePlan, output: str, workers: InferenceWorkers, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Write the shards that earlier runs of the plan did not finish, then the manifest. Returns the manifest.

    Ray must be running. ``progress(done, total)`` is called with numbers of rows.
    Raises UserError if ``output`` holds shards of another plan, and OSError if the storage fails.
    """
    place = output_at(output)
    finished = place.begin(plan.paths(), plan.key)
    total = len(plan.input.rows)
    done = sum(report["rows"] for report in finished.values())
    progress(done, total)
    todo = [{"path": path, "rows": to_bytes(rows)} for path, rows in plan.shards() if path not in finished]
    settings = writer_settings(plan, place, workers)
    gpus = 1 if workers.gpu else 0
    if todo:
        settings = dataclasses.replace(settings, precision=one_precision(settings, finished.values()))
    written = run_tasks(
        todo,
        ShardWriter,
        probe=functools.partial(
            ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(read_rows).remote, settings=settings
        ),
        unit="uri",
        retries="max_task_retries",
        fn_constructor_kwargs={"settings": settings},
        compute=ray.data.ActorPoolStrategy(
            size=max(1, min(workers.number, len(todo))), max_tasks_in_flight_per_actor=2
        ),
        num_cpus=1,
        num_gpus=gpus,
    )
    for rows in written:
        done += rows
        progress(done, total)
    manifest = _manifest(plan, place.complete(plan.paths(), plan.key))
    place.finish(manifest)
    return manifest


def one_precision(settings: WriterSettings, finished: Iterable[dict[str, Any]]) -> Precision:
    """Return the precision for all workers; for ``auto`` the one of the finished shards, else what a task measures.

    Workers that measured it themselves could differ, and so would their shards.
    """
    if settings.precision != "auto":
        return settings.precision
    for report in finished:
        return report["precision"]
    task = ray.remote(measured_precision).options(num_cpus=1, num_gpus=1 if settings.gpu else 0)
    return ray.get(task.remote(settings))


def measured_precision(settings: WriterSettings) -> Precision:
    """Time the model's forward pass in this process, on the resources of one worker."""
    torch.set_num_threads(settings.threads)
    model, card = checkpoint.load(settings.checkpoint)
    model.to("cuda" if settings.gpu else "cpu").to(memory_format=torch.channels_last)
    return choose_precision("auto", model, card.input_size, settings.batch_size, training=False).precision


def writer_settings(plan: InferencePlan, output: ShardedOutput, workers: InferenceWorkers) -> WriterSettings:
    """Return the settings for the plan's writers, which are sent to each worker."""
    return WriterSettings(
        checkpoint=plan.options.checkpoint,
        model=model_name(plan.options.checkpoint),
        photos=plan.input.photos,
        output=output,
        key=plan.key,
        precision=plan.options.precision,
        damaged=plan.options.damaged,
        threads=workers.threads,
        gpu=workers.gpu,
        batch_size=workers.batch_size,
    )


def _manifest(plan: InferencePlan, reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Build the manifest, and check that the shards hold every planned row."""
    errors: Counter[str] = Counter()
    for report in reports:
        errors.update(report["errors"])
    rows, ok = (sum(report[name] for report in reports) for name in ("rows", "ok"))
    assert rows == len(plan.input.rows) == ok + errors.total(), (rows, ok, errors)
    return {
        "predictions_version": PREDICTIONS_VERSION,
        "rows": rows,
        "photos": len(set(plan.input.rows["uri"].to_pylist())),
        "ok": ok,
        "errors": dict(sorted(errors.items())),
        "skipped": plan.input.skipped,
        "options": plan.options.public(),
        "plan": plan.key,
        "source_state": plan.source_state,
        "model": model_name(plan.options.checkpoint),
        "model_card": dataclasses.asdict(plan.card),
        "shards": [{key: value for key, value in report.items() if key != "plan"} for report in reports],
        "content_hash": content_hash(reports),
    }


class ShardWriter:
    """Ray Data actor that loads the model and its input pipeline once, then writes one shard at a time."""

    def __init__(self, settings: WriterSettings) -> None:
        self.settings = settings
        torch.set_num_threads(settings.threads)
        # Do not test for CUDA here: Ray leaves GPUs visible to workers that did not request one.
        device = torch.device("cuda" if settings.gpu else "cpu")
        self.predictor = Predictor(
            settings.checkpoint, device, settings.batch_size, settings.threads, settings.precision
        )
        self.schema = prediction_schema(self.predictor.card.labels.landmark_set)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return counted(row, lambda: self.write(row))

    def write(self, row: dict[str, Any]) -> int:
        """Predict the garments in ``rows``, an Arrow stream, and write the shard at ``path``. Returns their number.

        ``killers`` are the uris of photos that must not be decoded.
        """
        rows = from_bytes(row["rows"])
        errors: Counter[str] = Counter()
        count = 0

        def batches() -> Iterator[pa.RecordBatch]:
            nonlocal count
            predictions = self.predict(rows, frozenset(row["killers"]))
            while batch := list(itertools.islice(predictions, ROW_GROUP)):
                errors.update(r["error"].partition(":")[0] for r in batch if r["status"] == "error")
                count += len(batch)
                yield pa.RecordBatch.from_pylist(batch, self.schema)

        def report() -> dict[str, Any]:
            assert count == len(rows), (count, len(rows))
            return {
                "rows": count,
                "ok": count - errors.total(),
                "errors": dict(errors),
                "precision": self.settings.precision,
            }

        self.settings.output.write(
            row["path"], self.settings.key, batches(), self.schema, report, compression="zstd"
        )
        return count

    def predict(self, rows: pa.Table, killers: frozenset[str]) -> Iterator[dict[str, Any]]:
        """Yield a row of predictions for each garment of ``Input.rows``."""
        size = self.predictor.card.input_size
        damaged = self.settings.damaged
        # Reading waits for the network, opening and decoding for the CPU, the model for both: each in its own threads.
        photos = ahead(self.settings.photos.read(rows), MAX_AHEAD, AHEAD_BYTES, _bytes)
        places = zip(photos, rows["uri"].to_pylist(), rows["box"].to_pylist(), strict=True)

        def crop(place: tuple[InputPhoto, str, list[float] | None]) -> Crop | Bad:
            photo, uri, box = place
            return BadPhoto(*KILLER) if uri in killers else _crop(photo, box, size, damaged)

        crops = in_threads(crop, places, self.settings.threads)
        answers = self.predictor.predict(crops)
        for garment, answer in zip(rows.select(GARMENTS.names).to_pylist(), answers, strict=True):
            row = {**garment, "model": self.settings.model}
            if isinstance(answer, Prediction):
                landmarks = answer.landmarks.ravel()
                found = {"box": answer.box, "landmarks": landmarks, "score": answer.score, "status": "ok"}
                yield row | found
            else:
                box = row["box"] or [math.nan] * 4
                yield row | {"box": box, "status": "error", "error": str(answer)}


def _bytes(photo: InputPhoto) -> int:
    return len(photo.data) if isinstance(photo.data, bytes) else 0


def read_rows(rows: bytes, settings: WriterSettings) -> None:
    """Predict an Arrow stream of rows and write nothing: to see whether the worker survives."""
    for _ in ShardWriter(settings).predict(from_bytes(rows), frozenset()):
        pass


def _crop(photo: InputPhoto, box: list[float] | None, size: int, damaged: Damaged) -> Crop | Bad:
    if isinstance(photo.data, BadPhoto):
        return photo.data
    try:
        return prepare(photo.data, size, box, photo.origin, damaged)
    except (BadPhoto, BadBox) as bad:
        return bad
