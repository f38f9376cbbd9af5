"""Photos in a zip, a tar or a folder on any filesystem: where they are, and an index of the members.

A zip's directory or a tar's headers are read once; each task then reads only its own part of the archive
(``pipelines.members``). An index is an Arrow table that is built in pieces, without a Python object for each entry that
stays.
"""

import dataclasses
import gzip
import hashlib
import io
import itertools
import posixpath
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, Literal, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from glefld import listing, storage
from glefld.errors import UserError
from glefld.redaction import public_url
from glefld.temporary import temporary_file, temporary_space

#: One row per member. Its bytes, including a zip's local header, are [start, stop) of the archive or of its own file.
MEMBERS = pa.schema(
    [
        ("name", pa.string()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("stored", pa.int64()),  # bytes as stored, possibly compressed
        ("size", pa.int64()),  # declared uncompressed bytes
        ("method", pa.int32()),  # zip compression method, 0 is uncompressed; or a key of UNREADABLE
        ("crc", pa.int64()),  # null if the archive has none
        ("version", pa.string()),  # of its file or the tar (``storage.State``); null in a zip
    ]
)
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
#: A table of photos that lie by themselves, instead of an archive.
TABLE = ".parquet"
#: A longer tar header is rejected: its length comes from the file and could be made up.
MAX_HEADER_BYTES = 1 << 20
#: Bytes of a tar that are fetched at a time while its headers are read.
HEADER_BLOCK_BYTES = 8 << 20
#: A compressed tar may unpack to MAX_RATIO times its size plus FREE_UNPACKED_BYTES. Photos hardly compress, so more
#: suggests a decompression bomb.
MAX_RATIO = 20
FREE_UNPACKED_BYTES = 1 << 30

#: A zip member's local header: signature, and the lengths of the name and the extra field that follow.
LOCAL_HEADER = struct.Struct("<4s22xHH")
_ENCRYPTED, _LINK, _SPARSE, _NO_FILE, _NAME, _NOWHERE = -1, -2, -3, -4, -5, -6
#: Why some members cannot be read. They stay in the index, so that each becomes an error row or a counted reject.
UNREADABLE = {
    _ENCRYPTED: "encrypted: repack the archive without a password",
    _LINK: "a link to a file that is not in the archive",
    _SPARSE: "a sparse file: repack the archive without --sparse",
    _NO_FILE: "a device, a pipe or another thing that is no file",
    _NAME: "its name is not UTF-8: rename the file",
    _NOWHERE: "the archive's directory gives an offset outside the archive",
}
#: What zipfile and tarfile raise for damaged archives, beyond their own errors. OSError is the storage's.
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    EOFError,
    struct.error,
    ValueError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    TypeError,
    AttributeError,
    MemoryError,
)
#: Declared sizes are cut to this, so that they and their sum have 64 bits.
_MOST_BYTES = 1 << 40
#: Rows of an index that are Python objects at a time.
INDEX_ROWS = 1 << 14
#: A row of MEMBERS: the name and the rest.
Row = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Archive:
    """The location of photos.

    Data is read from ``url``, which may be a staged copy. Rows record ``name``, the original's URL without credentials.
    The members of a ``table`` (a Parquet file) are named by their own URLs, and lie anywhere.
    ``version`` is that of a tar's file (the original's, not the staged copy's): its members have no checksum.
    """

    url: str
    name: str
    kind: Literal["zip", "tar", "folder", "table"]
    version: str | None = None

    @property
    def prefix(self) -> str:
        """What a member's name follows in its URI."""
        if self.kind == "table":
            return ""
        return storage.join(self.name, "") if self.kind == "folder" else f"{self.name}::"

    def uri(self, member: str) -> str:
        """Return the URI that rows record for a photo. It does not depend on staging or credentials."""
        return self.prefix + member

    def file(self, member: str) -> str:
        """Return the URL of the file that holds a member."""
        return storage.join(self.url, member) if self.kind == "folder" else self.url


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
    return Archive(url, name, "table" if name.lower().endswith(TABLE) else "folder")


def _stage_tar(url: str, staging: str) -> str:
    packed_bytes, version = storage.state(url)
    identity = hashlib.blake2b(f"{url} {packed_bytes} {version}".encode(), digest_size=8).hexdigest()
    staged = storage.join(staging, f"{identity}.tar")
    if not storage.exists(staged):
        with temporary_file() as plain:
            try:
                with storage.open(url) as packed, gzip.open(packed) as stream:
                    most = FREE_UNPACKED_BYTES + MAX_RATIO * packed_bytes
                    while data := stream.read(1 << 20):
                        with temporary_space():
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


