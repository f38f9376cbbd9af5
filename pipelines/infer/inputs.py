"""Inputs of inference: photos in an archive or folder, whole or with boxes, or the rows of an ingested data set.

Each input becomes a table with one row per garment, sorted so that the photos can be read sequentially.
"""

import dataclasses
import hashlib
import io
import itertools
import posixpath
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from glefld import storage
from glefld.data.dataset import MANIFEST, open_dataset, read_manifest
from glefld.data.photos import PICTURES, is_picture
from glefld.datasets.lists import LARGEST
from glefld.errors import BadPhoto, UserError
from glefld.redaction import public_url
from glefld.schema import Split
from pipelines.archives import ARCHIVES, MEMBERS, Archive, open_archive, read_index, read_members

#: The garment's columns. The photo's location follows: the columns MEMBERS for an archive, STORED for a data set.
GARMENTS = pa.schema([("uri", pa.string()), ("garment", pa.int32()), ("box", pa.list_(pa.float32(), 4))])
STORED = pa.schema(
    [("path", pa.string()), ("group", pa.int32()), ("row", pa.int32()), ("garment_type", pa.int8())]
)
CORNERS = ("x1", "y1", "x2", "y2")
#: Limit on the rows of a Parquet file for --boxes: a few kilobytes of Parquet can hold billions of rows.
MAX_BOXES = 20_000_000


