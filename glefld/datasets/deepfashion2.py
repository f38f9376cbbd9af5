"""DeepFashion2: one JSON file per photo with several garments, each with landmarks and mask polygons.

Ge et al., "DeepFashion2: A Versatile Benchmark for Detection, Pose Estimation, Segmentation and Re-Identification of
Clothing Images", CVPR 2019 (https://arxiv.org/abs/1901.07973).

``train/annos/000001.json`` annotates ``train/image/000001.jpg``. ``validation`` and, if present, ``test`` have the same
layout.
A garment (``item1``, ``item2``, ...) is converted as follows:

- Visibility: v 2 is visible and v 1 occluded. v 0 (not labelled) becomes cut off, since such a landmark is mostly
  outside the picture. Absent (3) is for the landmarks of the other categories.
- Category and garment type are both the ``category_id``.
- View: viewpoint 2 is the front. Viewpoint 3 is the side or the back and 1 a garment that is not worn, so their view
  is null.
- Area: the sum over the polygons, which do not overlap; null without polygons.

Landmarks are stored packed (see ``lists.ANNOTATIONS``): with all 294 slots, half a million garments would take
gigabytes.
"""

import dataclasses
import itertools
import json
import re
import reprlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from glefld.datasets.deepfashion2_landmarks import CATEGORIES, DEEPFASHION2
from glefld.datasets.json_stream import unique
from glefld.datasets.lists import (
    ANNOTATIONS,
    LARGEST,
    Annotations,
    ListFiles,
    box_array,
    list_array,
    shown,
    spread,
)
from glefld.errors import UserError
from glefld.schema import Labels, Visibility