class Index(NamedTuple):
    """The files of an archive as a table of ``MEMBERS``, sorted by offset (a folder's by name); each name once.

    ``replaced`` is the number of files that a later one of the same name replaces, as it does when a tar is unpacked.
    """

    members: pa.Table
    replaced: int


def read_index(archive: Archive) -> Index:
    """List the files of an archive, also those that cannot be read. Raises UserError for a damaged archive."""
    readers = {"zip": _zip_table, "tar": _tar_table, "folder": _folder_table}
    rows = readers[archive.kind](archive)
    names = rows["name"].combine_chunks().dictionary_encode()
    # Of files of one name the last counts.
    last = np.full(len(names.dictionary), -1)
    last[names.indices.to_numpy()] = np.arange(len(names))
    kept = rows if len(last) == len(rows) else rows.take(pa.array(np.sort(last)))
    order = "name" if archive.kind == "folder" else "start"
    return Index(kept.sort_by([(order, "ascending")]), len(rows) - len(last))


def _table(rows: Iterable[Row]) -> pa.Table:
    """Return rows as a table of MEMBERS; few of them are Python objects at a time."""
    source = iter(rows)
    batches = []
    while chunk := list(itertools.islice(source, INDEX_ROWS)):
        columns = zip(zip(*chunk, strict=True), MEMBERS, strict=True)
        arrays = [pa.array(column, field.type) for column, field in columns]
        batches.append(pa.record_batch(arrays, schema=MEMBERS))
    return pa.Table.from_batches(batches, MEMBERS)


def _row(
    name: str,
    start: int,
    stop: int,
    stored: int,
    size: int,
    method: int,
    *,
    crc: int | None = None,
    version: str | None = None,
) -> Row:
    """Return a row of MEMBERS. A member that cannot be read has no bytes there."""
    if method in UNREADABLE:
        start = stop = 0
    return (
        storage.text(name),
        start,
        stop,
        min(stored, _MOST_BYTES),
        min(size, _MOST_BYTES),
        method,
        crc,
        version,
    )


def _not_readable(archive: Archive, error: object) -> UserError:
    return UserError(f"{archive.name} is not a readable {archive.kind} ({error}): download it again")


def _zip_table(archive: Archive) -> pa.Table:
    return _table(_zip_members(archive))


def _zip_members(archive: Archive) -> Iterator[Row]:
    with storage.open(archive.url) as file:
        try:
            opened = zipfile.ZipFile(file)
        except UnicodeDecodeError as error:
            raise _not_readable(archive, f"the name {error.object!r} in it is not UTF-8") from error
        except _DAMAGED as error:
            raise _not_readable(archive, error) from error
        members = opened.infolist()
        promised = _promised_entries(file)
    if promised not in (len(members), len(members) % 0x10000):
        raise _not_readable(
            archive, f"its directory lists {len(members)} files where its end record promises {promised}"
        )
    # Damaged directories have offsets of any size.
    offsets = np.fromiter(
        (min(max(member.header_offset, -1), opened.start_dir) for member in members), np.int64, len(members)
    )
    inside = (offsets >= 0) & (offsets < opened.start_dir)
    starts = np.unique(offsets[inside])
    # A member ends where the next one begins, the last one where the directory begins.
    following = np.append(starts, opened.start_dir)[np.searchsorted(starts, offsets, side="right")]
    for number, member in enumerate(members):
        start = member.header_offset
        if member.filename.endswith("/") and not member.file_size:
            continue  # a folder
        method = _ENCRYPTED if member.flag_bits & 1 else member.compress_type
        if not inside[number]:
            method = _NOWHERE
        # The directory does not tell the lengths of the local header's name and extra field: at most 65,535 each.
        stop = min(int(following[number]), start + LOCAL_HEADER.size + 2 * 65535 + member.compress_size)
        yield _row(
            member.filename, start, stop, member.compress_size, member.file_size, method, crc=member.CRC
        )