class InputPhoto(NamedTuple):
    """A photo's encoded bytes, or a data set's stored crop of it. ``origin`` is the crop's x, y in the photo."""

    data: bytes | BadPhoto
    origin: tuple[float, float] = (0.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Photos:
    """The place where photos are read from: an archive or folder, or an ingested data set's root."""

    archive: Archive | None
    dataset: str | None

    def read(self, rows: pa.Table) -> Iterator[InputPhoto]:
        """Yield the photo of each row of ``Input.rows``, in order.

        At most one range of the archive, or one row group of the data set, is in memory at a time.
        """
        if self.archive is not None:
            return _read_archive(self.archive, rows)
        assert self.dataset is not None
        return _read_dataset(self.dataset, rows)


@dataclasses.dataclass(frozen=True)
class Input:
    """The garments to predict, the location of their photos, and the number of skipped files or rows by reason.

    ``version`` is the content hash of a data set, else empty: other rows have their file's checksum or version.
    """

    photos: Photos
    rows: pa.Table
    skipped: dict[str, int]
    version: str = ""


def open_input(url: str, boxes: str | None, split: Split | None, staging: str) -> Input:
    """List the garments at a URL: an archive, an ingested data set, a folder or prefix of photos, or one photo.

    boxes: a Parquet or CSV file with one row per garment; None takes each photo whole. split: only this split of a data
    set. staging: where a compressed tar is unpacked.
    Raises UserError if the input cannot be used or holds nothing to predict.
    """
    if "landmark_set" in (read_manifest(url) or {}):
        if boxes is not None:
            raise UserError(f"{public_url(url)} is a data set and has its own boxes: omit --boxes")
        return _dataset_input(url, split)
    if split is not None:
        raise UserError(
            f"--split is for ingested data sets, but {public_url(url)} is not one (it has no {MANIFEST}): omit --split"
        )
    single = storage.is_file(url) and not url.lower().endswith(ARCHIVES)
    if not single and not storage.exists(url):
        raise UserError(
            f"{public_url(url)} does not exist: --input must be a photo, a folder, an archive or a data set"
        )
    archive = open_archive(posixpath.dirname(url) if single else url, staging)
    members, replaced = (_one_member(url), 0) if single else read_index(archive)
    found = members.filter(pa.array(map(is_picture, members["name"].to_pylist()), pa.bool_()))
    skipped = {"not a picture's name": len(members) - len(found)}
    if replaced:
        skipped["replaced by a later file of the same name"] = replaced
    if not len(found):
        raise UserError(
            f"{public_url(url)} holds no picture ({', '.join(PICTURES)}) among its {len(members)} files: check --input"
        )
    if boxes is not None:
        rows = _boxed(boxes, found, archive)
        skipped["picture without a box in --boxes"] = len(found) - len(
            set(rows["name"].drop_null().to_pylist())
        )
    else:
        rows = _whole(found, archive)
    order = [("start", "ascending"), ("name", "ascending"), ("uri", "ascending"), ("garment", "ascending")]
    return Input(Photos(archive, None), rows.sort_by(order).combine_chunks(), skipped)


def _one_member(url: str) -> pa.Table:
    size, version = storage.state(url)
    row = dict.fromkeys(MEMBERS.names) | {
        "name": posixpath.basename(url),
        "start": 0,
        "stop": size,
        "stored": size,
        "size": size,
        "method": 0,
        "version": version,
    }
    return pa.Table.from_pylist([row], MEMBERS)


def _whole(members: pa.Table, archive: Archive) -> pa.Table:
    n = len(members)
    uris = pa.array([archive.uri(name) for name in members["name"].to_pylist()], pa.string())
    garments = pa.table(
        [uris, pa.array(np.zeros(n, np.int32)), pa.nulls(n, GARMENTS.field("box").type)], GARMENTS
    )
    return _joined(garments, members)


def _boxed(boxes: str, members: pa.Table, archive: Archive) -> pa.Table:
    """Join the garments listed in --boxes with the members. Garments are numbered per photo, in the order listed."""
    listed = _read_boxes(boxes)
    prefix = archive.uri("")
    names = [uri.removeprefix(prefix) for uri in listed["uri"].to_pylist()]
    place = pc.index_in(pa.array(names, pa.string()), value_set=members["name"])
    if place.null_count == len(place):
        raise UserError(
            f"none of the {len(place)} uris in {public_url(boxes)} is in {archive.name} (first: {names[0]!r}): "
            "write them as paths relative to --input"
        )
    seen: Counter[str] = Counter()
    numbers = []
    for name in names:
        numbers.append(seen[name])
        seen[name] += 1
    uris = pa.array([archive.uri(name) for name in names], pa.string())
    garments = pa.table([uris, pa.array(numbers, pa.int32()), listed["box"].combine_chunks()], GARMENTS)
    return _joined(garments, members.take(place))


def _joined(garments: pa.Table, where: pa.Table) -> pa.Table:
    return pa.table([*garments.columns, *where.columns], names=[*garments.column_names, *where.column_names])


def _read_boxes(url: str) -> pa.Table:
    """Read ``uri`` and ``box`` from a CSV or Parquet file. A box is null if all its corners are.

    Raises UserError for a file that cannot be used.
    """
    name, data = public_url(url), storage.read_bytes(url)
    try:
        table = _csv(data) if url.lower().endswith(".csv") else _parquet(data, name)
        columns = Counter(table.column_names)
    except UserError:
        raise
    # Not the storage's: the file is in memory. Damaged files raise all of these.
    except (pa.ArrowException, ValueError, OSError, MemoryError) as error:
        raise UserError(f"--boxes {name} is not a readable CSV or Parquet file: {error}") from error
    if not columns["uri"] or not (columns["box"] or all(columns[c] for c in CORNERS)) or not len(table):
        raise UserError(
            f"{name} must have rows with the columns uri and {', '.join(CORNERS)} (or box, a list of these four); it "
            f"has {len(table)} rows with the columns {', '.join(columns)}"
        )
    for column in ("uri", *(("box",) if columns["box"] else CORNERS)):
        if columns[column] > 1:
            raise UserError(f"{name} has {columns[column]} columns {column}: remove all but one")
    uris = _texts(table["uri"], name)
    corners = _corners(table, name)
    # Those of a photo are far smaller; infinity is what remains of a number that does not fit.
    if (beyond := np.flatnonzero((np.abs(corners) > LARGEST).any(axis=1))).size:
        row = beyond[0]
        raise UserError(
            f"{name}, row {row + 1}: a corner of the box {corners[row].tolist()} is beyond any photo"
        )
    box = pa.FixedSizeListArray.from_arrays(
        pa.array(corners.astype(np.float32).ravel()), 4, mask=pa.array(np.isnan(corners).all(axis=1))
    )
    return pa.table({"uri": uris, "box": box})


def _csv(data: bytes) -> pa.Table:
    types = {"uri": pa.string()} | dict.fromkeys(CORNERS, pa.float64())
    options = pyarrow.csv.ConvertOptions(column_types=types)
    return pyarrow.csv.read_csv(io.BytesIO(data), convert_options=options)


def _parquet(data: bytes, name: str) -> pa.Table:
    file = pq.ParquetFile(io.BytesIO(data))
    if file.metadata.num_rows > MAX_BOXES:
        raise UserError(
            f"{name} has {file.metadata.num_rows} rows, more than the {MAX_BOXES} that one run accepts: split it into "
            "several files"
        )
    return file.read()


def _texts(column: pa.ChunkedArray, name: str) -> pa.Array:
    """Return the column uri as strings; UserError if it holds anything else."""
    type_ = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_)):
        raise UserError(f"{name}: the column uri must be text, not {column.type}")
    if column.null_count:
        raise UserError(f"{name} has {column.null_count} rows without a uri: fill in or remove them")
    texts = column.cast(pa.string())
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid as error:
        raise UserError(f"{name}: the column uri holds text that is not UTF-8 ({error})") from error
    return texts


