"""The order of an epoch: every row once, the same batches for any number of workers, each row group read by one."""

import itertools
import random

import numpy as np
import pytest

from glefld.data.order import EpochOrder, count_streams, global_batch, share, steps_per_epoch

GROUPS = [[5], [3, 1, 4, 1, 5], [30] * 40 + [17], [7] * 200, [60] * 9 + [0, 3]]
WORLDS = (1, 2, 3, 4, 7)


def rows_of(order: EpochOrder, starts: np.ndarray) -> dict[int, np.ndarray]:
    """By stream, the split's rows in the stream's order."""
    found = {}
    for stream in range(order.streams):
        parts = []
        for window in order.windows(stream, 0):
            rows = [np.arange(starts[group], starts[group + 1]) for group in window.groups]
            parts.append(np.concatenate(rows)[window.permutation])
        found[stream] = np.concatenate(parts) if parts else np.empty(0, np.int64)
    return found


def epoch(
    order: EpochOrder, groups: list[int], batch: int, rank: int, world: int, first: int = 0
) -> list[np.ndarray]:
    """The rows of a rank's share of each batch from a step on."""
    rows = rows_of(order, np.concatenate([[0], np.cumsum(groups)]))
    shares = []
    for step in range(first, steps_per_epoch(order.rows, batch)):
        streams, places = order.share(*global_batch(order.rows, batch, step), rank, world)
        shares.append(np.array([rows[s][i] for s, i in zip(streams, places, strict=True)], np.int64))
    return shares


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("batch", [1, 16, 50])
@pytest.mark.parametrize("streams", [1, 4, 64])
def test_each_row_once_in_the_same_batches_for_any_number_of_workers(
    groups: list[int], batch: int, streams: int
) -> None:
    seed = random.randrange(2**31)
    print("seed", seed)
    order = EpochOrder(groups, seed, 3, streams, window_rows=100)
    alone = epoch(order, groups, batch, 0, 1)
    assert sorted(np.concatenate(alone)) == list(range(sum(groups)))
    sizes = [len(rows) for rows in alone]
    assert max(sizes) <= batch
    assert max(sizes) - min(sizes) <= 1
    for world in WORLDS[1:]:
        shares = [epoch(order, groups, batch, rank, world) for rank in range(world)]
        for rows, *parts in zip(alone, *shares, strict=True):
            assert sorted(np.concatenate(parts)) == sorted(rows)
            assert len(rows) < world or all(len(part) for part in parts)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7, 8])
@pytest.mark.parametrize("groups", [[64] * 79, [64] * 700, [7] * 200])
def test_shares_are_even(world: int, groups: list[int]) -> None:
    """But for few rows; on average over an epoch, to what two row groups in a rank's are."""
    order = EpochOrder(groups, 0, 0, 64, 1000)
    lengths = np.array(
        [
            [len(order.share(*global_batch(order.rows, 50, step), rank, world)[0]) for rank in range(world)]
            for step in range(steps_per_epoch(order.rows, 50))
        ]
    )
    assert (lengths.max(axis=1) - lengths.min(axis=1)).max() <= 4
    total = lengths.sum(axis=0)
    assert total.max() - total.min() <= max(2 * groups[0], 0.16 * total.mean())


@pytest.mark.parametrize("world", WORLDS)
def test_an_epoch_goes_on_at_any_step(world: int) -> None:
    groups = [64] * 40 + [17]
    order = EpochOrder(groups, 5, 1, 64, 300)
    for first in (1, 7, 100, steps_per_epoch(order.rows, 16) - 1):
        for rank in range(world):
            whole, rest = (epoch(order, groups, 16, rank, world, at) for at in (0, first))
            assert all((a == b).all() for a, b in zip(whole[first:], rest, strict=True))


def test_windows_go_on_at_any_row() -> None:
    order = EpochOrder([64] * 40 + [17], 5, 1, 64, 300)
    whole = list(order.windows(2, 0))
    assert len(whole) > 3
    for window in whole:
        for row in (window.first, window.first + len(window.permutation) - 1):
            found = next(order.windows(2, row))
            assert (found.first, found.groups) == (window.first, window.groups)
            assert (found.permutation == window.permutation).all()


def test_the_order_is_another_for_another_seed_or_epoch() -> None:
    groups = [10] * 100
    orders = [
        epoch(EpochOrder(groups, *key, 8, 50), groups, 1000, 0, 1)[0] for key in ((0, 0), (0, 1), (1, 0))
    ]
    for a, b in itertools.combinations(orders, 2):
        assert (a != b).mean() > 0.9


def test_windows_are_bounded_and_each_row_group_is_in_one() -> None:
    """So memory is bounded, and what a worker has read it does not read again."""
    order = EpochOrder([10] * 1000, 0, 0, 64, 640)
    assert order.streams == 64
    groups = []
    for stream in range(64):
        for window in order.windows(stream, 0):
            assert len(window.permutation) <= 10 + 9
            groups += window.groups
    assert sorted(groups) == list(range(1000))


@pytest.mark.parametrize(
    ("groups", "most", "streams"),
    [(1, 64, 1), (15, 64, 1), (16, 64, 2), (79, 64, 8), (10**6, 64, 64), (10**6, 100, 64), (10**6, 1, 1)],
)
def test_no_more_streams_than_stay_even(groups: int, most: int, streams: int) -> None:
    assert count_streams(groups, most) == streams


@pytest.mark.parametrize(("rows", "batch"), [(1, 1), (7, 3), (100, 32), (97, 50), (31, 64), (4964, 32)])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_global_batches_and_shares_cover_the_epoch(rows: int, batch: int, world: int) -> None:
    """Batches follow on one another, none over the size asked for, sizes and shares even to one row."""
    bounds = [global_batch(rows, batch, step) for step in range(steps_per_epoch(rows, batch))]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == rows
    assert all(a[1] == b[0] for a, b in itertools.pairwise(bounds))
    sizes = {end - first for first, end in bounds}
    assert max(sizes) <= batch
    assert max(sizes) - min(sizes) <= 1
    for first, end in bounds:
        parts = [share(first, end, rank, world) for rank in range(world)]
        assert parts[0][0] == first
        assert parts[-1][1] == end
        assert all(a[1] == b[0] for a, b in itertools.pairwise(parts))
        lengths = [b - a for a, b in parts]
        assert max(lengths) - min(lengths) <= 1
