"""The benchmark of planning: its made-up source is one that ingest plans whole, and its figures are all there."""

from pathlib import Path

import pytest

from pipelines.archives import open_archive, read_index
from pipelines.benchmark import planning
from pipelines.ingest.plan import IngestOptions
from pipelines.ingest.run import prepare


@pytest.mark.parametrize("entries", [1, 70_000])
def test_the_zip_without_photos_lists_all_of_them(entries: int, tmp_path: Path) -> None:
    """It needs no room for them. Above 65,535 its end record is that of a zip64."""
    path = tmp_path / "a.zip"
    planning.write_zip(str(path), entries)
    members = read_index(open_archive(str(path), "")).members
    assert members["name"].to_pylist() == [f"img/{i:016d}.jpg" for i in range(entries)]
    starts, stops = members["start"].to_pylist(), members["stop"].to_pylist()
    assert starts[1:] == stops[:-1]
    assert all(stop > start for start, stop in zip(starts, stops, strict=True))
    assert path.stat().st_blocks * 512 < 200 * entries + (1 << 14)


def test_every_row_of_the_source_is_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "FILE_ROWS", 400)
    planning.write_source(str(tmp_path / "source"), 1000)
    assert len(list((tmp_path / "source").glob("*.parquet"))) == 3
    found = prepare(IngestOptions("table", str(tmp_path / "source")), str(tmp_path / "output"))
    assert (found.rows_in, found.rejects) == (1000, {})
    rows = {
        split: sum(s.rows for s in found.shards if s.split == split) for split in ("train", "val", "test")
    }
    assert rows == {"train": 700, "val": 200, "test": 100}


def test_each_number_of_rows_has_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "ENTRIES", 1000)
    found = planning.measure((200, 400), 2, str(tmp_path / "work"), str(tmp_path))
    figures = ("us/row", "driver's peak memory, MiB", "the plan's files, bytes/row")
    names = {
        f"{rows} rows{',' if figure == 'us/row' else ':'} {figure}"
        for rows in (200, 400)
        for figure in figures
    }
    assert set(found.also) == {*names, "an entry of a zip, us"}
    assert all(min(values) > 0 for values in (found.ours, *found.also.values()))
    assert found.facts["rows"] == [200, 400]
