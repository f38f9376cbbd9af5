"""Reading the benchmarks' list files: the row count on line 1, the column names on line 2, then the rows.

Letters in shapes: N rows, K landmarks of the set.
"""

import dataclasses
import io
import math
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from glefld.errors import UserError
from glefld.schema import SPLITS, VIEWS, Labels, LandmarkSet, Visibility

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
    ]
)


@dataclasses.dataclass(frozen=True)
class Annotations:
    """A data set's annotations: ``table`` has the schema ``ANNOTATIONS``; names that no list gives are empty."""

    table: pa.Table
    labels: Labels


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
    #: Names that ``find`` did not find, for the report to the user.
    absent: list[str] = dataclasses.field(default_factory=list, compare=False)

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
        with self.open() as raw, io.TextIOWrapper(raw, encoding="utf-8-sig") as file:
            try:
                for number, line in enumerate(iter(partial(file.readline, MAX_LINE), ""), 1):
                    if len(line) == MAX_LINE:
                        raise self.error(
                            number, f"longer than {MAX_LINE} characters: download the list again"
                        )
                    if line.strip():
                        yield number, line
            except (UnicodeDecodeError, EOFError, zlib.error, zipfile.BadZipFile) as error:
                raise UserError(f"{self.path} cannot be read ({error}): download the list again") from error

    def rows(self) -> Iterator[tuple[int, str]]:
        """Yield the lines after the two header lines; UserError if their number differs from line 1."""
        lines = self.lines()
        number, first = next(lines, (1, ""))
        try:
            count = int(first)
        except ValueError:
            raise self.error(number, f"expected the number of rows, got {first.strip()!r}") from None
        next(lines, None)
        seen = 0
        for seen, row in enumerate(lines, 1):  # noqa: B007
            yield row
        if seen != count:
            raise UserError(
                f"{self.path}: line 1 says {count} rows, but {seen} follow: download the list again"
            )

    def numbers(self, line: int, tokens: Sequence[str], count: int) -> list[float]:
        """Parse ``count`` finite numbers; UserError names the line if the tokens are anything else."""
        if len(tokens) != count:
            raise self.error(line, f"expected {count} numbers, got {len(tokens)}")
        try:
            values = [float(token) for token in tokens]
        except ValueError as error:
            raise self.error(line, str(error)) from None
        if not all(map(math.isfinite, values)):
            raise self.error(line, "expected finite numbers")
        return values

    def choice(self, line: int, value: str, choices: Sequence[str]) -> str:
        """Return the value if it is one of the choices; UserError names the line otherwise."""
        if value not in choices:
            raise self.error(line, f"expected one of {', '.join(choices)}, got {value!r}")
        return value


def name_and_type(file: ListFile) -> tuple[tuple[str, int], ...]:
    """Read ``list_category_cloth.txt`` or ``list_attr_cloth.txt``: a name, which may contain spaces, then its type."""
    pairs = []
    for number, line in file.rows():
        name, *rest = line.strip().rsplit(None, 1)
        pairs.append((name, int(file.numbers(number, rest, 1)[0])))
    return tuple(pairs)


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


def landmark_list(file: ListFile, landmark_set: LandmarkSet) -> pa.Table:
    """Read ``list_landmarks.txt``: photo, garment_type, variation (null without that column) and landmarks."""
    k = len(landmark_set)
    types = {garment.code: garment for garment in landmark_set.garment_types}
    photos: list[str] = []
    kinds: list[tuple[int, int | None]] = []
    landmarks: list[np.ndarray] = []
    visibility: list[np.ndarray] = []
    for number, line in file.rows():
        photo, *tokens = line.split()
        garment = types.get(int(tokens[0])) if tokens and tokens[0].isdigit() else None
        if garment is None:
            raise file.error(number, f"the garment type must be one of {sorted(types)}")
        # Not every release has the variation_type column that the benchmark's readme names.
        varied = len(tokens) == 2 + 3 * len(garment.landmarks)
        values = file.numbers(number, tokens[1:], varied + 3 * len(garment.landmarks))
        triples = np.array(values[varied:]).reshape(-1, 3)
        if not np.isin(triples[:, 0], (0, 1, 2)).all():
            raise file.error(number, "visibility must be 0, 1 or 2")
        points, codes = spread(
            [(x, y) for _, x, y in triples], triples[:, 0].astype(int).tolist(), garment.landmarks, k
        )
        photos.append(photo)
        kinds.append((garment.code, int(values[0]) if varied else None))
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
    for number, line in file.rows():
        photo, *tokens = line.split()
        photos.append(photo)
        boxes.append(file.numbers(number, tokens, 4))
    return pa.table({"photo": pa.array(photos, pa.string()), "box": box_array(boxes)})


def word_list(file: ListFile, column: str, choices: Sequence[str]) -> pa.Table:
    """Read ``list_eval_partition.txt`` or ``list_view.txt``: photo and one of the given words."""
    photos, words = [], []
    for number, line in file.rows():
        photo, word, *_ = (*line.split(), "")
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
        word_list(lists.require("list_eval_partition.txt", ("Eval", *folders)), "split", SPLITS),
    ]
    if (views := lists.find("list_view.txt", folders)) is not None:
        extra = (*extra, word_list(views, "view", VIEWS))
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
