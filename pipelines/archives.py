"""Photos in a zip, a tar or a folder on any filesystem: an index of the members, and reads by large byte ranges.

The driver reads a zip's directory or a tar's headers once; each task then reads only its own part of the archive.
Members are never extracted to files, so a malicious member name cannot cause path traversal.
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

#: One row per member. Its bytes, including a zip's local header, are [start, stop) of the archive or of its own file.
MEMBERS = pa.schema(
    [
        ("name", pa.string()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("stored", pa.int64()),  # bytes as stored, possibly compressed
        ("size", pa.int64()),  # declared uncompressed bytes
        ("method", pa.int32()),  # zip compression method; 0 is uncompressed
        ("crc", pa.int64()),  # null if the archive has none
        (
            "version",
            pa.string(),
        ),  # of its file or the tar, as in ``storage.State``; null in a zip
    ]
)
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
#: Larger members are rejected without being read.
MAX_MEMBER_BYTES = 256 << 20
#: A longer tar header is rejected: its length comes from the file and could be made up.
MAX_HEADER_BYTES = 1 << 20
#: A compressed tar may unpack to MAX_RATIO times its size plus FREE_UNPACKED_BYTES. Photos hardly compress, so more
#: suggests a decompression bomb.
MAX_RATIO = 20
FREE_UNPACKED_BYTES = 1 << 30
#: Bytes of members that a task reads at a time, and the largest fraction of that to read on top in gaps between them.
BATCH_BYTES = 8 << 20
MAX_WASTE = 0.1

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_ENCRYPTED = -1


@dataclasses.dataclass(frozen=True)
class Archive:
    """The location of photos.

    Data is read from ``url``, which may be a staged copy. Rows record ``name``, the original's URL without credentials.
    A folder of zips (kind ``zips``) is one archive, with members named like ``train.zip::train/image/000001.jpg``.
    ``version`` is that of a tar's file (the original's, not the staged copy's): its members have no checksum.
    """

    url: str
    name: str
    kind: Literal["zip", "tar", "folder", "zips"]
    version: str | None = None

    def uri(self, member: str) -> str:
        """Return the URI that rows record for a photo. It does not depend on staging or credentials."""
        below = self.kind in ("folder", "zips")
        return storage.join(self.name, member) if below else f"{self.name}::{member}"

    def file(self, member: str) -> tuple[str, ...]:
        """Return the path below ``url`` of the file that holds a member; empty if that file is ``url`` itself."""
        if self.kind in ("zip", "tar"):
            return ()
        return (member.partition("::")[0] if self.kind == "zips" else member,)


def open_archive(url: str, staging: str) -> Archive:
    """Open the archive or folder at a URL. The kind follows from the URL's extension.

    A compressed tar allows no random access, so it is first decompressed to a plain tar below ``staging``, unless an
    earlier run has done that. Raises UserError if it is damaged or looks like a decompression bomb.
    """
    name = public_url(url)
    if name.lower().endswith((".tar.gz", ".tgz")):
        return Archive(_stage_tar(url, staging), name, "tar", storage.state(url).version)
    if name.lower().endswith(".zip"):
        return Archive(url, name, "zip")
    if name.lower().endswith(".tar"):
        return Archive(url, name, "tar", storage.state(url).version)
    return Archive(url, name, "folder")


def _stage_tar(url: str, staging: str) -> str:
    packed_bytes, version = storage.state(url)
    identity = hashlib.blake2b(f"{url} {packed_bytes} {version}".encode(), digest_size=8).hexdigest()
    staged = storage.join(staging, f"{identity}.tar")
    if not storage.exists(staged):
        # Unnamed, so nothing is left behind if the process is killed.
        with tempfile.TemporaryFile() as plain:
            try:
                with storage.open(url) as packed, gzip.open(packed) as stream:
                    most = FREE_UNPACKED_BYTES + MAX_RATIO * packed_bytes
                    while data := stream.read(1 << 20):
                        plain.write(data)
                        if plain.tell() > most:
                            raise UserError(
                                f"{public_url(url)} unpacks to more than {MAX_RATIO} times its size, which is unusual "
                                "for photos: if it is intended, decompress it yourself and pass the .tar"
                            )
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise UserError(
                    f"{public_url(url)} cannot be unpacked ({error}): download it again"
                ) from error
            storage.put_file(plain, staged)
    return staged


def read_index(archive: Archive) -> pa.Table:
    """List the files of an archive as a table of ``MEMBERS``, sorted by offset (a folder's by name).

    Raises UserError for a damaged archive.
    """
    readers = {"zip": _zip_members, "zips": _zips_members, "tar": _tar_members, "folder": _folder_members}
    rows = readers[archive.kind](archive)
    try:
        columns = list(zip(*rows, strict=True)) or [()] * len(MEMBERS)
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        EOFError,
        RuntimeError,  # zipfile's error for an unknown version
    ) as error:
        raise UserError(
            f"{archive.name} is not a readable {archive.kind} ({error}): download it again"
        ) from error
    arrays = [pa.array(column, field.type) for column, field in zip(columns, MEMBERS, strict=True)]
    table = pa.table(arrays, schema=MEMBERS)
    if archive.kind == "zips":
        zips = pc.list_element(pc.split_pattern(table["name"], "::", max_splits=1), 0)
        order = [("zip", "ascending"), ("start", "ascending")]
        return table.append_column("zip", zips).sort_by(order).drop_columns(["zip"])
    return table.sort_by([("name" if archive.kind == "folder" else "start", "ascending")])


def _zip_members(archive: Archive) -> Iterator[tuple[Any, ...]]:
    with storage.open(archive.url) as file, zipfile.ZipFile(file) as opened:
        members = sorted((m for m in opened.infolist() if not m.is_dir()), key=lambda m: m.header_offset)
        ends = [*(m.header_offset for m in members[1:]), opened.start_dir]
        for member, end in zip(members, ends, strict=True):
            # The directory does not tell the lengths of the local header's name and extra field: at most 65,535 each.
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
                None,
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
            # A negative size would make tarfile seek backwards and loop forever.
            if member.size < 0 or opened.offset <= before:
                raise tarfile.ReadError(f"a member of {member.size} bytes at byte {member.offset}")
            before = opened.offset
            if member.isreg() and not member.issparse():
                start, size = member.offset_data, member.size
                yield (
                    member.name.removeprefix("./"),
                    start,
                    start + size,
                    size,
                    size,
                    0,
                    None,
                    archive.version,
                )
        # tarfile treats a damaged header or a truncated file as the end of the archive.
        file.seek(opened.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"damaged or cut off at byte {opened.offset}")


class _Headers:
    """File wrapper for tarfile that refuses to read huge headers, such as a name of several gigabytes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes at byte {self.tell()}")
        return self.file.read(size)


def _folder_members(archive: Archive) -> Iterator[tuple[Any, ...]]:
    for name, (size, version) in storage.find(archive.url).items():
        yield name, 0, size, size, size, 0, None, version


def read_members(archive: Archive, members: pa.Table) -> Iterator[bytes | BadPhoto]:
    """Yield the content of each member in order, or a BadPhoto if it cannot be read.

    ``members`` are rows of the index, in its order. Neighbouring members share one range request, and at most
    ``BATCH_BYTES`` of them (or a single larger one) are in memory at a time.
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
    """Return why a member must not be read, or None. An empty member is refused as servers reject empty ranges."""
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


def _ranges(rows: list[dict[str, Any]], files: list[tuple[str, ...]]) -> Iterator[tuple[int, int]]:
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
    """Open one member of a zip or tar as a stream. A tar member is read into memory."""
    if archive.kind == "zip":
        return cast(BinaryIO, zipfile.ZipFile(storage.open(archive.url)).open(member["name"]))
    (data,) = storage.read_ranges([archive.url], [member["start"]], [member["stop"]])
    if isinstance(data, BaseException):
        raise data
    return io.BytesIO(data)


def _whole(data: bytes, member: dict[str, Any]) -> bytes:
    if len(data) != member["size"]:
        raise BadPhoto("truncated_photo", f"only {len(data)} of {member['size']} bytes are there")
    return data


def _unpack_zip(data: bytes, member: dict[str, Any]) -> bytes:
    """Unpack a zip member. ``data`` starts at its local header.

    Raises BadPhoto unless the content has the size and checksum that the zip's directory declares.
    """
    if len(data) < _LOCAL_HEADER.size or data[:4] != b"PK\x03\x04":
        raise BadPhoto("unreadable_photo", "the archive has no member at the offset that its directory gives")
    _, name_length, extra_length = _LOCAL_HEADER.unpack_from(data)
    start = _LOCAL_HEADER.size + name_length + extra_length
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
        how = "encrypted" if member["method"] == _ENCRYPTED else f"packed by zip method {member['method']}"
        raise BadPhoto("unreadable_photo", f"{how}: repack the archive with deflate or store")
    if len(unpacked) != member["size"]:
        raise BadPhoto(
            "unreadable_photo", f"unpacks to another size than the declared {member['size']} bytes"
        )
    if zlib.crc32(unpacked) != member["crc"]:
        raise BadPhoto("unreadable_photo", "damaged in the archive (its checksum differs)")
    return unpacked
