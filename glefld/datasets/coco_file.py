"""What a COCO keypoints file holds (Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014).

Read in one pass and checked value by value; what the landmarks of several files and categories have in common is
``coco``'s.
"""

import dataclasses
from collections.abc import Container, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glefld.datasets.deepfashion2 import mask_area
from glefld.datasets.json_stream import NotAnObject, parts
from glefld.datasets.lists import LARGEST, shown
from glefld.errors import UserError


@dataclasses.dataclass(frozen=True)
class Category:
    """A category that has keypoints."""

    name: str
    keypoints: tuple[str, ...]
    sigmas: tuple[float, ...] | None


@dataclasses.dataclass(frozen=True)
class Image:
    """A listed photo; ``size`` (width and height) is None where the file does not say it."""

    file_name: str
    size: tuple[int, int] | None


@dataclasses.dataclass(frozen=True, slots=True)
class Annotation:
    """An annotation before its image and category are known, which may follow in the file."""

    id: str
    image: str | None
    category: str | None
    duplicate: bool
    crowd: bool
    box: tuple[float, float, float, float] | None
    area: float | None
    keypoints: NDArray[np.float64] | None  # [n, 3]: x, y, v; None if it has none
    fault: str | None = None
    """Why it is to be rejected, in words."""


@dataclasses.dataclass
class File:
    """What one JSON file holds."""

    path: str
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    images: dict[str, Image] = dataclasses.field(default_factory=dict)
    #: By id; None for categories without keypoints.
    categories: dict[str, Category | None] = dataclasses.field(default_factory=dict)
    annotations: list[Annotation] = dataclasses.field(default_factory=list)
    lists: set[str] = dataclasses.field(default_factory=set)

    @property
    def is_coco(self) -> bool:
        """Whether the file has what COCO's files have."""
        return {"images", "annotations"} <= self.lists

    @property
    def types(self) -> list[Category]:
        """The categories with keypoints."""
        return [category for category in self.categories.values() if category is not None]


def read_file(path: str, raw: Any, *, alone: bool) -> File:
    """Read a JSON file in one pass. alone: it must be COCO's. UserError names the file and what is wrong with it."""
    file = File(path)
    seen: set[str] = set()
    readers = {
        "images": partial(_add_image, file),
        "categories": partial(_add_category, file),
        "annotations": partial(_add_annotation, file, seen),
    }
    wrong: UserError | None = None
    try:
        for key, kind, value in parts(raw, path):
            if kind == "list":
                file.lists.add(key)
            elif key in readers and wrong is None:
                try:
                    if kind == "value":
                        raise UserError(f"{path}: {key} must be a list, not {shown(repr(value))}")
                    readers[key](value)
                except UserError as error:
                    wrong = error
            elif key == "info" and isinstance(value, dict):
                file.info = value
    except NotAnObject:
        if alone:
            raise
    # Another program's JSON that lies beside the annotations may use the same words.
    if wrong is not None and (alone or file.is_coco):
        raise wrong
    if alone and (missing := [key for key in readers if key not in file.lists]):
        raise UserError(f"{path} has no list of {missing[0]}: expected COCO keypoints")
    return file


