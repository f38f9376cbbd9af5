"""Inputs of inference: photos in archives or folders, whole or with boxes, lists of photos, or an ingested data set.

Each input becomes rows on disk, one per garment, in an order in which the photos can be read sequentially. A folder or
a list of any length passes through memory in pieces.
"""

import dataclasses
import hashlib
import itertools
import posixpath
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from glefld import listing, storage
from glefld.data.dataset import MANIFEST, open_dataset, read_manifest
from glefld.data.photos import PICTURES
from glefld.errors import BadPhoto, UserError
from glefld.redaction import public_url
from glefld.schema import Split
from pipelines.archives import (
    ARCHIVES,
    MEMBERS,
    Archive,
    file_members,
    open_archive,
    read_index,
)
from pipelines.infer.boxes import read_boxes
from pipelines.infer.lists import INVENTORY, LISTED, is_list, read_list
from pipelines.members import read_members
from pipelines.photo_table import read_photos
from pipelines.resumable import combined_state, source_state
from pipelines.rowfile import RowFile

#: The garment's columns. The photo's location follows: the columns PLACES for an archive or a folder, STORED for a data
#: set, and LISTED's others for a list.
GARMENTS = pa.schema([("uri", pa.string()), ("garment", pa.int32()), ("box", pa.list_(pa.float32(), 4))])
#: The archive's number in ``Photos.archives``, and the member.
PLACES = pa.schema([("archive", pa.int32()), *MEMBERS])
STORED = pa.schema(
    [("path", pa.string()), ("group", pa.int32()), ("row", pa.int32()), ("garment_type", pa.int8())]
)
ARCHIVED_ROWS = pa.schema([*GARMENTS, *PLACES])
STORED_ROWS = pa.schema([*GARMENTS, *STORED])
LISTED_ROWS = pa.schema([*GARMENTS, *list(LISTED)[1:]])
#: Rows that ``open_input`` puts together unless it is told: as few as a shard has by default.
GROUP_ROWS = 256
#: Archives of a folder whose directories are read at the same time.
INDEXERS = 4

#: In place of a file of boxes: a detector finds them, in photos that are listed whole.
DETECT = "detect"

_NO_PICTURE = "not a picture's name"
_REPLACED = "replaced by a later file of the same name"
#: As ``glefld.data.photos.is_picture``.
_PICTURE = r"(?is)^.*(" + "|".join(map(re.escape, PICTURES)) + ")$"
_METADATA = r"(^|/)(\._[^/]*$|__MACOSX/)"
_ARCHIVE = r"(?is)^.*(" + "|".join(map(re.escape, ARCHIVES)) + ")$"


