"""Reading the rows of an ingested split: in the epoch's order, as a rank's share of it, or from first to last.

What is fetched are the byte ranges of row groups and nothing around them, ahead of their use and several at once.
"""

import contextlib
import io
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from glefld import storage
from glefld.data.order import EpochOrder, Window, global_batch, steps_per_epoch
from glefld.data.prefetch import ahead
from glefld.errors import UserError
from glefld.redaction import public_url
from glefld.schema import Manifest, Shard, Split

#: Threads that fetch and decode row groups, and how many bytes of them may wait for their use.
THREADS = 8
AHEAD_BYTES = 256 << 20
#: What is read of a file's end at first. It holds the footer of most shards.
TAIL_BYTES = 16 << 10
#: So many footers are kept. A footer is small beside a row group.
FOOTERS = 1024


@dataclass(frozen=True)
class RowGroup:
    """One row group of a Parquet shard: its first ``rows`` rows."""

    shard: Shard
    index: int
    rows: int


class SplitReader:
    """The rows of one split of a data set, numbered in shard order.

    limit: have the first rows only, so many. UserError if the split has no rows.
    """

    def __init__(self, root: str, manifest: Manifest, split: Split, limit: int | None = None) -> None:
        self.root = root
        shards = [s for s in manifest.shards if s.split == split]
        if not any(s.rows for s in shards):
            have = ", ".join(name for name, rows in manifest.splits.items() if rows)
            raise UserError(f"the data set {root} has no rows in its split {split!r}; it has: {have}")
        self._sizes = {shard.path: shard.bytes for shard in shards}
        self._footers: dict[str, Future[pq.FileMetaData]] = {}
        self._lock = threading.Lock()
        with _pool() as pool:
            counts = list(pool.map(self._group_rows, shards))
        self.groups: list[RowGroup] = []
        left = limit if limit is not None else manifest.splits[split]
        for shard, rows in zip(shards, counts, strict=True):
            for index, count in enumerate(rows):
                if (taken := min(left, count)) > 0:
                    self.groups.append(RowGroup(shard, index, taken))
                    left -= taken
        self.rows = sum(group.rows for group in self.groups)
        self._starts = np.concatenate([[0], np.cumsum([group.rows for group in self.groups])])

    def order(self, seed: int, epoch: int, streams: int, window_rows: int) -> EpochOrder:
        """Return the order of the split's rows in an epoch."""
        return EpochOrder([group.rows for group in self.groups], seed, epoch, streams, window_rows)

    def epoch(
        self, order: EpochOrder, batch_size: int, *, first_step: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[np.ndarray, pa.Table]]:
        """Yield a rank's shares of the global batches from a step on: row numbers, int64 [n], and these rows."""
        assert order.rows == self.rows
        return ahead(self._epoch(order, batch_size, first_step, rank, world), 4)

    def read(self, batches: Sequence[np.ndarray], columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Yield one table per batch of row numbers, which ascend within a batch and from batch to batch.

        columns: those that are wanted, by default all.
        """
        return ahead(self._read(batches, columns), 4)

    def tables(self, columns: list[str], groups: Sequence[int] | None = None) -> Iterator[pa.Table]:
        """Yield some columns of all rows, in shard order, one row group at a time.

        groups: which of ``groups``, ascending; by default all.
        """
        return self._groups(iter(range(len(self.groups)) if groups is None else groups), columns)

    def first_row(self, group: int) -> int:
        """Return the number of a row group's first row."""
        return int(self._starts[group])

    def _epoch(
        self, order: EpochOrder, batch_size: int, first_step: int, rank: int, world: int
    ) -> Iterator[tuple[np.ndarray, pa.Table]]:
        plan = _plan(order, batch_size, first_step, rank, world)
        planned: deque[list[_Take]] = deque()
        asked: dict[_Key, list[Future[pa.Table]]] = {}
        held: dict[int, tuple[_Key, np.ndarray, pa.Table]] = {}  # by stream
        waiting = 0  # bytes
        with _pool() as pool:
            while True:
                while waiting < AHEAD_BYTES and (takes := next(plan, None)) is not None:
                    planned.append(takes)
                    for take in takes:
                        if take.key not in asked and held.get(take.key.stream, (None,))[0] != take.key:
                            asked[take.key] = [pool.submit(self._group, g) for g in take.window.groups]
                            waiting += sum(map(self._bytes, take.window.groups))
                if not planned:
                    return
                numbers, parts, places = [], [], []
                for take in planned.popleft():
                    if take.key in asked:
                        window = take.window
                        table = pa.concat_tables([future.result() for future in asked.pop(take.key)])
                        waiting -= sum(map(self._bytes, window.groups))
                        known = np.concatenate([np.arange(*self._starts[g : g + 2]) for g in window.groups])
                        # Once for all its rows: taking them one by one costs more than decoding their pictures.
                        held[take.key.stream] = (
                            take.key,
                            known[window.permutation],
                            table.take(pa.array(window.permutation)).combine_chunks(),
                        )
                    _, known, table = held[take.key.stream]
                    numbers.append(known[take.rows])
                    parts += [table.slice(row, 1) for row in take.rows.tolist()]
                    places.append(take.places)
                back = np.argsort(np.concatenate(places))
                yield (
                    np.concatenate(numbers)[back],
                    pa.concat_tables([parts[part] for part in back]).combine_chunks(),
                )

    def _read(self, batches: Sequence[np.ndarray], columns: list[str] | None) -> Iterator[pa.Table]:
        group_of = [np.searchsorted(self._starts, rows, side="right") - 1 for rows in batches]
        wanted = np.unique(np.concatenate([np.empty(0, np.int64), *group_of]))
        tables = self._groups(iter(wanted.tolist()), columns)
        held: dict[int, pa.Table] = {}
        order = iter(wanted)
        for rows, groups in zip(batches, group_of, strict=True):
            parts = []
            for g in np.unique(groups):
                while g not in held:
                    held = {int(next(order)): next(tables)}
                parts.append(held[g].take(pa.array(rows[groups == g] - self._starts[g])))
            yield pa.concat_tables(parts).combine_chunks()

    def _groups(self, groups: Iterator[int], columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Yield row groups in the given order, fetched ahead."""
        asked: deque[tuple[Future[pa.Table], int]] = deque()
        waiting = 0
        with _pool() as pool:
            while True:
                while waiting < AHEAD_BYTES and (group := next(groups, None)) is not None:
                    asked.append((pool.submit(self._group, group, columns), self._bytes(group)))
                    waiting += asked[-1][1]
                if not asked:
                    return
                future, size = asked.popleft()
                waiting -= size
                yield future.result()

    def _bytes(self, group: int) -> int:
        shard = self.groups[group].shard
        return shard.bytes * self.groups[group].rows // shard.rows

    def _group(self, number: int, columns: list[str] | None = None) -> pa.Table:
        group = self.groups[number]
        footer = self._footer(group.shard.path)
        names = [footer.schema.column(c).path.partition(".")[0] for c in range(footer.num_columns)]
        chunks = footer.row_group(group.index)
        ranges = [
            _chunk_range(chunks.column(c))
            for c, name in enumerate(names)
            if columns is None or name in columns
        ]
        segments = _joined(ranges)
        found = _ranges(storage.join(self.root, group.shard.path), segments)
        starts = [start for start, _ in segments]
        file = _Ranges(group.shard.bytes, list(zip(starts, found, strict=True)))
        # PyArrow's own buffering would also read what lies between two ranges that are near each other.
        return (
            pq.ParquetFile(file, metadata=footer, pre_buffer=False)
            .read_row_group(group.index, columns)
            .slice(0, group.rows)
        )

    def _group_rows(self, shard: Shard) -> list[int]:
        if shard.group_rows:
            whole, rest = divmod(shard.rows, shard.group_rows)
            return [shard.group_rows] * whole + [rest] * (rest > 0)
        footer = self._footer(shard.path)
        return [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]

    def _footer(self, path: str) -> pq.FileMetaData:
        """Return a shard's footer. The first thread that asks reads it; those used last are kept."""
        with self._lock:
            mine = path not in self._footers
            asked = self._footers.pop(path, None) or Future()
            self._footers[path] = asked
            while len(self._footers) > FOOTERS:
                del self._footers[next(iter(self._footers))]
        if mine:
            try:
                asked.set_result(_read_footer(storage.join(self.root, path), self._sizes[path]))
            except BaseException as error:
                asked.set_exception(error)
                self._footers.pop(path, None)
        return asked.result()


class _Key(NamedTuple):
    """Which window it is."""

    stream: int
    first: int


class _Take(NamedTuple):
    """What a rank's share of a batch takes from a window: its shuffled rows, for these places in the share."""

    key: _Key
    window: Window
    rows: np.ndarray
    places: np.ndarray


def _plan(
    order: EpochOrder, batch_size: int, first_step: int, rank: int, world: int
) -> Iterator[list[_Take]]:
    """Yield what each of a rank's shares takes, from a step on."""
    windows: dict[int, Iterator[Window]] = {}
    current: dict[int, Window] = {}
    for step in range(first_step, steps_per_epoch(order.rows, batch_size)):
        streams, rows = order.share(*global_batch(order.rows, batch_size, step), rank, world)
        takes = []
        for stream in map(int, np.unique(streams)):
            places = np.flatnonzero(streams == stream)
            if stream not in current:
                windows[stream] = order.windows(stream, int(rows[places[0]]))
                current[stream] = next(windows[stream])
            while len(places):
                window = current[stream]
                inside = rows[places] < window.first + len(window.permutation)
                if inside.any():
                    taken = rows[places[inside]] - window.first
                    takes.append(_Take(_Key(stream, window.first), window, taken, places[inside]))
                    places = places[~inside]
                if len(places):
                    current[stream] = next(windows[stream])
        yield takes


def _read_footer(url: str, size: int) -> pq.FileMetaData:
    start = max(0, size - TAIL_BYTES)
    (tail,) = _ranges(url, [(start, size)])
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if length > len(tail):
        (more,) = _ranges(url, [(size - length, start)])
        tail = more + tail
    return pq.read_metadata(io.BytesIO(tail))


def _ranges(url: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    found = storage.read_ranges([url] * len(ranges), *zip(*ranges, strict=True))
    for data, (start, end) in zip(found, ranges, strict=True):
        if isinstance(data, BaseException):
            raise data
        if len(data) != end - start:
            raise OSError(f"{public_url(url)} is shorter than its data set's manifest says: ingest it again")
    return cast(list[bytes], found)


def _chunk_range(chunk: pq.ColumnChunkMetaData) -> tuple[int, int]:
    start = chunk.data_page_offset
    if chunk.has_dictionary_page:
        start = min(start, chunk.dictionary_page_offset)
    return start, start + chunk.total_compressed_size


def _joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the ranges in order, those that touch made one."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if found and start == found[-1][1]:
            found[-1] = found[-1][0], end
        else:
            found.append((start, end))
    return found


class _Ranges(io.RawIOBase):
    """A file of ``size`` bytes of which some ranges are there, as (start, content)."""

    def __init__(self, size: int, ranges: Sequence[tuple[int, bytes]]) -> None:
        self._size, self._ranges, self._at = size, ranges, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        assert size is not None
        assert size >= 0
        for start, data in self._ranges:
            if start <= self._at and self._at + size <= start + len(data):
                self._at += size
                return data[self._at - size - start : self._at - start]
        raise AssertionError(f"bytes {self._at} to {self._at + size} were not fetched")


@contextlib.contextmanager
def _pool() -> Iterator[ThreadPoolExecutor]:
    """Yield threads; what has not begun when the block ends does not begin any more."""
    pool = ThreadPoolExecutor(THREADS)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
