"""What the layouts for annotations of one's own share: splits, boxes, sigmas, and finding the photos.

Letters in shapes: K landmarks of the set, n of a garment's type.
"""

import hashlib
import posixpath
import re
import unicodedata
import urllib.parse
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from glefld.datasets.lists import ANNOTATIONS, WHOLE_PHOTO, OwnOptions, list_array, shown
from glefld.datasets.sides import some
from glefld.errors import UserError

#: The share of photos that becomes the val split where no file is it.
VAL_FRACTION = 0.2
#: Sigma of landmarks of which nothing is known: the median of DeepFashion2's 294.
SIGMA = 0.04
#: What a box that is made from landmarks has on each side, as a fraction of their extent: the boxes of DeepFashion.
MARGINS = 0.2, 0.1
#: Landmarks on a line have an extent of this part of its length across it.
THINNEST = 0.5
CHUNK = 8192  # rows per table
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
#: How Label Studio names a photo on its own disk: the path follows.
_LOCAL_FILES = "/local-files/?d="


class Row(NamedTuple):
    """One annotated garment, before its photo is found. Without a fault it has all that is not said to be missing."""

    photo: str  # as the annotations name it
    file: str  # path of the annotation file, relative to the source
    split: str | None  # if the row itself says so
    name: str  # for rows to reject, in messages
    duplicate: bool = False
    box: Sequence[float] | None = None
    garment_type: int | None = None
    area: float | None = None
    points: NDArray[np.float32] | None = None  # [n, 2], NaN where absent
    visibility: NDArray[np.int8] | None = None  # [n]
    size: tuple[int, int] | None = None  # of the photo, width and height
    fault: str | None = None
    detail: str | None = None


def parse_sigmas(
    told: str | None, known: Sequence[float | None], count: int
) -> tuple[tuple[float, ...], str]:
    """Return the sigmas of K landmarks, and a note of where they are from.

    told: of --sigmas, one number for all or one for each. known [K]: those of the annotations, None where they have
    none. UserError for another number of them, or one that is not above 0.
    """
    if told is not None:
        try:
            values = [float(text) for text in told.split(",")]
        except ValueError as error:
            raise UserError(f"--sigmas {told}: give numbers with commas between them") from error
        if not all(0 < value < 1 for value in values):
            raise UserError(f"--sigmas {told}: each must be above 0 and below 1")
        if len(values) not in (1, count):
            raise UserError(
                f"--sigmas: {len(values)} numbers for {count} landmarks: give one for all or one for each"
            )
        return tuple(values * (count if len(values) == 1 else 1)), f"sigmas of OKS, from --sigmas: {told}"
    found = tuple(SIGMA if value is None else value for value in known)
    if all(value is None for value in known):
        return found, f"sigmas of OKS: {SIGMA} for all landmarks (--sigmas)"
    return found, "sigmas of OKS, from the file"


def made_box(points: NDArray[np.float32]) -> tuple[float, float, float, float]:
    """Return a box around points [n, 2], of which NaN do not count; the whole photo for a single place.

    It is the points' extent and ``MARGINS`` on each side, and no thinner than ``THINNEST`` before that.
    """
    there = points[~np.isnan(points).any(axis=1)].astype(np.float64)
    if not len(there):
        return WHOLE_PHOTO
    low, high = there.min(axis=0), there.max(axis=0)
    size = high - low
    if not size.max() > 0:
        return WHOLE_PHOTO
    half = np.maximum(size, THINNEST * size.max()) * (0.5 + np.array(MARGINS))
    middle = (low + high) / 2
    return tuple(np.concatenate([middle - half, middle + half]).tolist())


def split_of(path: str) -> str | None:
    """Return the split that a word of a file's name says, or else the innermost folder that has a split's name."""
    *folders, name = path.split("/")
    words_of = [re.split(r"[\W_]+", part.lower()) for part in (name.partition(".")[0], name)]
    # Folders with more words are projects, such as ``shirts-test-2``, or archives.
    words_of += [[folder.lower().removesuffix(".zip")] for folder in reversed(folders)]
    for words in words_of:
        found = {_SPLIT_WORDS[w] for word in words if (w := re.sub(r"\d+$", "", word)) in _SPLIT_WORDS}
        if len(found) == 1:
            return found.pop()
    return None


class Splits(NamedTuple):
    """The split of each row, and a note of how they were divided."""

    splits: list[str]
    note: str


