"""What the benchmarks' list files have in common: the count on line 1, the column names on line 2, then rows.

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

#: A box is clipped to its photo, so this one is the whole of any: what layouts without boxes give.
WHOLE_PHOTO = (-math.inf, -math.inf, math.inf, math.inf)
#: One row a listed garment. Null is what its lists do not say; coordinates are continuous photo pixels. Landmarks and
#: visibility are of all K landmarks or, packed, of the garment type's own in its order (``unpack``).
ANNOTATIONS = pa.schema(
    [
        ("sample_id", pa.string()),
        ("photo", pa.string()),
        ("split", pa.string()),
        ("duplicate", pa.bool_()),  # the photo was listed before
        ("box", pa.list_(pa.float32(), 4)),  # WHOLE_PHOTO where there is none to annotate
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
    """A data set's lists: ``table`` is as ``ANNOTATIONS``; the names are empty where no list gives them."""

    table: pa.Table
    labels: Labels


@dataclasses.dataclass(frozen=True)
class ListFiles:
    """What a source says of its photos: text files, by their lower-cased ``folder/name`` (``/name`` beside the photos).

    ``photos`` are the paths of all that lies where photos do, for layouts whose folders are their only list;
    ``documents`` reads the name and bytes of each JSON of a photo, for layouts that have one.
    """

    source: str
    files: Mapping[str, Callable[[], BinaryIO]]
    photos: Sequence[str] = ()
    documents: Callable[[], Iterable[tuple[str, bytes]]] = tuple
    #: What was looked for in vain, for the user to see.
    absent: list[str] = dataclasses.field(default_factory=list, compare=False)

    def find(self, name: str, folders: Sequence[str]) -> "ListFile | None":
        """The file in the first of these folders that has it; downloads differ in where they put a list."""
        for folder in folders:
            if (opened := self.files.get(f"{folder}/{name}".lower())) is not None:
                return ListFile(f"{folder}/{name}".lstrip("/"), opened)
        self.absent.append(name)
        return None

    def require(self, name: str, folders: Sequence[str]) -> "ListFile":
        """As ``find``; UserError names the list if it is in none of them."""
        if (found := self.find(name, folders)) is None:
            places = ", ".join(f"{folder}/" if folder else "the source itself" for folder in folders)
            raise UserError(f"{self.source}: the list {name} is missing (looked in {places})")
        return found


#: A longer line is no list's: those of 1,000 attributes have some 3,000 characters.
MAX_LINE = 1 << 20


@dataclasses.dataclass(frozen=True)
class ListFile:
    """One list file; its methods stream it, so that a list of a gigabyte takes no memory."""

    path: str
    open: Callable[[], BinaryIO]

    def error(self, line: int, what: str) -> UserError:
        return UserError(f"{self.path}, line {line}: {what}")

    def lines(self) -> Iterator[tuple[int, str]]:
        """Line number and text of each line that has any; UserError if the file is not text, or damaged."""
        with self.open() as raw, io.TextIOWrapper(raw, encoding="utf-8-sig") as file:
            try:
                for number, line in enumerate(iter(partial(file.readline, MAX_LINE), ""), 1):
                    if len(line) == MAX_LINE:
                        raise self.error(number, f"longer than {MAX_LINE} characters: get the list again")
                    if line.strip():
                        yield number, line
            except (UnicodeDecodeError, EOFError, zlib.error, zipfile.BadZipFile) as error:
                raise UserError(f"{self.path} cannot be read ({error}): get the list again") from error

    def rows(self) -> Iterator[tuple[int, str]]:
        """The lines after the two of the header; UserError if they are not as many as line 1 says."""
        lines = self.lines()
        number, first = next(lines, (1, ""))
        try:
            count = int(first)
        except ValueError:
            raise self.error(number, f"the number of rows was expected, not {first.strip()!r}") from None
        next(lines, None)
        seen = 0
        for seen, row in enumerate(lines, 1):  # noqa: B007
            yield row
        if seen != count:
            raise UserError(
                f"{self.path}: line 1 promises {count} rows and {seen} follow: get the list again"
            )

    def numbers(self, line: int, tokens: Sequence[str], count: int) -> list[float]:
        """These tokens as numbers; UserError names the line if they are not, or not ``count``."""
        if len(tokens) != count:
            raise self.error(line, f"{count} numbers were expected, not {len(tokens)}")
        try:
            values = [float(token) for token in tokens]
        except ValueError as error:
            raise self.error(line, str(error)) from None
        if not all(map(math.isfinite, values)):
            raise self.error(line, "finite numbers were expected")
        return values

    def choice(self, line: int, value: str, choices: Sequence[str]) -> str:
        if value not in choices:
            raise self.error(line, f"one of {', '.join(choices)} was expected, not {value!r}")
        return value


