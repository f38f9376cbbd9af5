"""Sources: lists and photos are found wherever a download has put them."""

from pathlib import Path

import pyarrow as pa
import pytest

from glefld.datasets import read_annotations
from glefld.errors import UserError
from pipelines.archives import read_members
from pipelines.ingest.source import listed_names, match_photos, open_source
from tests.raw_layouts import fld_lists, photos, rows, write_archive, write_files

LISTED = rows(6)
PHOTOS = photos(LISTED)
BELOW = {name.removeprefix("img/"): data for name, data in PHOTOS.items()}
# Where the photos are, and what is put there; the lists' own folders; the source below the test's folder.
PLACES = {
    "img.zip": ("img.zip", PHOTOS, "Anno", ""),
    "zip in Img": ("Img/img.zip", PHOTOS, "Anno", ""),
    "tar": ("img.tar", PHOTOS, "Anno", ""),
    "compressed tar": ("img.tar.gz", PHOTOS, "Anno", ""),
    "tar with ./": ("Img/img.tar", {f"./{name}": data for name, data in PHOTOS.items()}, "Anno", ""),
    "unpacked": ("img", BELOW, "Anno", ""),
    "unpacked in Img": ("Img/img", BELOW, "Anno", ""),
    "unpacked as Img": ("Img", BELOW, "Anno", ""),
    "zip without img": ("img.zip", BELOW, "Anno", ""),
    "zip with a folder around": (
        "img.zip",
        {f"FLD/{name}": data for name, data in PHOTOS.items()},
        "Anno",
        "",
    ),
    "lists beside the zip": ("img.zip", PHOTOS, ".", ""),
    "lists in other capitals": ("IMG.zip", PHOTOS, "ANNO", ""),
}


@pytest.mark.parametrize("case", PLACES)
def test_lists_and_photos_are_found(case: str, tmp_path: Path) -> None:
    place, members, folder, below = PLACES[case]
    write_archive(tmp_path / place, members)
    lists = {name.replace("Anno/", f"{folder}/"): text for name, text in fld_lists(LISTED).items()}
    if folder == ".":
        lists = {name.split("/")[-1]: text for name, text in lists.items()}
    write_files(tmp_path, lists)
    source = open_source(str(tmp_path / below), str(tmp_path / "staging"), "img")
    check(source)


@pytest.mark.parametrize("name", ["all.zip", "all.tar", "all.tar.gz"])
@pytest.mark.parametrize("around", ["", "FLD/"])
def test_one_archive_of_all(name: str, around: str, tmp_path: Path) -> None:
    """The source may be one archive that holds the lists and the photos."""
    members = {path: text.encode() for path, text in fld_lists(LISTED).items()} | PHOTOS
    path = write_archive(tmp_path / name, {around + member: data for member, data in members.items()})
    check(open_source(str(path), str(tmp_path / "staging"), "img"))


def check(source: object) -> None:
    table = read_annotations("fld", source.lists).table
    found, capitals = match_photos(table["photo"], source.members)
    data = read_members(source.archive, found)
    assert dict(zip(table["photo"].to_pylist(), data, strict=True)) == PHOTOS
    assert capitals == 0


def test_capitals_are_ignored_where_nothing_else_matches() -> None:
    """An exact name wins; else a folder in other capitals is taken and counted; else there is no photo."""
    members = pa.table({"name": ["img/Red_Dress/1.jpg", "img/red_dress/1.jpg", "img/Blue_Shirt/1.jpg"]})
    members = members.append_column("listed", listed_names(members["name"], "img"))
    listed = pa.chunked_array([["img/red_dress/1.jpg", "img/blue_shirt/1.JPG", "img/green/1.jpg"]])
    found, capitals = match_photos(listed, members)
    assert found["name"].to_pylist() == ["img/red_dress/1.jpg", "img/Blue_Shirt/1.jpg", None]
    assert capitals == 1


def test_photos_of_splits_are_named_from_the_split_on() -> None:
    """Whatever folders are around, also where a class or a folder in it is called as a split; all else has no name."""
    names = {
        "train/wren/1.jpg": "train/wren/1.jpg",
        "CUB/birds/val/wren/1.jpg": "val/wren/1.jpg",
        "test/train/val/1.jpg": "test/train/val/1.jpg",
        "training/wren/1.jpg": None,
        "Train/wren/1.jpg": None,
        "README.md": None,
    }
    assert listed_names(pa.chunked_array([list(names)]), "splits").to_pylist() == list(names.values())


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a folder nor an archive"):
        open_source(str(tmp_path / "absent"), "", "img")
    with pytest.raises(UserError, match="neither a folder nor an archive"):
        open_source(str(tmp_path / "absent.zip"), "", "img")
    write_files(tmp_path, fld_lists(LISTED))
    with pytest.raises(UserError, match=r"no photos: --source or its folder Img/ needs img\.zip"):
        open_source(str(tmp_path), "", "img")
    (tmp_path / "img.zip").write_bytes(b"<html>please log in</html>")
    with pytest.raises(UserError, match=r"img\.zip is not a readable zip"):
        open_source(str(tmp_path), "", "img")
