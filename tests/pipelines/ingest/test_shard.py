"""One shard: geometry kept to the pixel, each irregular row turned away for its own reason."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from glefld.schema import FASHION8, REJECT_SCHEMA, sample_schema
from pipelines.ingest import plan as plan_module
from pipelines.ingest.plan import IngestOptions
from pipelines.ingest.run import prepare, shard_settings
from pipelines.ingest.shard import ShardSettings, crop_box, planned_rows, shard_path, write_shard
from pipelines.resumable import ROW_GROUP
from tests.full_disk import on_full_disk
from tests.raw_layouts import Row, jpeg, photos, rows, write_fld


def shard(
    tmp_path: Path,
    listed: Sequence[Row],
    images: Mapping[str, bytes],
    held_out: frozenset[bytes] = frozenset(),
    killers: Sequence[str] = (),
    **options: object,
) -> tuple[list[dict], list[dict]]:
    """Write these rows as one shard, as a task does; its rows and the rejects, those of the lists too."""
    row, settings, listed_rejects = planned(tmp_path, listed, images, **options)
    row = {**row, "killers": list(killers)}
    write_shard(row, settings, held_out)
    rejects = list(listed_rejects)
    output = tmp_path / "output"
    for path in output.glob("_rejects/*.parquet"):
        rejects += pq.read_table(path, schema=REJECT_SCHEMA).to_pylist()
    return pq.ParquetFile(output / shard_path("train", 0)).read().to_pylist(), rejects


def planned(
    tmp_path: Path, listed: Sequence[Row], images: Mapping[str, bytes], **options: object
) -> tuple[dict, ShardSettings, Sequence[dict]]:
    """One shard of all of these rows: what a task is given of it, and the rejects of the lists."""
    source = write_fld(tmp_path / "source", listed, images)
    chosen = IngestOptions(dataset="fld", source=str(source), **options)
    output = str(tmp_path / "output")
    plan = prepare(chosen, output)
    joined = pa.concat_tables(planned_rows(part.item) for part in plan.shards).combine_chunks()
    file = str(tmp_path / "joined.parquet")
    pq.write_table(joined, file)
    row = {"split": "train", "index": 0, "file": file, "group": 0, "killers": []}
    rejects = pq.read_table(plan.rejects_file).to_pylist() if plan.rejects_file else []
    return row, shard_settings(plan, output), rejects


#: Decoded and encoded again, and cut without decoding.
FORMATS: dict[str, dict[str, object]] = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": 2},
}


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("margin", [0.0, 0.25, 1.5, "full"])
def test_landmarks_stay_on_their_pixels(margin: float | str, format_: str, tmp_path: Path) -> None:
    """A pixel painted at an annotated landmark is, in the stored picture, at the stored landmark's place."""
    seed = int(np.random.default_rng().integers(1 << 31))
    print("seed", seed)
    rng = np.random.default_rng(seed)
    pixels = np.zeros((120, 90, 3), np.uint8)
    x1, y1 = rng.integers(1, 20, 2)
    x2, y2 = rng.integers(65, 91), rng.integers(80, 121)
    # The dots keep apart, so that the codec's ringing of one does not move another's maximum.
    xs = x1 + rng.choice((x2 - x1) // 8, 4, replace=False) * 8
    ys = y1 + rng.choice((y2 - y1) // 8, 4, replace=False) * 8
    points = [(0, int(x), int(y)) for x, y in zip(xs, ys, strict=True)]
    for _, x, y in points:
        pixels[y, x] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format_, **FORMATS[format_])
    box = (int(x1), int(y1), int(x2), int(y2))
    row = Row("img/a.jpg", box=box, garment_type=2, points=points)
    ((found,), rejects) = shard(tmp_path, [row], {"img/a.jpg": buffer.getvalue()}, margin=margin)
    assert not rejects
    stored = np.asarray(Image.open(io.BytesIO(found["image"])).convert("L")).astype(int)
    assert stored.shape == (found["image_height"], found["image_width"])
    left, top, right, bottom = found["crop_box"]
    assert (right - left, bottom - top) == (found["image_width"], found["image_height"])
    landmarks = np.array(found["landmarks"]).reshape(-1, 2)[4:]
    for (_, x, y), (px, py) in zip(points, landmarks, strict=True):
        assert (px + left, py + top) == (x + 0.5, y + 0.5)
        column, row_ = int(px), int(py)
        window = stored[max(0, row_ - 2) : row_ + 3, max(0, column - 2) : column + 3]
        assert stored[row_, column] == window.max() > 150
    assert found["box"] == list(box)


@pytest.mark.parametrize(
    ("margin", "expected"),
    [
        (0, (10, 20, 50, 60)),
        (0.25, (0, 10, 60, 70)),
        (0.26, (0, 9, 61, 71)),
        (2, (0, 0, 100, 80)),
        ("full", (0, 0, 100, 80)),
    ],
)
def test_crop_box(margin: float, expected: tuple[int, ...]) -> None:
    """The margin is a part of the box's size on each side; no pixel of it is lost; the photo ends it."""
    assert crop_box((10.0, 20.0, 50.0, 60.0), 100, 80, margin) == expected


LOWER = {"garment_type": 2, "box": (10, 10, 50, 70)}
INSIDE = ((0, 10, 10), (0, 49, 69), (1, 30, 30), (2, 0, 0))
CASES: dict[str, tuple[Row, str | None]] = {
    "a good row": (Row("img/a.jpg", points=INSIDE, **LOWER), None),
    "a box beyond the edge is clipped": (
        Row("img/a.jpg", points=INSIDE, garment_type=2, box=(-5, -5, 99, 99)),
        None,
    ),
    "a box without width": (
        Row("img/a.jpg", points=INSIDE, garment_type=2, box=(30, 10, 30, 70)),
        "empty_box",
    ),
    "a box turned round": (
        Row("img/a.jpg", points=INSIDE, garment_type=2, box=(50, 70, 10, 10)),
        "empty_box",
    ),
    "a box beside the photo": (
        Row("img/a.jpg", points=INSIDE, garment_type=2, box=(60, 10, 90, 70)),
        "box_outside_photo",
    ),
    "a box above the photo": (
        Row("img/a.jpg", points=INSIDE, garment_type=2, box=(10, -40, 50, 0)),
        "box_outside_photo",
    ),
    "all cut off": (Row("img/a.jpg", points=((2, 0, 0),) * 4, **LOWER), "no_landmarks"),
    "all zero": (Row("img/a.jpg", points=((0, 0, 0), (1, 0, 0)) * 2, **LOWER), "no_landmarks"),
    # The box is 40 x 60: a tenth of it is 4 and 6 pixels.
    "on the tolerance": (Row("img/a.jpg", points=((0, 6, 4), *INSIDE[1:]), **LOWER), None),
    "left of the tolerance": (
        Row("img/a.jpg", points=((0, 5, 30), *INSIDE[1:]), **LOWER),
        "landmark_outside_box",
    ),
    "occluded and below": (
        Row("img/a.jpg", points=(*INSIDE[:2], (1, 30, 77), INSIDE[3]), **LOWER),
        "landmark_outside_box",
    ),
    "cut off, wherever": (Row("img/a.jpg", points=(*INSIDE[:3], (2, 999, 999)), **LOWER), None),
}


@pytest.mark.parametrize("case", CASES)
def test_annotations_are_kept_or_turned_away(case: str, tmp_path: Path) -> None:
    row, reason = CASES[case]
    kept, rejects = shard(tmp_path, [row], {"img/a.jpg": jpeg(1)})
    assert [r["reason"] for r in rejects] == ([reason] if reason else [])
    assert len(kept) == (reason is None)
    if kept:
        visibility = np.array(kept[0]["visibility"])
        there = ~np.isnan(np.array(kept[0]["landmarks"]).reshape(-1, 2)).any(axis=1)
        np.testing.assert_array_equal(there, visibility < 2)


PHOTOS: dict[str, tuple[bytes, str]] = {
    "truncated": (jpeg(1)[:900], "truncated_photo"),
    "damaged": (jpeg(1)[:900] + bytes(40) + jpeg(1)[940:], "damaged_photo"),
    "text": (b"<html>", "unreadable_photo"),
    "empty": (b"", "unreadable_photo"),
}


@pytest.mark.parametrize("case", PHOTOS)
def test_bad_photos_are_turned_away(case: str, tmp_path: Path) -> None:
    """A reject says which row, which photo and why; the photo's hash is there where its bytes are."""
    data, reason = PHOTOS[case]
    good = Row("img/b.jpg")
    kept, rejects = shard(tmp_path, [Row("img/a.jpg"), good], {"img/a.jpg": data, "img/b.jpg": jpeg(1)})
    assert [row["sample_id"] for row in kept] == ["fld/img/b.jpg#0"]
    (bad,) = rejects
    assert (bad["sample_id"], bad["split"], bad["reason"]) == ("fld/img/a.jpg#0", "train", reason)
    assert bad["source_uri"] == f"{tmp_path}/source/img.zip::img/a.jpg"
    assert bad["detail"]


@pytest.mark.parametrize("case", ["truncated", "damaged"])
def test_a_bad_photo_counts_before_a_bad_row(case: str, tmp_path: Path) -> None:
    """Also where the row alone would do, and no crop is cut: the table of reasons has an order."""
    data, reason = PHOTOS[case]
    bad = Row("img/a.jpg", points=((2, 0, 0),) * 4, **LOWER)
    for image, expected in ((data, reason), (jpeg(1), "no_landmarks")):
        _, rejects = shard(tmp_path / expected, [bad], {"img/a.jpg": image})
        assert [r["reason"] for r in rejects] == [expected]


def test_a_photo_that_kills_its_worker_is_turned_away_unseen(tmp_path: Path) -> None:
    """With all its garments; its neighbours stay."""
    listed = rows(4)
    found, rejects = shard(tmp_path, listed, photos(listed), killers=[listed[1].photo])
    assert [(r["source_uri"].rpartition("/")[2], r["reason"]) for r in rejects] == [
        (listed[1].photo.rpartition("/")[2], "kills_its_worker")
    ]
    assert len(found) == 3


def test_held_out_photos_are_turned_away(tmp_path: Path) -> None:
    images = {"img/a.jpg": jpeg(1), "img/b.jpg": jpeg(2)}
    listed = [Row("img/a.jpg"), Row("img/b.jpg")]
    kept, _ = shard(tmp_path / "all", listed, images)
    held_out = frozenset([kept[0]["photo_hash"]])
    kept, rejects = shard(tmp_path / "some", listed, images, held_out)
    assert [row["source_uri"].split("::")[1] for row in kept] == ["img/b.jpg"]
    assert [(r["reason"], r["photo_hash"]) for r in rejects] == [("duplicate_photo", *held_out)]


def test_a_shard_is_as_the_schema_says(tmp_path: Path) -> None:
    """Schema, row groups, pictures uncompressed (they are JPEG), and a report in the footer that adds up."""
    listed = [Row(f"img/{i:04d}.jpg") for i in range(ROW_GROUP + 5)]
    images = {row.photo: jpeg(i, 40, 60) for i, row in enumerate(listed)}
    images["img/0003.jpg"] = b"?"
    shard(tmp_path, listed, images)
    file = pq.ParquetFile(tmp_path / "output" / shard_path("train", 0))
    assert file.schema_arrow.remove_metadata().equals(sample_schema(FASHION8).remove_metadata())
    assert json.loads(file.schema_arrow.metadata[b"glefld.landmark_set"])["name"] == "fashion8"
    groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    assert [group.num_rows for group in groups] == [ROW_GROUP, 4]
    image = groups[0].column(file.schema_arrow.get_field_index("image"))
    assert (image.path_in_schema, image.compression) == ("image", "UNCOMPRESSED")
    report = json.loads(file.metadata.metadata[b"glefld.ingest"])
    assert report["rows"] + sum(report["rejects"].values()) == report["rows_in"]


def test_larger_row_groups_hold_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [Row(f"img/{i:04d}.jpg") for i in range(2 * ROW_GROUP + 5)]
    images = {row.photo: jpeg(i, 40, 60) for i, row in enumerate(listed)}
    expected, _ = shard(tmp_path / "small", listed, images)
    monkeypatch.setattr(plan_module, "MOST_GROUPS", 2)
    found, _ = shard(tmp_path / "large", listed, images)
    for row in (*expected, *found):
        del row["source_uri"]
    assert str(found) == str(expected)
    file = pq.ParquetFile(tmp_path / "large" / "output" / shard_path("train", 0))
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [2 * ROW_GROUP, 5]


def test_a_shard_that_the_folder_for_temporary_files_cannot_hold(tmp_path: Path) -> None:
    listed = rows(20)
    row, settings, _ = planned(tmp_path, listed, photos(listed))
    told = on_full_disk(20_000, tmp_path / "tmp", write_shard, row, settings, frozenset())
    assert told.startswith(f"OSError: no space for temporary files in {tmp_path / 'tmp'} (File too large)")
    assert not list((tmp_path / "output").rglob("part-*"))