def divide(rows: Sequence[tuple[str, str, str | None]], options: OwnOptions) -> Splits:
    """Return the split of rows of (photo, path of the annotation file, split that the row says).

    Where neither row nor file says it, or only train is said and no val, photos are divided by a hash of their name:
    all garments of a photo stay together, and a photo keeps its split when others come.
    UserError if only some of them say it, or a fraction is given of a split that is there.
    """
    known = {path: split_of(path) for path in {path for _, path, _ in rows}}
    said = [split or known[path] for _, path, split in rows]
    given = {split for split in said if split is not None}
    if given and None in said:
        without = rows[said.index(None)][1]
        raise UserError(
            f"{without} does not say its split, but others do: name each file after train, val or test, or leave one"
        )
    for name, value in (("val", options.val_fraction), ("test", options.test_fraction)):
        if value is not None and name in given:
            raise UserError(f"--{name}-fraction: the annotations have a split {name}: leave it out")
    val = 0.0 if "val" in given else VAL_FRACTION if options.val_fraction is None else options.val_fraction
    test = 0.0 if "test" in given else options.test_fraction or 0.0
    if given and "train" not in given:
        val = test = 0.0
    seed = options.split_seed or 0
    parts: dict[str, str] = {}
    if val or test:
        photos = {
            photo for (photo, *_), split in zip(rows, said, strict=True) if photo and split in (None, "train")
        }
        chance = {photo: _chance(seed, photo) for photo in photos}
        for photo, value in chance.items():
            parts[photo] = "val" if value < val else "test" if value < val + test else "train"
        # However few photos there are: training needs both.
        ordered = sorted(photos, key=lambda photo: (chance[photo], photo))
        if val and len(ordered) > 1 and "val" not in parts.values():
            parts[ordered[0]] = "val"
        if len(ordered) > 1 and "train" not in parts.values():
            parts[ordered[-1]] = "train"
    splits = [
        parts.get(photo, "train") if split in (None, "train") else split
        for (photo, *_), split in zip(rows, said, strict=True)
    ]
    words = [f"{value:g} of the photos for {name}" for name, value in (("val", val), ("test", test)) if value]
    note = "splits: as the files say" if given else "splits: by photo"
    if given and "train" not in given:
        file, split = rows[0][1], said[0]
        note = f"warning: no photo is for training: {file} is {split}, as its name says, or its column split"
    return Splits(splits, note + (f", {' and '.join(words)}" if words else ""))


def _chance(seed: int, photo: str) -> float:
    """Return a number from 0 to 1 that depends on a photo's name and the seed."""
    data = f"{seed} {normal_name(photo)}".encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=7).digest()) / 2**56


def normal_name(name: str) -> str:
    """Return a photo's name as a relative path: slashes of any kind, composed letters, no URL around it."""
    name = unicodedata.normalize("NFC", name.strip().replace("\\", "/"))
    if _LOCAL_FILES in name:
        name = name.partition(_LOCAL_FILES)[2].partition("&")[0]
    elif "://" in name:
        name = re.split("[?#]", name.partition("://")[2].partition("/")[2])[0]
    return posixpath.normpath(name).lstrip("/") if name else name


class Photos:
    """The files in which photos are looked for. names: their paths relative to the source."""

    def __init__(self, names: Iterable[str]) -> None:
        self._exact: dict[str, str] = {}
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for name in names:
            path = unicodedata.normalize("NFC", name)
            if posixpath.basename(path).startswith("._"):  # what macOS writes beside a file
                continue
            self._exact[path] = name
            self._by_name[posixpath.basename(path).lower()].append(path)

    def find(self, photo: str, file: str) -> list[str]:
        """Return the file that a photo's name in an annotation file means, or several if they fit equally well.

        First in the folder of the annotations, its ``images/`` or the split's, and the same from the folders around
        it; then by the longest end of the name that a path anywhere ends with, in any capitals.
        """
        name = normal_name(photo)
        if not name:
            return []
        folder = posixpath.dirname(file)
        for base in dict.fromkeys((folder, posixpath.dirname(folder), "")):
            for below in _folders(file):
                path = posixpath.normpath(posixpath.join(base, below, name))
                if path in self._exact:
                    return [self._exact[path]]
        for wanted in dict.fromkeys((name, urllib.parse.unquote(name))):
            parts = wanted.split("/")[::-1]
            best: list[str] = []
            length: tuple[int, int] = 0, 0
            for path in self._by_name.get(parts[0].lower(), []):
                own = path.split("/")[::-1]
                same = [a.lower() == b.lower() for a, b in zip(parts, own, strict=False)]
                fit = [*same, False].index(False), parts[0] == own[0]
                if fit > length:
                    best, length = [path], fit
                elif fit == length:
                    best.append(path)
            if best:
                return [self._exact[path] for path in best]
        return []


def _folders(file: str) -> Iterator[str]:
    """Yield the folders, relative to that of an annotation file or one around it, where its photos may be."""
    yield ""
    yield "images"
    stem = posixpath.basename(file).partition(".")[0]
    words = [stem, stem.rpartition("_")[2], split_of(file)]
    for word in dict.fromkeys(word for word in words if word):
        yield from (word, f"images/{word}", f"{word}/images")
        yield from (f"{word}.zip", f"{word}.zip/{word}", f"images/{word}.zip")


