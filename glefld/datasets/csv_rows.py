"""CSV files with one row per landmark, for annotations from a spreadsheet or a script of one's own.

Columns, found by their names in the first line, in any order:

- ``photo``: its name; ``name``: the landmark's; ``x``, ``y``: its place in the photo, empty if it is absent.
- ``visibility``, optional: 2 visible, 1 occluded, 0 absent, as in COCO, or these words. Empty: visible if
  it has a place.
- ``garment``, optional: which garment of the photo it is, a number or a name.
- ``x1``, ``y1``, ``x2``, ``y2``, optional: the garment's box. It may stand in one of the garment's rows only. Without
  any it is made from the landmarks (``own.made_box``).
- ``split``, optional: train, val or test. ``garment_type``, optional: its name, for all garments or none; without any
  all are of one type. The same in all rows of a garment.

Values are divided by commas, semicolons or tabs. Coordinates are read as those of ``coco``: whole numbers name pixels.
"""

import csv
import io
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from glefld.datasets.lists import DAMAGED, LARGEST, Annotations, ListFiles, shown
from glefld.datasets.own import Row, annotations, parse_sigmas
from glefld.datasets.sides import mirror_pairs, some
from glefld.errors import UserError
from glefld.schema import SPLITS, GarmentType, Labels, LandmarkSet, Visibility

REQUIRED = ("photo", "name", "x", "y")
BOX = ("x1", "y1", "x2", "y2")
OPTIONAL = (*BOX, "visibility", "garment", "split", "garment_type")
CODES: dict[str, Visibility] = {
    **{"2": Visibility.VISIBLE, "1": Visibility.OCCLUDED, "0": Visibility.ABSENT},
    **{"visible": Visibility.VISIBLE, "occluded": Visibility.OCCLUDED, "absent": Visibility.ABSENT},
}
#: The garment type of all, where the files name none.
ONE_TYPE = "garment"
SPLIT_NAMES: dict[str, str] = {**{name: name for name in SPLITS}, "valid": "val", "validation": "val"}
MOST_TYPES = 127


class Line(NamedTuple):
    """One line of a file: its number, and its values by column, empty where it has none."""

    number: int
    values: Mapping[str, str]


class _Garment:
    """The rows of one garment that have been read."""

    def __init__(self) -> None:
        self.points: dict[str, tuple[float, float, Visibility]] = {}
        self.said: dict[str, str] = {}
        self.box: tuple[float, float, float, float] | None = None


def read(lists: ListFiles) -> Annotations:
    """Read one row per garment; UserError names the file and the line that is wrong."""
    names: dict[str, None] = {}
    found: dict[tuple[str, str, str], _Garment] = {}
    ignored: dict[str, None] = {}
    for path, opened in lists.tables.items():
        with opened() as raw:
            data = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
            try:
                _read_file(path, data, names, found, ignored)
            except (*DAMAGED, csv.Error) as error:
                raise UserError(f"{path} cannot be read as CSV in UTF-8 ({error}): save it again") from error
    if not found:
        raise UserError(
            f"{lists.source} has no CSV file with rows: its first line must name {', '.join(REQUIRED)}"
        )
    types = dict.fromkeys(g.said["garment_type"] for g in found.values())
    if "" in types and len(types) > 1:
        path, photo, _ = next(key for key, g in found.items() if not g.said["garment_type"])
        raise UserError(
            f"{path}: a garment of {shown(photo)} has no garment_type, but others do: give it to all or to none"
        )
    for garment in found.values():
        garment.said["garment_type"] = garment.said["garment_type"] or ONE_TYPE
    types = dict.fromkeys(garment.said["garment_type"] for garment in found.values())
    if len(types) > MOST_TYPES:
        raise UserError(f"{len(types)} garment types are more than {MOST_TYPES}")
    landmarks = tuple(names)
    mirror, notes = mirror_pairs(landmarks, lists.own.pairs)
    sigmas, of_sigmas = parse_sigmas(lists.own.sigmas, [None] * len(landmarks), len(landmarks))
    place = {name: i for i, name in enumerate(landmarks)}
    codes = {name: code for code, name in enumerate(types, 1)}
    garment_types = tuple(
        GarmentType(
            code,
            name,
            tuple(
                sorted({place[n] for g in found.values() if g.said["garment_type"] == name for n in g.points})
            ),
        )
        for name, code in codes.items()
    )
    points = [p for g in found.values() for *p, code in g.points.values() if code != Visibility.ABSENT]
    pixels = all(value.is_integer() for point in points for value in point)
    rows = [_row(*key, garment, place, codes, 0.5 if pixels else 0.0) for key, garment in found.items()]
    done = annotations("csv", rows, lists.photos, lists.source, lists.own)
    how = "whole numbers, which name pixels: their centres" if pixels else "continuous"
    first = [f"landmarks: {len(landmarks)}: {some(landmarks)}"]
    if len(types) > 1:
        first.insert(0, f"garment types: {some(list(types))}")
    if ignored:
        first.insert(0, f"columns not used: {some(list(ignored))}")
    labels = Labels(LandmarkSet("csv", landmarks, mirror, garment_types, sigmas), tuple(types))
    return Annotations(done.table, labels, (*first, *notes, of_sigmas, f"coordinates: {how}", *done.notes))


