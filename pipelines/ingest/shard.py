"""One ingest task: from a shard's annotations and photos to a Parquet file and a file of rejects."""

import dataclasses
import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from glefld import storage
from glefld.data.crops import Crops
from glefld.datasets.lists import ANNOTATIONS, unpack
from glefld.errors import BadPhoto, BadRow
from glefld.schema import REJECT_SCHEMA, LandmarkSet, sample_schema
from pipelines.archives import MEMBERS, Archive
from pipelines.members import read_members
from pipelines.photo_table import read_photos
from pipelines.resumable import KILLER, Done, ShardedOutput, from_bytes

#: A planned row: what the sample is made of, and where its photo is. ``archive`` is the number of its archive.
PLANNED = pa.schema(
    [
        *(
            field
            for field in ANNOTATIONS
            if field.name not in ("photo", "duplicate", "fault", "fault_detail")
        ),
        ("archive", pa.int32()),
        *MEMBERS,
    ]
)
#: Reasons to reject a row. If several apply, the first one in this order counts.
REASONS = {
    "duplicate_id": "the photo or annotation was listed before",
    "crowd": "a group of garments, not one (COCO's iscrowd)",
    "unknown_image": "the annotation is of an image that its file does not list",
    "unknown_category": "the annotation is of a category that its file does not list",
    "no_keypoints": "the annotation's category has no keypoints",
    "wrong_annotation": "the annotation has values that cannot be right",
    "ambiguous_photo": "several photos have the name that the annotations give",
    "missing_annotation": "the photo is not in every one of the landmark, box and partition lists",
    "missing_photo": "the photo is not in the archive",
    "picture_too_large": "more than 100 million pixels or 256 MiB",
    "truncated_photo": "the photo's file ends early",
    "too_many_scans": "a JPEG of more than 500 scans, or of more than 2 billion pixels in all scans",
    "damaged_photo": "a JPEG with damaged data, of which the decoder had to guess parts",
    KILLER[0]: KILLER[1],
    "unreadable_photo": "the file is not a picture, or is damaged so that nothing can be decoded",
    "duplicate_photo": "with --dedupe: a train photo whose exact bytes are also in val or test",
    "other_size": "the photo does not have the size of the one that was annotated",
    "empty_box": "the box has no area",
    "box_outside_photo": "the box and the photo share no pixel",
    "no_landmarks": "no landmark of the garment has a position",
    "landmark_outside_box": "a landmark lies further outside the box than --landmark-tolerance allows",
}


@dataclasses.dataclass(frozen=True)
class ShardSettings:
    """The settings that all tasks of one ingest share. ``key`` is the plan's."""

    archives: tuple[Archive, ...]
    output: ShardedOutput
    landmark_set: LandmarkSet
    margin: float | Literal["full"]
    landmark_tolerance: float
    key: str
    group_rows: int
    """Rows of a row group."""
    lossless: bool
    """Whether crops of plain JPEGs are cut without decoding them: the driver's choice for all workers."""
    upright: bool
    """Whether annotations are in the upright photo (``Layout``)."""


def shard_path(split: str, index: int) -> str:
    """Return a shard's path, relative to the output."""
    return f"split={split}/part-{index:05d}.parquet"


def rejects_path(split: str, index: int) -> str:
    """Return the path of a shard's rejects, relative to the output."""
    return f"_rejects/{split}-{index:05d}.parquet"


def write_shard(row: dict[str, Any], settings: ShardSettings, held_out: frozenset[bytes]) -> Done:
    """Write one shard and its rejects. Returns what became of the rows that were read.

    row: ``split`` and ``index``; ``file`` and ``group`` of its planned rows; and ``killers``, the names of photos that
    must not be decoded.
    held_out: hashes of photos that this shard must not contain.
    Rejects are written before the shard, so if the shard exists, its rejects do too.
    Raises OSError if the storage fails.
    """
    rows = planned_rows(row)
    schema = sample_schema(settings.landmark_set)
    rejects: list[dict[str, Any]] = []
    kept = 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal kept
        for batch in _batches(rows, settings, held_out, rejects, frozenset(row["killers"])):
            kept += len(batch)
            yield pa.RecordBatch.from_pylist(batch, schema)

    def report() -> dict[str, Any]:
        assert kept + len(rejects) == len(rows), (kept, len(rejects), len(rows))
        by_reason = dict(sorted(Counter(r["reason"] for r in rejects).items()))
        return {"rows_in": len(rows), "rows": kept, "rejects": by_reason}

    rejects_url = storage.join(settings.output.url, rejects_path(row["split"], row["index"]))
    settings.output.write(
        shard_path(row["split"], row["index"]),
        settings.key,
        batches(),
        schema,
        report,
        # A zip and a folder of the same photos must give the same content hash.
        unhashed=["source_uri"],
        before=lambda: write_rejects(rejects, rejects_url),
        compression={name: "none" if name == "image" else "zstd" for name in schema.names},
        use_dictionary=False,
        write_statistics=False,
    )
    return Done(len(rows), {"ok": kept, **Counter(r["reason"] for r in rejects)})