def _corners(table: pa.Table, name: str) -> np.ndarray:
    """Return the boxes [N, 4] as float64, NaN where null; UserError unless all are numbers, four to a box."""
    if "box" not in table.column_names:
        return np.stack([_numbers(table[corner], corner, name) for corner in CORNERS], axis=1)
    boxes = table["box"].combine_chunks()
    corners = np.full((len(boxes), 4), np.nan)
    if pa.types.is_null(boxes.type):
        return corners
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    lengths = pc.list_value_length(boxes) if any(check(boxes.type) for check in lists) else pa.array([0])
    if not pc.all(pc.equal(lengths, 4), min_count=0).as_py():
        raise UserError(f"{name}: each box must be a list of four numbers, x1 y1 x2 y2")
    listed = pc.is_valid(boxes).to_numpy(zero_copy_only=False)
    corners[listed] = _numbers(pc.list_flatten(boxes), "box", name).reshape(-1, 4)
    return corners


def _numbers(column: pa.ChunkedArray | pa.Array, what: str, name: str) -> np.ndarray:
    """Return a column as float64, NaN where null; UserError if it does not hold numbers."""
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)
    if not any(is_kind(column.type) for is_kind in kinds):
        raise UserError(f"{name}: the column {what} must hold numbers, not {column.type}")
    return column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)


def _read_archive(archive: Archive, rows: pa.Table) -> Iterator[InputPhoto]:
    # Garments of one photo are adjacent, so each photo is read once. Garments without a photo come last.
    places = list(zip(rows["name"].to_pylist(), rows["start"].to_pylist(), strict=True))
    first = [
        i for i, place in enumerate(places) if place[0] is not None and (i == 0 or places[i - 1] != place)
    ]
    found = read_members(archive, rows.select(MEMBERS.names).take(pa.array(first, pa.int64())))
    for (name, _), garments in itertools.groupby(places):
        photo = BadPhoto("missing_photo", f"not in {archive.name}") if name is None else next(found)
        for _ in garments:
            yield InputPhoto(photo)


def _dataset_input(url: str, split: Split | None) -> Input:
    manifest = open_dataset(url)
    tables = []
    seen: Counter[str] = Counter()
    for shard in manifest.shards:
        if split not in (None, shard.split):
            continue
        with storage.open(storage.join(url, shard.path)) as file:
            parquet = pq.ParquetFile(file)
            for group in range(parquet.num_row_groups):
                table = parquet.read_row_group(group, columns=["source_uri", "box", "garment_type"])
                numbers = []
                for uri in table["source_uri"].to_pylist():
                    numbers.append(seen[uri])
                    seen[uri] += 1
                n = len(table)
                garments = [table["source_uri"], pa.array(numbers, pa.int32()), table["box"]]
                place = [
                    pa.array([shard.path] * n),
                    pa.array([group] * n),
                    pa.array(range(n)),
                    table["garment_type"],
                ]
                tables.append(
                    pa.table(
                        [
                            column.cast(field.type)
                            for column, field in zip([*garments, *place], ROWS, strict=True)
                        ],
                        schema=ROWS,
                    )
                )
    rows = pa.concat_tables(tables) if tables else pa.table([[]] * len(ROWS), schema=ROWS)
    if not len(rows):
        raise UserError(
            f"the data set {public_url(url)} has no rows"
            + (f" in the split {split} (--split)" if split else "")
        )
    skipped = {f"row of split {s}": n for s, n in manifest.splits.items() if split not in (None, s)}
    return Input(Photos(None, url), rows.combine_chunks(), skipped, manifest.content_hash)


ROWS = pa.schema([*GARMENTS, *STORED])


def _read_dataset(root: str, rows: pa.Table) -> Iterator[InputPhoto]:
    places = rows.select(STORED.names).to_pylist()
    for (shard, group), wanted in itertools.groupby(places, lambda p: (p["path"], p["group"])):
        with storage.open(storage.join(root, shard), cache_type="readahead", block_size=8 << 20) as file:
            table = pq.ParquetFile(file).read_row_group(group, columns=["image", "crop_box"])
        for place in wanted:
            x1, y1, _, _ = table["crop_box"][place["row"]].as_py()
            yield InputPhoto(table["image"][place["row"]].as_py(), (x1, y1))


def file_hash(url: str) -> str:
    """Return a short hash of a small file's content."""
    return hashlib.sha256(storage.read_bytes(url)).hexdigest()[:16]
