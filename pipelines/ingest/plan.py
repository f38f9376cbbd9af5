"""The plan of an ingest: the rows of every shard, fixed in advance and independent of timing and number of CPUs.

It is made with tables that need not fit into memory, and written as Parquet files: each shard is a row group of one of
them, and its task is told which. What the driver holds does not grow with the rows.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import duckdb
import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg

from glefld import storage
from glefld.data import lossless
from glefld.datasets import LAYOUTS, Dataset
from glefld.datasets.lists import ANNOTATIONS, Annotations, OwnOptions
from glefld.errors import UserError, require_between
from glefld.listing import regrouped
from glefld.redaction import public_url
from glefld.schema import REJECT_SCHEMA, SCHEMA_VERSION, SPLITS, Labels
from glefld.synthetic.raw_lists import MARK
from glefld.temporary import temporary_file, temporary_space
from pipelines.archives import MEMBERS, Archive
from pipelines.ingest.shard import PLANNED, REASONS, shard_path
from pipelines.ingest.source import INDEX, Indexed
from pipelines.ingest.sql import BATCH_ROWS, batches, database, read_files, registered
from pipelines.members import MAX_MEMBER_BYTES
from pipelines.resumable import ROW_GROUP
from pipelines.rowfile import hash_values

#: Raise this when the same photos and lists would give other rows, so that shards of two releases are not mixed.
INGEST_VERSION = 5
#: Even a small split gets this many shards (of at least one row group each), so that several readers can share it.
MIN_SHARDS = 8
#: Bytes stored per byte of the source photos, to size shards. Measured on 6,000 photos of DeepFashion at margin 0.25:
#: 0.85 where crops are cut without decoding, 1.94 where they are encoded again.
STORED_PER_PHOTO_BYTE = 0.85
#: Row groups of a data set of so many rows that its groups would be more are larger, up to so many rows: readers hold
#: something of each group, and a shard's footer grows with the number of its groups.
MOST_GROUPS = 1 << 16
LARGEST_GROUP = 1024
#: Columns of the plan with few values. Dictionaries of the others would cost as much time as all the rest.
REPEATED = ["split", "archive", "version", "method", "garment_type", "variation", "category", "view"]
#: A file of the plan is ended after so many rows.
FILE_ROWS = 1 << 20


@dataclasses.dataclass(frozen=True)
class IngestOptions:
    """The source, and the options that determine the content of the data set."""

    dataset: Dataset
    """Layout of the raw data."""
    source: str
    """Folder with the lists and img.zip (or .tar, .tar.gz, unpacked img/, or several: img-0.zip, img-1.zip or archives
    in img/; or img.parquet, a table of uris), or one archive of everything; path or URL. deepfashion2: folder with
    train and validation, unpacked or one zip each. image-folder: folder or archive with train/, val/ and optionally
    test/, each with one folder per class, or a folder of such archives. table: folder with labels.json, Parquet files
    of annotations, and photos as above or wherever the uris in these files say. coco, csv: a JSON or CSV file, or a
    folder or archive with such files; the photos lie beside them, in images/ or elsewhere in there."""
    margin: float | Literal["full"] = 0.25
    """Margin to store around the bounding box, as a fraction of its size on each side. full: store the whole photo."""
    landmark_tolerance: float = 0.1
    """How far outside its bounding box a landmark may lie before the row is rejected, as a fraction of the box size."""
    shard_mib: int = 256
    """Target size of a Parquet file in MiB."""
    dedupe: bool = False
    """Drop photos from train whose exact bytes are also in val or test."""
    pairs: str | None = None
    """coco, csv: landmarks that change places in a mirror image, LEFT:RIGHT,LEFT:RIGHT,... or none. Default: found by
    left and right, or l and r, in their names."""
    sigmas: str | None = None
    """coco, csv: sigma of each landmark for AP over OKS, with commas between them, or one for all. Default: those in
    the file, else 0.04."""
    val_fraction: float | None = None
    """coco, csv: share of the photos for the split val, if no file is it (default 0.2)."""
    test_fraction: float | None = None
    """coco, csv: share of the photos for the split test, if no file is it (default 0)."""
    split_seed: int | None = None
    """coco, csv: seed of the choice of these photos (default 0)."""

    @property
    def own(self) -> OwnOptions:
        """What the reader of annotations of one's own is told."""
        return OwnOptions(
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(OwnOptions)}
        )

    def check(self) -> None:
        """Raise UserError for a value out of range."""
        if self.margin != "full":
            require_between("--margin", self.margin, 0, 10)
        require_between("--landmark-tolerance", self.landmark_tolerance, 0)
        require_between("--shard-mib", self.shard_mib, 1)
        if not LAYOUTS[self.dataset].own:
            for name, value in vars(self.own).items():
                if value is not None:
                    raise UserError(f"--{name.replace('_', '-')} is for --dataset coco and csv: leave it out")
        val, test = self.val_fraction or 0, self.test_fraction or 0
        require_between("--val-fraction", val, 0, 0.9)
        require_between("--test-fraction", test, 0, 0.9)
        require_between("--val-fraction and --test-fraction together", val + test, 0, 0.95)

    def public(self) -> dict[str, Any]:
        """Return the options for the manifest, without credentials."""
        return {**dataclasses.asdict(self), "source": public_url(self.source)}