def _read_file(
    path: str,
    data: io.TextIOBase,
    names: dict[str, None],
    found: dict[tuple[str, str, str], _Garment],
    ignored: dict[str, None],
) -> None:
    for line in _lines(path, data, ignored):
        values = line.values

        def wrong(what: str, number: int = line.number) -> UserError:
            return UserError(f"{path}, line {number}: {what}")

        for column in ("photo", "name"):
            if not values[column]:
                raise wrong(f"{column} is empty")
        garment = found.setdefault((path, values["photo"], values.get("garment", "")), _Garment())
        for column in ("split", "garment_type"):
            value, before = values.get(column, ""), garment.said.get(column, "")
            if value and before and value != before:
                raise wrong(
                    f"{column} is {shown(value)}, but {shown(before)} in an earlier row of the garment"
                )
            garment.said[column] = value or before
        if (split := values.get("split", "")) and split.lower() not in SPLIT_NAMES:
            raise wrong(f"split must be one of {', '.join(SPLITS)}, not {shown(split)}")
        box = [values.get(column, "") for column in BOX]
        if any(box):
            corners = tuple(_number(text, column, wrong) for text, column in zip(box, BOX, strict=True))
            if garment.box is not None and garment.box != corners:
                raise wrong("the box is not that of an earlier row of the garment")
            garment.box = corners  # type: ignore[assignment]
        name = values["name"]
        if name in garment.points:
            raise wrong(
                f"{shown(name)} was there before: give each garment of a photo its own number in the column garment"
            )
        names.setdefault(name)
        garment.points[name] = _point(values, wrong)


def _lines(path: str, data: io.TextIOBase, ignored: dict[str, None]) -> Iterator[Line]:
    """Yield the lines below the first, which names the columns; UserError if those that are needed are not there."""
    header = data.readline()
    for delimiter in ",;\t":
        columns = [name.strip().lower() for name in next(csv.reader([header], delimiter=delimiter), [])]
        if not (missing := [name for name in REQUIRED if name not in columns]):
            break
    else:
        raise UserError(
            f"{path}: the first line must name the columns {', '.join(REQUIRED)}; {shown(header.strip())} does not "
            f"have {missing[0]}"
        )
    if twice := [name for name in columns if columns.count(name) > 1]:
        raise UserError(f"{path}: the column {shown(twice[0])} is there more than once: leave one of them")
    if any(name in columns for name in BOX) and (without := [name for name in BOX if name not in columns]):
        raise UserError(f"{path}: a box needs the columns {', '.join(BOX)}; {without[0]} is missing")
    ignored.update(dict.fromkeys(name for name in columns if name not in (*REQUIRED, *OPTIONAL)))
    reader = csv.reader(data, delimiter=delimiter, strict=True)
    for values in reader:
        number = reader.line_num + 1
        if not any(value.strip() for value in values):
            continue
        if len(values) != len(columns):
            raise UserError(f"{path}, line {number}: {len(values)} values for {len(columns)} columns")
        yield Line(number, dict(zip(columns, (value.strip() for value in values), strict=True)))


def _number(text: str, column: str, wrong: object) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= LARGEST or "_" in text:
        raise wrong(f"{column} must be a number within a photo, not {shown(text)}")  # type: ignore[operator]
    return value


def _point(values: Mapping[str, str], wrong: object) -> tuple[float, float, Visibility]:
    """Return a landmark's x, y and visibility; NaN where it is absent."""
    told = values.get("visibility", "").lower().removesuffix(".0")
    if told and told not in CODES:
        raise wrong(  # type: ignore[operator]
            f"visibility must be 2, 1, 0 or visible, occluded, absent, not {shown(values['visibility'])}"
        )
    code = CODES[told] if told else Visibility.VISIBLE if values["x"] or values["y"] else Visibility.ABSENT
    if code == Visibility.ABSENT:
        return math.nan, math.nan, code
    return _number(values["x"], "x", wrong), _number(values["y"], "y", wrong), code


def _row(
    path: str,
    photo: str,
    number: str,
    garment: _Garment,
    place: Mapping[str, int],
    codes: Mapping[str, int],
    shift: float,
) -> Row:
    points = np.full((len(place), 2), np.nan, np.float32)
    visibility = np.full(len(place), Visibility.ABSENT, np.int8)
    for name, (x, y, code) in garment.points.items():
        points[place[name]] = x + shift, y + shift
        visibility[place[name]] = code
    split = garment.said["split"].lower()
    return Row(
        photo=photo,
        file=path,
        split=SPLIT_NAMES[split] if split else None,
        name=f"garment {number or 0} of {photo} in {path}",
        box=garment.box,
        garment_type=codes[garment.said["garment_type"]],
        points=points,
        visibility=visibility,
    )
