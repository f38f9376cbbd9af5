"""The plan of an ingest: every listed row is in a shard or rejected, whatever the archive."""

import tarfile
import zipfile
from pathlib import Path

import pytest

from glefld.errors import UserError
from pipelines.archives import read_members
from pipelines.ingest.plan import IngestOptions, IngestPlan, make_plan
from pipelines.ingest.source import open_source
from tests.raw_layouts import fld_lists, jpeg, photos, rows, write_files, write_fld


def plan(source: Path) -> IngestPlan:
    options = IngestOptions("fld", str(source))
    return make_plan(options, open_source(options.source, str(source / "staging"), "img"))


def read(found: IngestPlan) -> dict[str, object]:
    """The photo of each planned row."""
    data: dict[str, object] = {}
    for shard in found.shards:
        contents = read_members(found.archive, shard.rows)
        data |= dict(zip(shard.rows["photo"].to_pylist(), contents, strict=True))
    return data


def test_a_repeated_name_gives_one_row_of_the_last_file(tmp_path: Path) -> None:
    listed = rows(10)
    images = photos(listed)
    write_fld(tmp_path, listed, images)
    name = listed[3].photo
    with zipfile.ZipFile(tmp_path / "img.zip", "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(name, jpeg(99))
    found = plan(tmp_path)
    assert read(found) == images | {name: jpeg(99)}
    assert found.source["files_replaced"] == 1
    assert (found.source["files"], found.source["files_not_used"]) == (10, 0)


def test_a_zip_that_has_lost_entries_is_refused(tmp_path: Path) -> None:
    listed = rows(10)
    write_fld(tmp_path, listed, photos(listed))
    data = (tmp_path / "img.zip").read_bytes()
    end = data.index(b"PK\x05\x06")
    (tmp_path / "img.zip").write_bytes(data[: end + 10] + (18).to_bytes(2, "little") + data[end + 12 :])
    with pytest.raises(UserError, match="lists 10 files where its end record promises 18"):
        plan(tmp_path)


def test_links_in_a_tar_are_photos(tmp_path: Path) -> None:
    listed = rows(10)
    images = photos(listed)
    write_files(tmp_path, fld_lists(listed))
    write_files(tmp_path / "unpacked", images)
    link = tmp_path / "unpacked" / listed[4].photo
    link.unlink()
    link.hardlink_to(tmp_path / "unpacked" / listed[2].photo)
    with tarfile.open(tmp_path / "img.tar", "w") as archive:
        for name in images:
            archive.add(tmp_path / "unpacked" / name, name)
    assert read(plan(tmp_path)) == images | {listed[4].photo: images[listed[2].photo]}