def name_and_type(file: ListFile) -> tuple[tuple[str, int], ...]:
    """``list_category_cloth.txt``, ``list_attr_cloth.txt``: names may contain spaces, the type comes last."""
    pairs = []
    for number, line in file.rows():
        name, *rest = line.strip().rsplit(None, 1)
        pairs.append((name, int(file.numbers(number, rest, 1)[0])))
    return tuple(pairs)


def spread(
    points: Sequence[tuple[float, float]], codes: Sequence[int], slots: Sequence[int], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """A garment's own annotated pixels in the set's common order: [2K] float32 points, [K] int8 visibility.

    An annotated pixel x is the point x + 0.5. Cut-off and absent landmarks have no point (NaN). ``0 0`` with
    another code than cut off is absent: it is what the benchmarks write where nothing was annotated.
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
    """Points [n, 2] and visibility [n] of a row, of all K landmarks or packed, as [K, 2] and [K]."""
    k = len(landmark_set)
    if len(codes) == k:
        return points, codes
    assert garment_type is not None, "only a known garment type's landmarks can be packed"
    slots = list(landmark_set.garment_type(garment_type).landmarks)
    all_points = np.full((k, 2), np.nan, np.float32)
    all_codes = np.full(k, Visibility.ABSENT, np.int8)
    all_points[slots], all_codes[slots] = points, codes
    return all_points, all_codes


def landmark_list(file: ListFile, landmark_set: LandmarkSet) -> pa.Table:
    """``list_landmarks.txt``: photo, garment_type, variation (null without such a column) and landmarks."""
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
            raise file.error(number, f"the garment's type must be one of {sorted(types)}")
        # The benchmark's readme names a variation_type column that not every release has.
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
    """``list_bbox.txt``: photo and box, [N, 4]."""
    photos, boxes = [], []
    for number, line in file.rows():
        photo, *tokens = line.split()
        photos.append(photo)
        boxes.append(file.numbers(number, tokens, 4))
    return pa.table({"photo": pa.array(photos, pa.string()), "box": box_array(boxes)})


def word_list(file: ListFile, column: str, choices: Sequence[str]) -> pa.Table:
    """``list_eval_partition.txt`` and ``list_view.txt``: photo and one of the given words."""
    photos, words = [], []
    for number, line in file.rows():
        photo, word, *_ = (*line.split(), "")
        photos.append(photo)
        words.append(file.choice(number, word, choices))
    return pa.table({"photo": pa.array(photos, pa.string()), column: pa.array(words, pa.string())})


def box_array(boxes: Sequence[Sequence[float]]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(np.asarray(boxes, np.float32).ravel(), 4)


def list_array(rows: Sequence[np.ndarray], type_: pa.DataType) -> pa.Array:
    """Rows of any lengths as an Arrow list array."""
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    values = np.concatenate(rows) if rows else np.zeros(0)
    return pa.ListArray.from_arrays(offsets, pa.array(values, type_, from_pandas=False))


def read_benchmark(
    dataset: str, lists: ListFiles, landmark_set: LandmarkSet, folders: Sequence[str], *extra: pa.Table
) -> pa.Table:
    """Landmarks, boxes and partition (all required) joined by photo, ``extra`` where it has the photo."""
    tables = [
        landmark_list(lists.require("list_landmarks.txt", folders), landmark_set),
        box_list(lists.require("list_bbox.txt", folders)),
        word_list(lists.require("list_eval_partition.txt", ("Eval", *folders)), "split", SPLITS),
    ]
    if (views := lists.find("list_view.txt", folders)) is not None:
        extra = (*extra, word_list(views, "view", VIEWS))
    return join(dataset, tables, extra)


def join(dataset: str, tables: Sequence[pa.Table], extra: Sequence[pa.Table] = ()) -> pa.Table:
    """One row a photo listed in any of ``tables``, as ``ANNOTATIONS``; null is what its lists lack.

    The second listing of a photo meets the second one of the other lists, and so on; all but the first are
    marked as duplicates.
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
    """``n photo`` for each photo's row number n, from 0, among its own; lists are split on the space."""
    photos = table["photo"].combine_chunks()
    codes = photos.dictionary_encode().indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    first = np.searchsorted(ordered, ordered, side="left")
    nth = np.empty(len(codes), np.int64)
    nth[order] = np.arange(len(codes)) - first
    return pc.binary_join_element_wise(pa.array(nth).cast(pa.string()), photos, " ")
