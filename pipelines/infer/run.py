"""Inference: from photos to Parquet shards of predictions, resumable through ``pipelines.resumable``."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import itertools
import json
import pickle
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
import torch

from glefld import storage
from glefld.data.prefetch import ahead, in_threads
from glefld.detect import Detector, require_detector
from glefld.errors import BadBox, BadPhoto, UserError, require_between
from glefld.models import checkpoint
from glefld.models.checkpoint import ModelCard
from glefld.models.precision import choose_precision
from glefld.predict import Predictor, model_name, painted, require_landmarks
from glefld.prediction import (
    PRECISION,
    Bad,
    Crop,
    Damaged,
    Detected,
    Photo,
    Prediction,
    answer_columns,
    open_upright,
    prediction_schema,
    prepare,
)
from glefld.recipe import Precision
from glefld.redaction import public_url
from glefld.schema import MOST_GARMENTS, Split
from pipelines import metrics
from pipelines.infer.inputs import (
    DETECT,
    GARMENTS,
    GROUP_ROWS,
    Input,
    InputPhoto,
    Photos,
    file_hash,
    open_input,
)
from pipelines.resumable import (
    KILLER,
    ROW_GROUP,
    Done,
    ShardedOutput,
    Stage,
    content_hash,
    counted,
    from_bytes,
    prepared,
    require_outside,
    run_tasks,
    source_state,
)
from pipelines.rowfile import RowFile, read_stretch

#: Raise this when the same photos and checkpoint would give other rows.
PREDICTIONS_VERSION = 5
#: The packages that determine a model's input.
PIXELS = ("pillow", "simplejpeg", "opencv-python-headless", "nvidia-dali-cuda120")
#: Bytes of photos that are read ahead of the model, besides the range that is being read.
AHEAD_BYTES = 16 << 20
#: The same in photos, for what is not read at all.
MAX_AHEAD = 4096
#: Shards of an input that has enough rows for them, and the most groups of rows in a shard.
SHARDS, MOST_GROUPS = 64, 8
#: Options that say how boxes are detected.
OF_A_DETECTOR = ("detector", "most_garments", "least_score")
#: In the output while its errors are retried: the retry's number, and the manifest from before.
RETRY = "_retry.json"
MODULUS = 1 << 128


@dataclasses.dataclass(frozen=True)
class InferOptions:
    """The options that determine the predictions."""

    checkpoint: str
    """Folder of a checkpoint, or of a run (its best one): path, URL or MLflow model (models:/NAME@ALIAS, runs:/ID)."""
    input: str
    """Folder or prefix of photos or of archives, a .zip, .tar or .tar.gz, one photo, an ingested data set, a .csv or
    .parquet with a column uri, or the manifest.json of an S3 Inventory. Path or URL."""
    boxes: str | None = None
    """Parquet or CSV file with one row per garment: uri (path within --input) and x1, y1, x2, y2 (or box, a list of
    them) in pixels of the upright photo; or detect, to have a detector find them. Default: predict each photo as a
    whole."""
    detector: str | None = None
    """Detector for --boxes detect: checkpoint or run, path, URL or MLflow model. Default: $GLEFLD_DETECTOR, else the
    newest run of a detector below the root."""
    most_garments: int = MOST_GARMENTS
    """With --boxes detect: most garments of a photo, those with the best scores."""
    least_score: float | None = None
    """With --boxes detect: least score of a box. Default: what the detector's training has chosen on its val split."""
    split: Split | None = None
    """Predict only this split of a data set. Default: all splits."""
    shard_rows: int | None = None
    """Rows per Parquet file. Default: 256 to 2048, so that there are 64 files or more for many workers to share."""
    precision: Precision = PRECISION
    """Precision of the forward pass. auto: bf16 if a task measures the model to be faster in it, else fp32."""
    mirror: bool = False
    """Average each prediction with that for the mirror image: a little more accurate, at twice the time."""
    damaged: Damaged = "error"
    """JPEGs with damaged data, of which the decoder has to guess parts. error: a row with the error. answer: predict
    on the guess."""

    def check(self) -> None:
        """Raise UserError for a value out of range."""
        if self.shard_rows is not None:
            require_between("--shard-rows", self.shard_rows, 1)
        require_between("--most-garments", self.most_garments, 1)
        if self.least_score is not None:
            require_between("--least-score", self.least_score, 0, 1)
        if not self.detects:
            given = {"detector": self.detector, "least-score": self.least_score}
            for name in (name for name, value in given.items() if value is not None):
                raise UserError(f"--{name} is for detected boxes: add --boxes {DETECT}, or leave it out")

    @property
    def detects(self) -> bool:
        """Whether a detector finds the boxes."""
        return self.boxes == DETECT

    def public(self) -> dict[str, Any]:
        """Return the options for the manifest: without credentials, with hashes of the files that they name."""
        options = dataclasses.asdict(self)
        options |= {"checkpoint": model_name(self.checkpoint), "input": public_url(self.input)}
        if self.detects:
            assert self.detector is not None
            return options | {"detector": model_name(self.detector)}
        if self.boxes:
            options |= {"boxes": f"{public_url(self.boxes)}@{file_hash(self.boxes)}"}
        # They determine nothing without a detector.
        return {name: value for name, value in options.items() if name not in OF_A_DETECTOR}


