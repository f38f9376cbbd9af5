"""The export job: pycocotools reads its files, and ingest makes the same data set of them."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset
import pytest
from PIL import Image
from pycocotools.coco import COCO

from glefld.data.dataset import open_dataset
from jobs.export_dataset import Options, run
from pipelines.ingest.plan import IngestOptions
from pipelines.ingest.run import ingest, prepare
from tests.coco_files import category, coco, image
from tests.mistakes import one_line
from tests.raw_layouts import (
    deepfashion2_files,
    deepfashion2_item,
    jpeg,
    photos,
    rows,
    write_files,
    write_fld,
)

DATASETS = ("fld", "deepfashion2", "coco 0", "coco 1", "coco 2", "csv 0")


def random_coco(seed: int) -> dict[str, str | bytes]:
    """Garments of two types with places anywhere in their box, several of them in a photo."""
    rng = np.random.default_rng(seed)
    names = {
        "top": ("left_hem", "neck", "right_hem"),
        "skirt": ("waist_l", "waist_r", "right_hem", "left_hem"),
    }
    types = [category(name, keypoints, key) for key, (name, keypoints) in enumerate(names.items(), 1)]
    items, images = [], [image(i, f"photo {i}.jpg") for i in range(20)]
    for number in range(40):
        key = int(rng.integers(1, 3))
        n = len(types[key - 1]["keypoints"])
        x, y = rng.uniform(0, 10, 2).round(2)
        width, height = rng.uniform(20, 40, 2).round(2)
        points = rng.uniform((x, y), (x + width, y + height), (n, 2)).round(3)
        v = rng.permutation([2, *rng.integers(0, 3, n - 1)])
        keypoints = np.where((v > 0)[:, None], np.column_stack([points, v]), 0)
        found = {"id": number, "image_id": int(rng.integers(0, 20)), "category_id": key}
        items.append({**found, "bbox": [x, y, width, height], "keypoints": keypoints.ravel().tolist()})
    file = json.dumps(coco(items, images, types))
    return {"a.json": file, **{entry["file_name"]: jpeg(i) for i, entry in enumerate(images)}}


def ingested(name: str, root: Path) -> str:
    source, output = root / "source", root / "data"
    layout = name.split()[0]
    if name == "fld":
        listed = rows(30)
        write_fld(source, listed, photos(listed))
    elif name == "deepfashion2":
        items = [deepfashion2_item(9, 8), deepfashion2_item(1, 25), deepfashion2_item(7, 10)]
        files = {
            f"{split}/{i:06d}": items[: 1 + i % 3] for split in ("train", "validation") for i in range(6)
        }
        write_files(source, deepfashion2_files(files))
    elif layout == "csv":
        layout = "csv"
        lines = [
            f"{i}.jpg,{n},{10.25 + i},{30.5 + k}"
            for i in range(9)
            for k, n in enumerate(("left", "right", "top"))
        ]
        write_files(source, {"points.csv": "\n".join(["photo,name,x,y", *lines])})
        write_files(source, {f"{i}.jpg": jpeg(i) for i in range(9)})
    else:
        write_files(source, random_coco(int(name.split()[1])))
    options = IngestOptions(layout, str(source), landmark_tolerance=10)  # type: ignore[arg-type]
    manifest = ingest(prepare(options, str(output)), str(output), lambda done, total: None)
    assert manifest.rejects == {}
    return str(output)


def in_pictures(data: str) -> dict[str, dict[str, Any]]:
    """By id: each landmark's place and visibility and the box in the stored picture, where that is, and the split."""
    landmark_set = open_dataset(data).landmark_set
    found = {}
    table = pyarrow.dataset.dataset(data, partitioning="hive", exclude_invalid_files=True).to_table()
    for row in table.to_pylist():
        corner = np.array(row["crop_box"])[:2]
        points = np.array(row["landmarks"]).reshape(-1, 2)
        seen = np.minimum(np.array(row["visibility"]), 2) % 3
        places = {n: (p, s) for n, p, s in zip(landmark_set.landmarks, points, seen.tolist(), strict=True)}
        found[row["sample_id"]] = {
            "corner": corner,
            "box": np.array(row["box"]) - np.tile(corner, 2),
            "places": places,
            "split": row["split"],
            "type": row["garment_type"],
            "size": (row["image_width"], row["image_height"]),
        }
    return found


