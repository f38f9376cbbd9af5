"""Every file below a URL: listed in parallel, in constant memory, as Arrow tables in the order of the names.

A folder is cut into parts that are listed at the same time: its subfolders or, on S3, ranges of keys between the
prefixes that it has. S3 lists keys in the order of their UTF-8 bytes, whatever slashes they have, so a part costs one
request per thousand keys however many prefixes it has.
"""

import hashlib
import itertools
import operator
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import IO, Any

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from glefld import storage
from glefld.temporary import temporary_space

#: Parts of a folder that are listed at the same time.
LISTERS = 16
#: Parts that are finished or in hand before the first of them is taken.
AHEAD = 4 * LISTERS
#: Parts into which an S3 prefix is cut, at most.
MOST_RANGES = 256
#: Levels of folders that are looked at to find ``LISTERS`` parts.
LEVELS = 3
#: Rows that are hashed at a time.
DIGEST_ROWS = 1 << 14
#: Files of a part that stay in memory until it is its turn.
HELD_ROWS = 1 << 12
#: One row per file. A name that is not UTF-8 has escapes such as ``\xe9``, and ``utf8`` is false.
FILES = pa.schema(
    [("name", pa.string()), ("size", pa.int64()), ("version", pa.string()), ("utf8", pa.bool_())]
)
#: A file or a subfolder as its filesystem names it, size, version, and whether it is a subfolder.
Entry = tuple[str, int, str, bool]

#: Yields tables of ``FILES``.
Part = Callable[[], Iterator[pa.Table]]


def files(url: str) -> Iterator[pa.Table]:
    """Yield tables of ``FILES`` with every file below the URL, its name relative to it, sorted by the names' bytes.

    ``version`` is that of ``storage.State``. Nothing is yielded if there is no such folder.
    Raises OSError or a botocore error when the storage fails.
    """
    fs, path = storage.filesystem(url)
    if storage.is_s3(url):
        parts = _key_ranges(fs, path)
    elif fs.exists(path):
        parts = _folders(fs, path.rstrip("/"), "", 1)
    else:
        return
    pool = ThreadPoolExecutor(LISTERS)
    try:
        waiting: deque[Future[Iterable[pa.Table]]] = deque()
        for part in parts:
            waiting.append(pool.submit(_spool, part))
            if len(waiting) == AHEAD:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def regrouped(tables: Iterable[pa.Table], size: int) -> Iterator[pa.RecordBatch]:
    """Divide tables of any length into batches of ``size`` rows each, but for the last."""
    held: list[pa.Table] = []
    count = 0
    for table in tables:
        held.append(table)
        count += len(table)
        if count >= size:
            rows = pa.concat_tables(held).combine_chunks()
            whole = count - count % size
            yield from rows.slice(0, whole).to_batches(max_chunksize=size)
            held, count = [rows.slice(whole)], count - whole
    if count:
        yield from pa.concat_tables(held).combine_chunks().to_batches()


class Digest:
    """A hash of rows that come in tables, however they are divided into these."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def passing(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Yield the tables' rows, hashed."""
        for batch in regrouped(tables, DIGEST_ROWS):
            self._hash.update(batch.serialize())
            yield pa.Table.from_batches([batch])

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _spool(part: Part) -> Iterable[pa.Table]:
    """List a part; a long one into a temporary file, as the parts before it may take longer."""
    tables = part()
    held: list[pa.Table] = []
    rows = 0
    for table in tables:
        held.append(table)
        if (rows := rows + len(table)) > HELD_ROWS:
            break
    else:
        return held
    file = tempfile.TemporaryFile()  # noqa: SIM115
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with temporary_space(), pa.ipc.new_stream(file, FILES, options=options) as stream:
        for table in itertools.chain(held, tables):
            stream.write_table(table)
    file.seek(0)
    return _unspool(file)


def _unspool(file: IO[bytes]) -> Iterator[pa.Table]:
    with file:
        for batch in pa.ipc.open_stream(file):
            yield pa.Table.from_batches([batch])


def _folders(fs: fsspec.AbstractFileSystem, folder: str, below: str, level: int) -> Iterator[Part]:
    """Yield the parts of a folder: each subfolder, or its parts if there are few, and the files between them."""
    runs = list(_runs(fs, folder, below))
    few = sum(isinstance(run, str) for run in runs) < LISTERS and level < LEVELS
    for run in runs:
        if isinstance(run, pa.Table):
            yield partial(iter, [run])
        elif few:
            yield from _folders(fs, *_inside(folder, below, run), level + 1)
        else:
            yield partial(_walk, fs, *_inside(folder, below, run))