def planned_rows(item: Mapping[str, Any]) -> pa.Table:
    """Read the rows of a shard, of the schema ``PLANNED``: row group ``group`` of the plan's file at ``file``.

    OSError if it is gone, as after another run has finished the same output.
    """
    try:
        with storage.open(item["file"]) as file:
            return pq.ParquetFile(file).read_row_group(item["group"])
    except FileNotFoundError as error:
        raise OSError(
            f"the plan {item['file']} is gone: another run may have finished the same output. Run the same command "
            "again to see, and to continue if it has not"
        ) from error


def read_rows(rows: bytes, settings: ShardSettings, held_out: frozenset[bytes]) -> None:
    """Do with an Arrow stream of rows what ``write_shard`` does, but write nothing: to see whether it survives."""
    for _ in _batches(from_bytes(rows), settings, held_out, [], frozenset()):
        pass


def write_rejects(rejects: list[dict[str, Any]], url: str) -> None:
    """Write rejected rows as Parquet. Without any, no file is written."""
    if rejects:
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rejects, REJECT_SCHEMA), sink, compression="zstd")
        storage.write_bytes(url, sink.getvalue().to_pybytes())


def reject(
    row: dict[str, Any], uri: str, reason: str, detail: str, photo_hash: bytes | None = None
) -> dict[str, Any]:
    """Return a row of REJECT_SCHEMA. ``reason`` is one of REASONS."""
    assert reason in REASONS, reason
    return {
        "sample_id": row["sample_id"],
        "split": row["split"] or "",
        "source_uri": uri,
        "reason": reason,
        "detail": detail,
        "photo_hash": photo_hash,
    }


def _batches(
    rows: pa.Table,
    settings: ShardSettings,
    held_out: frozenset[bytes],
    rejects: list[dict[str, Any]],
    killers: frozenset[str],
) -> Iterator[list[dict[str, Any]]]:
    """Yield the samples in batches of one row group, and append rejected rows to ``rejects``.

    Garments of the same photo are adjacent, so each photo is read once.
    """
    names = rows["name"].to_pylist()
    firsts = [i for i, name in enumerate(names) if i == 0 or name != names[i - 1]]
    photos = _read(
        settings.archives, rows.select(["archive", *MEMBERS.names]).take(pa.array(firsts, pa.int64()))
    )
    name, photo = None, None
    samples: list[dict[str, Any]] = []
    for batch in rows.to_batches(settings.group_rows):
        for row in batch.to_pylist():
            if photo is None or row["name"] != name:
                name, data = row["name"], next(photos)
                photo = (
                    _Photo(BadPhoto(*KILLER), None)
                    if name in killers
                    else _open(data, held_out, settings, _size(row))
                )
            uri = settings.archives[row["archive"]].uri(row["name"])
            try:
                if not isinstance(photo.crops, Crops):
                    raise photo.crops
                sample = _sample(row, photo.crops, settings)
                samples.append(sample | {"source_uri": uri, "photo_hash": photo.hash})
            except (BadPhoto, BadRow) as bad:
                rejects.append(reject(row, uri, bad.reason, bad.detail, photo.hash))
            if len(samples) == settings.group_rows:
                yield samples
                samples = []
    if samples:
        yield samples


def _read(archives: Sequence[Archive], photos: pa.Table) -> Iterator[bytes | BadPhoto]:
    """Yield the content of each photo, or why it cannot be read. Photos of one archive are adjacent."""
    numbers = photos["archive"].to_numpy()
    edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(photos)]
    for start, end in itertools.pairwise(edges):
        if end > start:
            members = photos.slice(start, end - start).select(MEMBERS.names)
            archive = archives[numbers[start]]
            read = read_photos(members) if archive.kind == "table" else read_members(archive, members)
            yield from read


class _Photo(NamedTuple):
    """A photo that can be opened or the reason to reject it, and its file's hash if the file could be read."""

    crops: Crops | BadPhoto | BadRow
    hash: bytes | None


