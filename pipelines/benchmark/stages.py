"""The stages that compute in one process, here or on a machine of a cluster, each with its ceiling and its peer."""

import copy
import dataclasses
import functools
import itertools
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from glefld import storage
from glefld.data.augmentation import NO_AUGMENTATION, Augmentation
from glefld.data.loader import Batch, BatchLoader, InputPipeline
from glefld.data.picture import IMAGENET
from glefld.data.reader import SplitReader
from glefld.errors import BadBox, BadPhoto, UserError
from glefld.export import export
from glefld.models.system import Model, Output
from glefld.onnx_model import OnnxPredictor
from glefld.predict import Predictor
from glefld.prediction import Bad, Crop, Prediction, prepare
from glefld.recipe import Recipe, mirror_only
from glefld.temporary import temporary_file, temporary_folder
from glefld.training.loop import Training, train_step
from glefld.training.start import Job
from pipelines.benchmark import ceilings, crop_script, material, peers
from pipelines.benchmark.material import Material
from pipelines.benchmark.options import BenchmarkOptions, Resources
from pipelines.benchmark.timing import Measurement, interleave, rate, stream_rate, synchronize
from pipelines.ingest.run import shard_settings
from pipelines.ingest.shard import planned_rows, write_shard

#: Batches that training and inference make ahead, at most, and that a rate must not count.
AHEAD = 6
#: Batches on the device that the training loop without data goes round.
RESIDENT = 8
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class Bench:
    """What every stage in one process gets."""

    options: BenchmarkOptions
    material: Material
    resources: Resources

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", 0) if self.resources.gpu else torch.device("cpu")

    def job(self, name: str) -> Job:
        """Return a training run on the data, in a folder of this name."""
        config, recipe = self.options.system()
        return Job(
            dataset=self.options.dataset,
            data=self.material.data,
            run=self.material.place(name),
            model=self.options.model,
            config=dataclasses.asdict(config),
            recipe=dataclasses.replace(recipe, epochs=1),
            rows=self.options.rows,
        )

    def interleave(self, cases: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
        return interleave(cases, self.options.repeats, warm_up=True)

    def facts(self) -> dict[str, Any]:
        _, recipe = self.options.system()
        return {
            "model": self.options.model,
            "preset": self.options.preset,
            "input_size": recipe.input_size,
            "batch_size": recipe.batch_size,
        }


def measure(name: str, bench: Bench) -> dict[str, Measurement]:
    """Measure one stage of ``STAGES``, with the threads that the resources allow. Returns its measurements by name."""
    torch.set_num_threads(bench.resources.cpus)
    return STAGES[name](bench)


def machine(bench: Bench) -> dict[str, Measurement]:
    """What this machine can do at most."""
    seconds, device, cpus = bench.options.seconds, bench.device, bench.resources.cpus
    cases: dict[str, tuple[str, Callable[[], float]]] = {}
    for name, dtype in DTYPES.items():
        cases[f"matrix product, {name}"] = (
            "GFLOP/s",
            functools.partial(lambda d: ceilings.matrix_peak(d, seconds, device) / 1e9, dtype),
        )
        cases[f"convolution, {name}"] = (
            "GFLOP/s",
            functools.partial(lambda d: ceilings.convolution_peak(d, seconds, device) / 1e9, dtype),
        )
    pictures = [data for data, _, _ in material.stored(bench.material)]
    for threads in sorted({1, cpus}):
        cases[f"libjpeg-turbo decodes, {threads} threads"] = (
            "pictures/s",
            functools.partial(ceilings.decode_rate, pictures, threads, seconds),
        )
    figures = bench.interleave({name: case for name, (_, case) in cases.items()})
    return {
        f"ceilings/{name}": Measurement(cases[name][0], "higher", found) for name, found in figures.items()
    }


def read(bench: Bench) -> dict[str, Measurement]:
    """Reading the train split's rows in their seeded order, against a plain read of the shards."""
    manifest = bench.material.manifest()
    rows = SplitReader(bench.material.data, manifest, "train")
    shards = [s for s in manifest.shards if s.split == "train"]
    _, recipe = bench.options.system()
    stream = _shares(rows, recipe)

    def ours() -> float:
        return (
            stream_rate(stream, AHEAD, bench.options.seconds, lambda share: share[2]["image"].nbytes) / 2**20
        )

    def plain() -> float:
        urls = [storage.join(bench.material.data, s.path) for s in shards]
        return ceilings.read_rate(urls, bench.options.seconds) / 2**20

    figures = bench.interleave({"ours": ours, "ceiling": plain})
    stream.close()  # type: ignore[attr-defined]
    return {
        "read": Measurement(
            "MiB/s",
            "higher",
            figures["ours"],
            figures["ceiling"],
            "plain read of the same files, one after the other",
        )
    }


def _shares(rows: SplitReader, recipe: Recipe) -> Iterator[tuple[int, np.ndarray, pa.Table]]:
    """Yield the epoch, row numbers and rows of one global batch after the other, without end."""
    for epoch in itertools.count():
        order = rows.order(recipe.seed, epoch, recipe.streams, recipe.window_rows)
        for numbers, table in rows.epoch(order, recipe.batch_size):
            yield epoch, numbers, table


def loader(bench: Bench) -> dict[str, Measurement]:
    """The data path without a model: with all augmentations, with mirroring only, and as evaluation loads."""
    manifest = bench.material.manifest()
    rows = SplitReader(bench.material.data, manifest, "train")
    _, recipe = bench.options.system()
    kinds = {"loader": Augmentation(), "loader/mirror": mirror_only(), "loader/evaluation": NO_AUGMENTATION}
    samples = material.stored(bench.material)
    pictures = [data for data, _, _ in samples]
    found = {}
    for name, augmentation in kinds.items():
        pipeline = InputPipeline(
            recipe.input_size,
            IMAGENET,
            recipe.batch_size,
            0 if bench.resources.gpu else None,
            bench.resources.cpus,
        )
        ours = _endless(BatchLoader(manifest.labels, pipeline), rows, augmentation, recipe)

        def our_rate(stream: Iterator[Batch] = ours) -> float:
            value = stream_rate(stream, AHEAD, bench.options.seconds, lambda batch: len(batch.images))
            synchronize(bench.device)
            return value

        cases: dict[str, Callable[[], float]] = {
            "ours": our_rate,
            "ceiling": lambda: ceilings.decode_rate(pictures, bench.resources.cpus, bench.options.seconds),
        }
        if bench.options.peers:
            workers = bench.resources.cpus
            theirs = peers.batches(samples, recipe.input_size, augmentation, recipe.batch_size, workers)
            skip = workers * peers.AHEAD + 1
            cases["peer"] = lambda theirs=theirs, skip=skip: stream_rate(  # type: ignore[misc]
                theirs, skip, bench.options.seconds, lambda batch: len(batch[0])
            )
        figures = bench.interleave(cases)
        found[name] = Measurement(
            "images/s",
            "higher",
            figures["ours"],
            figures["ceiling"],
            f"libjpeg-turbo decodes the same pictures, {bench.resources.cpus} threads",
            figures.get("peer"),
            f"torchvision v2 in a DataLoader of {bench.resources.cpus} processes",
            facts=bench.facts(),
        )
        ours.close()  # type: ignore[attr-defined]
    return found


def _endless(
    loader: BatchLoader, rows: SplitReader, augmentation: Augmentation, recipe: Recipe
) -> Iterator[Batch]:
    """Yield batches without end, as training gets them: read in a seeded order, augmented by row."""
    seeds: deque[tuple[int, ...]] = deque()

    def tables() -> Iterator[pa.Table]:
        for epoch, numbers, table in _shares(rows, recipe):
            seeds.extend((recipe.seed, epoch, number) for number in numbers.tolist())
            yield table

    return loader.run(tables(), augmentation, iter(seeds.popleft, None))


def _resident(training: Training, count: int) -> list[Batch]:
    """Return batches that are on the device already."""
    recipe = training.job.recipe
    stream = _endless(training.loader, training.train_rows, recipe.augmentation, recipe)
    batches = list(itertools.islice(stream, count))
    stream.close()  # type: ignore[attr-defined]
    return batches


def _take(training: Training, batch: Batch, dtype: torch.dtype | None = None) -> None:
    train_step(
        training.model,
        training.parallel,
        training.optimizer,
        batch,
        training.job.recipe,
        rows=len(batch.images),
        world=1,
        dtype=dtype or training.precision.dtype,
    )


def _short(dtype: torch.dtype) -> str:
    return next(name for name, value in DTYPES.items() if value == dtype)


def step(bench: Bench) -> dict[str, Measurement]:
    """A training step on one batch that is on the device, against the matrix peak and against plain steps."""
    training, _ = Training.begin(bench.job("step"), bench.device)
    training.parallel.train()
    (batch,) = _resident(training, 1)
    rows, seconds = len(batch.images), bench.options.seconds
    with FlopCounterMode(display=False) as counter:
        training.model(batch.images).heatmaps.float().mean().backward()
    training.optimizer.zero_grad()
    operations = counter.get_total_flops() / rows
    layouts = {"plain, channels-last": torch.channels_last, "plain, contiguous": torch.contiguous_format}
    plain = {
        name: peers.plain_step(copy.deepcopy(training.model), training.job.recipe, batch, layout)
        for name, layout in layouts.items()
        if bench.options.peers
    }
    cases: dict[str, Callable[[], float]] = {
        "ours": lambda: rate(lambda: _take(training, batch), rows, seconds, bench.device),
        "ceiling": lambda: ceilings.matrix_peak(training.precision.dtype, seconds, bench.device) / operations,
    }
    for name, dtype in DTYPES.items():
        if dtype != training.precision.dtype:
            cases[f"ours in {name}"] = functools.partial(
                lambda d: rate(lambda: _take(training, batch, d), rows, seconds, bench.device), dtype
            )
    for name, work in plain.items():
        cases[name] = functools.partial(rate, work, rows, seconds, bench.device)
    figures = bench.interleave(cases)
    precision = training.precision.precision
    return {
        "step": Measurement(
            "images/s",
            "higher",
            figures["ours"],
            figures["ceiling"],
            f"the matrix peak in {precision}, by the step's {operations / 1e9:.1f} GFLOP an image",
            figures.get("plain, channels-last"),
            "a plain step in fp32, channels-last",
            also={
                f"{name}, images/s": found
                for name, found in figures.items()
                if name not in ("ours", "ceiling", "plain, channels-last")
            },
            facts=bench.facts() | {"precision": precision, "gflop_per_image": operations / 1e9},
        )
    }


def resident_rate(bench: Bench) -> float:
    """Return images per second of the training loop on batches that are on the device."""
    torch.set_num_threads(bench.resources.cpus)
    training, _ = Training.begin(bench.job("resident"), bench.device)
    training.parallel.train()
    batches = _resident(training, RESIDENT)
    turn = itertools.cycle(batches)
    for _ in range(2):
        _take(training, next(turn))
    rows = sum(len(batch.images) for batch in batches) / len(batches)
    return rate(lambda: _take(training, next(turn)), rows, bench.options.seconds, bench.device)


def loop_rate(bench: Bench) -> float:
    """Return images per second of one epoch of the training loop with its data, without Ray and MLflow."""
    torch.set_num_threads(bench.resources.cpus)
    training, position = Training.begin(bench.job("loop"), bench.device)
    rates: list[float] = []

    def log(metrics: dict[str, float], _: int) -> None:
        rates.append(metrics["images_per_second"])

    training.epoch(position, log, lambda: None, lambda seen: None)
    return steady(rates)


def steady(rates: list[float]) -> float:
    """Return the median of the logged rates, without the first steps' if there are later ones."""
    return float(np.median(rates[1:] or rates))


class Nothing(Model):
    """In place of a model: heatmaps of zeros, so that a rate with it is that of all else."""

    heatmaps: Tensor

    def __init__(self, model: Model, heatmaps: Tensor) -> None:
        super().__init__(model.labels)
        self.register_buffer("heatmaps", heatmaps)
        self.codec = model.codec

    def forward(self, images: Tensor) -> Output:
        return Output(heatmaps=self.heatmaps[: len(images)])


def _predictor(bench: Bench) -> Predictor:
    return Predictor(bench.material.checkpoint, bench.device, threads=bench.resources.cpus)


def _model_alone(predictor: Predictor, device: torch.device) -> tuple[Callable[[], None], Tensor]:
    """Return the model's forward pass on images that are on the device, as the predictor computes it; its heatmaps."""
    side = predictor.card.input_size
    images = torch.randn(predictor.batch_size, 3, side, side, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    model, dtype = predictor.model, predictor.dtype

    @torch.no_grad()
    def work() -> None:
        with (
            torch.autocast(device.type, dtype, enabled=dtype != torch.float32),
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
        ):
            model(images)

    with torch.no_grad():
        heatmaps = model(images).heatmaps
    return work, heatmaps


def model_rate(bench: Bench) -> float:
    """Return images per second of the model alone, as the predictor computes it."""
    torch.set_num_threads(bench.resources.cpus)
    predictor = _predictor(bench)
    work, _ = _model_alone(predictor, bench.device)
    return rate(work, predictor.batch_size, bench.options.seconds, bench.device)


def predict(bench: Bench) -> dict[str, Measurement]:
    """Inference in this process, from encoded photos to landmarks, with the model and with none."""
    predictor, fed = _predictor(bench), _predictor(bench)
    alone, heatmaps = _model_alone(predictor, bench.device)
    fed.model = Nothing(predictor.model, torch.zeros_like(heatmaps))
    held = material.photos(bench.material)
    size, batch, seconds = predictor.card.input_size, predictor.batch_size, bench.options.seconds
    cpus = bench.resources.cpus
    streams = {"ours": predictor.predict(_crops(held, size)), "data": fed.predict(_crops(held, size))}

    def stream(name: str) -> float:
        return stream_rate(_counted(streams[name], batch), AHEAD, seconds, lambda answered: answered)

    cases: dict[str, Callable[[], float]] = {
        "ours": lambda: stream("ours"),
        "ceiling": lambda: rate(alone, batch, seconds, bench.device),
        "data": lambda: stream("data"),
        "decode": lambda: ceilings.decode_rate([data for data, _, _ in held], cpus, seconds),
    }
    if bench.options.peers:
        theirs = peers.predictions(
            copy.deepcopy(predictor.model).to(memory_format=torch.contiguous_format),
            [_sample(*photo) for photo in held],
            size,
            batch,
            cpus,
        )
        skip = cpus * peers.AHEAD + 1
        cases["peer"] = lambda: stream_rate(theirs, skip, seconds, lambda rows: rows)
    if (exported := _exported(bench)) is not None:
        streams["onnx"] = exported.predict(_crops(held, size))
        cases["onnx"] = lambda: stream("onnx")
    figures = bench.interleave(cases)
    for name in streams:
        streams[name].close()  # type: ignore[attr-defined]
    facts = {"model": predictor.card.model, "input_size": size, "batch_size": batch}
    facts["precision"] = _short(predictor.dtype)
    return {
        "predict": Measurement(
            "images/s",
            "higher",
            figures["ours"],
            figures["ceiling"],
            "the model alone on images that are on the device",
            figures.get("peer"),
            f"a DataLoader of {cpus} processes and an eager model",
            facts=facts,
        ),
        "predict/data": Measurement(
            "images/s",
            "higher",
            figures["data"],
            figures["decode"],
            f"libjpeg-turbo decodes the same photos, {cpus} threads",
            facts=facts,
        ),
    } | (
        {
            "predict/onnx": Measurement(
                "images/s",
                "higher",
                figures["onnx"],
                peer=figures["ours"],
                peer_is="glefld.predict with PyTorch, the same photos",
                facts=facts,
            )
        }
        if exported is not None
        else {}
    )


def _exported(bench: Bench) -> OnnxPredictor | None:
    """Return the checkpoint as ONNX; None on a GPU, where it does not run, or if it cannot be exported here."""
    if bench.resources.gpu:
        return None
    with temporary_folder() as folder:
        local = Path(folder, "model.onnx")
        try:
            export(bench.material.checkpoint, local, "onnx")
        except UserError as error:
            print(f"predict/onnx is left out: {error}", file=sys.stderr)
            return None
        return OnnxPredictor(str(local), threads=bench.resources.cpus)


def _crops(held: Iterable[tuple[bytes, Any, Any]], size: int) -> Iterator[Crop | Bad]:
    for data, box, origin in itertools.cycle(held):
        try:
            yield prepare(data, size, box, origin)
        except (BadPhoto, BadBox) as bad:
            yield bad


def _counted(answers: Iterator[Any], batch: int) -> Iterator[int]:
    """Yield the predictions among each batch's answers: they come together, so that time ends with a whole batch."""
    while True:
        yield sum(isinstance(answer, Prediction) for answer in itertools.islice(answers, batch))


def _sample(data: bytes, box: list[float] | None, origin: tuple[float, float]) -> peers.Sample:
    if box is None:
        return data, None, np.zeros((1, 2))
    x, y = origin
    return data, (box[0] - x, box[1] - y, box[2] - x, box[3] - y), np.zeros((1, 2))


def shard(bench: Bench) -> dict[str, Measurement]:
    """One task of ingest on one core: rows per second of writing a shard, against the codecs alone."""
    torch.set_num_threads(1)
    output = bench.material.place("shard")
    plan = material.ingest_plan(bench.material, output)
    settings = shard_settings(plan, output)
    rows = planned_rows(plan.shards[0].item).slice(0, bench.options.rows)
    file = storage.join(plan.folder, "first-rows.parquet")
    with temporary_file() as local:
        pq.write_table(rows, local, row_group_size=len(rows))
        storage.put_file(local, file)
    row = {**plan.shards[0].item, "file": file, "group": 0, "killers": []}
    photos = material.cropped(plan)
    seconds, cpu = bench.options.seconds, torch.device("cpu")
    archive, names, crops = material.crops(plan, len(rows))
    cases: dict[str, Callable[[], float]] = {
        "ours": lambda: rate(lambda: write_shard(row, settings, frozenset()), len(rows), seconds, cpu),
        "ceiling": lambda: ceilings.recode_rate(ceilings.recode_turbo, photos, 1, seconds),
        "codec": lambda: ceilings.recode_rate(crop_script.recode_pillow, photos, 1, seconds),
    }
    if bench.options.peers and archive.kind in ("zip", "folder"):
        part = (archive.url, names, crops, storage.join(output, "_peer", "part.parquet"))
        cases["peer"] = lambda: rate(lambda: crop_script.crop_part(part), len(names), seconds, cpu)
    figures = bench.interleave(cases)
    return {
        "shard": Measurement(
            "rows/s",
            "higher",
            figures["ours"],
            figures["ceiling"],
            "libjpeg-turbo decodes, crops and encodes (quality 95, 4:4:4), one thread",
            figures.get("peer"),
            "a Pillow script in one process",
            also={"Pillow's codec alone, rows/s": figures["codec"]},
            facts={"rows": len(rows)},
        )
    }


STAGES: dict[str, Callable[[Bench], dict[str, Measurement]]] = {
    "ceilings": machine,
    "read": read,
    "loader": loader,
    "step": step,
    "predict": predict,
    "shard": shard,
}
