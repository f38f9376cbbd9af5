"""Annotations of one's own through the whole ingest: wherever the photos lie, as annotation tools show them."""

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image

from glefld.data.dataset import open_dataset
from glefld.errors import UserError
from glefld.schema import Manifest
from pipelines.ingest.plan import IngestOptions
from pipelines.ingest.run import find_finished, ingest, prepare
from tests.coco_files import annotation, category, coco, image
from tests.raw_layouts import jpeg, write_archive, write_files

pytestmark = pytest.mark.usefixtures("ingest_here")


def run(source: Path, output: Path, **options: Any) -> Manifest:
    chosen = IngestOptions("coco", str(source), **options)
    return ingest(prepare(chosen, str(output)), str(output), lambda done, total: None)


def table(output: Path) -> list[dict[str, Any]]:
    read = pyarrow.dataset.dataset(output, partitioning="hive", exclude_invalid_files=True).to_table()
    return sorted(read.to_pylist(), key=lambda row: row["sample_id"])


def rejects(output: Path) -> list[dict[str, Any]]:
    return [
        row for path in sorted(output.glob("_rejects/*.parquet")) for row in pq.read_table(path).to_pylist()
    ]


def own_files(count: int = 12) -> dict[str, bytes]:
    """A file as CVAT exports it, with photos in two folders that have the same names."""
    names = [f"{'ab'[i % 2]}/{i // 2}.jpg" for i in range(count)]
    file = coco([annotation(i, i) for i in range(count)], [image(i, name) for i, name in enumerate(names)])
    photos = {f"images/{name}": jpeg(i) for i, name in enumerate(names)}
    return {"annotations/person_keypoints_default.json": json.dumps(file).encode(), **photos}


def test_wherever_the_files_lie(tmp_path: Path) -> None:
    """A folder, a file in it, a zip and a tar of everything, and photos in zips beside the file: the same data."""
    files = own_files()
    annotations = "annotations/person_keypoints_default.json"
    write_files(tmp_path / "folder", files)
    write_archive(tmp_path / "all.zip", files)
    write_archive(tmp_path / "all.tar", {f"export/{name}": data for name, data in files.items()})
    write_files(tmp_path / "zips", {annotations: files[annotations]})
    for part in "ab":
        own = {name[7:]: data for name, data in files.items() if name.startswith(f"images/{part}")}
        write_archive(tmp_path / "zips" / "images" / f"{part}.zip", own)
    sources = ("folder", f"folder/{annotations}", "all.zip", "all.tar", "zips", f"zips/{annotations}")
    found = []
    for number, source in enumerate(sources):
        manifest = run(tmp_path / source, tmp_path / f"output{number}")
        assert (manifest.rejects, manifest.rows_in) == ({}, 12), source
        rows = table(tmp_path / f"output{number}")
        kept = ("box", "landmarks", "visibility", "split", "photo_hash", "image")
        found.append(sorted(str([row[name] for name in kept]) for row in rows))
        assert any("mirror pairs" in note for note in manifest.source["notes"])
    assert all(rows == found[0] for rows in found)


def test_faults_are_rejects_with_their_words(tmp_path: Path) -> None:
    given = [
        annotation(1),
        annotation(2, 9),
        annotation(3, iscrowd=1),
        annotation(4, 2),
        annotation(1),
        annotation(6, 3),
    ]
    absent = annotation(7, keypoints=[0] * 15)
    file = coco([*given, absent], [image(1), image(2), image(3, width=61)])
    write_files(tmp_path / "source", {"a.json": json.dumps(file), "1.jpg": jpeg(1), "3.jpg": jpeg(3)})
    manifest = run(tmp_path / "source", tmp_path / "output", val_fraction=0.5)
    expected = {
        **{"unknown_image": 1, "crowd": 1, "missing_photo": 1, "duplicate_id": 1},
        **{"other_size": 1, "no_landmarks": 1},
    }
    assert manifest.rejects == dict(sorted(expected.items()))
    assert manifest.rows_in == 7
    by_reason = {row["reason"]: row for row in rejects(tmp_path / "output")}
    assert by_reason["unknown_image"]["detail"] == "annotation 2 of a.json: image_id 9"
    assert (
        by_reason["other_size"]["detail"] == "the photo has 60 x 80 pixels, its annotations are for 61 x 80"
    )
    assert by_reason["missing_photo"]["source_uri"].endswith("/source/2.jpg")