@dataclasses.dataclass(frozen=True)
class PlannedShard:
    """One Parquet file to write: its rows, of the schema ``PLANNED``, are a row group of a file of the plan."""

    split: str
    index: int
    file: str
    group: int
    rows: int

    @property
    def path(self) -> str:
        """The shard's path, relative to the output."""
        return shard_path(self.split, self.index)

    @property
    def item(self) -> dict[str, Any]:
        """What a task is told."""
        return {"split": self.split, "index": self.index, "file": self.file, "group": self.group}


@dataclasses.dataclass(frozen=True)
class IngestPlan:
    """All shards, and the rows already rejected. ``key`` hashes everything that determines the content."""

    key: str
    options: IngestOptions
    archives: tuple[Archive, ...]
    labels: Labels
    rows_in: int
    shards: tuple[PlannedShard, ...]
    group_rows: int
    """Rows of the shards' row groups."""
    rejects: dict[str, int]
    """Rows that the lists and indexes reject, by reason."""
    rejects_file: str | None
    """Parquet file of these rows; None if there are none."""
    source: dict[str, Any]
    source_state: str
    folder: str
    """Where the plan's files are."""


def make_plan(
    options: IngestOptions,
    name: str,
    indexes: Sequence[Indexed],
    annotations: Annotations,
    absent: Sequence[str],
    folder: str,
    source_state: str = "",
) -> IngestPlan:
    """Join the lists with the archives' indexes, reject rows that need no look at the photo, and shard the rest.

    Rows are sorted by split, archive and position in it. name: the source's, in messages. absent: lists that are not
    there. folder: where the plan is written. source_state: of the files, taken before they were read.
    Raises UserError if no row has both an annotation and a photo, or if a listed photo is in several archives.
    """
    with database() as db:
        rows_in, capitals, again = _join(db, annotations.table, indexes)
        counts = dict(
            db.execute("SELECT reason, count(*) FROM rows WHERE reason IS NOT NULL GROUP BY ALL").fetchall()
        )
        if not rows_in:
            raise UserError(f"the lists of {name} are empty: check that --source has the whole data set")
        if sum(counts.values()) == rows_in:
            reasons = ", ".join(f"{reason} {counts[reason]}" for reason in REASONS if reason in counts)
            where = indexes[0].archive.name if len(indexes) == 1 else f"the archives of {name}"
            raise UserError(
                f"none of the {rows_in} listed rows has an annotation in every list and a photo in {where} "
                f"({reasons}): check that --source has lists and photos of the same data set"
            )
        groups = group_rows(rows_in - sum(counts.values()))
        digest = _digest_of(options, annotations.labels, groups)
        shards = tuple(
            shard
            for split in SPLITS
            for shard in _write_split(db, split, options.shard_mib << 20, folder, digest)
        )
        rejects_file = _write_rejects(db, name, indexes, folder, digest) if counts else None
        used = _number(
            db, "SELECT count(*) FROM (SELECT DISTINCT archive, start, name FROM rows WHERE reason IS NULL)"
        )
    files = sum(found.files for found in indexes) - again
    return IngestPlan(
        key=digest.hexdigest(),
        options=options,
        archives=tuple(found.archive for found in indexes),
        labels=annotations.labels,
        rows_in=rows_in,
        shards=shards,
        group_rows=groups,
        rejects=dict(sorted(counts.items())),
        rejects_file=rejects_file,
        source={
            "url": public_url(options.source),
            "photos": _named([found.archive.name for found in indexes]),
            "rendered": storage.is_folder(options.source)
            and storage.exists(storage.join(options.source, MARK)),
            # The view list is an addition of ours; the benchmarks do not have it.
            "absent_lists": sorted(list_ for list_ in absent if not list_.endswith("view.txt")),
            "files": files,
            "file_bytes": sum(found.bytes for found in indexes),
            "files_not_used": files - used,
            "files_replaced": sum(found.replaced for found in indexes),
            "photos_found_by_other_capitals": capitals,
            **({"notes": list(annotations.notes)} if annotations.notes else {}),
        },
        source_state=source_state,
        folder=folder,
    )


