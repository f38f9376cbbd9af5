"""Inputs of inference: one row per garment, and what is not predicted is counted or refused."""

import tarfile
import zipfile
from pathlib import Path

import pytest

from glefld.errors import BadPhoto
from pipelines.infer.inputs import open_input
from tests.raw_layouts import jpeg


def test_a_repeated_name_gives_one_row(tmp_path: Path) -> None:
    """The last file of a name is predicted, as it would be after unpacking, and the others are counted."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, seed in (("a.jpg", 1), ("b.jpg", 2), ("notes.txt", 3)):
            archive.writestr(name, jpeg(seed))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.jpg", jpeg(4))
    (tmp_path / "boxes.csv").write_text("uri,x1,y1,x2,y2\na.jpg,1,1,9,9\na.jpg,2,2,9,9\n")
    for boxes, photos in ((None, [2, 4]), (str(tmp_path / "boxes.csv"), [4, 4])):
        found = open_input(str(tmp_path / "a.zip"), boxes, None, "")
        keys = list(zip(found.rows["uri"].to_pylist(), found.rows["garment"].to_pylist(), strict=True))
        assert len(set(keys)) == len(keys) == 2
        assert [photo.data for photo in found.photos.read(found.rows)] == [jpeg(seed) for seed in photos]
        assert found.skipped["not a picture's name"] == 1
        assert found.skipped["replaced by a later file of the same name"] == 1


def test_a_link_in_a_tar_is_a_row(tmp_path: Path) -> None:
    """One that leads to a photo is that photo; one that leads nowhere is an error row, not a photo the less."""
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    (tmp_path / "hard.jpg").hardlink_to(tmp_path / "a.jpg")
    (tmp_path / "soft.jpg").symlink_to("a.jpg")
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        for name in ("a.jpg", "hard.jpg", "soft.jpg", "gone.jpg"):
            archive.add(tmp_path / name, name)
    found = open_input(str(tmp_path / "photos.tar"), None, None, "")
    photos = [photo.data for photo in found.photos.read(found.rows)]
    names = [uri.rpartition("::")[2] for uri in found.rows["uri"].to_pylist()]
    read = dict(zip(names, photos, strict=True))
    bad = read.pop("gone.jpg")
    assert isinstance(bad, BadPhoto)
    assert read == dict.fromkeys(["a.jpg", "hard.jpg", "soft.jpg"], jpeg(1))