def turned_photo(orientation: int, kind: str = "JPEG") -> bytes:
    """A grey photo of 96 x 64 upright pixels, a red blot at (70, 20), stored so that this orientation shows it so."""
    pixels = np.full((64, 96, 3), 128, np.uint8)
    pixels[16:24, 66:74] = (255, 0, 0)
    picture = Image.fromarray(pixels)
    # What undoes each orientation.
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    if orientation in undo:
        picture = picture.transpose(undo[orientation])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    buffer = io.BytesIO()
    picture.save(buffer, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_photos_are_upright_as_tools_show_them(kind: str, tmp_path: Path) -> None:
    """Whatever the EXIF orientation, the landmark lies on the blot. One that was annotated as stored stays so."""
    suffix = {"JPEG": "jpg", "PNG": "png", "TIFF": "tif"}[kind]
    one = category(keypoints=["blot"])
    blot = {"keypoints": [70.0, 20.01, 2], "bbox": [50, 5, 40, 40]}
    images = [image(i, f"{i}.{suffix}", width=96, height=64) for i in range(1, 9)]
    items = [annotation(i, i, 1, **blot) for i in range(1, 9)]
    files: dict[str, str | bytes] = {f"{i}.{suffix}": turned_photo(i, kind) for i in range(1, 9)}
    if kind == "JPEG":
        # As stored, 64 x 96, the blot of orientation 6 lies at (20, 26).
        images.append(image(9, "stored.jpg", width=64, height=96))
        items.append(annotation(9, 9, 1, keypoints=[20.01, 26.0, 2], bbox=[5, 5, 40, 40]))
        files["stored.jpg"] = turned_photo(6)
        # Sizes that are not said are taken for upright.
        images.append({"id": 10, "file_name": "unsaid.jpg"})
        items.append(annotation(10, 10, 1, **blot))
        files["unsaid.jpg"] = turned_photo(8)
    files["a.json"] = json.dumps(coco(items, images, [one]))
    write_files(tmp_path / "source", files)
    manifest = run(tmp_path / "source", tmp_path / "output")
    assert manifest.rejects == {}
    for row in table(tmp_path / "output"):
        picture = np.asarray(Image.open(io.BytesIO(row["image"])), np.int64)
        x, y = (int(v) for v in row["landmarks"])
        assert picture.shape[:2] == (row["image_height"], row["image_width"])
        red, green, _ = picture[y, x]
        assert red > 200, (row["sample_id"], x, y)
        assert green < 60
        stored = row["sample_id"].startswith("coco/stored")
        assert (row["source_width"], row["source_height"]) == ((64, 96) if stored else (96, 64))


def test_a_photo_that_changes_is_noticed(tmp_path: Path) -> None:
    """Also where the source is the annotation file alone."""
    write_files(tmp_path / "source", own_files())
    (file,) = (tmp_path / "source" / "annotations").iterdir()
    output = tmp_path / "output"
    run(file, output)
    options = IngestOptions("coco", str(file))
    assert find_finished(options, str(output)) == open_dataset(str(output))
    photo = tmp_path / "source" / "images" / "a" / "0.jpg"
    photo.unlink()
    with pytest.raises(UserError, match="has changed since"):
        find_finished(options, str(output))


def test_mistakes(tmp_path: Path) -> None:
    write_files(tmp_path / "source", own_files())
    source, output = str(tmp_path / "source"), str(tmp_path / "output")
    for options, words in (
        (IngestOptions("fld", source, pairs="a:b"), "--pairs is for --dataset coco and csv"),
        (IngestOptions("coco", source, val_fraction=1.0), "--val-fraction must be between 0 and 0.9"),
        (IngestOptions("coco", source, val_fraction=0.6, test_fraction=0.6), "together must be between"),
        (IngestOptions("coco", f"{source}/nothing.json"), r"is no folder, no \.json file and not an archive"),
        (IngestOptions("csv", source), "has no CSV file with rows"),
        (IngestOptions("coco", f"{source}/images"), "has no JSON file with images"),
    ):
        with pytest.raises(UserError, match=words):
            prepare(options, output)
    assert not os.path.exists(output)
    inside = IngestOptions("coco", f"{source}/annotations/person_keypoints_default.json")
    with pytest.raises(UserError, match="lies in"):
        prepare(inside, f"{source}/images/output")


def test_csv(tmp_path: Path) -> None:
    lines = [
        "photo,name,x,y,split",
        *(
            f"{i}.jpg,{n},{x}.5,30,{s}"
            for i, s in ((1, "train"), (2, "val"))
            for n, x in (("left", 10), ("right", 40))
        ),
    ]
    write_files(tmp_path / "source", {"points.csv": "\n".join(lines), "1.jpg": jpeg(1), "2.jpg": jpeg(2)})
    options = IngestOptions("csv", str(tmp_path / "source" / "points.csv"))
    manifest = ingest(prepare(options, str(tmp_path / "o")), str(tmp_path / "o"), lambda done, total: None)
    assert (manifest.splits, manifest.rejects) == ({"train": 1, "val": 1}, {})
    assert manifest.landmark_set.mirror == (1, 0)
