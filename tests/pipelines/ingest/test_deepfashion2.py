"""DeepFashion2 from its raw layout to its score: several garments a photo, and AP on any number of workers."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from glefld.data.dataset import open_dataset
from glefld.datasets.deepfashion2 import LABELS
from glefld.datasets.deepfashion2_landmarks import DEEPFASHION2
from glefld.errors import UserError
from glefld.models import build_model, checkpoint
from glefld.schema import Manifest
from glefld.scoring import oks
from glefld.scoring.evaluation import evaluation_json
from glefld.synthetic.deepfashion2 import write_dataset
from pipelines import evaluate
from pipelines.evaluate import Tasks, baselines, evaluate_checkpoint
from pipelines.ingest.plan import IngestOptions
from pipelines.ingest.run import ingest, prepare, shard_settings
from pipelines.ingest.shard import write_shard
from tests.dots import card
from tests.in_process import task_here
from tests.raw_layouts import deepfashion2_files, deepfashion2_item, write_archive, write_files

SKIRT, SHORTS = deepfashion2_item(9, 8), deepfashion2_item(7, 10)
PHOTOS = {
    "train/000001": [SKIRT, SHORTS, {**SKIRT, "bounding_box": [30, 10, 30, 70]}],
    "train/000002": [SHORTS],
    "train/000003": [SKIRT, SKIRT],
    "validation/000001": [SKIRT, SHORTS],
    "validation/000002": [],
}


def by_split(files: dict[str, bytes], split: str) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name.startswith(split)}


def raw(root: Path, place: str, files: dict[str, bytes]) -> str:
    """The files in one of the places where a download may have them; the source."""
    if place == "folders":
        write_files(root, files)
    elif place == "a zip a split":
        for split in ("train", "validation"):
            write_archive(root / f"{split}.zip", by_split(files, split))
    elif place == "one zip":
        return str(write_archive(root / "all.zip", {f"DeepFashion2/{k}": v for k, v in files.items()}))
    return str(root)


def shards(source: str, output: Path, **options: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All rows and rejects that the tasks of an ingest write."""
    chosen = IngestOptions("deepfashion2", source, **options)
    plan = prepare(chosen, str(output))
    settings = shard_settings(plan, str(output))
    rejects = pq.read_table(plan.rejects_file).to_pylist() if plan.rejects_file else []
    rows = []
    for shard in plan.shards:
        write_shard({**shard.item, "killers": []}, settings, frozenset())
        rows += pq.ParquetFile(output / shard.path).read().to_pylist()
    for path in output.glob("_rejects/*"):
        rejects += pq.read_table(path).to_pylist()
    return rows, rejects


def test_every_place_gives_the_same_rows(tmp_path: Path) -> None:
    """Each garment is a row or a reject, with its own number, box and landmarks and its photo's hash and address."""
    files = deepfashion2_files(PHOTOS)
    del files["train/image/000002.jpg"]
    files["train/image/000003.jpg"] = b"no photo"
    found = {}
    for place in ("folders", "a zip a split", "one zip"):
        source = raw(tmp_path / place, place, files)
        rows, rejects = shards(source, tmp_path / f"output {place}")
        found[place] = [{k: v for k, v in row.items() if k != "source_uri"} for row in rows]
        reasons = Counter((row["sample_id"][13:], row["reason"]) for row in rejects)
        assert reasons == {
            ("train/image/000001.jpg#2", "empty_box"): 1,
            ("train/image/000002.jpg#0", "missing_photo"): 1,
            ("train/image/000003.jpg#0", "unreadable_photo"): 1,
            ("train/image/000003.jpg#1", "unreadable_photo"): 1,
        }
        uri = rows[0]["source_uri"]
        assert uri == rows[1]["source_uri"]
        assert uri.startswith(source)
        assert uri.endswith("train/image/000001.jpg")
        assert ("::" in uri) == (place != "folders")
    assert str(found["folders"]) == str(found["a zip a split"]) == str(found["one zip"])
    skirt, shorts, *rest = found["folders"]
    assert [row["sample_id"][-2:] for row in (skirt, shorts, *rest)] == ["#0", "#1", "#0", "#1"]
    assert skirt["photo_hash"] == shorts["photo_hash"] != rest[0]["photo_hash"]
    assert (skirt["category"], shorts["category"], skirt["area"]) == (9, 7, 1500)


def test_a_photo_is_read_once_for_its_garments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.ingest import shard as module

    source = raw(tmp_path / "raw", "a zip a split", deepfashion2_files(PHOTOS))
    opened: list[int] = []
    crops = module.Crops.__init__

    def count(self: module.Crops, data: bytes, lossless: bool, **more: Any) -> None:
        opened.append(len(data))
        crops(self, data, lossless, **more)

    monkeypatch.setattr(module.Crops, "__init__", count)
    rows, rejects = shards(source, tmp_path / "output")
    assert (len(rows), len(rejects)) == (7, 1)
    assert len(opened) == 4, "the photo without garments is not wanted"


