"""The plan of an ingest: every listed row is in a shard or rejected, whatever the archive."""

import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from glefld.errors import UserError
from pipelines.ingest import plan as module
from pipelines.ingest.plan import IngestOptions, IngestPlan
from pipelines.ingest.run import begin, prepare, shard_settings
from pipelines.ingest.shard import planned_rows, write_shard
from tests.pipelines.ingest.planned import planned_photos, planned_rejects
from tests.raw_layouts import Row, fld_lists, jpeg, photos, rows, write_archive, write_files, write_fld


def plan(source: Path, **options: object) -> IngestPlan:
    return prepare(IngestOptions("fld", str(source), **options), f"{source}-output")


def test_a_repeated_name_gives_one_row_of_the_last_file(tmp_path: Path) -> None:
    listed = rows(10)
    images = photos(listed)
    source = write_fld(tmp_path / "source", listed, images)
    name = listed[3].photo
    with zipfile.ZipFile(source / "img.zip", "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(name, jpeg(99))
    found = plan(source)
    assert planned_photos(found) == images | {name: jpeg(99)}
    assert found.source["files_replaced"] == 1
    assert (found.source["files"], found.source["files_not_used"]) == (10, 0)


def test_a_zip_that_has_lost_entries_is_refused(tmp_path: Path) -> None:
    listed = rows(10)
    source = write_fld(tmp_path / "source", listed, photos(listed))
    data = (source / "img.zip").read_bytes()
    end = data.index(b"PK\x05\x06")
    (source / "img.zip").write_bytes(data[: end + 10] + (18).to_bytes(2, "little") + data[end + 12 :])
    with pytest.raises(UserError, match="lists 10 files where its end record promises 18"):
        plan(source)


def test_links_in_a_tar_are_photos(tmp_path: Path) -> None:
    listed = rows(10)
    images = photos(listed)
    source = tmp_path / "source"
    write_files(source, fld_lists(listed))
    write_files(tmp_path / "unpacked", images)
    link = tmp_path / "unpacked" / listed[4].photo
    link.unlink()
    link.hardlink_to(tmp_path / "unpacked" / listed[2].photo)
    with tarfile.open(source / "img.tar", "w") as archive:
        for name in images:
            archive.add(tmp_path / "unpacked" / name, name)
    assert planned_photos(plan(source)) == images | {listed[4].photo: images[listed[2].photo]}


def test_capitals_are_ignored_where_nothing_else_matches(tmp_path: Path) -> None:
    """An exact name wins; else a folder in other capitals is taken and counted; else there is no photo."""
    names = ["img/red_dress/1.jpg", "img/blue_shirt/1.JPG", "img/green/1.jpg"]
    files = {
        name: jpeg(seed)
        for seed, name in enumerate(["Red_Dress/1.jpg", "red_dress/1.jpg", "Blue_Shirt/1.jpg"])
    }
    source = write_fld(tmp_path / "source", [Row(name) for name in names], {})
    write_archive(source / "img.zip", files)
    found = plan(source)
    assert planned_photos(found) == {names[0]: files["red_dress/1.jpg"], names[1]: files["Blue_Shirt/1.jpg"]}
    assert planned_rejects(found) == {"fld/img/green/1.jpg#0": "missing_photo"}
    assert found.source["photos_found_by_other_capitals"] == 1
    assert (found.source["files"], found.source["files_not_used"]) == (3, 1)


def test_the_plan_is_the_same_in_any_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the size of its files nor that of the batches changes a shard or the key; shards are of equal bytes."""
    listed = rows(300)
    source = write_fld(tmp_path / "source", listed, photos(listed, width=110, height=140))
    found = []
    for file_rows, threads, memory in ((1 << 20, 4, "512MB"), (1, 1, "64MB"), (100, 2, "128MB")):
        monkeypatch.setattr(module, "FILE_ROWS", file_rows)
        monkeypatch.setattr("pipelines.ingest.sql.THREADS", threads)
        monkeypatch.setattr("pipelines.ingest.sql.MEMORY", memory)
        planned = plan(source, shard_mib=1)
        files = {shard.file for shard in planned.shards}
        assert len(files) == {1 << 20: 3, 1: len(planned.shards)}.get(file_rows, len(files))
        contents = [(shard.path, planned_rows(shard.item).to_pylist()) for shard in planned.shards]
        found.append((planned.key, str(contents)))
    assert found[0] == found[1] == found[2]


def test_runs_on_one_output_do_not_touch_each_others_plans(tmp_path: Path) -> None:
    """Of the same options or, what is told late, of others; what the one that finishes first removes is told."""
    listed = rows(10)
    source = write_fld(tmp_path / "source", listed, photos(listed))
    output = f"{source}-output"
    first, second, other = plan(source), plan(source), plan(source, margin=1.0)
    assert first.key == second.key
    expected = planned_photos(first)
    write_shard({**first.shards[0].item, "killers": []}, shard_settings(first, output), frozenset())
    with pytest.raises(UserError, match="which another ingest run wrote"):
        begin(other, output)
    assert planned_photos(first) == planned_photos(second) == expected
    (source / "img.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match="not a readable zip"):
        plan(source)
    (staging,) = {Path(found.folder).parent for found in (first, second, other)}
    assert {path.name for path in staging.iterdir()} == {Path(found.folder).name for found in (first, second)}
    shutil.rmtree(staging)
    with pytest.raises(OSError, match=r"the plan .* is gone: another run may have finished the same output"):
        planned_rows(second.shards[0].item)


def test_row_groups_grow_with_the_data_set() -> None:
    """So that there are never more than 65,536, up to the largest group; a small data set keeps the smallest."""
    cases = {0: 64, 289_222: 64, 1 << 22: 64, (1 << 22) + 1: 128, 10_000_000: 256, 1_000_000_000: 1024}
    assert {rows: module.group_rows(rows) for rows in cases} == cases


@pytest.mark.parametrize("batch", [1, 7, 64, 1000])
def test_shards_have_nearly_equal_bytes_and_all_rows(batch: int) -> None:
    """Cut anywhere in the stream they are those of the whole; a shard exceeds its part by at most two rows."""
    seed = int(np.random.default_rng().integers(1 << 31))
    print("seed", seed)
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 50_000, 777) * (rng.random(777) > 0.2)
    table = pa.table({"size": pa.array(sizes), "row": pa.array(np.arange(777))})
    total, count = int(sizes.sum()), int(rng.integers(1, 40))
    parts = [table.slice(i, batch) for i in range(0, 777, batch)]
    found = list(module._shards(iter(parts), total, count))
    assert pa.concat_tables(found).equals(table)
    assert len(found) <= count
    assert all(sum(part["size"].to_pylist()) <= total / count + 2 * 50_000 for part in found)
    whole = list(module._shards(iter([table]), total, count))
    assert [len(part) for part in found] == [len(part) for part in whole]