def _size(row: dict[str, Any]) -> tuple[int, int] | None:
    """Return width and height of the photo that was annotated; None if the annotations do not say them."""
    return None if row["photo_width"] is None else (row["photo_width"], row["photo_height"])


def _open(
    data: bytes | BadPhoto,
    held_out: frozenset[bytes],
    settings: ShardSettings,
    size: tuple[int, int] | None,
) -> _Photo:
    if isinstance(data, BadPhoto):
        return _Photo(data, None)
    photo_hash = hashlib.blake2b(data, digest_size=16).digest()
    if photo_hash in held_out:
        return _Photo(BadRow("duplicate_photo", "the same bytes are in val or test"), photo_hash)
    try:
        return _Photo(Crops(data, settings.lossless, upright=settings.upright, size=size), photo_hash)
    except BadPhoto as bad:
        return _Photo(bad, photo_hash)


def _sample(row: dict[str, Any], photo: Crops, settings: ShardSettings) -> dict[str, Any]:
    """Return one row of the data set, without ``source_uri`` and ``photo_hash``.

    Raises BadPhoto or BadRow for a row to reject. A damaged photo is the reason whatever else is wrong.
    """
    try:
        box, points, visibility = _annotation(row, photo.width, photo.height, settings)
    except BadRow:
        photo.check()
        raise
    image, crop = photo.cut(crop_box(box, photo.width, photo.height, settings.margin))
    return {
        **{
            name: row[name]
            for name in ("sample_id", "garment_type", "variation", "category", "attributes", "view", "area")
        },
        "source_width": photo.width,
        "source_height": photo.height,
        "box": box,
        "crop_box": crop,
        "image": image,
        "image_width": crop[2] - crop[0],
        "image_height": crop[3] - crop[1],
        "landmarks": (points - crop[:2]).ravel(),
        "visibility": visibility,
    }


def _annotation(
    row: dict[str, Any], width: int, height: int, settings: ShardSettings
) -> tuple[tuple[float, float, float, float], np.ndarray, np.ndarray]:
    """Return the box clipped to the photo, landmarks [K, 2] and visibility [K]; BadRow if they cannot be used."""
    if (size := _size(row)) is not None and size != (width, height):
        raise BadRow(
            "other_size",
            f"the photo has {width} x {height} pixels, its annotations are for {size[0]} x {size[1]}",
        )
    x1, y1, x2, y2 = row["box"]
    if x2 <= x1 or y2 <= y1:
        raise BadRow("empty_box", f"box {row['box']}")
    box = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    if box[2] <= box[0] or box[3] <= box[1]:
        raise BadRow("box_outside_photo", f"box {row['box']}, photo {width} x {height}")
    packed = np.array(row["landmarks"], np.float32).reshape(-1, 2), np.array(row["visibility"], np.int8)
    points, visibility = unpack(*packed, row["garment_type"], settings.landmark_set)
    _check_landmarks(points, box, settings)
    return box, points, visibility


def _check_landmarks(
    points: np.ndarray, box: tuple[float, float, float, float], settings: ShardSettings
) -> None:
    """Raise BadRow unless ``points``, [K, 2] with NaN where missing, has a landmark and all of them are near the box.

    Does nothing if the landmark set is empty.
    """
    if not len(settings.landmark_set):
        return
    there = ~np.isnan(points).any(axis=1)
    if not there.any():
        raise BadRow("no_landmarks", "all of the garment's landmarks are cut off or absent")
    low, high = np.array(box[:2]), np.array(box[2:])
    outside = np.maximum(low - points, points - high).clip(0) / (high - low)
    worst = int(np.nanargmax(np.where(there, outside.max(axis=1), -1)))
    if outside[worst].max() > settings.landmark_tolerance:
        raise BadRow(
            "landmark_outside_box",
            f"{settings.landmark_set.landmarks[worst]} at {points[worst].tolist()} is outside the box {list(box)} "
            f"by {outside[worst].max():.3f} of its size",
        )


def crop_box(
    box: tuple[float, float, float, float], width: int, height: int, margin: float | Literal["full"]
) -> tuple[int, int, int, int]:
    """Return the crop to store, x1 y1 x2 y2 in whole pixels: the box plus ``margin`` of its size per side, clipped.

    ``Crops.cut`` may store more.
    """
    if margin == "full":
        return 0, 0, width, height
    x1, y1, x2, y2 = box
    dx, dy = margin * (x2 - x1), margin * (y2 - y1)
    return (
        max(0, math.floor(x1 - dx)),
        max(0, math.floor(y1 - dy)),
        min(width, math.ceil(x2 + dx)),
        min(height, math.ceil(y2 + dy)),
    )