def _named(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


#: What the rows get from the index.
_MEMBER = ", ".join(["archive", *MEMBERS.names])
#: Why a row is rejected without a look at its photo; null if it is not.
_REASON = """CASE WHEN duplicate OR position <> kept THEN 'duplicate_id'
    WHEN fault IS NOT NULL THEN fault
    WHEN split IS NULL OR box IS NULL OR visibility IS NULL THEN 'missing_annotation'
    WHEN name IS NULL THEN 'missing_photo' END"""


def _join(
    db: duckdb.DuckDBPyConnection, annotations: pa.Table | pa.RecordBatchReader, indexes: Sequence[Indexed]
) -> tuple[int, int, int]:
    """Make the view ``rows``: the annotations, each with its photo if there is one, and why it is rejected, if it is.

    Returns the number of annotations, how many photos were found by ignoring case, and how often one that is in the
    index of a table is in that of another. UserError if a listed photo is in several archives.
    """
    numbered = _Numbered(annotations)
    members = _Members(db, indexes)
    with registered(db, "annotations", numbered.schema, numbered.batches()):
        members.read(
            f"CREATE TABLE joined AS SELECT a.*, {_MEMBER} FROM annotations a "
            "LEFT JOIN (FROM members WHERE first) ON photo = listed"
        )
    again = 0
    if _number(db, "SELECT count(*) FROM joined") != numbered.rows:
        # Tables may name a photo in several files, as programs divide rows as they like, if it is the same file.
        same = "min(name) = max(name)" if all(found.archive.kind == "table" for found in indexes) else "false"
        members.read(
            f"CREATE TABLE several AS SELECT listed, min(archive) AS low, max(archive) AS high, {same} AS same, "
            "count(*) - 1 AS again FROM members WHERE first AND listed IN (SELECT photo FROM joined) "
            "GROUP BY listed HAVING count(*) > 1"
        )
        _refuse_several(db, indexes, "SELECT listed, low, high FROM several WHERE NOT same")
        db.execute("DELETE FROM joined USING several WHERE photo = listed AND archive <> low")
        again = _number(db, "SELECT sum(again) FROM several")
    _mark_repeated(db, isinstance(annotations, pa.RecordBatchReader))
    # The capitalisation of folders differs between the benchmark's lists and its archive.
    capitals = 0
    db.execute(f"CREATE TABLE loose AS SELECT '' AS key, {_MEMBER}, 0 AS low, 0 AS high FROM joined LIMIT 0")
    if _number(db, "SELECT count(*) FROM joined WHERE name IS NULL"):
        members.read(
            f"INSERT INTO loose SELECT lower(listed) AS key, {_MEMBER}, min(archive) OVER same, max(archive) OVER same "
            "FROM members "
            "WHERE first AND lower(listed) IN (SELECT lower(photo) FROM joined WHERE name IS NULL) "
            "WINDOW same AS (PARTITION BY lower(listed)) "
            "QUALIFY row_number() OVER (PARTITION BY lower(listed) ORDER BY archive, start, name) = 1"
        )
        _refuse_several(
            db,
            indexes,
            "SELECT photo, low, high FROM joined JOIN loose ON lower(photo) = key "
            "WHERE joined.name IS NULL AND low <> high",
        )
        capitals = _number(
            db, "SELECT count(*) FROM joined, loose WHERE joined.name IS NULL AND lower(photo) = key"
        )
    db.execute(
        f"CREATE VIEW rows AS SELECT *, {_REASON} AS reason FROM ("
        "FROM joined WHERE name IS NOT NULL UNION ALL "
        f"SELECT joined.* EXCLUDE ({_MEMBER}), loose.* EXCLUDE (key, low, high) FROM joined LEFT JOIN loose "
        "ON lower(photo) = key WHERE joined.name IS NULL) LEFT JOIN repeated USING (sample_id)"
    )
    return numbered.rows, capitals, again


def _refuse_several(db: duckdb.DuckDBPyConnection, indexes: Sequence[Indexed], query: str) -> None:
    """UserError for the first photo that a query finds in two archives, of which it gives the numbers."""
    if found := db.execute(f"{query} ORDER BY ALL LIMIT 1").fetchall():
        photo, low, high = found[0]
        names = [indexes[number].archive.name for number in (low, high)]
        raise UserError(f"the photo {photo} is in {names[0]} and in {names[1]}: leave it in one of them")


class _Numbered:
    """Annotations to be read once, with their position; ``rows`` counts those that have been read."""

    schema = ANNOTATIONS.append(pa.field("position", pa.int64()))

    def __init__(self, annotations: pa.Table | pa.RecordBatchReader) -> None:
        self.rows = 0
        self._annotations = annotations

    def batches(self) -> Iterator[pa.RecordBatch]:
        found = self._annotations
        for batch in found.to_batches(BATCH_ROWS) if isinstance(found, pa.Table) else found:
            yield batch.append_column("position", pa.array(np.arange(self.rows, self.rows + len(batch))))
            self.rows += len(batch)


def _mark_repeated(db: duckdb.DuckDBPyConnection, unknown: bool) -> None:
    """Make the table ``repeated``: each sample id that stands several times, and the position of the first.

    unknown: the annotations do not say so themselves. Hashes are compared first, since ids would not fit into memory.
    """
    db.execute("CREATE TABLE repeated AS SELECT sample_id, position AS kept FROM joined LIMIT 0")
    if unknown:
        db.execute(
            "INSERT INTO repeated SELECT sample_id, min(position) FROM joined WHERE hash(sample_id) IN "
            "(SELECT hash(sample_id) FROM joined GROUP BY ALL HAVING count(*) > 1) "
            "GROUP BY sample_id HAVING count(*) > 1"
        )


class _Members:
    """The indexes of all archives as the table ``members``, which is read anew for each query."""

    def __init__(self, db: duckdb.DuckDBPyConnection, indexes: Sequence[Indexed]) -> None:
        self._db, self._urls = db, [found.file for found in indexes]

    def read(self, query: str) -> None:
        with registered(self._db, "members", INDEX, read_files(self._urls)):
            self._db.execute(query)


def _number(db: duckdb.DuckDBPyConnection, query: str) -> int:
    return int(db.execute(query).fetchall()[0][0] or 0)


def _write_split(
    db: duckdb.DuckDBPyConnection, split: str, shard_bytes: int, folder: str, digest: "hashlib._Hash"
) -> Iterator[PlannedShard]:
    """Write a split's rows in order, one row group a shard, and yield the shards. They are of nearly equal size.

    Sizes are those of the unpacked photos, so the split is the same for every kind of archive.
    """
    size = f"least(size, {MAX_MEMBER_BYTES})"  # larger ones are never read
    kept = f"FROM rows WHERE reason IS NULL AND split = '{split}'"
    rows, total = db.execute(f"SELECT count(*), coalesce(sum({size}), 0) {kept}").fetchall()[0]
    if not rows:
        return
    count = max(
        math.ceil(int(total) * STORED_PER_PHOTO_BYTE / shard_bytes),
        min(MIN_SHARDS, math.ceil(rows / ROW_GROUP)),
    )
    columns = ", ".join(PLANNED.names)
    tables = batches(db, f"SELECT {columns} {kept} ORDER BY archive, start, name, sample_id", PLANNED)
    with _Files(folder, split) as files:
        for index, table in enumerate(_shards(tables, int(total), count)):
            digest.update(shard_path(split, index).encode())
            hash_values(digest, table)
            yield PlannedShard(split, index, *files.write(table), len(table))


def _shards(tables: Iterator[pa.Table], total: int, count: int) -> Iterator[pa.Table]:
    """Cut rows, in order, into about ``count`` tables of nearly equal bytes. total: bytes of all rows."""
    held: list[pa.Table] = []
    before, current = 0, 0
    for table in tables:
        sizes = table["size"].to_numpy().clip(max=MAX_MEMBER_BYTES)
        middle = before + np.cumsum(sizes) - sizes / 2
        before += int(sizes.sum())
        shard = np.minimum(middle / max(1, total) * count, count - 1).astype(np.int64)
        edges = [0, *np.flatnonzero(np.diff(shard, prepend=current)).tolist(), len(table)]
        for start, end in itertools.pairwise(edges):
            if start == end == 0:  # the shard before has ended with its table
                continue
            if shard[start] != current and held:
                yield pa.concat_tables(held).combine_chunks()
                held = []
            current = int(shard[start])
            held.append(table.slice(start, end - start))
    if held:
        yield pa.concat_tables(held).combine_chunks()


class _Files:
    """The plan's files of one split: a row group for each table that is written."""

    def __init__(self, folder: str, split: str) -> None:
        self._folder, self._split = folder, split
        self._number = self._group = self._rows = 0
        self._open = contextlib.ExitStack()
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *error: object) -> None:
        with self._open:
            if error[0] is None and self._writer is not None:
                self._finish()

    def write(self, table: pa.Table) -> tuple[str, int]:
        """Write a row group. Returns the URL of its file and its number in there."""
        if self._writer is None:
            self._file = self._open.enter_context(temporary_file())
            self._writer = pq.ParquetWriter(
                self._file, PLANNED, compression="zstd", use_dictionary=REPEATED, write_statistics=False
            )
            self._group = self._rows = 0
        with temporary_space():
            self._writer.write_table(table, row_group_size=len(table))
        place = self._url, self._group
        self._group += 1
        self._rows += len(table)
        if self._rows >= FILE_ROWS:
            self._finish()
        return place

    @property
    def _url(self) -> str:
        return storage.join(self._folder, f"{self._split}-{self._number:05d}.parquet")

    def _finish(self) -> None:
        assert self._writer is not None
        with temporary_space():
            self._writer.close()
        storage.put_file(self._file, self._url)
        self._open.close()
        self._writer = None
        self._number += 1


