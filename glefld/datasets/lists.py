"""Reading the benchmarks' list files: the row count on line 1, the column names on line 2, then the rows.

Letters in shapes: N rows, K landmarks of the set.
"""

import dataclasses
import io
import itertools
import lzma
import math
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from glefld.errors import UserError
from glefld.schema import SPLITS, VIEWS, Labels, LandmarkSet, Visibility

#: The column of the photo's name.
PHOTO = "image_name"
#: Boxes are clipped to their photo, so this one covers all of it. Used by layouts without boxes.
WHOLE_PHOTO = (-math.inf, -math.inf, math.inf, math.inf)
#: One row per listed garment. A value that is not in the lists is null. Coordinates are continuous photo pixels.
#: Landmarks and visibility hold either all K landmarks or, packed, only those of the garment type (``unpack``).
ANNOTATIONS = pa.schema(
    [
        ("sample_id", pa.string()),
        ("photo", pa.string()),
        ("split", pa.string()),
        ("duplicate", pa.bool_()),  # a row with the same photo came before
        ("box", pa.list_(pa.float32(), 4)),  # WHOLE_PHOTO if the layout has no boxes
        ("garment_type", pa.int8()),
        ("variation", pa.int8()),
        ("category", pa.int16()),
        ("attributes", pa.list_(pa.int16())),
        ("view", pa.string()),
        ("area", pa.float32()),
        ("landmarks", pa.list_(pa.float32())),
        ("visibility", pa.list_(pa.int8())),
        ("photo_width", pa.int32()),  # of the photo that was annotated, if the layout says so
        ("photo_height", pa.int32()),
        ("fault", pa.string()),  # why the row is to be rejected, one of the rejects' reasons, and in words
        ("fault_detail", pa.string()),
    ]
)


@dataclasses.dataclass(frozen=True)
class Annotations:
    """A data set's annotations: ``table`` has the schema ``ANNOTATIONS``; names that no list gives are empty.

    ``table`` is a reader, to be read once, where the rows need not fit into memory. Then ``duplicate`` is not known
    yet: it is false everywhere. ``notes``: lines for the user about what the reader has chosen.
    """

    table: pa.Table | pa.RecordBatchReader
    labels: Labels
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class OwnOptions:
    """What the layouts for annotations of one's own are told beside their files; None for the default."""

    pairs: str | None = None
    sigmas: str | None = None
    val_fraction: float | None = None
    test_fraction: float | None = None
    split_seed: int | None = None


@dataclasses.dataclass(frozen=True)
class ListFiles:
    """The annotation files of a source: text files by their lower-cased ``folder/name`` (``/name`` at the top).

    ``photos`` are the paths of all files where the layout keeps its photos, for layouts that have folders instead of
    lists. ``documents`` yields the name and bytes of each photo's JSON file, for layouts that have them.
    """

    source: str
    files: Mapping[str, Callable[[], BinaryIO]]
    photos: Sequence[str] = ()
    documents: Callable[[], Iterable[tuple[str, bytes]]] = tuple
    #: Annotation files by name, in order, for layouts that take all of a kind: Parquet, JSON or CSV. The names of the
    #: latter are paths relative to the source.
    tables: Mapping[str, Callable[[], BinaryIO]] = dataclasses.field(default_factory=dict)
    #: Names that ``find`` did not find, for the report to the user.
    absent: list[str] = dataclasses.field(default_factory=list, compare=False)
    own: OwnOptions = OwnOptions()

    def find(self, name: str, folders: Sequence[str]) -> "ListFile | None":
        """Return the file from the first of these folders that has it, or None. Releases differ in their folders."""
        for folder in folders:
            if (opened := self.files.get(f"{folder}/{name}".lower())) is not None:
                return ListFile(f"{folder}/{name}".lstrip("/"), opened)
        self.absent.append(name)
        return None

    def require(self, name: str, folders: Sequence[str]) -> "ListFile":
        """Like ``find``, but raise UserError if no folder has the file."""
        if (found := self.find(name, folders)) is None:
            places = ", ".join(f"{folder}/" if folder else "the source itself" for folder in folders)
            raise UserError(f"{self.source}: the list {name} is missing (looked in {places})")
        return found


