"""An ingested data set as COCO keypoints: a JSON file per split, and the stored pictures as photos.

What a data set holds are crops, so each garment becomes a photo of its own, with its box and points in the pixels of
that picture. ``coco.read`` reads the files back: names in ``info`` keep the landmarks' order, the mirror pairs, and
that coordinates are continuous.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from glefld import storage
from glefld.data.dataset import open_dataset
from glefld.data.reader import SplitReader
from glefld.datasets.coco import CONTINUOUS, COORDINATES, LANDMARKS, PAIRS
from glefld.errors import UserError
from glefld.schema import SPLITS, GarmentType, LandmarkSet, Manifest, Split, Visibility
from glefld.temporary import temporary_file, temporary_space

#: COCO's v of each code of ``schema.Visibility``. Cut off and absent landmarks have no place, so they are not labelled.
CODES = {Visibility.VISIBLE: 2, Visibility.OCCLUDED: 1, Visibility.CUT_OFF: 0, Visibility.ABSENT: 0}
#: The category of garments whose type is not known.
UNTYPED = "garment"
#: Digits that are kept of a pixel.
DIGITS = 4
COLUMNS = [
    *("sample_id", "box", "crop_box", "image", "image_width", "image_height"),
    *("garment_type", "area", "landmarks", "visibility"),
]


class Written(NamedTuple):
    """What was written: garments by split, and the JSON file of each."""

    rows: dict[str, int]
    files: dict[str, str]


def write(data: str, output: str, on_row: Callable[[], object] = lambda: None) -> Written:
    """Write the data set at a URL to a folder: ``annotations/<split>.json`` and ``images/<split>/``.

    A JSON file is written when all photos of its split are there. ``on_row`` is called after each garment.
    UserError if the data set has no landmarks, or a JSON file is there already.
    """
    manifest = open_dataset(data)
    if not len(manifest.landmark_set):
        raise UserError(f"{data} has no landmarks, only classes: there is nothing to write as keypoints")
    splits: list[Split] = [split for split in SPLITS if manifest.splits.get(split)]
    files = {split: storage.join(output, "annotations", f"{split}.json") for split in splits}
    if there := [url for url in files.values() if storage.exists(url)]:
        raise UserError(f"{there[0]} already exists: choose another --output, or delete it")
    for split in splits:
        _write_split(data, manifest, split, output, files[split], on_row)
    return Written(
        {split: manifest.splits[split] for split in splits}, {split: files[split] for split in splits}
    )


def categories(landmark_set: LandmarkSet) -> list[dict[str, Any]]:
    """Return the categories of a landmark set as COCO has them, the last one for garments of unknown type."""
    everything = tuple(range(len(landmark_set)))
    types = [*landmark_set.garment_types, GarmentType(_untyped(landmark_set), UNTYPED, everything)]
    return [
        {
            "id": garment.code,
            "name": garment.name,
            "supercategory": "clothes",
            "keypoints": [landmark_set.landmarks[i] for i in garment.landmarks],
            "skeleton": [],
            **(
                {"sigmas": [landmark_set.sigmas[i] for i in garment.landmarks]} if landmark_set.sigmas else {}
            ),
        }
        for garment in types
    ]


def _untyped(landmark_set: LandmarkSet) -> int:
    return 1 + max((garment.code for garment in landmark_set.garment_types), default=0)


def _write_split(
    data: str, manifest: Manifest, split: Split, output: str, url: str, on_row: Callable[[], object]
) -> None:
    landmark_set = manifest.landmark_set
    untyped = False
    with temporary_file() as images, temporary_file() as annotations:
        for number, row in enumerate(_rows(data, manifest, split)):
            name = f"{split}/{number:07d}-{_plain(row['sample_id'])}.jpg"
            storage.write_bytes(storage.join(output, "images", name), row["image"])
            image, annotation = _row(row, number + 1, name, landmark_set)
            untyped = untyped or row["garment_type"] is None
            with temporary_space():
                for file, value in ((images, image), (annotations, annotation)):
                    file.write(b",\n" * (number > 0) + json.dumps(value).encode())
            on_row()
        head = {
            "info": {
                "description": f"{manifest.title}, {split}",
                LANDMARKS: list(landmark_set.landmarks),
                PAIRS: [
                    [landmark_set.landmarks[i], landmark_set.landmarks[m]]
                    for i, m in enumerate(landmark_set.mirror)
                    if i < m
                ],
                COORDINATES: CONTINUOUS,
            },
            # Without garment types the one category is for all; with them it stays out unless it is needed.
            "categories": categories(landmark_set)[: None if untyped else -1],
        }
        with temporary_file() as whole:
            with temporary_space():
                whole.write(json.dumps(head).encode()[:-1])
                for key, file in (("images", images), ("annotations", annotations)):
                    whole.write(f', "{key}": [\n'.encode())
                    file.seek(0)
                    while piece := file.read(1 << 20):
                        whole.write(piece)
                    whole.write(b"\n]")
                whole.write(b"}\n")
            storage.put_file(whole, url)


def _rows(data: str, manifest: Manifest, split: Split) -> Iterator[dict[str, Any]]:
    for table in SplitReader(data, manifest, split).tables(COLUMNS):
        yield from pa.Table.to_pylist(table)


def _plain(sample_id: str) -> str:
    """Return the last part of a garment's id as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", sample_id.rpartition("/")[2]).strip("-")[-60:]


def _row(
    row: dict[str, Any], number: int, name: str, landmark_set: LandmarkSet
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a garment's image and annotation."""
    code = row["garment_type"]
    slots = list(range(len(landmark_set)) if code is None else landmark_set.garment_type(code).landmarks)
    points = np.array(row["landmarks"], np.float64).reshape(-1, 2)[slots]
    v = np.array([CODES[Visibility(c)] for c in row["visibility"]])[slots]
    keypoints = np.where((v > 0)[:, None], np.column_stack([points, v]), 0.0)
    x1, y1, x2, y2 = (np.array(row["box"], np.float64) - np.tile(row["crop_box"][:2], 2)).tolist()
    flat = [round(value, DIGITS) for value in keypoints.ravel().tolist()]
    flat[2::3] = v.tolist()
    image = {
        "id": number,
        "file_name": name,
        "width": row["image_width"],
        "height": row["image_height"],
        "sample_id": row["sample_id"],
    }
    area = row["area"] if row["area"] is not None else (x2 - x1) * (y2 - y1)
    annotation = {
        "id": number,
        "image_id": number,
        "category_id": _untyped(landmark_set) if code is None else code,
        "iscrowd": 0,
        "bbox": [round(value, DIGITS) for value in (x1, y1, x2 - x1, y2 - y1)],
        "area": round(area, DIGITS),
        "num_keypoints": int((v > 0).sum()),
        "keypoints": flat,
    }
    return image, annotation
