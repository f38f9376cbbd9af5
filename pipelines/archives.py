"""Photos in a zip, a tar or a folder on any file system: an index of members, their bytes by large ranges.

A zip's directory and a tar's headers are read once, by the driver; a task reads its own part of the archive.
Nothing is ever extracted to a path, so a member's name cannot lead anywhere.
"""

import dataclasses
import gzip
import hashlib
import io
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal, cast

import pyarrow as pa
import pyarrow.compute as pc

from glefld import storage
from glefld.errors import BadPhoto, UserError
from glefld.storage import public_url

#: One row a member. Its bytes, with a zip's local header, are [start, stop) of the archive or its own file.
MEMBERS = pa.schema(
    [
        ("name", pa.string()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("stored", pa.int64()),  # bytes as stored, perhaps compressed
        ("size", pa.int64()),  # bytes unpacked, as declared
        ("method", pa.int32()),  # zip's compression method; 0 is none
        ("crc", pa.int64()),  # null where the archive has none
    ]
)
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
#: A larger member is refused unread.
MAX_MEMBER_BYTES = 256 << 20
#: A longer header of a tar is no honest one.
MAX_HEADER_BYTES = 1 << 20
#: A compressed tar is unpacked to so many times its size and this much besides: photos hardly shrink, bombs do.
MAX_RATIO = 20
FREE_UNPACKED_BYTES = 1 << 30
#: How much of its members a task reads at a time, and how large a part of that the gaps between may add.
BATCH_BYTES = 8 << 20
MAX_WASTE = 0.1

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_ENCRYPTED = -1


@dataclasses.dataclass(frozen=True)
class Archive:
    """Where photos are: ``url`` is read, ``name`` is what rows say (no credentials, a copy's original).

    A folder of zips is one too; its members are named ``train.zip::train/image/000001.jpg``.
    """

    url: str
    name: str
    kind: Literal["zip", "tar", "folder", "zips"]

    def uri(self, member: str) -> str:
        """The stable name of one photo."""
        below = self.kind in ("folder", "zips")
        return storage.join(self.name, member) if below else f"{self.name}::{member}"

    def file(self, member: str) -> tuple[str, ...]:
        """Where below ``url`` the file lies that holds a member; nowhere below, if it is ``url`` itself."""
        if self.kind in ("zip", "tar"):
            return ()
        return (member.partition("::")[0] if self.kind == "zips" else member,)


def open_archive(url: str, staging: str) -> Archive:
    """The zip, tar or folder at a URL, told by its name.

    A compressed tar has neither directory nor ranges: it is unpacked, as one stream, into a plain one below
    ``staging``, unless an earlier run has done so. UserError if it is damaged or a decompression bomb.
    """
    name = public_url(url)
    if name.lower().endswith((".tar.gz", ".tgz")):
        return Archive(_stage_tar(url, staging), name, "tar")
    if name.lower().endswith(".zip"):
        return Archive(url, name, "zip")
    if name.lower().endswith(".tar"):
        return Archive(url, name, "tar")
    return Archive(url, name, "folder")


def _stage_tar(url: str, staging: str) -> str:
    packed_bytes = storage.size(url)
    identity = hashlib.blake2b(f"{url} {packed_bytes}".encode(), digest_size=8).hexdigest()
    staged = storage.join(staging, f"{identity}.tar")
    if not storage.exists(staged):
        # An unnamed file: it is gone with its process, however that ends.
        with tempfile.TemporaryFile() as plain:
            try:
                with storage.open(url) as packed, gzip.open(packed) as stream:
                    most = FREE_UNPACKED_BYTES + MAX_RATIO * packed_bytes
                    while data := stream.read(1 << 20):
                        plain.write(data)
                        if plain.tell() > most:
                            raise UserError(
                                f"{public_url(url)} unpacks to more than {MAX_RATIO} times its size, which photos do "
                                "not: if it is no mistake, unpack it yourself and give the .tar"
                            )
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise UserError(f"{public_url(url)} cannot be unpacked ({error}): get it again") from error
            storage.put_file(plain, staged)
    return staged


def read_index(archive: Archive) -> pa.Table:
    """Every file in it, by offset (folders: by name), as ``MEMBERS``; UserError for a damaged archive."""
    readers = {"zip": _zip_members, "zips": _zips_members, "tar": _tar_members, "folder": _folder_members}
    rows = readers[archive.kind](archive)
    try:
        columns = list(zip(*rows, strict=True)) or [()] * len(MEMBERS)
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        EOFError,
        RuntimeError,
    ) as error:  # the last for unknown versions
        raise UserError(f"{archive.name} is not a readable {archive.kind} ({error}): get it again") from error
    arrays = [pa.array(column, field.type) for column, field in zip(columns, MEMBERS, strict=True)]
    table = pa.table(arrays, schema=MEMBERS)
    if archive.kind == "zips":
        # By zip, and in each by offset.
        zips = pc.list_element(pc.split_pattern(table["name"], "::", max_splits=1), 0)
        order = [("zip", "ascending"), ("start", "ascending")]
        return table.append_column("zip", zips).sort_by(order).drop_columns(["zip"])
    return table.sort_by([("name" if archive.kind == "folder" else "start", "ascending")])


def _zip_members(archive: Archive) -> Iterator[tuple[Any, ...]]:
    with storage.open(archive.url) as file, zipfile.ZipFile(file) as opened:
        members = sorted((m for m in opened.infolist() if not m.is_dir()), key=lambda m: m.header_offset)
        ends = [*(m.header_offset for m in members[1:]), opened.start_dir]
        for member, end in zip(members, ends, strict=True):
            # The local header's name and extra field have lengths of their own, 65,535 at most each.
            stop = min(end, member.header_offset + _LOCAL_HEADER.size + 2 * 65535 + member.compress_size)
            method = _ENCRYPTED if member.flag_bits & 1 else member.compress_type
            yield (
                member.filename,
                member.header_offset,
                stop,
                member.compress_size,
                member.file_size,
                method,
                member.CRC,
            )