def _promised_entries(file: BinaryIO) -> int:
    """Return the number of entries that a zip's end record names; without zip64 it is the remainder by 65,536.

    zipfile does not compare it with the directory. It is found as zipfile finds it.
    """
    length = file.seek(0, io.SEEK_END)
    file.seek(max(0, length - 22 - 0x10000 - 76))
    tail = file.read()
    at = len(tail) - 22
    if tail[at : at + 4] != b"PK\x05\x06" or tail[-2:] != b"\0\0":
        at = tail.rfind(b"PK\x05\x06")
    if at >= 76 and tail[at - 20 : at - 16] == b"PK\x06\x07" and tail[at - 76 : at - 72] == b"PK\x06\x06":
        return int.from_bytes(tail[at - 44 : at - 36], "little")
    return int.from_bytes(tail[at + 10 : at + 12], "little")


def _tar_table(archive: Archive) -> pa.Table:
    links: dict[int, tuple[str, bool]] = {}
    table = _table(_tar_members(archive, links))
    if links:
        table = _table(_resolved([tuple(row.values()) for row in table.to_pylist()], links))
    return table


def _tar_members(archive: Archive, links: dict[int, tuple[str, bool]]) -> Iterator[Row]:
    """Yield the members; ``links`` gets the target of each link by row number, and whether the link is hard."""
    number = 0
    for member in _tar_headers(archive):
        name = member.name.removeprefix("./")
        start, size = member.offset_data, member.size
        if member.islnk() or member.issym():
            links[number] = (storage.text(member.linkname), member.islnk())
            method = _LINK
        elif member.issparse():
            method = _SPARSE
        elif member.isreg():
            method = zipfile.ZIP_STORED
        elif member.isdir() and not size:
            continue
        else:
            method = _NO_FILE
        yield _row(name, start, start + size, size, size, method, version=archive.version)
        number += 1


def _tar_headers(archive: Archive) -> Iterator[tarfile.TarInfo]:
    with storage.open(archive.url, block_size=HEADER_BLOCK_BYTES) as file:
        try:
            with tarfile.open(fileobj=cast(BinaryIO, _Headers(file)), mode="r:") as opened:
                before = -1
                while (member := opened.next()) is not None:
                    opened.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
                    # A negative size would make tarfile seek backwards and loop forever.
                    if member.size < 0 or opened.offset <= before:
                        raise tarfile.ReadError(f"a member of {member.size} bytes at byte {member.offset}")
                    before = opened.offset
                    yield member
                # tarfile treats a damaged header or a truncated file as the end of the archive.
                file.seek(opened.offset)
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError(f"damaged or cut off at byte {opened.offset}")
        except _DAMAGED as error:
            raise _not_readable(archive, error) from error


def _resolved(rows: list[Row], links: dict[int, tuple[str, bool]]) -> list[Row]:
    """Give each link the bytes of the file that it names; a link that names none stays unreadable.

    links: by row number, the target and whether the link is hard. A hard link means the last file of that name before
    it, a symbolic one the last of all.
    """
    last: dict[str, int] = {}
    targets: dict[int, int | None] = {}
    for i, (name, *_) in enumerate(rows):
        if i in links and links[i][1]:
            targets[i] = last.get(posixpath.normpath(links[i][0]))
        last[posixpath.normpath(name)] = i
    for i, (target, hard) in links.items():
        if not hard:
            targets[i] = last.get(posixpath.normpath(posixpath.join(posixpath.dirname(rows[i][0]), target)))
    found = list(rows)
    for i in links:
        at: int | None = i
        seen: set[int] = set()
        while at is not None and at in links and at not in seen:
            seen.add(at)
            at = targets[at]
        if at is not None and at not in links:
            found[i] = (rows[i][0], *rows[at][1:])
    return found


class _Headers:
    """File wrapper for tarfile that refuses to read huge headers, such as a name of several gigabytes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes at byte {self.tell()}")
        return self.file.read(size)


def _folder_table(archive: Archive) -> pa.Table:
    return pa.concat_tables([MEMBERS.empty_table(), *map(file_members, listing.files(archive.url))])


def file_members(files: pa.Table) -> pa.Table:
    """Return files of a folder, a table of ``listing.FILES``, as rows of MEMBERS."""
    sizes, utf8, n = files["size"], files["utf8"], len(files)
    methods = pc.if_else(utf8, pa.scalar(zipfile.ZIP_STORED, pa.int32()), pa.scalar(_NAME, pa.int32()))
    starts = pa.array(np.zeros(n, np.int64))
    stops = pc.if_else(utf8, sizes, pa.scalar(0, pa.int64()))
    columns = [files["name"], starts, stops, sizes, sizes, methods, pa.nulls(n, pa.int64()), files["version"]]
    return pa.table(columns, MEMBERS)
