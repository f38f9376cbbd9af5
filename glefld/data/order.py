"""The seeded order of an epoch's rows: streams of shuffled windows, from which every global batch is dealt.

The epoch's permuted row groups are joined and divided into streams of whole groups. Each stream shuffles its rows
within windows, and the streams are dealt out in turn, so that neighbours in a batch come from all over the split. A
rank takes the rows of a run of streams, so each row group is read by one rank, once. Nothing of this depends on timing
or on the number of workers.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

#: Fewest row groups a stream. With fewer, the streams' lengths would differ too much for even shares.
GROUPS_A_STREAM = 8
#: With so many streams a rank, ranks that have one more or less are still even.
EVEN_STREAMS = 8


@dataclasses.dataclass(frozen=True)
class Window:
    """Rows of a stream that are shuffled together: its rows [first, first + rows) in stream order.

    They are those of the row groups, joined in this order, taken at ``permutation``, int64 [rows].
    """

    stream: int
    first: int
    groups: tuple[int, ...]
    permutation: np.ndarray


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


def count_streams(groups: int, most: int) -> int:
    """Return the number of streams for so many row groups: a power of two, at most ``most``."""
    fitting = max(1, min(most, groups // GROUPS_A_STREAM))
    return 1 << (fitting.bit_length() - 1)


class EpochOrder:
    """The order of one epoch's rows.

    group_rows: rows of each row group of the split. streams: at most so many; ``count_streams`` of them there are.
    window_rows: rows that are shuffled together, in all streams.
    """

    def __init__(
        self, group_rows: Sequence[int], seed: int, epoch: int, streams: int, window_rows: int
    ) -> None:
        self._seed = (seed, epoch)
        self._group_rows = np.asarray(group_rows, np.int64)
        self.rows = int(self._group_rows.sum())
        self.streams = count_streams(len(group_rows), streams)
        self._window_rows = max(1, window_rows // self.streams)
        self._groups = np.random.default_rng(self._seed).permutation(len(group_rows))
        starts = np.concatenate([[0], np.cumsum(self._group_rows[self._groups])])
        # Where the groups of each stream begin among the permuted ones: nearest to equal numbers of rows.
        ideal = self.rows * np.arange(self.streams + 1) / self.streams
        above = np.searchsorted(starts, ideal)
        below = np.maximum(above - 1, 0)
        self._cuts = np.where(starts[above] - ideal <= ideal - starts[below], above, below)
        self._cuts[-1] = len(group_rows)
        self._lengths = np.diff(starts[self._cuts])
        self._longest = max(1, int(self._lengths.max()))
        # Turns in bit-reversed order: of any 2^j turns in a row, each 2^j-th part of the streams has one. So the ranks'
        # shares of a batch are even if their number is a power of two.
        bits = self.streams.bit_length() - 1
        self._stream_of_turn = np.array([int(f"{turn:0{bits}b}"[::-1], 2) for turn in range(self.streams)])

    def share(self, first: int, end: int, rank: int, world: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a rank's rows of the global batch [first, end): their streams and their rows in these, int64 each.

        The shares of all ranks together are the batch. None is empty if there are as many rows as ranks. They differ by
        few rows.
        """
        streams, rows = self._dealt(first, end)
        if self.streams % world and self.streams < world * EVEN_STREAMS:
            # Whole streams would be too much for some ranks: equal shares of the batch, in the order of its streams.
            a, b = share(0, len(streams), rank, world)
            mine = np.sort(np.argsort(streams, kind="stable")[a:b])
        else:
            mine = np.flatnonzero(_even(streams * world // self.streams, world) == rank)
        return streams[mine], rows[mine]

    def windows(self, stream: int, row: int) -> Iterator[Window]:
        """Yield a stream's windows in order, from the one that holds the given row of the stream on."""
        # The streams begin with windows of different lengths, so that they do not all need the next one at one step.
        turn = int(np.flatnonzero(self._stream_of_turn == stream)[0])
        least = max(1, self._window_rows * (turn + 1) // self.streams)
        number = first = rows = 0
        groups: list[int] = []
        for group in self._groups[self._cuts[stream] : self._cuts[stream + 1]].tolist():
            groups.append(group)
            rows += int(self._group_rows[group])
            if rows >= least or first + rows == self._lengths[stream]:
                if row < first + rows:
                    rng = np.random.default_rng([*self._seed, stream, number])
                    yield Window(stream, first, tuple(groups), rng.permutation(rows))
                first, rows, number, groups, least = first + rows, 0, number + 1, [], self._window_rows

    def _dealt(self, first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the streams and rows in these, int64 each, of rows [first, end) of the order.

        There are as many rounds as the longest stream has rows. In each, a stream has a turn if its share of the rounds
        so far has come to another row: shorter ones pause now and then.
        """
        a = self._round(first)
        b = self._round(end - 1) + 1
        lengths = self._lengths[self._stream_of_turn]
        before = np.arange(a, b + 1)[:, None] * lengths // self._longest
        rounds, turns = np.nonzero(before[1:] > before[:-1])
        skipped = first - int(before[0].sum())
        rounds, turns = (found[skipped : skipped + end - first] for found in (rounds, turns))
        return self._stream_of_turn[turns], before[rounds, turns]

    def _round(self, row: int) -> int:
        """Return the round in which a row of the order is dealt."""
        found = row * self._longest // self.rows
        while self._rows_before(found) > row:
            found -= 1
        while self._rows_before(found + 1) <= row:
            found += 1
        return found

    def _rows_before(self, round_: int) -> int:
        return int((round_ * self._lengths // self._longest).sum())


def _even(owner: np.ndarray, world: int) -> np.ndarray:
    """Give each rank without a row of a batch one of the rank that has most. owner: the rank of each row, int64 [n]."""
    counts = np.bincount(owner, minlength=world)
    owner = owner.copy()
    for rank in np.flatnonzero(counts == 0)[: max(0, len(owner) - np.count_nonzero(counts))]:
        most = int(counts.argmax())
        owner[np.flatnonzero(owner == most)[-1]] = rank
        counts[most] -= 1
        counts[rank] += 1
    return owner
