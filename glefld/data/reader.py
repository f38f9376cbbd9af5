"""Reading an ingested data set in a seeded order, as each rank's share of the global batches.

The order depends only on the seed and the epoch, not on timing or the number of workers. Any number of workers
therefore sees the same global batches, and a run resumes at any step without reading the rows before it.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from glefld import storage
from glefld.data.prefetch import ahead
from glefld.errors import UserError
from glefld.schema import Manifest, Split

#: Rows shuffled together. Row groups are first permuted over the whole split, so this limits memory more than mixing.
WINDOW_ROWS = 16_384


def shuffled(group_rows: Sequence[int], seed: int, epoch: int, window_rows: int = WINDOW_ROWS) -> np.ndarray:
    """Return a permutation of all rows, int64 [sum of group_rows], that reads only a window of row groups at a time.

    Row groups are permuted and joined into windows of at least ``window_rows`` rows; each window's rows are permuted.
    """
    rng = np.random.default_rng([seed, epoch])
    starts = np.concatenate([[0], np.cumsum(group_rows)]).astype(np.int64)
    windows: list[np.ndarray] = []
    window: list[np.ndarray] = []
    filled = 0
    for group in rng.permutation(len(group_rows)):
        window.append(np.arange(starts[group], starts[group + 1]))
        filled += len(window[-1])
        if filled >= window_rows:
            windows.append(rng.permutation(np.concatenate(window)))
            window, filled = [], 0
    if window:
        windows.append(rng.permutation(np.concatenate(window)))
    return np.concatenate(windows) if windows else np.empty(0, np.int64)


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Return the number of global batches of at most ``batch_size`` rows that cover each row once."""
    return -(-rows // batch_size)


def global_batch(rows: int, batch_size: int, step: int) -> tuple[int, int]:
    """Return the first row and the end of a step's global batch; batch sizes differ by at most one row."""
    steps = steps_per_epoch(rows, batch_size)
    return rows * step // steps, rows * (step + 1) // steps


def share(first: int, end: int, rank: int, world: int) -> tuple[int, int]:
    """Return a rank's contiguous share of rows [first, end); the shares differ by at most one row."""
    return first + (end - first) * rank // world, first + (end - first) * (rank + 1) // world


@dataclass(frozen=True)
class RowGroup:
    """One row group of a Parquet shard."""

    url: str
    index: int
    rows: int


class SplitReader:
    """The rows of one split of a data set, addressed by their number in shard order.

    The Parquet footers are read once, on construction. UserError if the split has no rows.
    """

    def __init__(self, root: str, manifest: Manifest, split: Split, limit: int | None = None) -> None:
        self.root = root
        shards = [s for s in manifest.shards if s.split == split]
        if not any(s.rows for s in shards):
            have = ", ".join(name for name, rows in manifest.splits.items() if rows)
            raise UserError(f"the data set {root} has no rows in its split {split!r}; it has: {have}")
        urls = [storage.join(root, s.path) for s in shards]
        with ThreadPoolExecutor(16) as pool:
            footers = list(pool.map(_footer, urls))
        self.groups = [
            RowGroup(url, i, footer.row_group(i).num_rows)
            for url, footer in zip(urls, footers, strict=True)
            for i in range(footer.num_row_groups)
        ]
        total = sum(group.rows for group in self.groups)
        assert total == manifest.splits[split], (
            f"{root}: {split} has {total} rows, its manifest says otherwise"
        )
        self.rows = total if limit is None else min(limit, total)
        self._starts = np.cumsum([0] + [group.rows for group in self.groups])

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Return the epoch's order of the split's rows, int64 [rows]."""
        order = shuffled([group.rows for group in self.groups], seed, epoch)
        return order[order < self.rows]

    def read(self, batches: Sequence[np.ndarray]) -> Iterator[pa.Table]:
        """Yield one table per batch of row numbers, rows in the given order; a thread reads a few batches ahead."""
        return ahead(self._read(batches), 4)

    def tables(self, columns: list[str]) -> Iterator[pa.Table]:
        """Yield some columns of all rows, in shard order, one row group at a time."""
        left = self.rows
        for group in self.groups:
            table = _read_group(group, columns).slice(0, left)
            left -= table.num_rows
            yield table

    def _read(self, batches: Sequence[np.ndarray]) -> Iterator[pa.Table]:
        group_of = [np.searchsorted(self._starts, rows, side="right") - 1 for rows in batches]
        # Keep each row group from the first batch that needs it to the last one.
        last_use = {int(g): i for i, groups in enumerate(group_of) for g in np.unique(groups)}
        held: dict[int, pa.Table] = {}
        for i, (rows, groups) in enumerate(zip(batches, group_of, strict=True)):
            parts, positions = [], np.empty(len(rows), np.int64)
            filled = 0
            for g in np.unique(groups):
                if g not in held:
                    held[g] = _read_group(self.groups[g])
                at = np.flatnonzero(groups == g)
                parts.append(held[g].take(pa.array(rows[at] - self._starts[g])))
                positions[at] = np.arange(filled, filled + len(at))
                filled += len(at)
                if last_use[int(g)] == i:
                    del held[g]
            yield pa.concat_tables(parts).take(pa.array(positions)).combine_chunks()


def _footer(url: str) -> pq.FileMetaData:
    with storage.open(url) as file:
        return pq.read_metadata(file)


def _read_group(group: RowGroup, columns: list[str] | None = None) -> pa.Table:
    with storage.open(group.url, cache_type="readahead", block_size=8 << 20) as file:
        return pq.ParquetFile(file).read_row_group(group.index, columns)