@dataclasses.dataclass(frozen=True)
class InferenceWorkers:
    """The workers and their resources. They change the predictions by rounding only.

    The pool grows from ``least`` to ``most`` workers while shards wait and there is room, and shrinks when none do.
    """

    least: int
    most: int
    threads: int | None
    """Threads of each that decode and compute; None: its share of the CPUs of its machine."""
    gpu: bool
    batch_size: int
    readers: tuple[int, int] | None = None
    """Least and most processes that read and decode for the workers; None: their own threads do."""
    sharing: int = 1
    """Workers without GPUs that share a machine."""


@dataclasses.dataclass(frozen=True)
class InferencePlan:
    """The garments to predict, in shards. ``key`` hashes everything that determines the content."""

    key: str
    options: InferOptions
    input: Input
    card: ModelCard

    @property
    def whole_photos(self) -> bool:
        """Whether no garment has a box, so that each photo is taken whole."""
        return self.input.photos.dataset is None and self.options.boxes is None

    def shards(self) -> Iterator[tuple[str, pa.Table]]:
        """Yield the path and rows of each shard."""
        return zip(self.paths(), self.input.rows, strict=True)

    def paths(self) -> list[str]:
        """Return the path of each shard, relative to the output."""
        return [f"part-{i:05d}.parquet" for i in range(self.input.rows.groups)]