def _zips_members(archive: Archive) -> Iterator[tuple[Any, ...]]:
    for entry in storage.entries(archive.url):
        if entry.name.lower().endswith(".zip"):
            for member, *rest in _zip_members(Archive(entry.url, entry.name, "zip")):
                yield f"{entry.name}::{member}", *rest


def _tar_members(archive: Archive) -> Iterator[tuple[Any, ...]]:
    with (
        storage.open(archive.url, block_size=BATCH_BYTES) as file,
        tarfile.open(fileobj=cast(BinaryIO, _Headers(file)), mode="r:") as opened,
    ):
        before = -1
        while (member := opened.next()) is not None:
            opened.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
            # A negative size would lead tarfile back to where it was, for ever.
            if member.size < 0 or opened.offset <= before:
                raise tarfile.ReadError(f"a member of {member.size} bytes at byte {member.offset}")
            before = opened.offset
            if member.isreg() and not member.issparse():
                start, size = member.offset_data, member.size
                yield member.name.removeprefix("./"), start, start + size, size, size, 0, None
        # tarfile takes a damaged header, or a missing rest, for the end.
        file.seek(opened.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"damaged or cut off at byte {opened.offset}")


class _Headers:
    """A tar's file for the one who reads its headers: a name as long as gigabytes is refused unread."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes at byte {self.tell()}")
        return self.file.read(size)


def _folder_members(archive: Archive) -> Iterator[tuple[Any, ...]]:
    for name, size in storage.find(archive.url).items():
        yield name, 0, size, size, size, 0, None


def read_members(archive: Archive, members: pa.Table) -> Iterator[bytes | BadPhoto]:
    """The bytes of each of these rows of the index, in their order, or what is wrong with the member.

    Rows come by offset, as in the index. Neighbours share a range, and no more than ``BATCH_BYTES`` of
    members (or one larger one) are held at a time. FileNotFoundError if the archive itself has gone.
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
            [storage.join(archive.url, *files[i]) for i, _ in cuts],
            [r[0]["start"] for r in ranges],
            [max(m["stop"] for m in r) for r in ranges],
        )
        for wanted, data in zip(ranges, found, strict=True):
            if archive.kind == "folder" and isinstance(data, FileNotFoundError | PermissionError):
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
                    zipped = archive.kind in ("zip", "zips")
                    yield _unpack_zip(piece, member) if zipped else _whole(piece, member)
                except BadPhoto as bad:
                    yield bad


def _refusal(member: dict[str, Any]) -> BadPhoto | None:
    """What keeps a member from being read at all; an empty one has no range that a server would answer."""
    if max(member["size"], member["stored"]) > MAX_MEMBER_BYTES:
        return BadPhoto("picture_too_large", f"{max(member['size'], member['stored'])} bytes")
    if member["stop"] == member["start"]:
        return BadPhoto("unreadable_photo", "an empty file")
    return None


def _batches(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Consecutive rows of ``BATCH_BYTES`` together; a refused member stands alone."""
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


def _ranges(rows: list[dict[str, Any]], files: list[tuple[str, ...]]) -> Iterator[tuple[int, int]]:
    """Where to cut a batch into ranges of one file each whose gaps stay below ``MAX_WASTE`` of their members."""
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
    """One file of an archive as a stream (a tar's is held in memory, being a range of it)."""
    if archive.kind == "zip":
        return cast(BinaryIO, zipfile.ZipFile(storage.open(archive.url)).open(member["name"]))
    (data,) = storage.read_ranges([archive.url], [member["start"]], [member["stop"]])
    if isinstance(data, BaseException):
        raise data
    return io.BytesIO(data)


def _whole(data: bytes, member: dict[str, Any]) -> bytes:
    if len(data) != member["size"]:
        raise BadPhoto("truncated_photo", f"{len(data)} of {member['size']} bytes are there")
    return data


def _unpack_zip(data: bytes, member: dict[str, Any]) -> bytes:
    """One member from its local header on; BadPhoto unless what comes out is what the directory declares."""
    if len(data) < _LOCAL_HEADER.size or data[:4] != b"PK\x03\x04":
        raise BadPhoto("unreadable_photo", "the archive has no member where its directory says")
    _, name_length, extra_length = _LOCAL_HEADER.unpack_from(data)
    start = _LOCAL_HEADER.size + name_length + extra_length
    packed = data[start : start + member["stored"]]
    if len(packed) != member["stored"]:
        raise BadPhoto("truncated_photo", f"{len(packed)} of {member['stored']} packed bytes are there")
    if member["method"] == zipfile.ZIP_STORED:
        unpacked = packed
    elif member["method"] == zipfile.ZIP_DEFLATED:
        try:
            # One byte more than declared is asked for, and so never more than that is made.
            unpacked = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, member["size"] + 1)
        except zlib.error as error:
            raise BadPhoto("unreadable_photo", f"damaged in the archive ({error})") from error
    else:
        how = "encrypted" if member["method"] == _ENCRYPTED else f"packed by zip method {member['method']}"
        raise BadPhoto("unreadable_photo", f"{how}: pack the archive anew with deflate or store")
    if len(unpacked) != member["size"]:
        raise BadPhoto(
            "unreadable_photo", f"unpacks to another size than the {member['size']} bytes declared"
        )
    if zlib.crc32(unpacked) != member["crc"]:
        raise BadPhoto("unreadable_photo", "damaged in the archive (its checksum differs)")
    return unpacked