class Found(NamedTuple):
    """Rows as a table of ``ANNOTATIONS``, and what to tell the user."""

    table: pa.Table
    notes: list[str]


def annotations(
    dataset: str, rows: Sequence[Row], photos: Sequence[str], source: str, options: OwnOptions
) -> Found:
    """Find the rows' photos, divide them into splits, and make the boxes that are missing.

    photos: paths of all files of the source. UserError if none of the photos is among them, or the splits do not fit.
    """
    places = Photos(photos)
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.photo and (row.photo, row.file) not in found:
            found[row.photo, row.file] = places.find(row.photo, row.file)
    if found and not any(found.values()):
        first, file = next(iter(found))
        raise UserError(
            f"none of the {len(found)} annotated photos is there: the first, {shown(first)}, is neither beside {file} "
            f"nor in images/ nor elsewhere in {source}: put the photos there"
        )
    _refuse_shared(found)
    splits = divide([(row.photo, row.file, row.split) for row in rows], options)
    number: Counter[str] = Counter()
    made = 0

    def converted() -> Iterator[dict[str, object]]:
        nonlocal made
        for row, split in zip(rows, splits.splits, strict=True):
            candidates = found.get((row.photo, row.file), [])
            fault, detail = row.fault, row.detail
            if fault is None and len(candidates) > 1:
                fault, detail = (
                    "ambiguous_photo",
                    f"{row.name}: {shown(row.photo)} may be {some(candidates, 3)}",
                )
            photo = candidates[0] if len(candidates) == 1 else normal_name(row.photo)
            box = row.box
            if box is None and fault is None:
                assert row.points is not None
                box = made_box(row.points)
                made += not bool(np.isnan(row.points).all())
            width, height = row.size or (None, None)
            yield {
                "sample_id": f"{dataset}/{photo}#{number[photo]}" if photo else f"{dataset}/{row.name}",
                "photo": photo,
                "split": split,
                "duplicate": row.duplicate,
                "box": box,
                "garment_type": row.garment_type,
                "category": row.garment_type,
                "area": row.area,
                "landmarks": None if row.points is None else row.points.ravel(),
                "visibility": row.visibility,
                "photo_width": width,
                "photo_height": height,
                "fault": fault,
                "fault_detail": detail,
            }
            number[photo] += 1

    source_rows = converted()
    tables = [ANNOTATIONS.empty_table()]
    while chunk := list(islice(source_rows, CHUNK)):
        tables.append(_table(chunk))
    notes = [splits.note]
    files: dict[str, set[str]] = defaultdict(set)
    for (_, file), candidates in found.items():
        if len(candidates) == 1:
            files[candidates[0]].add(file)
    if several := [those for those in files.values() if len(those) > 1]:
        notes.append(
            f"photos annotated in several files: {len(several):,}, for example in {some(sorted(several[0]), 3)}. "
            "If one is a copy of another, its garments count twice: name one with --source"
        )
    if made:
        notes.append(f"boxes: {made:,} of {len(rows):,} are missing and made from the landmarks")
    return Found(pa.concat_tables(tables), notes)


def _refuse_shared(found: dict[tuple[str, str], list[str]]) -> None:
    """Find no file for names that fit one less well than another name of the same annotations does.

    Of p1/front.jpg and p2/front.jpg, if the second photo is not there, both names end like p1/front.jpg.
    """
    by_place: dict[tuple[str, str], set[str]] = defaultdict(set)
    for (photo, file), candidates in found.items():
        if len(candidates) == 1:
            by_place[candidates[0], file].add(normal_name(photo))
    for (photo, file), candidates in found.items():
        if len(candidates) == 1 and len(names := by_place[candidates[0], file]) > 1:
            fits = {name: _same_end(name, candidates[0]) for name in names}
            if fits[normal_name(photo)] < max(fits.values()):
                candidates.clear()


def _same_end(name: str, path: str) -> int:
    """Return how many parts two paths have in common at their ends, in any capitals."""
    pairs = zip(name.lower().split("/")[::-1], normal_name(path).lower().split("/")[::-1], strict=False)
    return [*(a == b for a, b in pairs), False].index(False)


def _table(rows: Sequence[Mapping[str, object]]) -> pa.Table:
    columns = {}
    for field in ANNOTATIONS:
        values = [row.get(field.name) for row in rows]
        if field.name in ("landmarks", "visibility"):
            columns[field.name] = _lists(values, field.type.value_type)
        else:
            columns[field.name] = pa.array(values, field.type)
    return pa.table(columns, schema=ANNOTATIONS)


def _lists(values: Sequence[object], type_: pa.DataType) -> pa.Array:
    """Return arrays of any lengths as an Arrow list array; None is null."""
    filled = list_array([np.zeros(0) if v is None else np.asarray(v) for v in values], type_)
    mask = pa.array([v is None for v in values])
    return pa.ListArray.from_arrays(filled.offsets, filled.values, mask=mask)