def _walk(fs: fsspec.AbstractFileSystem, folder: str, below: str) -> Iterator[pa.Table]:
    for run in _runs(fs, folder, below):
        if isinstance(run, pa.Table):
            yield run
        else:
            yield from _walk(fs, *_inside(folder, below, run))


def _inside(folder: str, below: str, name: str) -> tuple[str, str]:
    """Return the path of a subfolder, and what precedes the names of its files."""
    return f"{folder}/{name}", f"{below}{storage.text(name)}/"


def _runs(fs: fsspec.AbstractFileSystem, folder: str, below: str) -> Iterator[pa.Table | str]:
    """Yield what a folder holds, in order: tables of consecutive files, and the names of subfolders."""
    found = _scan(folder or "/") if isinstance(fs, LocalFileSystem) else _ask(fs, folder)
    # As the names of the files within will be sorted: those of a folder begin with its name and a slash.
    entries = sorted(
        (storage.text(name) + "/" * is_folder, name, size, version, is_folder)
        for name, size, version, is_folder in found
    )
    whole = storage.text(folder) == folder
    for is_folder, some in itertools.groupby(entries, key=operator.itemgetter(4)):
        if is_folder:
            yield from (name for _, name, *_ in some)
        else:
            yield _table(
                (below + text, size, version, whole and text == name) for text, name, size, version, _ in some
            )


def _table(rows: Iterable[tuple[str, int, str, bool]]) -> pa.Table:
    arrays = [pa.array(c, f.type) for c, f in zip(zip(*rows, strict=True), FILES, strict=True)]
    return pa.table(arrays, FILES)


def _scan(folder: str) -> Iterator[Entry]:
    """Yield the entries of a local folder. A link to a folder counts as a file, which cannot be read."""
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                state = entry.stat()
            except OSError:  # a link to nothing
                state = entry.stat(follow_symlinks=False)
            is_folder = entry.is_dir(follow_symlinks=False)
            yield entry.name, state.st_size, str(state.st_mtime), is_folder


def _ask(fs: fsspec.AbstractFileSystem, folder: str) -> Iterator[Entry]:
    for info in fs.ls(folder, detail=True):
        path = info["name"].rstrip("/")
        if path == folder.rstrip("/"):  # what some object stores keep for a folder without files
            continue
        yield path.rpartition("/")[2], *storage.state_of(info), info["type"] == "directory"


def _key_ranges(fs: Any, path: str) -> Iterator[Part]:
    """Yield the parts of an S3 prefix: ranges of keys, each from one of the prefixes below it up to another."""
    bucket, key, _ = fs.split_path(path)
    root = f"{key.rstrip('/')}/" if key else ""
    cuts: set[str] = set()
    level = [root]
    for _ in range(LEVELS):
        level = [prefix for above in level for prefix in _prefixes(fs, bucket, above)]
        cuts.update(level)
        if not level or len(cuts) >= LISTERS:
            break
    chosen = sorted(cuts)[:: -(-len(cuts) // MOST_RANGES) or 1]
    for after, until in itertools.pairwise(["", *chosen, None]):
        yield partial(_keys, fs, bucket, root, after, until)


def _prefixes(fs: Any, bucket: str, prefix: str) -> list[str]:
    """Return the first prefixes below one, up to its next slash."""
    page = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, Delimiter="/", **fs.req_kw)
    return [found["Prefix"] for found in page.get("CommonPrefixes", [])]


def _keys(fs: Any, bucket: str, root: str, after: str | None, until: str | None) -> Iterator[pa.Table]:
    """Yield the keys below ``root`` that come after one and up to another, a page at a time."""
    place = {"StartAfter": after} if after else {}
    while True:
        page = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=root, **place, **fs.req_kw)
        found = page.get("Contents", [])
        # A key that ends in a slash stands for a folder.
        rows = [
            (item["Key"][len(root) :], *storage.state_of({**item, "size": item["Size"]}), True)
            for item in found
            if (until is None or item["Key"] <= until) and not item["Key"].endswith("/")
        ]
        if rows:
            yield _table(rows)
        if not page.get("IsTruncated") or (until is not None and found and found[-1]["Key"] > until):
            return
        place = {"ContinuationToken": page["NextContinuationToken"]}