@dataclasses.dataclass(frozen=True)
class WriterSettings:
    """The settings that all workers of one inference job share."""

    checkpoint: str
    model: str
    photos: Photos
    output: ShardedOutput
    key: str
    precision: Precision
    mirror: bool
    damaged: Damaged
    threads: int | None
    gpu: bool
    batch_size: int
    sharing: int
    detector: str | None = None
    """Finds the boxes in the photos, which then are the rows; None: the rows are garments."""
    most_garments: int = MOST_GARMENTS
    least_score: float | None = None

    def worker_threads(self) -> int:
        """Return how many threads this process has to decode and compute with."""
        if self.threads is not None:
            return self.threads
        here = ray.get_runtime_context().get_node_id()
        node = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == here)
        return max(1, int(node.get("CPU", 1) // (node.get("GPU", 1) if self.gpu else self.sharing)))


def output_at(url: str) -> ShardedOutput:
    """Return the folder of predictions at a URL; nothing is read or written."""
    return ShardedOutput(url, "infer")


def find_finished(options: InferOptions, output: str) -> dict[str, Any] | None:
    """Return the manifest if ``output`` is finished and whole, else None.

    Raises UserError if it was made with other options, or from an input that has changed since, or if its errors are
    being retried.
    """
    place = output_at(output)
    number, manifest = retry_begun(output)
    if number:
        if manifest is not None:
            paths = [shard["path"] for shard in manifest["shards"]]
            # Those that are missing are written first: a retry needs them.
            if len(place.reports(paths, manifest["plan"])) < len(paths):
                return None
        raise UserError(
            f"the errors in {output} are being retried, or the retry was interrupted: run the same command with "
            "--retry-errors to finish it"
        )
    if place.manifest() is None:  # to list the input takes long
        return None
    return place.finished(
        options.public(), source_state([options.input]), lambda: make_plan(options, output).key
    )


def retry_begun(output: str) -> tuple[int, dict[str, Any] | None]:
    """Return the number of the retry that is being made, else 0, and the manifest from before it, if there was one."""
    url = storage.join(output, RETRY)
    if not storage.exists(url):
        return 0, output_at(output).manifest()
    found = storage.read_json(url)
    try:
        return int(found["number"]), found["manifest"]
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"{url} is damaged: choose another --output") from error


def make_plan(options: InferOptions, output: str) -> InferencePlan:
    """Read the checkpoint's card and list the input.

    Raises UserError if one of them cannot be used, and for an ``output`` that holds something else.
    """
    options.check()
    require_outside(output, options.input, "--input")
    require_landmarks(options.checkpoint, checkpoint.read_card(options.checkpoint))
    place = output_at(output)
    with place.claimed():
        if options.detector is not None:
            require_detector(options.detector, checkpoint.read_card(options.detector))
        group = options.shard_rows or GROUP_ROWS
        found = open_input(options.input, options.boxes, options.split, place.staging, group)
        if options.shard_rows is None:
            found.rows.join(groups_per_shard(len(found.rows)))
        # After what is told sooner: to build a model takes seconds.
        _, card = checkpoint.load(options.checkpoint)
    facts = [PREDICTIONS_VERSION, packages(), options.public(), found.version, ROW_GROUP, found.rows.digest]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    return InferencePlan(key, options, found, card)


def groups_per_shard(rows: int) -> int:
    """Return how many groups of ``GROUP_ROWS`` a shard has: as many as leave ``SHARDS`` shards to share.

    By the rows alone: which files there are must not depend on the workers. More shards would cost more than they even
    out, each some 13 ms of the driver, a file and a request of each who lists them.
    """
    return max(1, min(MOST_GROUPS, rows // (SHARDS * GROUP_ROWS)))


def packages() -> dict[str, str]:
    """Return the versions of what decodes and warps, which determine the pixels."""
    return {name: importlib.metadata.version(name) for name in PIXELS}


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
    done = sum(planned_rows(report) for report in finished.values())
    progress(done, total)
    metrics.rows_left("infer", total - done)
    todo = [Task(path, group) for group, path in enumerate(plan.paths()) if path not in finished]
    settings = writer_settings(plan, place, workers)
    for rows in write_shards(todo, plan.input.rows, settings, finished.values(), workers):
        done += rows
        progress(done, total)
        metrics.rows_left("infer", total - done)
    manifest = _manifest(plan, place.complete(plan.paths(), plan.key))
    place.finish(manifest)
    return manifest


def planned_rows(report: dict[str, Any]) -> int:
    """Return how many of the plan's rows a finished shard answers: its photos if their garments were detected."""
    return report.get("photos", report["rows"])


class Task(NamedTuple):
    """A shard to write, and the group of a RowFile with the garments to predict.

    retry: 0, or the number of the retry: of the shard that is there, the rows with errors are these garments, or of
    these photos if a detector finds the garments.
    answered: of the rows that it has without errors, as ``answered`` of its footer.
    """

    path: str
    group: int
    retry: int = 0
    answered: str = ""


def write_shards(
    tasks: Sequence[Task],
    rows: RowFile,
    settings: WriterSettings,
    finished: Iterable[dict[str, Any]],
    workers: InferenceWorkers,
) -> Iterator[int]:
    """Write shards on Ray, and yield the number of predicted garments of each. finished: reports of earlier shards.

    Raises UserError if a photo's worker cannot be kept alive, and OSError if the storage fails.
    """
    if not tasks:
        return
    gpus = 1 if workers.gpu else 0
    settings = dataclasses.replace(settings, precision=one_precision(settings, finished))
    # Tasks get their rows from storage: with those of all tasks, the driver would hold the plan twice.
    # Two retries at once may have different rows.
    url = storage.join(settings.output.staging, f"{rows.digest[:16]}.arrows")
    rows.upload(url)
    # Actors, since their options for retries differ from tasks', and Ray Data runs two stages of actors apart.
    reading = None
    if workers.readers is not None:
        compute = ray.data.ActorPoolStrategy(
            min_size=workers.readers[0], max_size=workers.readers[1], max_tasks_in_flight_per_actor=2
        )
        arguments = {"settings": settings}
        reading = Stage(ShardReader, {"compute": compute, "num_cpus": 1, "fn_constructor_kwargs": arguments})
    yield from run_tasks(
        "infer",
        [{**task._asdict(), "rows": rows.stretch(task.group, url)} for task in tasks],
        ShardWriter,
        probe=functools.partial(
            ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(read_rows).remote, settings=settings
        ),
        unit="uri",
        retries="max_task_retries",
        rows_of=lambda item: read_stretch(item["rows"]),
        first=reading,
        fn_constructor_kwargs={"settings": settings},
        compute=ray.data.ActorPoolStrategy(
            min_size=min(workers.least, len(tasks)),
            max_size=min(workers.most, len(tasks)),
            max_tasks_in_flight_per_actor=2,
        ),
        num_cpus=1,
        num_gpus=gpus,
    )


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
    torch.set_num_threads(settings.worker_threads())
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
        mirror=plan.options.mirror,
        damaged=plan.options.damaged,
        threads=workers.threads,
        gpu=workers.gpu,
        batch_size=workers.batch_size,
        sharing=workers.sharing,
        detector=plan.options.detector,
        most_garments=plan.options.most_garments,
        least_score=plan.options.least_score,
    )


def _manifest(plan: InferencePlan, reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Build the manifest, and check that the shards hold every planned row."""
    found = outcome(reports)
    assert found["rows"] == found["ok"] + sum(found["errors"].values()), found
    assert len(plan.input.rows) == sum(map(planned_rows, reports)), (len(plan.input.rows), found)
    return {
        "predictions_version": PREDICTIONS_VERSION,
        "packages": packages(),
        "rows": found.pop("rows"),
        "photos": plan.input.photo_count,
        **found,
        "skipped": plan.input.skipped,
        "options": plan.options.public(),
        "plan": plan.key,
        "source_state": plan.input.state,
        "model": model_name(plan.options.checkpoint),
        "model_card": dataclasses.asdict(plan.card),
    }


def outcome(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what a manifest says of the shards: counts, the shards' own reports, and a hash of their content."""
    errors: Counter[str] = Counter()
    for report in reports:
        errors.update(report["errors"])
    return {
        "rows": sum(report["rows"] for report in reports),
        "ok": sum(report["ok"] for report in reports),
        "errors": dict(sorted(errors.items())),
        "retries": max(report["retry"] for report in reports),
        "shards": [{key: value for key, value in report.items() if key != "plan"} for report in reports],
        "content_hash": content_hash(reports),
    }


class ShardReader:
    """Ray Data actor that reads and decodes a shard's photos for a ``ShardWriter``, on any machine with a CPU."""

    def __init__(self, settings: WriterSettings) -> None:
        self.settings = settings
        self.card = checkpoint.read_card(settings.checkpoint)
        torch.set_num_threads(1)

    def __call__(self, task: dict[str, Any]) -> dict[str, Any]:
        return prepared(task, "crops", lambda: pickle.dumps(list(self.crops(task)), pickle.HIGHEST_PROTOCOL))

    def crops(self, task: dict[str, Any]) -> Iterator[Crop | Bad]:
        """Yield the crops of a task's rows, each with its input's pixels."""
        size, fill = self.card.input_size, self.card.normalisation.fill
        rows = read_stretch(task["rows"])
        for crop in read_crops(self.settings, rows, frozenset(task["killers"]), size, 1):
            yield painted(crop, size, fill) if isinstance(crop, Crop) else crop


def read_crops(
    settings: WriterSettings, rows: pa.Table, killers: frozenset[str], size: int, threads: int
) -> Iterator[Crop | Bad]:
    """Yield the crop of each garment of ``Input.rows``. Threads read and open photos ahead of who takes them."""
    # Reading waits for the network, opening and decoding for the CPU, the model for both: each in its own threads.
    photos = ahead(settings.photos.read(rows), MAX_AHEAD, AHEAD_BYTES, _bytes)
    places = zip(photos, rows["uri"].to_pylist(), rows["box"].to_pylist(), strict=True)

    def crop(place: tuple[InputPhoto, str, list[float] | None]) -> Crop | Bad:
        photo, uri, box = place
        return BadPhoto(*KILLER) if uri in killers else _crop(photo, box, size, settings.damaged)

    return in_threads(crop, places, threads)


class ShardWriter:
    """Ray Data actor that loads the model and its input pipeline once, then writes one shard at a time."""

    def __init__(self, settings: WriterSettings) -> None:
        self.settings = settings
        self.threads = settings.worker_threads()
        torch.set_num_threads(self.threads)
        # Do not test for CUDA here: Ray leaves GPUs visible to workers that did not request one.
        device = torch.device("cuda" if settings.gpu else "cpu")
        self.predictor = Predictor(
            settings.checkpoint,
            device,
            settings.batch_size,
            self.threads,
            settings.precision,
            settings.mirror,
        )
        self.detector: Detector | None = None
        if settings.detector is not None:
            self.detector = Detector(
                settings.detector,
                device,
                settings.batch_size,
                self.threads,
                settings.precision,
                settings.most_garments,
                settings.least_score,
            )
        self.schema = prediction_schema(self.predictor.card.labels.landmark_set)

    def __call__(self, task: dict[str, Any]) -> dict[str, Any]:
        return counted(task, lambda: self.write(task))

    def write(self, task: dict[str, Any]) -> Done:
        """Predict a task's rows, garments or photos, and write its shard. Returns what became of them.

        ``killers`` are the uris of photos that must not be decoded; ``crops`` are a ``ShardReader``'s, if there is one.
        """
        rows = read_stretch(task["rows"])
        before = self._shard(task["path"]) if task["retry"] else []
        # Its worker died after it had put the shard in place. Read after the rows, which are then older.
        if before and (self.settings.output.footer(task["path"]) or {}).get("retry") == task["retry"]:
            return Done(len(rows), {})
        waited = self._waited()
        crops = pickle.loads(task["crops"]) if "crops" in task else None
        predictions = self.predict(rows, frozenset(task["killers"]), crops)
        errors: Counter[str] = Counter()
        answered = int(task["answered"] or "0", 16)
        count = kept_rows = 0

        def merged() -> Iterator[dict[str, Any]]:
            """Yield the shard's rows: those predicted now and, around them, those that earlier runs have answered."""
            nonlocal answered, kept_rows
            if self.detector is not None:
                photos = dict(zip(rows["uri"].to_pylist(), identities(rows), strict=True))
                new = itertools.groupby(predictions, lambda row: row["uri"])
                kept = itertools.groupby(before, lambda row: row["uri"])
                for uri, group in kept if before else new:
                    if uri not in photos:
                        for row in group:
                            kept_rows += 1
                            yield row
                        continue
                    if before:
                        answered -= photos[uri] * sum(row["status"] == "ok" for row in group)
                        found_uri, group = next(new)  # noqa: PLW2901
                        assert found_uri == uri
                    for found in group:
                        answered += photos[uri] * (found["status"] == "ok")
                        yield found
                assert next(new, None) is None
                return
            garments = zip(predictions, identities(rows), strict=True)
            for row in before:
                if row["status"] == "ok":
                    kept_rows += 1
                    yield row
                    continue
                found, identity = next(garments)
                assert (found["uri"], found["garment"]) == (row["uri"], row["garment"])
                answered += identity * (found["status"] == "ok")
                yield found
            for found, identity in garments:
                assert not before
                answered += identity * (found["status"] == "ok")
                yield found

        def batches() -> Iterator[pa.RecordBatch]:
            nonlocal count
            source = merged()
            while batch := list(itertools.islice(source, ROW_GROUP)):
                errors.update(r["error"].partition(":")[0] for r in batch if r["status"] == "error")
                count += len(batch)
                yield pa.RecordBatch.from_pylist(batch, self.schema)

        def report() -> dict[str, Any]:
            assert self.detector or count == (len(before) or len(rows)), (count, len(before), len(rows))
            return {
                **({"photos": len({row["uri"] for row in before}) or len(rows)} if self.detector else {}),
                "rows": count,
                "ok": count - errors.total(),
                "errors": dict(errors),
                "precision": self.settings.precision,
                "retry": task["retry"],
                "answered": f"{answered % MODULUS:x}",
            }

        self.settings.output.write(
            task["path"], self.settings.key, batches(), self.schema, report, compression="zstd"
        )
        outcomes = {"ok": count - errors.total() - kept_rows, **errors}
        return Done(len(rows), outcomes, self._waited() - waited)

    def _waited(self) -> float:
        """Return in how many seconds so far a model had no data."""
        return self.predictor.waited + (self.detector.waited if self.detector is not None else 0.0)

    def _shard(self, path: str) -> list[dict[str, Any]]:
        """Return the rows of a shard that is there."""
        with storage.open(storage.join(self.settings.output.url, path)) as file:
            return pq.ParquetFile(file).read().to_pylist()

    def predict(
        self, rows: pa.Table, killers: frozenset[str], crops: Iterable[Crop | Bad] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yield a row of predictions for each garment of ``Input.rows``, or for each that is found in its photos.

        crops: of the garments; by default they are read here.
        """
        if self.detector is not None:
            yield from self._detect(self.detector, rows, killers)
            return
        if crops is None:
            size = self.predictor.card.input_size
            crops = read_crops(self.settings, rows, killers, size, self.threads)
        answers = self.predictor.predict(crops)
        for garment, answer in zip(rows.select(GARMENTS.names).to_pylist(), answers, strict=True):
            yield {**garment, "model": self.settings.model, **answer_columns(answer, garment["box"])}

    def _detect(
        self, detector: Detector, rows: pa.Table, killers: frozenset[str]
    ) -> Iterator[dict[str, Any]]:
        """Yield a row of predictions for each garment that is found in the photos of ``Input.rows``, best boxes first.

        A photo in which none is found has one row, with the error ``no_garment``.
        """
        photos = ahead(self.settings.photos.read(rows), MAX_AHEAD, AHEAD_BYTES, _bytes)
        uris = rows["uri"].to_pylist()
        input_size = detector.card.input_size
        damaged = self.settings.damaged

        def whole(place: tuple[InputPhoto, str]) -> Crop | Bad:
            photo, uri = place
            return BadPhoto(*KILLER) if uri in killers else _whole(photo, input_size, damaged)

        found = detector.detect(in_threads(whole, zip(photos, uris, strict=True), self.threads))
        garments: deque[dict[str, Any]] = deque()  # whose answers are still to come

        def crops() -> Iterator[Crop | Bad]:
            for uri, answer in zip(uris, found, strict=True):
                nobody = {"uri": uri, "garment": 0, "box": None, "box_score": None}
                if not isinstance(answer, Detected) or not len(answer.boxes):
                    garments.append(nobody)
                    yield detector.nothing() if isinstance(answer, Detected) else answer
                    continue
                scored = zip(answer.boxes.tolist(), answer.score.tolist(), strict=True)
                for number, (box, score) in enumerate(scored):
                    garments.append(nobody | {"garment": number, "box": box, "box_score": score})
                    yield _part(answer.photo, box, self.predictor.card.input_size)

        for answer in self.predictor.predict(crops()):
            garment = garments.popleft()
            if isinstance(answer, Prediction):
                answer = dataclasses.replace(answer, box_score=garment["box_score"])  # noqa: PLW2901
            yield {**garment, "model": self.settings.model, **answer_columns(answer, garment["box"])}
        assert not garments


def identities(rows: pa.Table) -> Iterator[int]:
    """Yield a hash of each garment and of its photo's version, as far as the input tells it.

    The sum of those that a shard answers without an error is its ``answered``, in hexadecimal and modulo ``MODULUS``.
    """
    columns = [name for name in ("uri", "garment", "size", "crc", "version") if name in rows.column_names]
    for row in zip(*(rows[name].to_pylist() for name in columns), strict=True):
        yield int.from_bytes(hashlib.blake2b(json.dumps(row).encode(), digest_size=16).digest())


def _bytes(photo: InputPhoto) -> int:
    return len(photo.data) if isinstance(photo.data, bytes) else 0


def read_rows(rows: bytes, settings: WriterSettings) -> None:
    """Predict an Arrow stream of rows and write nothing: to see whether the worker survives."""
    for _ in ShardWriter(settings).predict(from_bytes(rows), frozenset()):
        pass


def _whole(photo: InputPhoto, size: int, damaged: Damaged) -> Crop | Bad:
    if isinstance(photo.data, BadPhoto):
        return photo.data
    try:
        return open_upright(photo.data, photo.origin, damaged).whole(size)
    except BadPhoto as bad:
        return bad


def _part(photo: Photo, box: list[float], size: int) -> Crop | Bad:
    try:
        return photo.crop(box, size)
    except BadBox as bad:  # so small that rounding has left nothing of it
        return bad


def _crop(photo: InputPhoto, box: list[float] | None, size: int, damaged: Damaged) -> Crop | Bad:
    if isinstance(photo.data, BadPhoto):
        return photo.data
    try:
        return prepare(photo.data, size, box, photo.origin, damaged)
    except (BadPhoto, BadBox) as bad:
        return bad