def _identity(value: Any) -> str | None:
    """Return an id, a whole number of any type or text, as text; None if it is neither."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if isinstance(value, str):
        return value.strip() or None
    return str(value) if type(value) is int else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _object(file: File, kind: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{file.path}: an element of {kind} must be an object, not {shown(repr(value))}")
    return value


def _new_id(file: File, one: str, kind: str, item: Mapping[str, Any], taken: Container[str]) -> str:
    """Return the id of an image or category; UserError if it is none, or that of another one."""
    if (key := _identity(item.get("id"))) is None:
        raise UserError(f"{file.path}: {one} has the id {shown(repr(item.get('id')))}")
    if key in taken:
        raise UserError(f"{file.path}: two {kind} have the id {key}: export the annotations again")
    return key


def _add_image(file: File, value: Any) -> None:
    image = _object(file, "images", value)
    key = _new_id(file, "an image", "images", image, file.images)
    name = image.get("file_name")
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise UserError(f"{file.path}: image {key} has no file_name")
    sides: list[Any] = [image.get("width"), image.get("height")]
    whole = [int(side) for side in sides if _is_number(side) and 0 < side <= LARGEST and side == int(side)]
    file.images[key] = Image(name, (whole[0], whole[1]) if len(whole) == 2 else None)


def _add_category(file: File, value: Any) -> None:
    category = _object(file, "categories", value)
    key = _new_id(file, "a category", "categories", category, file.categories)
    name = category.get("name", key)
    names = category.get("keypoints") or []
    where = f"{file.path}: category {shown(str(name))}"
    if not isinstance(names, list) or not all(isinstance(n, str) or type(n) is int for n in names):
        raise UserError(f"{where}: keypoints must be a list of names")
    keypoints = tuple(str(n).strip() for n in names)
    if twice := [n for n in keypoints if keypoints.count(n) > 1]:
        raise UserError(f"{where}: two keypoints are named {shown(twice[0])}")
    sigmas = category.get("sigmas")
    if keypoints and sigmas is not None:
        good = isinstance(sigmas, list) and all(_is_number(s) and 0 < s < 1 for s in sigmas)
        if not good or len(sigmas) != len(keypoints):
            raise UserError(f"{where}: sigmas must be {len(keypoints)} numbers above 0 and below 1")
    known = Category(str(name), keypoints, tuple(map(float, sigmas)) if sigmas else None)
    file.categories[key] = known if keypoints else None


def _add_annotation(file: File, seen: set[str], value: Any) -> None:
    item = _object(file, "annotations", value)
    key = _identity(item.get("id"))
    number = key if key is not None else f"number {len(file.annotations) + 1}"
    box, faults = _box(item.get("bbox"))
    keypoints, wrong = _keypoints(item.get("keypoints"))
    file.annotations.append(
        Annotation(
            id=number,
            image=_identity(item.get("image_id")),
            category=_identity(item.get("category_id")),
            duplicate=key in seen,
            crowd=bool(item.get("iscrowd")),
            box=box,
            area=_area(item),
            keypoints=keypoints,
            fault=wrong or faults,
        )
    )
    if key is not None:
        seen.add(key)


def _box(value: Any) -> tuple[tuple[float, float, float, float] | None, str | None]:
    """Return a box as x1 y1 x2 y2, None if it is missing or has no area; or what is wrong with it."""
    if value is None or value == []:
        return None, None
    if not isinstance(value, list) or len(value) != 4 or not all(map(_is_number, value)):
        return None, "bbox must be 4 numbers"
    if not all(abs(v) <= LARGEST for v in value):
        return None, "bbox must be finite and within a photo"
    x, y, width, height = map(float, value)
    return ((x, y, x + width, y + height) if width > 0 and height > 0 else None), None


def _keypoints(value: Any) -> tuple[NDArray[np.float64] | None, str | None]:
    """Return keypoints as [n, 3] of x, y and v, with NaN at v 0, None if there are none; or what is wrong with them."""
    if value is None or value == []:
        return None, None
    if not isinstance(value, list) or not set(map(type, value)) <= {int, float, type(None)}:
        return None, "keypoints must be a list of numbers"
    if len(value) % 3:
        return None, f"keypoints must be x, y, v of each, not {len(value)} numbers"
    try:
        found = np.array(value, np.float64).reshape(-1, 3)
    except OverflowError:
        return None, "keypoints must be within a photo"
    if not np.isin(found[:, 2], (0, 1, 2)).all():
        return None, "the v of a keypoint must be 0, 1 or 2"
    there = found[:, 2] > 0
    if not (np.abs(found[there, :2]) <= LARGEST).all():
        return None, "keypoints must be finite and within a photo"
    found[~there, :2] = np.nan
    return found, None


def _area(item: Mapping[str, Any]) -> float | None:
    """Return the area of an annotation's mask, that of its polygons where it does not say it; None without either."""
    area = item.get("area")
    if _is_number(area) and 0 < area <= float(LARGEST) ** 2:  # type: ignore[operator]
        return float(area)  # type: ignore[arg-type]
    polygons = item.get("segmentation")
    if not isinstance(polygons, list) or not all(
        isinstance(polygon, list) and all(map(_is_number, polygon)) for polygon in polygons
    ):
        return None  # none, or run lengths
    return mask_area(polygons)