class InputPhoto(NamedTuple):
    """A photo's encoded bytes, or a data set's stored crop of it. ``origin`` is the crop's x, y in the photo."""

    data: bytes | BadPhoto
    origin: tuple[float, float] = (0.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Photos:
    """Where photos are read from: archives or a folder, or a data set's root. With neither, rows name URLs."""

    archives: tuple[Archive, ...] = ()
    dataset: str | None = None

    def read(self, rows: pa.Table) -> Iterator[InputPhoto]:
        """Yield the photo of each row of ``Input.rows``, in order.

        At most one range of an archive, some photos of a list, or one row group of the data set is in memory at a time.
        """
        if self.dataset is not None:
            return _read_dataset(self.dataset, rows)
        return _read_archives(self.archives, rows) if self.archives else _read_listed(rows)


@dataclasses.dataclass(frozen=True)
class Input:
    """The garments to predict, the location of their photos, and the number of skipped files or rows by reason.

    ``photo_count`` is the number of different photos. ``state`` is that of the files which were read, as
    ``source_state`` returns it. ``version`` is the content hash of a data set, else empty: other rows have their file's
    checksum or version, as far as the input tells one.
    """

    photos: Photos
    rows: RowFile
    photo_count: int
    skipped: dict[str, int]
    state: str
    version: str = ""


def open_input(
    url: str, boxes: str | None, split: Split | None, staging: str, group_rows: int = GROUP_ROWS
) -> Input:
    """List the garments at a URL: archives, a folder, a list of photos, one photo, or an ingested data set.

    boxes: a Parquet or CSV file with one row per garment; None and ``DETECT`` take each photo whole. split: only this
    split of a data set. staging: where a compressed tar is unpacked. group_rows: rows in a group of ``Input.rows``.
    Raises UserError if the input cannot be used or holds nothing to predict.
    """
    if "landmark_set" in (read_manifest(url) or {}):
        if boxes is not None:
            raise UserError(f"{public_url(url)} is a data set and has its own boxes: omit --boxes")
        return _dataset_input(url, split, group_rows)
    if split is not None:
        raise UserError(
            f"--split is for ingested data sets, but {public_url(url)} is not one (it has no {MANIFEST}): omit --split"
        )
    boxes = None if boxes == DETECT else boxes
    single = storage.is_file(url)
    if not single and not storage.exists(url):
        raise UserError(
            f"{public_url(url)} does not exist: --input must be a photo, a folder, an archive, a list or a data set"
        )
    if single and is_list(url):
        if boxes is not None:
            raise UserError(
                f"--boxes does not go with {public_url(url)}, a list of photos: give --input the folder or prefix that "
                "holds them"
            )
        return _list_input(url, group_rows)
    made = _PhotoRows(url, boxes, group_rows)
    if not single:
        return _folder_input(made, staging)
    state = source_state([url])
    if url.lower().endswith(ARCHIVES):
        archive, photos, skipped = _index(url, staging)
        made.skipped.update(skipped)
        made.write(f"{archive.name}::", [_numbered(photos, 0)])
    else:
        archive = _folder(posixpath.dirname(url))
        file = dict.fromkeys(listing.FILES.names) | {"name": posixpath.basename(url), "utf8": True}
        found = pa.Table.from_pylist([file | storage.state(url)._asdict()], listing.FILES)
        made.write(
            storage.join(archive.name, ""), [_numbered(_whole(archive, file_members(found), made.skipped), 0)]
        )
    return made.input((archive,), state)


def _folder(url: str) -> Archive:
    """Return a folder as an archive, whatever its name ends in."""
    return Archive(url, public_url(url), "folder")


def _folder_input(made: "_PhotoRows", staging: str) -> Input:
    """List a folder once, and take its photos or, if it holds none, the archives in it."""
    folder = _folder(made.url)
    below = listing.Digest()
    names: list[str] = []

    def photos() -> Iterator[pa.Table]:
        for files in below.passing(listing.files(made.url)):
            archives = pc.match_substring_regex(files["name"], _ARCHIVE)
            metadata = pc.match_substring_regex(files["name"], _METADATA)
            names.extend(files["name"].filter(pc.and_not(archives, metadata)).to_pylist())
            yield _numbered(_whole(folder, file_members(files), made.skipped), 0)

    prefix = storage.join(folder.name, "")
    made.write(prefix, photos())
    opened = [folder]
    if names and not made.photo_count:
        made.skipped[_NO_PICTURE] -= len(names)
        opened.clear()
        made.write(prefix, _archives(made, names, staging, opened))
    return made.input(tuple(opened), combined_state([below.hexdigest()]))


def _archives(
    made: "_PhotoRows", names: Iterable[str], staging: str, opened: list[Archive]
) -> Iterator[pa.Table]:
    """Yield the photos of each archive in a folder, in turn; ``opened`` gets the archives."""
    with ThreadPoolExecutor(INDEXERS) as pool:
        waiting: deque[Future[tuple[Archive, pa.Table, Counter[str]]]] = deque()

        def first() -> pa.Table:
            archive, photos, skipped = waiting.popleft().result()
            made.skipped.update(skipped)
            opened.append(archive)
            return _numbered(photos, len(opened) - 1)

        for name in names:
            waiting.append(pool.submit(_index, storage.join(made.url, name), staging))
            if len(waiting) == 2 * INDEXERS:
                yield first()
        while waiting:
            yield first()


def _index(url: str, staging: str) -> tuple[Archive, pa.Table, Counter[str]]:
    """Return an archive and its photos, with what is skipped."""
    archive = open_archive(url, staging)
    members, replaced = read_index(archive)
    skipped = Counter({_REPLACED: replaced} if replaced else {})
    return archive, _whole(archive, members, skipped), skipped


def _whole(archive: Archive, members: pa.Table, skipped: Counter[str]) -> pa.Table:
    """Return the pictures among an archive's members, each with one garment that is the whole photo."""
    found = _pictures(members, "name", skipped)
    return _photos(pc.binary_join_element_wise(archive.uri(""), found["name"], ""), found)


def _pictures(files: pa.Table, column: str, skipped: Counter[str]) -> pa.Table:
    """Return the files whose name in the column is a picture's, and count the others."""
    names = files[column]
    metadata = pc.match_substring_regex(names, _METADATA)
    found = files.filter(pc.and_not(pc.match_substring_regex(names, _PICTURE), metadata))
    skipped[_NO_PICTURE] += len(files) - len(found)
    return found


def _photos(uris: pa.ChunkedArray, where: pa.Table) -> pa.Table:
    """Return one garment per photo: the whole of it."""
    n = len(where)
    columns = [uris, pa.array(np.zeros(n, np.int32)), pa.nulls(n, GARMENTS.field("box").type)]
    return pa.table([*columns, *where.columns], names=[*GARMENTS.names, *where.column_names])


def _numbered(photos: pa.Table, archive: int) -> pa.Table:
    """Put the number of their archive before the columns of MEMBERS."""
    number = pa.array(np.full(len(photos), archive, np.int32))
    return photos.add_column(len(GARMENTS), "archive", number).cast(ARCHIVED_ROWS)


class _PhotoRows:
    """The rows of photos in a folder or in archives while they are made, whole or by --boxes."""

    def __init__(self, url: str, boxes: str | None, group_rows: int) -> None:
        self.url = url
        self.skipped: Counter[str] = Counter()
        self.photo_count = 0
        self._boxes = boxes
        self._group_rows = group_rows
        self._rows = RowFile(ARCHIVED_ROWS)

    def write(self, prefix: str, photos: Iterable[pa.Table]) -> None:
        """Write the rows of these photos. prefix: what their uris begin with, and uris in --boxes may lack."""
        if self._boxes is None:
            self._rows = RowFile.of(photos, ARCHIVED_ROWS, self._group_rows)
            self.photo_count = len(self._rows)
            return
        found = pa.concat_tables([ARCHIVED_ROWS.empty_table(), *photos])
        self.photo_count = len(found)
        if not len(found):
            return
        rows = _boxed(self._boxes, found, prefix, public_url(self.url))
        self._rows = RowFile.of([rows], ARCHIVED_ROWS, self._group_rows)
        uris = rows["uri"]
        self.photo_count = pc.count_distinct(uris).as_py()
        there = pc.count_distinct(uris.filter(pc.is_valid(rows["name"]))).as_py()
        self.skipped["picture without a box in --boxes"] = len(found) - there

    def input(self, archives: tuple[Archive, ...], state: str) -> Input:
        if not len(self._rows):
            raise UserError(
                f"{public_url(self.url)} holds no picture ({', '.join(PICTURES)}) among its "
                f"{self.skipped[_NO_PICTURE]} files: check --input"
            )
        return Input(Photos(archives), self._rows, self.photo_count, dict(self.skipped), state)


def _boxed(boxes: str, photos: pa.Table, prefix: str, where: str) -> pa.Table:
    """Join the garments listed in --boxes with the photos, in these photos' order; those without a photo come last.

    Garments are numbered per photo, in the order listed.
    """
    listed = read_boxes(boxes)
    begins = pc.starts_with(listed["uri"], prefix)
    uris = pc.if_else(begins, listed["uri"], pc.binary_join_element_wise(prefix, listed["uri"], ""))
    places = pc.index_in(uris, value_set=photos["uri"]).combine_chunks()
    if places.null_count == len(places):
        raise UserError(
            f"none of the {len(places)} uris in {public_url(boxes)} is in {where} (first: "
            f"{listed['uri'][0].as_py().removeprefix(prefix)!r}): write them as paths relative to --input"
        )
    garments = [uris, occurrences(uris), listed["box"].combine_chunks()]
    rows = pa.table([*garments, *photos.select(PLACES.names).take(places).columns], ARCHIVED_ROWS)
    order = rows.select(["uri", "garment"]).append_column("place", places)
    keys = [("place", "ascending"), ("uri", "ascending"), ("garment", "ascending")]
    return rows.take(pc.sort_indices(order, keys))  # nulls come last


def occurrences(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return for each value how many equal ones come before it, as int32."""
    codes = pa.chunked_array(values).combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    sorted_codes = codes[order]
    starts = np.flatnonzero(np.diff(sorted_codes, prepend=-1))
    counts: np.ndarray = np.empty(len(codes), np.int32)
    counts[order] = np.arange(len(codes)) - np.repeat(starts, np.diff(starts, append=len(codes)))
    return pa.array(counts)


def _list_input(url: str, group_rows: int) -> Input:
    skipped: Counter[str] = Counter()
    state = source_state([url])

    def photos() -> Iterator[pa.Table]:
        for listed in read_list(url, skipped):
            # A list is somebody's choice, an inventory has all that is in the bucket.
            found = _pictures(listed, "uri", skipped) if posixpath.basename(url) == INVENTORY else listed
            yield _photos(found["uri"], found.drop_columns("uri")).cast(LISTED_ROWS)

    rows = RowFile.of(photos(), LISTED_ROWS, group_rows)
    if not len(rows):
        raise UserError(f"{public_url(url)} lists no picture: check --input")
    return Input(Photos(), rows, len(rows), {what: n for what, n in skipped.items() if n}, state)


def _read_archives(archives: tuple[Archive, ...], rows: pa.Table) -> Iterator[InputPhoto]:
    # Garments of one photo are adjacent, so each photo is read once. Garments without a photo come last.
    places = list(zip(*(rows[column].to_pylist() for column in ("archive", "name", "start")), strict=True))
    first = [
        i for i, place in enumerate(places) if place[0] is not None and (i == 0 or places[i - 1] != place)
    ]
    wanted = rows.take(pa.array(first, pa.int64()))
    found = itertools.chain.from_iterable(_by_archive(archives, wanted))
    for (archive, *_), garments in itertools.groupby(places):
        photo = BadPhoto("missing_photo", "not in --input") if archive is None else next(found)
        for _ in garments:
            yield InputPhoto(photo)


def _by_archive(archives: tuple[Archive, ...], rows: pa.Table) -> Iterator[Iterator[bytes | BadPhoto]]:
    start = 0
    for number, members in itertools.groupby(rows["archive"].to_pylist()):
        count = len(list(members))
        yield read_members(archives[number], rows.select(MEMBERS.names).slice(start, count))
        start += count


def _read_listed(rows: pa.Table) -> Iterator[InputPhoto]:
    """Read photos that lie by themselves, some at a time. Raises OSError if the storage fails."""
    # The size is not held against the photo's: the list may be older.
    unknown = pa.nulls(len(rows), pa.int64())
    photos = pa.table({"name": rows["uri"], "stored": unknown, "size": unknown})
    return map(InputPhoto, read_photos(photos))


def _dataset_input(url: str, split: Split | None, group_rows: int) -> Input:
    state = source_state([url])
    manifest = open_dataset(url)
    shards = [shard for shard in manifest.shards if split in (None, shard.split)]
    found = pa.concat_tables([STORED_ROWS.empty_table(), *(_stored(url, shard.path) for shard in shards)])
    if not len(found):
        raise UserError(
            f"the data set {public_url(url)} has no rows"
            + (f" in the split {split} (--split)" if split else "")
        )
    uris = found["uri"]
    numbered = found.set_column(found.column_names.index("garment"), "garment", occurrences(uris))
    rows = RowFile.of([numbered.cast(STORED_ROWS)], STORED_ROWS, group_rows)
    skipped = {f"row of split {s}": n for s, n in manifest.splits.items() if split not in (None, s)}
    photos = pc.count_distinct(uris).as_py()
    return Input(Photos(dataset=url), rows, photos, skipped, state, manifest.content_hash)


def _stored(root: str, path: str) -> pa.Table:
    """Return the rows of a data set's shard, with a garment of no number yet."""
    tables = []
    with storage.open(storage.join(root, path)) as file:
        parquet = pq.ParquetFile(file)
        for group in range(parquet.num_row_groups):
            table = parquet.read_row_group(group, columns=["source_uri", "box", "garment_type"])
            n = len(table)
            columns = [
                table["source_uri"],
                pa.array(np.zeros(n, np.int32)),
                table["box"],
                pa.repeat(path, n),
                pa.array(np.full(n, group, np.int32)),
                pa.array(np.arange(n, dtype=np.int32)),
                table["garment_type"],
            ]
            tables.append(
                pa.table([c.cast(f.type) for c, f in zip(columns, STORED_ROWS, strict=True)], STORED_ROWS)
            )
    return pa.concat_tables([STORED_ROWS.empty_table(), *tables])


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