def test_broken_and_locked_annotations_are_named(tmp_path: Path) -> None:
    files = deepfashion2_files(PHOTOS) | {"train/annos/000002.json": b"{"}
    source = raw(tmp_path / "raw", "a zip a split", files)
    with pytest.raises(UserError, match=r"train\.zip::train/annos/000002\.json is not JSON"):
        shards(source, tmp_path / "output")
    locked = bytearray((tmp_path / "raw/train.zip").read_bytes())
    for signature, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        at = -1
        while (at := locked.find(signature, at + 1)) >= 0:
            locked[at + offset] |= 1
    (tmp_path / "raw/train.zip").write_bytes(locked)
    with pytest.raises(UserError, match=r"train/annos/000001\.json cannot be read: encrypted"):
        shards(source, tmp_path / "output")


def test_a_folder_without_annotations_says_so(tmp_path: Path) -> None:
    files = {k: v for k, v in deepfashion2_files(PHOTOS).items() if k.endswith(".jpg")}
    with pytest.raises(UserError, match="no annotations found"):
        shards(raw(tmp_path / "raw", "folders", files), tmp_path / "output")


def run(options: IngestOptions, output: Path) -> Manifest:
    return ingest(prepare(options, str(output)), str(output), lambda done, total: None)


@pytest.mark.usefixtures("ingest_here")
def test_garments_of_a_photo_are_no_duplicates(tmp_path: Path) -> None:
    """--dedupe turns away a train photo that stands in val too, with all its garments, and nothing else."""
    files = deepfashion2_files(PHOTOS)
    files["train/image/000003.jpg"] = files["validation/image/000001.jpg"]
    source = raw(tmp_path / "raw", "folders", files)
    manifest = run(IngestOptions("deepfashion2", source), tmp_path / "all")
    twins = [f"deepfashion2/train/image/000003.jpg#{i}" for i in (0, 1)]
    twins += [f"deepfashion2/validation/image/000001.jpg#{i}" for i in (0, 1)]
    assert manifest.photos_in_several_splits == (tuple(twins),)
    assert (manifest.splits, manifest.rejects) == ({"train": 5, "val": 2}, {"empty_box": 1})
    deduped = run(IngestOptions("deepfashion2", source, dedupe=True), tmp_path / "deduped")
    assert deduped.rejects == {"duplicate_photo": 2, "empty_box": 1}
    assert deduped.splits == {"train": 3, "val": 2}


@pytest.fixture(scope="module")
def synthesised(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An ingested data set of rendered photos."""
    root = tmp_path_factory.mktemp("synthesised")
    summary = write_dataset(str(root / "raw"), 60, seed=3)
    manifest = run(IngestOptions("deepfashion2", str(root / "raw")), root / "data")
    assert manifest.splits == {"train": summary.splits["train"], "val": summary.splits["validation"]}
    assert manifest.rejects == {}
    table = pyarrow.dataset.dataset(root / "data", partitioning="hive", exclude_invalid_files=True).to_table()
    names = Counter(LABELS.categories[code - 1] for code in table["category"].to_pylist())
    assert names == summary.categories
    # The masks' areas are those of what is in the boxes: never more than these.
    box = np.array(table["box"].to_pylist())
    area = np.array(table["area"].to_pylist())
    assert ((area > 0) & (area <= (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]))).all()
    return str(root / "data")


def test_the_same_score_on_any_number_of_workers(
    synthesised: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AP is exactly that of the whole split at once, and stands in the evaluation's JSON.

    Each worker's share is counted here: test_train.py scores with several of Ray's tasks.
    """
    monkeypatch.setattr(evaluate, "_task", lambda function, _: task_here(function))
    manifest = open_dataset(synthesised)
    config: dict[str, Any] = {"backbone": "test_resnet", "modules": 0, "width": 8}
    url = str(tmp_path / "checkpoint")
    checkpoint.save(
        url, build_model("gle", config, manifest.labels).eval(), card("gle", config, manifest.labels, 32)
    )
    reports = [evaluate_checkpoint(url, synthesised, "train", Tasks(number)) for number in (1, 2, 3)]
    scores = [dataclasses.asdict(report.oks) for report in reports]
    assert scores[0] == scores[1] == scores[2]
    value = evaluation_json(
        reports[0],
        dataset="deepfashion2",
        split="train",
        checkpoint=url,
        baseline=baselines(synthesised, "train", "category"),
    )
    assert value == json.loads(json.dumps(value, allow_nan=False))
    assert 0 <= value["oks_ap"]["ap"] < 0.05, "an untrained network knows nothing"
    assert len(value["ne"]["by_landmark"]) == 294


def test_perfect_and_shifted_predictions_on_synthesised_garments(synthesised: str) -> None:
    """The truth itself scores 1; a shift of 5 pixels much less, and less the further."""
    paths = sorted(Path(synthesised).glob("split=train/*.parquet"))
    truth = oks.Annotated.from_arrow(pq.ParquetFile(paths[0]).read(columns=oks.COLUMNS), DEEPFASHION2)
    assert len(np.unique(truth.photo)) < len(truth.photo)
    # Cut-off landmarks have no truth; a model says something all the same.
    points = np.where(np.isnan(truth.points), 50.0, truth.points)
    ones = np.ones(len(points))
    values = [
        oks.score(oks.Found(points + shift, ones), truth, DEEPFASHION2).mask_area.ap
        for shift in (0, 2, 5, 10)
    ]
    print("AP of a shift by 0, 2, 5, 10 pixels in x and y:", values)
    assert values[0] == pytest.approx(1)
    assert values[0] > values[1] > values[2] > values[3]
