"""Reads the members of a zip, a tar or a folder that ``pipelines.archives`` has indexed, by large byte ranges.

Members are never extracted to files, so a malicious member name cannot cause path traversal.
"""

import io
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import pyarrow as pa

from glefld import storage
from glefld.errors import BadPhoto, UserError
from pipelines.archives import LOCAL_HEADER, UNREADABLE, Archive

#: Larger members are rejected without being read.
MAX_MEMBER_BYTES = 256 << 20
#: Bytes of members that a task reads at a time, and the largest fraction of that to read on top in gaps between them.
BATCH_BYTES = 8 << 20
MAX_WASTE = 0.1
#: What may be wrong with one file of a folder: it has gone, is not ours to read, or is a link to a folder.
LOST = (FileNotFoundError, PermissionError, IsADirectoryError)


def read_members(archive: Archive, members: pa.Table) -> Iterator[bytes | BadPhoto]:
    """Yield the content of each member in order, or a BadPhoto if it cannot be read.

    ``members`` are rows of the index, in its order (``photo_table.read_photos`` reads those of a ``table``).
    Neighbouring members share one range request, and at most ``BATCH_BYTES`` of them (or a single larger one) are in
    memory.
    Raises FileNotFoundError if the archive itself no longer exists, and OSError if the storage fails.
    """
    rows = members.to_pylist()
    for batch in _batches(rows):
        if (refused := _refusal(batch[0])) is not None:
            yield refused
            continue
        files = [archive.file(member["name"]) for member in batch]
        cuts = list(_ranges(batch, files))
        ranges = [batch[i:j] for i, j in cuts]
        found = storage.read_ranges(
            [files[i] for i, _ in cuts],
            [r[0]["start"] for r in ranges],
            [max(m["stop"] for m in r) for r in ranges],
        )
        for wanted, data in zip(ranges, found, strict=True):
            if archive.kind == "folder" and isinstance(data, LOST):
                gone = isinstance(data, FileNotFoundError)
                yield from (
                    BadPhoto("missing_photo" if gone else "unreadable_photo", str(data)) for _ in wanted
                )
                continue
            if isinstance(data, BaseException):
                raise data
            for member in wanted:
                offset = member["start"] - wanted[0]["start"]
                piece = data[offset : offset + member["stop"] - member["start"]]
                try:
                    yield _unpack_zip(piece, member) if archive.kind == "zip" else whole(piece, member)
                except BadPhoto as bad:
                    yield bad


def _refusal(member: dict[str, Any]) -> BadPhoto | None:
    """Return why a member must not be read, or None. An empty member is refused as servers reject empty ranges."""
    if member["method"] in UNREADABLE:
        return BadPhoto("unreadable_photo", UNREADABLE[member["method"]])
    if max(member["size"], member["stored"]) > MAX_MEMBER_BYTES:
        return BadPhoto("picture_too_large", f"{max(member['size'], member['stored'])} bytes")
    if member["stop"] == member["start"]:
        return BadPhoto("unreadable_photo", "an empty file")
    return None


def _batches(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Group consecutive rows into batches of up to ``BATCH_BYTES``. A refused member gets a batch of its own."""
    batch: list[dict[str, Any]] = []
    held = 0
    for row in rows:
        length = row["stop"] - row["start"]
        alone = _refusal(row) is not None or bool(batch and _refusal(batch[0]))
        if batch and (alone or held + length > BATCH_BYTES):
            yield batch
            batch, held = [], 0
        batch.append(row)
        held += length
    if batch:
        yield batch


def _ranges(rows: list[dict[str, Any]], files: list[str]) -> Iterator[tuple[int, int]]:
    """Split a batch into ranges [i, j) of rows in one file, with gaps of at most ``MAX_WASTE`` of the bytes wanted."""
    first = wanted = waste = 0
    for i, row in enumerate(rows):
        gap = max(0, row["start"] - rows[i - 1]["stop"]) if i > first else 0
        if i > first and (files[i] != files[first] or waste + gap > MAX_WASTE * wanted):
            yield first, i
            first, wanted, waste, gap = i, 0, 0, 0
        wanted += row["stop"] - row["start"]
        waste += gap
    yield first, len(rows)


def open_member(archive: Archive, member: dict[str, Any]) -> BinaryIO:
    """Open one member of a zip or tar as a stream; UserError if it cannot be read. A tar member is read into memory."""
    if member["method"] in UNREADABLE:
        raise UserError(f"{archive.uri(member['name'])} cannot be read: {UNREADABLE[member['method']]}")
    if member["stop"] == member["start"]:
        return io.BytesIO()
    if archive.kind == "zip":
        return cast(BinaryIO, zipfile.ZipFile(storage.open(archive.url)).open(member["name"]))
    (data,) = storage.read_ranges([archive.url], [member["start"]], [member["stop"]])
    if isinstance(data, BaseException):
        raise data
    return io.BytesIO(data)


def whole(data: bytes, member: dict[str, Any]) -> bytes:
    """Return a member's content; BadPhoto if it does not have the size that the index declares."""
    if len(data) != member["size"]:
        raise BadPhoto("truncated_photo", f"only {len(data)} of {member['size']} bytes are there")
    return data


def _unpack_zip(data: bytes, member: dict[str, Any]) -> bytes:
    """Unpack a zip member. ``data`` starts at its local header.

    Raises BadPhoto unless the content has the size and checksum that the zip's directory declares.
    """
    if len(data) < LOCAL_HEADER.size or data[:4] != b"PK\x03\x04":
        raise BadPhoto("unreadable_photo", "the archive has no member at the offset that its directory gives")
    _, name_length, extra_length = LOCAL_HEADER.unpack_from(data)
    start = LOCAL_HEADER.size + name_length + extra_length
    packed = data[start : start + member["stored"]]
    if len(packed) != member["stored"]:
        raise BadPhoto("truncated_photo", f"only {len(packed)} of {member['stored']} packed bytes are there")
    if member["method"] == zipfile.ZIP_STORED:
        unpacked = packed
    elif member["method"] == zipfile.ZIP_DEFLATED:
        try:
            # Decompress at most one byte more than declared, whatever the member really unpacks to.
            unpacked = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, member["size"] + 1)
        except zlib.error as error:
            raise BadPhoto("unreadable_photo", f"damaged in the archive ({error})") from error
    else:
        how = f"packed by zip method {member['method']}"
        raise BadPhoto("unreadable_photo", f"{how}: repack the archive with deflate or store")
    if len(unpacked) != member["size"]:
        raise BadPhoto(
            "unreadable_photo", f"unpacks to another size than the declared {member['size']} bytes"
        )
    if zlib.crc32(unpacked) != member["crc"]:
        raise BadPhoto("unreadable_photo", "damaged in the archive (its checksum differs)")
    return unpacked
