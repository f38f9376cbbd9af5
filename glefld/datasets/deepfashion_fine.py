"""DeepFashion's Category and Attribute Prediction benchmark, fine-grained lists.

The files have no header and are aligned line by line. Landmarks are packed by garment type.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import pyarrow as pa

from glefld.datasets import deepfashion
from glefld.datasets.deepfashion import attribute_names, categories_and_types, used_categories
from glefld.datasets.lists import (
    ANNOTATIONS,
    Annotations,
    ListFile,
    ListFiles,
    box_array,
    join,
    list_array,
    spread,
)
from glefld.errors import UserError
from glefld.schema import FASHION8, VIEWS, Labels, Visibility

FOLDERS = ("Anno_fine", "Anno", "")
#: A photo listed in several splits keeps its first row, so the evaluation splits stay as published.
ORDER = ("val", "test", "train")
ATTRIBUTE_TYPES = ("texture", "sleeve", "length", "neckline", "fabric", "fit")

Row = TypeVar("Row")


def read(lists: ListFiles) -> Annotations:
    """Read train, and val and test if their ``{split}.txt`` exists.

    A split needs ``_bbox`` and ``_landmards`` (the benchmark's spelling); ``_cate``, ``_attr`` and ``_view`` are
    optional. UserError names the missing list or the line that cannot be read.
    """
    lists.require("train.txt", FOLDERS)
    categories = categories_and_types(lists, (*FOLDERS, "Anno_coarse"))
    attributes = attribute_names(lists.find("list_attr_cloth.txt", FOLDERS), ATTRIBUTE_TYPES)
    types = [type_ for _, type_ in categories]
    splits = [
        _read_split(split, photos, lists, types, len(attributes))
        for split in ORDER
        if (photos := lists.find(f"{split}.txt", FOLDERS)) is not None
    ]
    table = join("deepfashion-fine", [pa.concat_tables(splits)])
    names = used_categories(table, tuple(name for name, _ in categories))
    return Annotations(table, Labels(FASHION8, names, attributes, ATTRIBUTE_TYPES if attributes else ()))


def _read_split(
    split: str, photo_file: ListFile, lists: ListFiles, category_types: Sequence[int], attribute_count: int
) -> pa.Table:
    photos = [line.strip() for _, line in photo_file.lines()]

    def rows(file: ListFile, parse: Callable[[int, list[str]], Row]) -> list[Row]:
        return _aligned(
            [parse(number, line.split()) for number, line in file.lines()], file, photos, photo_file
        )

    def numbers(file: ListFile, count: int) -> list[list[float]]:
        return rows(file, lambda number, tokens: file.numbers(number, tokens, count))

    boxes = numbers(lists.require(f"{split}_bbox.txt", FOLDERS), 4)
    packed = numbers(lists.require(f"{split}_landmards.txt", FOLDERS), 2 * len(FASHION8))
    category: Sequence[int | None] = [None] * len(photos)
    if (cates := lists.find(f"{split}_cate.txt", FOLDERS)) is not None:
        category = rows(
            cates,
            lambda number, tokens: deepfashion.category(cates, number, " ".join(tokens), len(category_types)),
        )
    types, landmarks, visibility = [], [], []
    for row, code in zip(packed, category, strict=True):
        points = list(zip(row[::2], row[1::2], strict=True))
        type_ = _garment_type(points, code, category_types)
        slots = FASHION8.garment_type(type_).landmarks
        xy, seen = spread(points[: len(slots)], [Visibility.VISIBLE] * len(slots), slots, len(FASHION8))
        types.append(type_)
        landmarks.append(xy)
        visibility.append(seen)
    columns = {
        "photo": pa.array(photos, pa.string()),
        "split": pa.array([split] * len(photos), pa.string()),
        "box": box_array(boxes),
        "garment_type": pa.array(types, pa.int8()),
        "category": pa.array(category, pa.int16()),
        "landmarks": list_array(landmarks, pa.float32()),
        "visibility": list_array(visibility, pa.int8()),
    }
    if (attrs := lists.find(f"{split}_attr.txt", FOLDERS)) is not None:
        indices = rows(attrs, lambda number, tokens: attrs.flags(number, tokens, attribute_count))
        columns["attributes"] = list_array(indices, pa.int16())
    if (views := lists.find(f"{split}_view.txt", FOLDERS)) is not None:
        words = rows(views, lambda number, tokens: views.choice(number, " ".join(tokens), VIEWS))
        columns["view"] = pa.array(words, pa.string())
    for field in ANNOTATIONS:
        if field.name not in columns and field.name not in ("sample_id", "duplicate"):
            columns[field.name] = pa.nulls(len(photos), field.type)
    return pa.table(columns).select(sorted(columns))


def _aligned(rows: list[Row], file: ListFile, photos: list[str], photo_file: ListFile) -> list[Row]:
    if len(rows) != len(photos):
        raise UserError(
            f"{file.path} has {len(rows)} rows and {photo_file.path} has {len(photos)}, but both need one line per "
            "photo: download them again"
        )
    return rows


def _garment_type(
    points: Sequence[tuple[float, float]], category: int | None, category_types: Sequence[int]
) -> int:
    """Return the category's garment type, or the smallest type with enough slots if that is unknown or too small."""
    used = max((i + 1 for i, point in enumerate(points) if point != (0, 0)), default=0)
    if category is not None and 1 <= category <= len(category_types):
        type_ = category_types[category - 1]
        if used <= len(FASHION8.garment_type(type_).landmarks):
            return type_
    smallest = min(
        (garment for garment in FASHION8.garment_types if used <= len(garment.landmarks)),
        key=lambda garment: len(garment.landmarks),
    )
    return smallest.code
