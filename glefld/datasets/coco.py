"""COCO keypoints: JSON files of images, annotations and categories, as CVAT, Roboflow and mmpose have them.

Format: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014 (https://cocodataset.org/#format-data).

- Each category with ``keypoints`` is a garment type, and each annotation a garment. ``skeleton`` is not used.
- Keypoints of one name are one landmark in all categories. Names that only number points (``3``, ``kp_3``) belong to
  their category, unless the categories list the same keypoints.
- Categories that list the same keypoints without sharing a labelled one, as DeepFashion2's 294 in COCO's form, have
  those that are labelled.
- Visibility: v 2 is visible, v 1 occluded and v 0 absent.
- Coordinates: if all in the source are whole numbers, they name pixels, whose centres are half a pixel further; else
  they are continuous. ``info`` may say which (``COORDINATES``).
- Missing and empty boxes are made from the landmarks (``own.made_box``).
- Photos are upright, as annotation tools show them (``Crops``).

A file that ``coco_export`` has written names the landmarks' order, the mirror pairs and the kind of coordinates in
``info``, which COCO leaves free.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from glefld.coco_format import CONTINUOUS, COORDINATES, LANDMARKS, PAIRS, PIXELS
from glefld.datasets.coco_file import Annotation, Category, File, read_file
from glefld.datasets.lists import Annotations, ListFiles, shown
from glefld.datasets.own import Row, annotations, parse_sigmas
from glefld.datasets.sides import mirror_pairs, numbered, some
from glefld.errors import UserError
from glefld.schema import GarmentType, Labels, LandmarkSet, Visibility

VISIBILITY = np.array([Visibility.ABSENT, Visibility.OCCLUDED, Visibility.VISIBLE], np.int8)
#: Files that are looked into, at most.
MOST_FILES = 200
#: The codes of garment types have 8 bits.
MOST_TYPES = 127


def read(lists: ListFiles) -> Annotations:
    """Read one row per annotation; UserError names the file and the annotation or category that is wrong."""
    if len(lists.tables) > MOST_FILES:
        raise UserError(
            f"{lists.source} has {len(lists.tables):,} JSON files: name the COCO file itself with --source"
        )
    files, left_out = [], []
    for path, opened in lists.tables.items():
        with opened() as raw:
            file = read_file(path, raw, alone=len(lists.tables) == 1)
        if file.is_coco and (file.types or len(lists.tables) == 1):
            files.append(file)
        else:
            left_out.append(path)
    if not files:
        tried = f" ({some(left_out, 3)} have neither)" if left_out else ""
        raise UserError(
            f"{lists.source} has no JSON file with images, annotations and categories with keypoints{tried}"
        )
    for file in files:
        if not file.types:
            raise UserError(
                f"{file.path}: no category has keypoints: export the annotations as COCO keypoints, not as detection"
            )
    space = _Space(files)
    labels, notes = space.labels(lists)
    empty = sum(len(file.images.keys() - {a.image for a in file.annotations}) for file in files)
    rows = [row for file in files for row in space.rows(file)]
    if not rows:
        raise UserError(f"{some([file.path for file in files], 3)}: no annotations")
    found = annotations("coco", rows, lists.photos, lists.source, lists.own)
    if left_out:
        notes.append(f"files left out, as they have no keypoints: {some(left_out, 5)}")
    if empty:
        notes.append(f"photos without annotations, left out: {empty:,}")
    return Annotations(found.table, labels, (*notes, *found.notes))


class _Space:
    """The landmarks of all categories of all files."""

    def __init__(self, files: Sequence[File]) -> None:
        self._files = files
        self._types: dict[str, Category] = {}
        for file in files:
            names = [category.name for category in file.types]
            if twice := [name for name in names if names.count(name) > 1]:
                raise UserError(f"{file.path}: two categories with keypoints are named {shown(twice[0])}")
            for category in file.types:
                known = self._types.setdefault(category.name, category)
                if known.keypoints != category.keypoints:
                    raise UserError(
                        f"{file.path}: the keypoints of category {shown(category.name)} are not those that it has in "
                        f"{files[0].path}: export both files anew"
                    )
        if len(self._types) > MOST_TYPES:
            raise UserError(f"{len(self._types)} categories with keypoints are more than {MOST_TYPES}")
        self._codes = {name: code for code, name in enumerate(self._types, 1)}
        by_list: dict[tuple[str, ...], list[str]] = {}
        for name, category in self._types.items():
            by_list.setdefault(category.keypoints, []).append(name)
        self._names: dict[str, tuple[str, ...]] = {}
        for keypoints, sharing in by_list.items():
            for name in sharing:
                own = len(by_list) > 1 and len(sharing) == 1
                self._names[name] = tuple(f"{name}_{k}" if own and numbered(k) else k for k in keypoints)
        order = self._order()
        self.landmarks = tuple(dict.fromkeys((*order, *(k for names in self._names.values() for k in names))))
        self._place = {name: i for i, name in enumerate(self.landmarks)}
        #: Which of a category's keypoints belong to it.
        self._own = {name: np.ones(len(names), bool) for name, names in self._names.items()}
        for sharing in by_list.values():
            if len(sharing) > 1:
                labelled = {name: self._labelled(name) for name in sharing}
                if np.sum(list(labelled.values()), axis=0).max() <= 1:
                    self._own |= labelled
        self._pixels = self._names_pixels()

    def _order(self) -> list[str]:
        """Return the landmarks in the order that the files give, if it is one of ours."""
        order = self._files[0].info.get(LANDMARKS)
        names = {k for names in self._names.values() for k in names}
        if isinstance(order, list) and all(isinstance(k, str) for k in order) and names <= set(order):
            return order
        return []

    def _labelled(self, name: str) -> NDArray[np.bool_]:
        """Return which of a category's keypoints are labelled in any annotation."""
        found = np.zeros(len(self._types[name].keypoints), bool)
        for file in self._files:
            own = {
                key
                for key, category in file.categories.items()
                if category is not None and category.name == name
            }
            for item in file.annotations:
                if item.category in own and item.keypoints is not None and len(item.keypoints) == len(found):
                    found |= item.keypoints[:, 2] > 0
        return found

    def _names_pixels(self) -> bool:
        """Return whether coordinates are whole numbers that name pixels."""
        said = {str(file.info[COORDINATES]) for file in self._files if COORDINATES in file.info}
        if said:
            if len(said) > 1 or not said <= {CONTINUOUS, PIXELS}:
                raise UserError(f"info.{COORDINATES} must be {CONTINUOUS} or {PIXELS}, the same in all files")
            return said == {PIXELS}
        found = (item.keypoints for file in self._files for item in file.annotations)
        points = (keypoints[:, :2] for keypoints in found if keypoints is not None)
        return all(bool((np.isnan(p) | (p == np.floor(p))).all()) for p in points)

    def labels(self, lists: ListFiles) -> tuple[Labels, list[str]]:
        """Return the label space, and what to tell the user of it. UserError for options that do not fit."""
        k = len(self.landmarks)
        pairs = [pair for file in self._files for pair in _pairs(file)]
        unique = list(dict.fromkeys(tuple(sorted(pair)) for pair in pairs))
        mirror, notes = mirror_pairs(self.landmarks, lists.own.pairs, unique)
        known: list[float | None] = [None] * k
        for name, category in self._types.items():
            for i, sigma in zip(self._slots(name), category.sigmas or (), strict=False):
                known[i] = sigma
        sigmas, of_sigmas = parse_sigmas(lists.own.sigmas, known, k)
        types = tuple(
            GarmentType(
                self._codes[name], name, tuple(sorted(np.array(self._slots(name))[self._own[name]].tolist()))
            )
            for name in self._types
        )
        landmark_set = LandmarkSet("coco", self.landmarks, mirror, types, sigmas)
        first = [
            f"garment types: {some([f'{name} ({own.sum()})' for name, own in self._own.items()])}",
            f"landmarks: {k}: {some(self.landmarks)}",
        ]
        if len(types) > 1:
            shared = [
                name for i, name in enumerate(self.landmarks) if sum(i in t.landmarks for t in types) > 1
            ]
            first.append(f"landmarks of several garment types: {some(shared) or 'none'}")
        how = "whole numbers, which name pixels: their centres" if self._pixels else "continuous"
        return Labels(landmark_set, tuple(self._types)), [*first, *notes, of_sigmas, f"coordinates: {how}"]

    def _slots(self, name: str) -> list[int]:
        return [self._place[k] for k in self._names[name]]

    def rows(self, file: File) -> Iterator[Row]:
        """Yield the rows of a file, each with those landmarks of its type that belong to it, in the set's order.

        The file's annotations are used up, so that memory holds one of the two.
        """
        order = {}
        for name in self._types:
            slots = np.array(self._slots(name))
            own = np.flatnonzero(self._own[name])
            order[name] = own[np.argsort(slots[own], kind="stable")]
        default = [key for key, category in file.categories.items() if category is not None]
        left = file.annotations[::-1]
        file.annotations.clear()
        while left:
            yield self._row(file, left.pop(), order, default)

    def _row(
        self, file: File, item: Annotation, order: Mapping[str, NDArray[np.intp]], default: list[str]
    ) -> Row:
        name = f"annotation {item.id} of {file.path}"
        image = file.images.get(item.image) if item.image is not None else None
        key = item.category if item.category is not None or len(default) != 1 else default[0]
        category = file.categories.get(key) if key is not None else None
        row = Row(
            photo=image.file_name if image is not None else "",
            file=file.path,
            split=None,
            name=name,
            duplicate=item.duplicate,
            size=image.size if image is not None else None,
        )
        if item.crowd:
            return row._replace(fault="crowd", detail=f"{name}: a crowd (iscrowd)")
        if image is None:
            return row._replace(fault="unknown_image", detail=f"{name}: image_id {item.image}")
        if category is None:
            known = key in file.categories
            fault = "no_keypoints" if known else "unknown_category"
            return row._replace(fault=fault, detail=f"{name}: category_id {key}")
        row = row._replace(garment_type=self._codes[category.name])
        if item.fault is not None:
            return row._replace(fault="wrong_annotation", detail=f"{name}: {item.fault}")
        n, own = len(category.keypoints), order[category.name]
        keypoints = item.keypoints
        if keypoints is None:
            keypoints = np.array([[np.nan, np.nan, 0.0]] * n)
        if len(keypoints) != n:
            what = f"{len(keypoints)} keypoints, but its category has {n}"
            return row._replace(fault="wrong_annotation", detail=f"{name}: {what}")
        keypoints = keypoints[own]
        return row._replace(
            box=item.box,
            area=item.area,
            points=(keypoints[:, :2] + (0.5 if self._pixels else 0.0)).astype(np.float32),
            visibility=VISIBILITY[keypoints[:, 2].astype(np.int64)],
        )


def _pairs(file: File) -> list[list[str]]:
    """Return the mirror pairs that one of our own files names."""
    pairs = file.info.get(PAIRS, [])
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(name, str) for name in pair)
        for pair in pairs
    ):
        raise UserError(f"{file.path}: info.{PAIRS} must be a list of pairs of names")
    return pairs
