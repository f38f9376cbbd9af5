"""Photos that lie by themselves, on object storage or a disk: a Parquet table of their uris, and their reading.

The table has the columns ``uri``, ``photo`` (the name that lists give it; without it, the uri) and maybe ``bytes``, the
file's size. Without that a shard's size is a guess. The table is read in pieces, and no photo is asked for before the
task that needs it.
"""

import itertools
import posixpath
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from glefld import storage
from glefld.errors import BadPhoto, UserError
from glefld.redaction import MAYBE_SECRET, holds_secret, public_url
from pipelines.archives import Archive
from pipelines.members import BATCH_BYTES, LOST, MAX_MEMBER_BYTES, whole

#: What a photo of unknown size is taken for when rows are divided into shards.
GUESSED_BYTES = 64 << 10
#: Photos that a task asks for at the same time, and what it asks of each at first.
TOGETHER = 32
FIRST_BYTES = BATCH_BYTES
BATCH_ROWS = 1 << 14
#: A row of the table: how lists name the photo, where it is, and its size if that is known.
PHOTOS = pa.schema([("listed", pa.string()), ("name", pa.string()), ("stored", pa.int64())])
_HTTP = r"^(?i:https?)://"
_ROOT = r"^(?P<root>[A-Za-z][A-Za-z0-9+.-]*://[^/]*)"
ABSOLUTE = r"^(?:/|[A-Za-z][A-Za-z0-9+.-]*://)"


def has_uris(url: str) -> bool:
    """Return whether a Parquet file has the column ``uri``. UserError if it is not Parquet."""
    return "uri" in _columns(url)


def _columns(url: str) -> list[str]:
    try:
        with storage.open(url) as file:
            return list(pq.ParquetFile(file).schema_arrow.names)
    except (pa.ArrowException, ValueError) as error:
        raise UserError(f"{public_url(url)} is not a readable Parquet file: {error}") from error


def read_table(archive: Archive) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a table of uris, of the schema ``PHOTOS``; a photo with several garments comes several times.

    UserError for a table that cannot be used, also if a bucket that it names cannot. Uris that are relative are below
    the table's own folder.
    """
    columns = _columns(archive.url)
    if "uri" not in columns:
        raise UserError(f"{archive.name} has no column uri; it has {', '.join(columns)}")
    wanted = [name for name in ("uri", "photo", "bytes") if name in columns]
    if twice := [name for name in wanted if columns.count(name) > 1]:
        raise UserError(f"{archive.name} has the column {twice[0]} more than once: leave one of them")
    asked: set[str] = set()
    with storage.open(archive.url) as file:
        try:
            for batch in pq.ParquetFile(file).iter_batches(BATCH_ROWS, columns=wanted):
                photos = _photos(archive, batch)
                require_access(photos["name"], asked)
                yield photos
        except UserError:
            raise
        except (pa.ArrowException, ValueError) as error:
            raise UserError(f"{archive.name} cannot be read: {error}") from error


def require_access(names: pa.Array | pa.ChunkedArray, asked: set[str]) -> None:
    """Raise UserError unless the buckets and servers of these URLs can be used. ``asked``: those that can are added.

    A bucket that is not there would make its photos missing, each for itself.
    """
    found = pc.struct_field(pc.extract_regex(names, _ROOT), "root")
    for root in sorted(set(pc.unique(found).drop_null().to_pylist()) - asked):
        storage.require_access(root)
        asked.add(root)


def with_secrets(names: pa.Array | pa.ChunkedArray) -> list[str]:
    """Return the URLs that hold what may be a secret, which every row would show."""
    suspects = names.filter(pc.match_substring_regex(names, MAYBE_SECRET)).to_pylist()
    return [name for name in suspects if holds_secret(name)]


def _photos(archive: Archive, batch: pa.RecordBatch) -> pa.RecordBatch:
    uris = batch["uri"].cast(pa.string())
    listed = batch["photo"].cast(pa.string()) if "photo" in batch.schema.names else uris
    for column in (uris, listed):
        column.validate(full=True)  # text that is not UTF-8
    if uris.null_count or listed.null_count:
        raise UserError(f"{archive.name} has rows without a uri or a photo's name: fill in or remove them")
    folder = posixpath.dirname(archive.url)
    absolute = pc.match_substring_regex(uris, ABSOLUTE)
    names = pc.if_else(absolute, uris, pc.binary_join_element_wise(folder, uris, "/"))
    # A server could lead anywhere.
    refused = with_secrets(names) or names.filter(pc.match_substring_regex(names, _HTTP)).to_pylist()
    if refused:
        raise UserError(
            f"{archive.name} has the uri {public_url(refused[0])}: give paths or URLs such as s3://bucket/key, "
            "without a user; HTTP is not read"
        )
    known = (
        batch["bytes"].cast(pa.int64()) if "bytes" in batch.schema.names else pa.nulls(len(batch), pa.int64())
    )
    if pc.any(pc.less(known, 0)).as_py():
        raise UserError(f"{archive.name} has rows with bytes below zero: correct them, or leave them empty")
    return pa.record_batch([listed, names, known], schema=PHOTOS)


def read_photos(members: pa.Table) -> Iterator[bytes | BadPhoto]:
    """Yield the content of each photo in order, or a BadPhoto if it cannot be read. Several are fetched at once.

    members: of the schema MEMBERS; ``stored`` is null if the size is unknown. Raises OSError if the storage fails.
    """
    rows = members.select(["name", "stored", "size"]).to_pylist()
    for _, same in itertools.groupby(rows, lambda row: row["name"].partition("://")[0]):  # of one filesystem
        source = iter(same)
        while chunk := list(itertools.islice(source, TOGETHER)):
            urls = [row["name"] for row in chunk]
            found = storage.read_ranges(urls, [0] * len(chunk), [FIRST_BYTES] * len(chunk))
            for row, data in zip(chunk, found, strict=True):
                yield _photo(row, data)


def _photo(row: dict[str, Any], data: bytes | BaseException) -> bytes | BadPhoto:
    if isinstance(data, FileNotFoundError):
        return BadPhoto("missing_photo", str(data))
    # On object storage it is the credentials that are refused: for all photos, and maybe not for long.
    if isinstance(data, LOST) and (storage.is_local(row["name"]) or storage.is_http(row["name"])):
        return BadPhoto("unreadable_photo", str(data))
    if isinstance(data, BaseException):
        raise data
    if len(data) == FIRST_BYTES:
        (more,) = storage.read_ranges([row["name"]], [FIRST_BYTES], [MAX_MEMBER_BYTES + 1])
        if isinstance(more, BaseException):
            raise more
        data += more
    if len(data) > MAX_MEMBER_BYTES:
        return BadPhoto("picture_too_large", f"more than {MAX_MEMBER_BYTES} bytes")
    if not data:
        return BadPhoto("unreadable_photo", "an empty file")
    try:
        return data if row["stored"] is None else whole(data, row)
    except BadPhoto as bad:
        return bad