#: Longer lines are rejected. The longest real ones, with 1,000 attributes, have about 3,000 characters.
MAX_LINE = 1 << 20
#: Larger numbers are rejected: no photo that may be decoded has a side of as many pixels.
LARGEST = 1_000_000_000
#: ``float`` and ``int`` would also take ``1_0``, ``infinity`` and other alphabets' digits.
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_NUMBERS = re.compile(rf"{_NUMBER}(?: {_NUMBER})*", re.ASCII)
_WHOLE_NUMBER = re.compile(r"[+-]?\d{1,18}", re.ASCII)


#: What reading a text file may raise besides the storage's errors: it is not UTF-8, or damaged where it is packed.
DAMAGED = (
    UnicodeDecodeError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    RuntimeError,  # zipfile's error for an encrypted member or an unknown compression
)


class Header(NamedTuple):
    """The names of a list's columns, in lower case, and the number of their line."""

    line: int
    names: list[str]


@dataclasses.dataclass(frozen=True)
class ListFile:
    """One list file. It is streamed, so that a list of a gigabyte takes no memory."""

    path: str
    open: Callable[[], BinaryIO]

    def error(self, line: int, what: str) -> UserError:
        """Return an error that names the file and the line."""
        return UserError(f"{self.path}, line {line}: {what}")

    def lines(self) -> Iterator[tuple[int, str]]:
        """Yield number and text of each non-empty line; UserError if the file is damaged or not text."""
        try:
            with self.open() as raw, io.TextIOWrapper(raw, encoding="utf-8-sig") as file:
                for number, line in enumerate(iter(partial(file.readline, MAX_LINE), ""), 1):
                    if len(line) == MAX_LINE:
                        raise self.error(
                            number, f"longer than {MAX_LINE} characters: download the list again"
                        )
                    if line.strip():
                        yield number, line
        except DAMAGED as error:
            raise UserError(f"{self.path} cannot be read ({error}): download the list again") from error

    def table(self) -> tuple[Header, Iterator[tuple[int, list[str]]]]:
        """Return the header, and an iterator of the line number and values of each row below it.

        The iterator raises UserError if the number of rows is not that of line 1.
        """
        lines = self.lines()
        number, first = next(lines, (1, ""))
        if _WHOLE_NUMBER.fullmatch(first.strip()) is None:
            raise self.error(number, f"expected the number of rows, got {shown(first.strip())}")
        count = int(first)
        number, names = next(lines, (number + 1, ""))

        def rows() -> Iterator[tuple[int, list[str]]]:
            seen = 0
            for seen, (number, line) in enumerate(lines, 1):  # noqa: B007
                yield number, line.split()
            if seen != count:
                raise UserError(
                    f"{self.path}: line 1 says {count} rows, but {seen} follow: download the list again"
                )

        return Header(number, names.lower().split()), rows()

    def rows(self, columns: Sequence[str], many: str | None = None) -> Iterator[tuple[int, list[str]]]:
        """Yield the line number and the values of each row after the header, in the order of ``columns``.

        many: the column of which a row may have several values, such as a name with spaces. They stay together.
        UserError if the header does not name just these columns, in any order, or a row has another number of values.
        """
        (line, names), rows = self.table()
        if sorted(names) != sorted(columns):
            raise self.error(
                line, f"expected the column names {' '.join(columns)}, got {shown(' '.join(names))}"
            )
        order = [names.index(name) for name in columns]
        middle = names.index(many) if many is not None else len(names)
        for number, values in rows:
            extra = len(values) - len(names)
            if extra < 0 or (extra and many is None):
                raise self.error(number, f"expected {len(names)} values, got {len(values)}")
            if order == sorted(order):
                yield number, values
            else:
                cells = (values[i + extra * (i > middle) : i + 1 + extra * (i >= middle)] for i in order)
                yield number, list(itertools.chain.from_iterable(cells))

    def numbers(self, line: int, tokens: Sequence[str], count: int) -> list[float]:
        """Parse ``count`` decimal numbers; UserError names the line if the tokens are anything else."""
        if len(tokens) != count:
            raise self.error(line, f"expected {count} numbers, got {len(tokens)}")
        if tokens and _NUMBERS.fullmatch(" ".join(tokens)) is None:
            wrong = next(token for token in tokens if _NUMBERS.fullmatch(token) is None)
            raise self.error(line, f"expected a number, got {shown(wrong)}")
        values = [float(token) for token in tokens]
        if any(abs(value) > LARGEST for value in values):
            wrong = next(token for token in tokens if abs(float(token)) > LARGEST)
            raise self.error(line, f"{shown(wrong)} is larger than any coordinate of a photo")
        return values

    def whole(self, line: int, token: str, least: int, most: int) -> int:
        """Parse a whole number from ``least`` to ``most``; UserError names the line if the token is anything else."""
        if _WHOLE_NUMBER.fullmatch(token) is None or not least <= int(token) <= most:
            raise self.error(line, f"expected a whole number from {least} to {most}, got {shown(token)}")
        return int(token)

    def choice(self, line: int, value: str, choices: Sequence[str]) -> str:
        """Return the value if it is one of the choices; UserError names the line otherwise."""
        if value not in choices:
            raise self.error(line, f"expected one of {', '.join(choices)}, got {shown(value)}")
        return value

    def flags(self, line: int, tokens: Sequence[str], count: int) -> np.ndarray:
        """Return the indices of 1 among ``count`` values of 1, 0 and -1; UserError names the line for others."""
        if len(tokens) != count:
            raise self.error(
                line, f"expected {count} values, one per row of list_attr_cloth.txt, got {len(tokens)}"
            )
        ones = {token for token in set(tokens) if self.whole(line, token, -1, 1) == 1}
        return np.array([i for i, token in enumerate(tokens) if token in ones], np.int16)