def _write_rejects(
    db: duckdb.DuckDBPyConnection, name: str, indexes: Sequence[Indexed], folder: str, digest: "hashlib._Hash"
) -> str:
    """Write the rows rejected so far as a Parquet file of REJECT_SCHEMA, and return its URL."""
    only = indexes[0].archive if len(indexes) == 1 else None
    # Lists say ``img/...``; in an unpacked folder, members are named relative to ``img/``.
    listed = "regexp_replace(photo, '^img/', '')" if only is not None and only.kind == "folder" else "photo"
    prefixes = [only.prefix if only is not None else storage.join(name, "")]
    prefixes += [found.archive.prefix for found in indexes]
    db.register("archives", pa.table({"prefix": prefixes, "number": range(-1, len(indexes))}))
    db.register("reasons", pa.table({"word": list(REASONS), "detail": list(REASONS.values())}))
    query = (
        f"SELECT sample_id, coalesce(split, '') AS split, prefix || coalesce(name, {listed}) AS source_uri, reason, "
        "coalesce(fault_detail, detail) AS detail, NULL::BLOB AS photo_hash "
        "FROM rows JOIN archives ON coalesce(archive, -1) = number JOIN reasons ON reason = word "
        "ORDER BY sample_id, reason, source_uri, split"
    )
    url = storage.join(folder, "rejects.parquet")
    with temporary_file() as file:
        with temporary_space(), pq.ParquetWriter(file, REJECT_SCHEMA, compression="zstd") as writer:
            for batch in regrouped(batches(db, query, REJECT_SCHEMA), BATCH_ROWS):
                hash_values(digest, pa.Table.from_batches([batch]))
                writer.write_batch(batch)
        storage.put_file(file, url)
    return url


def group_rows(rows: int) -> int:
    """Return the rows of a row group in a data set of so many rows: 64, doubled while there are too many groups."""
    size = ROW_GROUP
    while rows > size * MOST_GROUPS and size < LARGEST_GROUP:
        size *= 2
    return size


def _digest_of(options: IngestOptions, labels: Labels, groups: int) -> "hashlib._Hash":
    """Return a hash that has begun with what determines the content beside the rows.

    A restart keeps only shards of the same key.
    """
    facts = [
        SCHEMA_VERSION,
        INGEST_VERSION,
        # They determine the bytes of crops: what is decoded and encoded anew, and what is cut.
        PIL.__version__,
        simplejpeg.__version__,
        lossless.version(),
        options.public(),
        labels.landmark_set.to_json(),
        groups,
    ]
    return hashlib.sha256(json.dumps(facts).encode())
