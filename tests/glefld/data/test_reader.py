"""The reader: a seeded order that covers every row once, the same for any number of workers."""

import itertools
import random
from pathlib import Path

import numpy as np
import pytest

from glefld.data.dataset import open_dataset
from glefld.data.reader import SplitReader, global_batch, share, shuffled, steps_per_epoch
from glefld.errors import UserError
from tests.ingested import write_dataset


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> SplitReader:
    url = write_dataset(tmp_path_factory.mktemp("data"), {"train": 53, "val": 0})
    return SplitReader(url, open_dataset(url), "train")


@pytest.mark.parametrize("groups", [[5], [3, 1, 4, 1, 5], [256] * 9 + [17], []])
@pytest.mark.parametrize("window", [1, 300, 10_000])
def test_every_row_once_in_an_order_of_the_seed(groups: list[int], window: int) -> None:
    """A permutation, the same for the same seed and epoch, another for another."""
    seed = random.randrange(2**31)
    print("seed", seed)
    order = shuffled(groups, seed, 3, window)
    assert sorted(order) == list(range(sum(groups)))
    assert (order == shuffled(groups, seed, 3, window)).all()
    if sum(groups) > 100:
        assert (order != shuffled(groups, seed, 4, window)).any()
        assert (order != shuffled(groups, seed + 1, 3, window)).any()


def test_a_window_bounds_how_many_row_groups_are_open() -> None:
    """Rows of one window of the order come from as many row groups as fill it, so memory is bounded."""
    order = shuffled([10] * 100, seed=0, epoch=0, window_rows=50)
    for first in range(0, 1000, 50):
        assert len(np.unique(order[first : first + 50] // 10)) == 5


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


@pytest.mark.parametrize("size", [1, 4, 53])
def test_read_gives_the_rows_asked_for_in_their_order(reader: SplitReader, size: int) -> None:
    """Whatever row groups and shards the rows lie in, they come back as named."""
    order = reader.order(seed=1, epoch=0)
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    found = [table["sample_id"].to_pylist() for table in reader.read(batches)]
    assert found == [[f"fld/train/{row:04d}#0" for row in batch] for batch in batches]


def test_tables_walk_the_split_in_shard_order(reader: SplitReader) -> None:
    found = [i for table in reader.tables(["sample_id"]) for i in table["sample_id"].to_pylist()]
    assert found == [f"fld/train/{row:04d}#0" for row in range(53)]


def test_a_limit_keeps_the_first_rows(reader: SplitReader) -> None:
    limited = SplitReader(reader.root, open_dataset(reader.root), "train", limit=9)
    assert sorted(limited.order(0, 0)) == list(range(9))
    assert sum(table.num_rows for table in limited.tables(["box"])) == 9


def test_an_empty_split_ends_in_one_line(reader: SplitReader) -> None:
    with pytest.raises(UserError, match="no rows in its split 'val'; it has: train"):
        SplitReader(reader.root, open_dataset(reader.root), "val")


def test_an_error_while_reading_ahead_reaches_the_consumer(tmp_path: Path) -> None:
    """A shard that disappears under the reader is an error where its rows are asked for, not a hang."""
    url = write_dataset(tmp_path, {"train": 30})
    reader = SplitReader(url, open_dataset(url), "train")
    (tmp_path / "split=train" / "part-00001.parquet").unlink()
    with pytest.raises(FileNotFoundError):
        list(reader.read([np.arange(30)]))
