"""Rows of a plan on disk: the driver holds none of millions, and each task reads its own from storage.

The file is a sequence of Arrow streams, compressed; a shard has the rows of one or several. A task is given the file's
URL and the bytes [start, stop) of its streams.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from glefld import storage
from glefld.listing import regrouped
from glefld.temporary import temporary_space

_COMPRESSED = pa.ipc.IpcWriteOptions(compression="zstd")


class Stretch(TypedDict):
    """Where a file holds the rows of one shard: bytes [start, stop)."""

    url: str
    start: int
    stop: int


def read_stretch(stretch: Stretch) -> pa.Table:
    """Return the rows of a shard, in a task. Raises OSError if the storage fails."""
    (data,) = storage.read_ranges([stretch["url"]], [stretch["start"]], [stretch["stop"]])
    if isinstance(data, BaseException):
        raise data
    return _read_streams(data)


def _read_streams(data: bytes) -> pa.Table:
    file = pa.BufferReader(data)
    tables = []
    while file.tell() < len(data):
        tables.append(pa.ipc.open_stream(file).read_all())
    return pa.concat_tables(tables)


class RowFile:
    """Rows in an unnamed temporary file, in groups. ``digest`` identifies them: a hash over the groups' values."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # closed with this object
        self._edges = [0]
        self._rows: list[int] = []
        self._hash = hashlib.sha256()

    @classmethod
    def of(cls, tables: Iterable[pa.Table], schema: pa.Schema, size: int) -> "RowFile":
        """Write tables of any length as groups of ``size`` rows each, but for the last."""
        file = cls(schema)
        for batch in regrouped(tables, size):
            file.add(pa.Table.from_batches([batch]))
        return file

    def add(self, rows: pa.Table) -> None:
        """Write a group."""
        rows = rows.combine_chunks()
        self._hash.update(len(rows).to_bytes(8))
        hash_values(self._hash, rows)
        with temporary_space():
            with pa.ipc.new_stream(self._file, self.schema, options=_COMPRESSED) as stream:
                for batch in rows.to_batches():
                    stream.write_batch(batch)
            self._file.flush()
        self._edges.append(self._file.tell())
        self._rows.append(len(rows))

    def join(self, count: int) -> None:
        """Make each ``count`` groups that follow one another one, from the first on."""
        self._edges = [*self._edges[:-1:count], self._edges[-1]]
        self._rows = [sum(self._rows[first : first + count]) for first in range(0, len(self._rows), count)]

    def __len__(self) -> int:
        return sum(self._rows)

    @property
    def groups(self) -> int:
        return len(self._rows)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def read(self, group: int) -> pa.Table:
        """Return the rows of a group."""
        start, stop = self._edges[group : group + 2]
        return _read_streams(os.pread(self._file.fileno(), stop - start, start))

    def __iter__(self) -> Iterator[pa.Table]:
        return map(self.read, range(self.groups))

    def upload(self, url: str) -> None:
        """Write the file to storage, for the tasks. Raises OSError if that fails."""
        storage.put_file(self._file, url)

    def stretch(self, group: int, url: str) -> Stretch:
        """Return where a group is in the file that was uploaded to ``url``."""
        start, stop = self._edges[group : group + 2]
        return {"url": url, "start": start, "stop": stop}


def hash_values(digest: "hashlib._Hash", table: pa.Table) -> None:
    """Hash a table's values, and nothing of how they lie in memory."""
    for name in table.column_names:
        column = table[name].combine_chunks()
        digest.update(np.packbits(column.is_valid().to_numpy(zero_copy_only=False)).tobytes())
        _hash_column(digest, column.drop_null())


def _hash_column(digest: "hashlib._Hash", values: pa.Array) -> None:
    if pa.types.is_list(values.type):
        digest.update(pc.list_value_length(values).to_numpy().tobytes())
        _hash_column(digest, values.flatten())
    elif pa.types.is_fixed_size_list(values.type):
        _hash_column(digest, values.flatten())
    elif pa.types.is_string(values.type) or pa.types.is_binary(values.type):
        digest.update(pc.binary_length(values).to_numpy().tobytes())
        digest.update(b"".join(values.cast(pa.binary()).to_pylist()))
    else:
        digest.update(values.to_numpy(zero_copy_only=False).tobytes())
