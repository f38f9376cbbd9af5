"""What is measured on: photos, the data set made of them, a checkpoint, and a folder for what the jobs write."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from glefld import storage
from glefld.data.dataset import open_dataset
from glefld.models import build_model, checkpoint
from glefld.models.checkpoint import ModelCard
from glefld.schema import Manifest
from glefld.synthetic.deepfashion import write_dataset
from pipelines.archives import MEMBERS, Archive
from pipelines.benchmark.crop_script import Cropped
from pipelines.benchmark.options import RAW, BenchmarkOptions
from pipelines.benchmark.peers import Sample
from pipelines.benchmark.processes import run_job
from pipelines.infer.inputs import open_input
from pipelines.ingest.plan import IngestOptions, IngestPlan, PlannedShard
from pipelines.ingest.run import prepare as plan_ingest
from pipelines.ingest.shard import crop_box, planned_rows
from pipelines.members import read_members

#: Pictures that stages in one process hold in memory, at most, and go round.
HELD = 512


@dataclasses.dataclass(frozen=True)
class Material:
    """URLs. It can be sent to another machine."""

    dataset: str
    source: str | None
    """Raw data; None if nothing needs it."""
    data: str
    photos: str
    checkpoint: str
    work: str

    def place(self, name: str) -> str:
        """Return a folder of this name in the work folder."""
        return storage.join(self.work, name)

    def manifest(self) -> Manifest:
        """Return the data set's manifest."""
        return open_dataset(self.data)


def render(work: str, name: str, rows: int, cpus: int) -> str:
    """Render a raw data set in FLD's layout, and return its URL."""
    url = storage.join(work, name)
    write_dataset(url, "fld", rows, processes=cpus)
    return url


def make(options: BenchmarkOptions, work: str, cpus: int) -> Material:
    """Open what the options name, and make the rest. Raises UserError for data that cannot be used."""
    source = options.source
    if source is None and (options.data is None or set(RAW) & set(options.stages)):
        source = render(work, "raw", options.rows, cpus)
    if (data := options.data) is None:
        data = storage.join(work, "data")
        assert source is not None
        run_job("ingest", ingest_arguments(options.dataset, source, data))
    if (photos := options.photos) is None:
        archive = storage.join(source, "img.zip") if source else ""
        photos = archive if source and storage.exists(archive) else data
    if (given := options.checkpoint) is None:
        given = storage.join(work, "checkpoint")
        _untrained(options, given, open_dataset(data))
    return Material(options.dataset, source, data, photos, given, work)


def ingest_arguments(dataset: str, source: str, output: str) -> list[str]:
    """Return the arguments of jobs.ingest."""
    return ["--dataset", dataset, "--source", source, "--output", output]


def _untrained(options: BenchmarkOptions, url: str, manifest: Manifest) -> None:
    """Save the system with random weights, as a checkpoint."""
    config, recipe = options.system()
    torch.manual_seed(0)
    model = build_model(options.model, config, manifest.labels).eval()
    card = ModelCard(
        model=options.model,
        config=dataclasses.asdict(config),
        labels=manifest.labels,
        input_size=recipe.input_size,
        normalisation=model.normalisation,
        calibration=model.calibration,
        least_score=None,
        weights="random",
        dataset=options.dataset,
        data_hash=manifest.content_hash,
        recipe=dataclasses.asdict(recipe),
        epoch=0,
        step=0,
        val={},
    )
    checkpoint.save(url, model, card)


def ingest_plan(material: Material, output: str) -> IngestPlan:
    """Return the plan by which the source would be ingested."""
    assert material.source is not None
    return plan_ingest(IngestOptions(material.dataset, material.source), output)  # type: ignore[arg-type]


def crops(plan: IngestPlan, rows: int) -> tuple[Archive, list[str], list[tuple[int, int, int, int]]]:
    """Return an archive, and names and stored parts of its first rows, for scripts that know nothing else."""
    found: list[tuple[str, tuple[int, int, int, int]]] = []
    for shard in plan.shards:
        planned = _of_first_archive(shard)
        for name, box in zip(planned["name"].to_pylist(), planned["box"].to_pylist(), strict=True):
            found.append((name, _crop(box, plan)))
    return plan.archives[0], [name for name, _ in found[:rows]], [crop for _, crop in found[:rows]]


def _of_first_archive(shard: PlannedShard) -> pa.Table:
    rows = planned_rows(shard.item)
    return rows.filter(pc.equal(rows["archive"], 0))


def cropped(plan: IngestPlan) -> list[Cropped]:
    """Return up to ``HELD`` photos of the source with their stored parts. Photos that cannot be read are left out."""
    rows = _of_first_archive(plan.shards[0]).slice(0, HELD)
    read = zip(
        read_members(plan.archives[0], rows.select(MEMBERS.names)), rows["box"].to_pylist(), strict=True
    )
    return [(data, _crop(box, plan)) for data, box in read if isinstance(data, bytes)]


def _crop(box: list[float], plan: IngestPlan) -> tuple[int, int, int, int]:
    # The photo's size is unknown before it is read: the part may reach beyond it.
    x1, y1, x2, y2 = box
    return crop_box((max(x1, 0), max(y1, 0), x2, y2), 1 << 20, 1 << 20, plan.options.margin)


def stored(material: Material) -> list[Sample]:
    """Return up to ``HELD`` stored pictures of the train split, with their boxes and landmarks."""
    found: list[Sample] = []
    for shard in material.manifest().shards:
        if shard.split != "train" or len(found) >= HELD:
            continue
        with storage.open(storage.join(material.data, shard.path)) as file:
            rows = pq.ParquetFile(file).read(columns=["image", "box", "crop_box", "landmarks"])
        for row in rows.slice(0, HELD - len(found)).to_pylist():
            x, y = row["crop_box"][:2]
            x1, y1, x2, y2 = row["box"]
            points = np.array(row["landmarks"], np.float64).reshape(-1, 2)
            found.append((row["image"], (x1 - x, y1 - y, x2 - x, y2 - y), points))
    return found


def photos(material: Material) -> list[tuple[bytes, list[float] | None, tuple[float, float]]]:
    """Return up to ``HELD`` photos for inference: bytes, box in the photo, and where the picture lies in the photo."""
    found = open_input(material.photos, None, None, material.place("staging"), HELD)
    rows = found.rows.read(0)
    read = zip(found.photos.read(rows), rows["box"].to_pylist(), strict=True)
    return [(photo.data, box, photo.origin) for photo, box in read if isinstance(photo.data, bytes)]
