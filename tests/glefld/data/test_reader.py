"""The reader: a seeded order that covers every row once, the same for any number of workers."""

import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glefld import storage
from glefld.data.dataset import open_dataset
from glefld.data.reader import THREADS, SplitReader
from glefld.errors import UserError
from tests.ingested import write_dataset


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> SplitReader:
    url = write_dataset(tmp_path_factory.mktemp("data"), {"train": 53, "val": 0})
    return SplitReader(url, open_dataset(url), "train")


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("first_step", [0, 3])
@pytest.mark.parametrize("batch", [8, 16])
def test_the_shares_of_all_workers_are_the_epoch(
    reader: SplitReader, world: int, first_step: int, batch: int
) -> None:
    """Each row comes under its number, once, and the same batches whatever the number of workers."""
    order = reader.order(seed=1, epoch=0, streams=4, window_rows=20)
    alone = list(reader.epoch(order, batch))[first_step:]
    shares = [
        list(reader.epoch(order, batch, first_step=first_step, rank=rank, world=world))
        for rank in range(world)
    ]
    for (rows, _), *parts in zip(alone, *shares, strict=True):
        assert sorted(rows) == sorted(np.concatenate([numbers for numbers, _ in parts]))
        for numbers, table in parts:
            assert table["sample_id"].to_pylist() == [f"fld/train/{row:04d}#0" for row in numbers]
    if first_step == 0:
        assert sorted(np.concatenate([numbers for numbers, _ in alone])) == list(range(53))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Bytes that are read from files, by name."""
    counts: Counter[str] = Counter()
    ranges = storage.read_ranges

    def counted(urls: list[str], starts: list[int], stops: list[int]) -> list[bytes | BaseException]:
        for url, start, stop in zip(urls, starts, stops, strict=True):
            counts[url] += stop - start
        return ranges(urls, starts, stops)

    monkeypatch.setattr(storage, "read_ranges", counted)
    monkeypatch.setattr(storage, "open", None)
    return counts


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_all_workers_together_read_the_split_about_once(world: int, read: Counter[str], many: str) -> None:
    manifest = open_dataset(many)
    for rank in range(world):
        reader = SplitReader(many, manifest, "train")
        assert not read or rank  # the number of rows is in the manifest
        order = reader.order(seed=1, epoch=0, streams=64, window_rows=200)
        assert order.streams == 8
        for _ in reader.epoch(order, 16, rank=rank, world=world):
            pass
    size = sum(shard.bytes for shard in manifest.shards)
    footers = sum(_footer_bytes(Path(many, shard.path)) for shard in manifest.shards)
    print(
        f"{world} workers read {(read.total()) / size:.3f} of the split, {footers / size:.3f} of it footers"
    )
    # Each row group by one worker; the footers, which are large beside such small photos, by all.
    assert read.total() - world * footers == pytest.approx(size - footers, abs=8 * len(manifest.shards))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data set of 80 row groups in few shards."""
    return write_dataset(tmp_path_factory.mktemp("many"), {"train": 560}, shard_rows=280)


def _footer_bytes(path: Path) -> int:
    return int.from_bytes(path.read_bytes()[-8:-4], "little") + 8


def test_row_groups_are_fetched_several_at_once(monkeypatch: pytest.MonkeyPatch, many: str) -> None:
    """And before they are asked for: latency is hidden."""
    together, most, lock = 0, 0, threading.Lock()
    ranges = storage.read_ranges

    def slow(*arguments: list[Any]) -> list[bytes | BaseException]:
        nonlocal together, most
        with lock:
            together += 1
            most = max(most, together)
        time.sleep(0.02)
        with lock:
            together -= 1
        return ranges(*arguments)

    monkeypatch.setattr(storage, "read_ranges", slow)
    reader = SplitReader(many, open_dataset(many), "train")
    next(reader.epoch(reader.order(0, 0, 64, 200), 16))
    assert most == THREADS


@pytest.mark.parametrize("size", [1, 4, 53])
def test_read_gives_the_rows_asked_for(reader: SplitReader, size: int) -> None:
    """Whatever row groups and shards the rows lie in, they come back as named."""
    batches = [np.arange(53)[i : i + size][::2] for i in range(0, 53, size)]
    found = [table["sample_id"].to_pylist() for table in reader.read(batches)]
    assert found == [[f"fld/train/{row:04d}#0" for row in batch] for batch in batches]


def test_a_shorter_shard_than_the_manifest_says_is_an_error(tmp_path: Path) -> None:
    url = write_dataset(tmp_path, {"train": 30})
    path = tmp_path / "split=train" / "part-00001.parquet"
    reader = SplitReader(url, open_dataset(url), "train")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(OSError, match=r"part-00001.parquet is shorter than its data set's manifest says"):
        list(reader.tables(["box"]))


def test_tables_walk_the_split_in_shard_order(reader: SplitReader) -> None:
    found = [i for table in reader.tables(["sample_id"]) for i in table["sample_id"].to_pylist()]
    assert found == [f"fld/train/{row:04d}#0" for row in range(53)]


def test_some_groups_alone(reader: SplitReader) -> None:
    chosen = [1, 3, 4]
    found = [i for table in reader.tables(["sample_id"], chosen) for i in table["sample_id"].to_pylist()]
    rows = [reader.first_row(group) + i for group in chosen for i in range(reader.groups[group].rows)]
    assert found == [f"fld/train/{row:04d}#0" for row in rows]
    assert len(rows) < 53


def test_some_columns_of_some_rows(reader: SplitReader) -> None:
    (table,) = reader.read([np.array([2, 30])], ["sample_id", "box"])
    assert table["sample_id"].to_pylist() == ["fld/train/0002#0", "fld/train/0030#0"]
    assert set(table.column_names) == {"sample_id", "box"}


def test_some_columns_can_be_read_from_both_sides_of_small_pictures(reader: SplitReader) -> None:
    """What lies between the columns is not fetched, also where it is only a few kilobytes."""
    names = ["box", "crop_box", "landmarks", "visibility"]
    (some, *_), (whole, *_) = reader.tables(names), reader.tables(["image", *names])
    assert whole["image"].nbytes < 100_000
    assert some.equals(whole.select(some.column_names))


def test_a_limit_keeps_the_first_rows(reader: SplitReader) -> None:
    limited = SplitReader(reader.root, open_dataset(reader.root), "train", limit=9)
    rows = [numbers for numbers, _ in limited.epoch(limited.order(0, 0, 64, 100), 4)]
    assert sorted(np.concatenate(rows)) == list(range(9))
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