@pytest.mark.usefixtures("ingest_here")
@pytest.mark.parametrize("name", DATASETS)
def test_there_and_back(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Boxes, points, visibility and splits to 1e-3 pixels; landmark names, order, pairs, types, as they were.

    Only cut-off landmarks are absent afterwards: COCO has one code for both.
    """
    print("case", name)
    data = ingested(name, tmp_path)
    dataset = open_dataset(data).dataset
    run(Options(dataset, data=data, output=str(tmp_path / "out")))  # type: ignore[arg-type]
    assert "garments" in capsys.readouterr().out
    back = str(tmp_path / "back")
    options = IngestOptions("coco", str(tmp_path / "out"), landmark_tolerance=10)
    manifest = ingest(prepare(options, back), back, lambda done, total: None)
    before = open_dataset(data)
    assert (manifest.rejects, manifest.splits) == ({}, before.splits)
    same, other = before.landmark_set, manifest.landmark_set
    assert (other.landmarks, other.mirror) == (same.landmarks, same.mirror)
    if same.garment_types:
        named = {t.name: t.landmarks for t in other.garment_types}
        assert named == {t.name: t.landmarks for t in same.garment_types}
    if same.sigmas:
        assert other.sigmas == same.sigmas
    pictures = [json.loads(path.read_text()) for path in (tmp_path / "out" / "annotations").iterdir()]
    ids = {entry["file_name"]: entry["sample_id"] for file in pictures for entry in file["images"]}
    old, new = in_pictures(data), in_pictures(back)
    assert len(old) == len(new) == len(ids)
    for sample_id, row in new.items():
        path = sample_id.removeprefix("coco/images/").removesuffix("#0")
        expected = old[ids[path]]
        assert row["split"] == expected["split"]
        np.testing.assert_allclose(row["box"] + np.tile(row["corner"], 2), expected["box"], atol=1e-3)
        for landmark, (place, seen) in row["places"].items():
            wanted, code = expected["places"][landmark]
            np.testing.assert_allclose(place + row["corner"], wanted, atol=1e-3)
            assert seen == code
        with Image.open(tmp_path / "out" / "images" / path) as picture:
            assert picture.size == expected["size"]


@pytest.mark.usefixtures("ingest_here")
def test_pycocotools_reads_it(tmp_path: Path) -> None:
    """As its COCO class does: categories, keypoints by v, and a photo for each annotation."""
    data = ingested("coco 3", tmp_path)
    run(Options("coco", data=data, output=str(tmp_path / "out")))
    total = 0
    for path in (tmp_path / "out" / "annotations").iterdir():
        with contextlib.redirect_stdout(io.StringIO()):
            read = COCO(str(path))
        assert {c["name"]: len(c["keypoints"]) for c in read.loadCats(read.getCatIds())} == {
            "top": 3,
            "skirt": 4,
        }
        for key in read.getAnnIds():
            (item,) = read.loadAnns(key)
            (of,) = read.loadImgs(item["image_id"])
            assert (tmp_path / "out" / "images" / of["file_name"]).exists()
            v = np.array(item["keypoints"][2::3])
            assert item["num_keypoints"] == (v > 0).sum() > 0
            assert set(map(type, item["keypoints"][2::3])) == {int}
            total += 1
    assert total == 40


@pytest.mark.usefixtures("ingest_here")
def test_mistakes_of_an_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ingested("coco 4", tmp_path)
    output = str(tmp_path / "out")
    run(Options("coco", data=data, output=output))
    capsys.readouterr()
    told = one_line(lambda: run(Options("coco", data=data, output=output)), capsys)
    assert "train.json already exists: choose another --output" in told
    told = one_line(lambda: run(Options("fld", data=data, output=output)), capsys)
    assert "holds the data set 'coco', not 'fld'" in told
