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

from glefld import coco_format, storage
from glefld.data.dataset import open_dataset
from glefld.data.reader import SplitReader
from glefld.errors import UserError
from glefld.schema import SPLITS, LandmarkSet, Manifest, Split
from glefld.temporary import temporary_file, temporary_space

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
            "info": coco_format.info(f"{manifest.title}, {split}", landmark_set),
            "categories": coco_format.categories(landmark_set, untyped),
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
    *types, untyped = coco_format.types(landmark_set)
    own = next((type_ for type_ in types if type_.code == row["garment_type"]), untyped)
    image = {
        "id": number,
        "file_name": name,
        "width": row["image_width"],
        "height": row["image_height"],
        "sample_id": row["sample_id"],
    }
    annotation = coco_format.annotation(
        own,
        np.array(row["box"], np.float64) - np.tile(row["crop_box"][:2], 2),
        np.array(row["landmarks"], np.float64).reshape(-1, 2),
        np.array(row["visibility"]),
        row["area"],
    )
    return image, {"id": number, "image_id": number} | annotation