#: The split that each folder holds.
SPLITS = {"train": "train", "validation": "val", "test": "test"}
LABELS = Labels(DEEPFASHION2, tuple(name for name, _ in CATEGORIES))
VISIBILITY = {2: Visibility.VISIBLE, 1: Visibility.OCCLUDED, 0: Visibility.CUT_OFF}
FRONTAL = 2
CHUNK = 8192  # rows per table
_ITEM = re.compile(r"item([1-9]\d{0,8})", re.ASCII)
_PLACE = re.compile(rf"(?:^|.*[/:])({'|'.join(SPLITS)})/annos/([^/]+)\.json", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Garment:
    """One row. ``sample_id`` ends in the garment's number in its photo, from 0. n landmarks of its category."""

    sample_id: str
    photo: str
    split: str
    box: Sequence[float]
    category: int
    view: str | None
    area: float | None
    landmarks: NDArray[np.float32]  # [2n] x, y in photo pixels, NaN where missing
    visibility: NDArray[np.int8]  # [n]


def read(lists: ListFiles) -> Annotations:
    """Read one row per item of each photo's JSON; UserError names the file that cannot be read."""
    seen: set[str] = set()
    tables = []
    garments = itertools.chain.from_iterable(read_photo(name, data) for name, data in lists.documents())
    while chunk := list(itertools.islice(garments, CHUNK)):
        duplicates = []
        for garment in chunk:
            duplicates.append(garment.sample_id in seen)
            seen.add(garment.sample_id)
        tables.append(_table(chunk, duplicates))
    if not tables:
        raise UserError(
            f"{lists.source}: no annotations found. Expected files such as train/annos/000001.json"
        )
    return Annotations(pa.concat_tables(tables), LABELS)


def read_photo(name: str, data: bytes) -> Iterator[Garment]:
    """Yield the garments of one photo's JSON file; UserError names the file and the item that is wrong."""
    if (place := _PLACE.fullmatch(name)) is None:
        raise UserError(f"{name}: expected train/annos/NAME.json or validation/annos/NAME.json")
    folder, stem = place[1].lower(), place[2]
    try:
        content = json.loads(data, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, or nesting too deep
        raise UserError(f"{name} is not JSON ({error}): download it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{name}: expected an object with item1, item2, ...")
    photo = f"{folder}/image/{stem}.jpg"
    for key, item in content.items():
        if not key.lower().startswith("item"):
            continue
        if (number := _ITEM.fullmatch(key)) is None:
            raise UserError(f"{name}: the key {shown(key)} is not item1, item2, ...")
        try:
            yield _garment(item, photo, SPLITS[folder], int(number[1]) - 1)
        except KeyError as error:
            raise UserError(f"{name}, {key}: {error} is missing") from error
        except UserError as error:
            raise UserError(f"{name}, {key}: {error}") from error


def _garment(item: Any, photo: str, split: str, number: int) -> Garment:
    """Convert one item; KeyError if it is incomplete, UserError if it is malformed."""
    if not isinstance(item, dict):
        raise UserError(f"expected an object, not {reprlib.repr(item)}")
    category = item["category_id"]
    if type(category) is not int or not 1 <= category <= len(CATEGORIES):
        raise UserError(f"category_id must be 1 to {len(CATEGORIES)}, not {reprlib.repr(category)}")
    count = len(DEEPFASHION2.garment_type(category).landmarks)
    box = _numbers(item["bounding_box"], "bounding_box", 4)
    triples = _numbers(item["landmarks"], "landmarks", 3 * count)
    if unknown := set(triples[2::3]) - set(VISIBILITY):
        raise UserError(f"a landmark's visibility must be 0, 1 or 2, not {unknown.pop():g}")
    codes = [VISIBILITY[int(v)] for v in triples[2::3]]
    points = list(zip(triples[::3], triples[1::3], strict=True))
    landmarks, visibility = spread(points, codes, range(count), count)
    return Garment(
        sample_id=f"deepfashion2/{photo}#{number}",
        photo=photo,
        split=split,
        box=box,
        category=category,
        view="front" if item.get("viewpoint") == FRONTAL else None,
        area=mask_area(_polygons(item.get("segmentation"))),
        landmarks=landmarks,
        visibility=visibility,
    )


def _numbers(values: Any, key: str, count: int) -> list[float]:
    if not isinstance(values, list) or len(values) != count or not all(map(_is_number, values)):
        raise UserError(f"{key} must be {count} numbers")
    if not all(abs(value) <= LARGEST for value in values):
        raise UserError(f"{key} must be finite and within a photo")
    return [float(value) for value in values]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _polygons(value: Any) -> list[list[float]]:
    """Return the item's ``segmentation``, a list of polygons; UserError if it is anything else."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(
        isinstance(polygon, list) and all(map(_is_number, polygon)) for polygon in value
    ):
        raise UserError("segmentation must be a list of polygons, each a list of numbers")
    return value


def mask_area(polygons: Sequence[Sequence[float]]) -> float | None:
    """Return the area in square pixels of polygons x1 y1 x2 y2 ...; None if it is 0 or a coordinate is not finite."""
    total = 0.0
    for polygon in polygons:
        if not all(abs(value) <= LARGEST for value in polygon):
            return None
        x, y = np.array(polygon[: len(polygon) // 2 * 2], np.float64).reshape(-1, 2).T
        total += abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
    return total or None


def _table(garments: Sequence[Garment], duplicates: Sequence[bool]) -> pa.Table:
    columns = {
        "duplicate": pa.array(duplicates, pa.bool_()),
        "box": box_array([garment.box for garment in garments]),
        "garment_type": pa.array([garment.category for garment in garments], pa.int8()),
        "landmarks": list_array([garment.landmarks for garment in garments], pa.float32()),
        "visibility": list_array([garment.visibility for garment in garments], pa.int8()),
    }
    for name in ("sample_id", "photo", "split", "category", "view", "area"):
        columns[name] = pa.array([getattr(g, name) for g in garments], ANNOTATIONS.field(name).type)
    return pa.table(
        [columns.get(field.name, pa.nulls(len(garments), field.type)) for field in ANNOTATIONS],
        schema=ANNOTATIONS,
    )