def shown(text: str) -> str:
    """Return the text in quotes for an error message, shortened if it is long."""
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def name_and_type(file: ListFile, kind: str, types: int) -> tuple[tuple[str, int], ...]:
    """Read ``list_category_cloth.txt`` or ``list_attr_cloth.txt``: a name, which may contain spaces, and its type.

    kind: ``category`` or ``attribute``, with which the columns' names begin. types: the largest type.
    """
    columns = (f"{kind}_name", f"{kind}_type")
    return tuple(
        (" ".join(words), file.whole(number, type_, 1, types))
        for number, (*words, type_) in file.rows(columns, many=columns[0])
    )


def spread(
    points: Sequence[tuple[float, float]], codes: Sequence[int], slots: Sequence[int], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Put a garment's annotated pixels into K slots: [2K] float32 points and [K] int8 visibility.

    An annotated pixel x becomes the point x + 0.5. Cut-off and absent landmarks have no point (NaN). The benchmarks
    write ``0 0`` where nothing was annotated, so ``0 0`` means absent unless its code is cut off.
    """
    landmarks = np.full(2 * k, np.nan, np.float32)
    visibility = np.full(k, Visibility.ABSENT, np.int8)
    for slot, (x, y), code in zip(slots, points, codes, strict=True):
        if code == Visibility.CUT_OFF:
            visibility[slot] = code
        elif (x, y) != (0, 0):
            visibility[slot] = code
            landmarks[2 * slot : 2 * slot + 2] = x + 0.5, y + 0.5
    return landmarks, visibility


def unpack(
    points: np.ndarray, codes: np.ndarray, garment_type: int | None, landmark_set: LandmarkSet
) -> tuple[np.ndarray, np.ndarray]:
    """Return points [n, 2] and visibility [n] of a row, packed or not, as [K, 2] and [K]."""
    k = len(landmark_set)
    if len(codes) == k:
        return points, codes
    assert garment_type is not None, "packed landmarks need a garment type"
    slots = list(landmark_set.garment_type(garment_type).landmarks)
    all_points = np.full((k, 2), np.nan, np.float32)
    all_codes = np.full(k, Visibility.ABSENT, np.int8)
    all_points[slots], all_codes[slots] = points, codes
    return all_points, all_codes


def landmark_columns(file: ListFile, header: Header) -> tuple[list[str], list[str]]:
    """Return the names of the columns before the landmarks, and the order of the three columns of each landmark.

    The rows have as many landmarks as their garment type, so the header need not name those of all, and none of the
    other columns may follow. UserError for a header of other columns.
    """
    parts = ("landmark_visibility", "landmark_location_x", "landmark_location_y")
    line, names = header
    first = next((i for i, name in enumerate(names) if name.startswith(parts)), len(names))
    before, points = names[:first], names[first:]
    order = [name.removesuffix("_1") for name in points[:3]]
    expected = [f"{part}_{i // 3 + 1}" for i, part in enumerate(order * (len(points) // 3))]
    fixed = sorted({*before} - {"variation_type"})
    if fixed != ["clothes_type", PHOTO] or len(before) != len({*before}):
        raise file.error(
            line, f"expected {PHOTO}, clothes_type and at most variation_type before the landmarks' columns"
        )
    if sorted(order) != sorted(parts) or points != expected:
        raise file.error(
            line,
            f"expected {' '.join(f'{part}_1' for part in parts)}, then those of _2 and so on in the same order, got "
            f"{shown(' '.join(points))}",
        )
    return before, order


def landmark_list(file: ListFile, landmark_set: LandmarkSet) -> pa.Table:
    """Read ``list_landmarks.txt``: photo, garment_type, variation (null without that column) and landmarks."""
    k = len(landmark_set)
    types = {str(garment.code): garment for garment in landmark_set.garment_types}
    header, rows = file.table()
    before, order = landmark_columns(file, header)
    code, x, y = (order.index(f"landmark_{part}") for part in ("visibility", "location_x", "location_y"))
    # Not every release's rows have the variation_type column that the header names.
    unvaried = [name for name in before if name != "variation_type"]
    photos: list[str] = []
    kinds: list[tuple[int, int | None]] = []
    landmarks: list[np.ndarray] = []
    visibility: list[np.ndarray] = []
    for number, tokens in rows:
        whole = (len(tokens) - len(before)) % 3 == 0
        head = before if whole else unvaried
        cells = dict(zip(head, tokens, strict=False))
        garment = types.get(cells.get("clothes_type", "").lstrip("0"))
        if garment is None:
            raise file.error(number, f"the garment type must be one of {sorted(map(int, types))}")
        values = file.numbers(number, tokens[len(head) :], 3 * len(garment.landmarks))
        triples = np.array(values).reshape(-1, 3)
        if not np.isin(triples[:, code], (0, 1, 2)).all():
            raise file.error(number, "visibility must be 0, 1 or 2")
        points, codes = spread(
            [(triple[x], triple[y]) for triple in triples],
            triples[:, code].astype(int).tolist(),
            garment.landmarks,
            k,
        )
        variation = cells.get("variation_type")
        photos.append(cells[PHOTO])
        kinds.append((garment.code, file.whole(number, variation, 0, 127) if variation else None))
        landmarks.append(points)
        visibility.append(codes)
    return pa.table(
        {
            "photo": pa.array(photos, pa.string()),
            "garment_type": pa.array([code for code, _ in kinds], pa.int8()),
            "variation": pa.array([variation for _, variation in kinds], pa.int8()),
            "landmarks": list_array(landmarks, pa.float32()),
            "visibility": list_array(visibility, pa.int8()),
        }
    )


def box_list(file: ListFile) -> pa.Table:
    """Read ``list_bbox.txt``: photo and box [N, 4]."""
    photos, boxes = [], []
    for number, (photo, *corners) in file.rows((PHOTO, "x_1", "y_1", "x_2", "y_2")):
        photos.append(photo)
        boxes.append(file.numbers(number, corners, 4))
    return pa.table({"photo": pa.array(photos, pa.string()), "box": box_array(boxes)})


def word_list(file: ListFile, name: str, column: str, choices: Sequence[str]) -> pa.Table:
    """Read ``list_eval_partition.txt`` or ``list_view.txt``: photo and one of the given words.

    name: the column's name in the file. column: its name in the table.
    """
    photos, words = [], []
    for number, (photo, word) in file.rows((PHOTO, name)):
        photos.append(photo)
        words.append(file.choice(number, word, choices))
    return pa.table({"photo": pa.array(photos, pa.string()), column: pa.array(words, pa.string())})


def box_array(boxes: Sequence[Sequence[float]]) -> pa.Array:
    """Return boxes [N, 4] as an Arrow array of float32 lists of 4."""
    return pa.FixedSizeListArray.from_arrays(np.asarray(boxes, np.float32).ravel(), 4)


def list_array(rows: Sequence[np.ndarray], type_: pa.DataType) -> pa.Array:
    """Return rows of any lengths as an Arrow list array."""
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    values = np.concatenate(rows) if rows else np.zeros(0)
    return pa.ListArray.from_arrays(offsets, pa.array(values, type_, from_pandas=False))


def read_benchmark(
    dataset: str, lists: ListFiles, landmark_set: LandmarkSet, folders: Sequence[str], *extra: pa.Table
) -> pa.Table:
    """Read a benchmark's landmarks, boxes and partition and join them by photo; ``extra`` tables may lack photos.

    UserError names the missing list or the line that cannot be read.
    """
    tables = [
        landmark_list(lists.require("list_landmarks.txt", folders), landmark_set),
        box_list(lists.require("list_bbox.txt", folders)),
        word_list(
            lists.require("list_eval_partition.txt", ("Eval", *folders)), "evaluation_status", "split", SPLITS
        ),
    ]
    if (views := lists.find("list_view.txt", folders)) is not None:
        extra = (*extra, word_list(views, "view", "view", VIEWS))
    return join(dataset, tables, extra)


def join(dataset: str, tables: Sequence[pa.Table], extra: Sequence[pa.Table] = ()) -> pa.Table:
    """Join tables by photo into ``ANNOTATIONS``: one row per photo in any of ``tables``, null where a table lacks it.

    A photo listed several times is joined by occurrence, the second with the second. All but the first are marked as
    duplicates.
    """
    keys = pa.concat_arrays([_keys(table) for table in tables]).unique()
    columns: dict[str, pa.Array] = {}
    for table in (*tables, *extra):
        row = pc.index_in(keys, value_set=_keys(table))
        for name in table.column_names:
            if name != "photo":
                columns[name] = table[name].take(row)
    repeat = pc.split_pattern(keys, " ", max_splits=1)
    columns["photo"] = pc.list_element(repeat, 1)
    columns["duplicate"] = pc.not_equal(pc.list_element(repeat, 0), "0")
    columns["sample_id"] = pc.binary_join_element_wise(dataset, columns["photo"], "/")
    columns["sample_id"] = pc.binary_join_element_wise(columns["sample_id"], "0", "#")
    count = len(keys)
    return pa.table(
        [columns.get(field.name, pa.nulls(count, field.type)) for field in ANNOTATIONS], schema=ANNOTATIONS
    )


def _keys(table: pa.Table) -> pa.Array:
    """Return the key ``n photo`` of each row: n, from 0, counts the earlier rows of the same photo."""
    photos = table["photo"].combine_chunks()
    codes = photos.dictionary_encode().indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    first = np.searchsorted(ordered, ordered, side="left")
    nth = np.empty(len(codes), np.int64)
    nth[order] = np.arange(len(codes)) - first
    return pc.binary_join_element_wise(pa.array(nth).cast(pa.string()), photos, " ")
