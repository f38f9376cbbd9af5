"""Sources: lists and photos are found wherever a download has put them, in one archive or in several."""

import os
from pathlib import Path

import pyarrow as pa
import pytest

from glefld.errors import UserError
from pipelines.ingest.plan import IngestOptions, IngestPlan
from pipelines.ingest.run import prepare
from pipelines.ingest.source import find_source, listed_names
from tests.pipelines.ingest.planned import planned_photos
from tests.raw_layouts import fld_lists, jpeg, photos, rows, write_archive, write_files

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


def plan(source: Path, dataset: str = "fld") -> IngestPlan:
    return prepare(IngestOptions(dataset, str(source)), f"{source}-output")


@pytest.mark.parametrize("case", PLACES)
def test_lists_and_photos_are_found(case: str, tmp_path: Path) -> None:
    place, members, folder, below = PLACES[case]
    source = tmp_path / "source"
    write_archive(source / place, members)
    lists = {name.replace("Anno/", f"{folder}/"): text for name, text in fld_lists(LISTED).items()}
    if folder == ".":
        lists = {name.split("/")[-1]: text for name, text in lists.items()}
    write_files(source, lists)
    check(plan(source / below))


@pytest.mark.parametrize("name", ["all.zip", "all.tar", "all.tar.gz"])
@pytest.mark.parametrize("around", ["", "FLD/"])
def test_one_archive_of_all(name: str, around: str, tmp_path: Path) -> None:
    """The source may be one archive that holds the lists and the photos."""
    members = {path: text.encode() for path, text in fld_lists(LISTED).items()} | PHOTOS
    path = write_archive(tmp_path / name, {around + member: data for member, data in members.items()})
    check(plan(path))


def check(found: IngestPlan) -> None:
    assert planned_photos(found) == PHOTOS
    assert found.source["photos_found_by_other_capitals"] == 0


#: Archives by their name, each with its part of the photos; all of one data set.
SEVERAL = {
    "numbered zips": ("img-0.zip", "img-1.zip", "img-10.zip"),
    "numbered without a sign": ("img1.tar", "img2.tar", "img3.tar"),
    "the first without a number": ("img.zip", "img_1.tar", "img.2.tar.gz"),
    "in Img": ("Img/img-0.zip", "Img/img-1.zip", "Img/img-2.zip"),
    "any in img": ("img/shard-a.tar", "img/shard-b.tar", "img/c.zip"),
    "any in Img/img": ("Img/img/0.tar", "Img/img/1.tar", "Img/img/2.tar"),
}


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("case", SEVERAL)
def test_photos_lie_in_several_archives(
    case: str, running: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Each is found in its own, and rows name it. Tasks of Ray read the same indexes as this process."""
    if running:
        request.getfixturevalue("ray_cluster")
    source = tmp_path / "source"
    write_files(source, fld_lists(LISTED))
    for number, name in enumerate(SEVERAL[case]):
        write_archive(source / name, dict(list(PHOTOS.items())[2 * number : 2 * number + 2]))
    found = plan(source)
    check(found)
    assert sorted(archive.name for archive in found.archives) == sorted(
        f"{source}/{name}" for name in SEVERAL[case]
    )
    assert found.source["files"] == 6


def test_a_photo_in_two_archives_is_refused_if_it_is_listed(tmp_path: Path) -> None:
    """Which of them is meant nobody knows. What no list names may be in all of them."""
    source = tmp_path / "source"
    write_files(source, fld_lists(LISTED))
    items = list(PHOTOS.items())
    write_archive(source / "img-0.zip", dict(items[:4]) | {"img/README": b"0"})
    write_archive(source / "img-1.zip", dict(items[4:]) | {"img/README": b"1"})
    assert planned_photos(plan(source)) == PHOTOS
    write_archive(source / "img-1.zip", dict(items[3:]))
    with pytest.raises(
        UserError, match=rf"{items[3][0]} is in .*img-0\.zip and in .*img-1\.zip: leave it in one"
    ):
        plan(source)
    other = items[3][0].replace("img_", "IMG_")
    write_archive(source / "img-0.zip", dict(items[:3]) | {other: items[3][1]})
    write_archive(source / "img-1.zip", dict(items[4:]) | {other.replace("jpg", "JPG"): items[3][1]})
    with pytest.raises(
        UserError, match=rf"{items[3][0]} is in .*img-0\.zip and in .*img-1\.zip: leave it in one"
    ):
        plan(source)


def test_an_index_that_kills_its_process_names_its_archive(
    tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line, whatever Ray says of it."""
    source = tmp_path / "source"
    write_files(source, fld_lists(LISTED))
    for name in ("img-0.zip", "img-1.zip"):
        write_archive(source / name, PHOTOS)

    def die(number: int, *_: object) -> None:
        os._exit(number)

    monkeypatch.setattr("pipelines.ingest.source._told", die)
    with pytest.raises(
        UserError, match=r"^[^\n]*img-0\.zip died [^\n]*: make more and smaller archives[^\n]*$"
    ):
        plan(source)
    assert not Path(f"{source}-output").exists()


@pytest.mark.parametrize("running", [False, True])
def test_a_damaged_archive_among_several_is_named(
    running: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """In one line, also if a task has found it."""
    if running:
        request.getfixturevalue("ray_cluster")
    source = tmp_path / "source"
    write_files(source, fld_lists(LISTED))
    for name in ("img-0.zip", "img-1.zip"):
        write_archive(source / name, PHOTOS)
    (source / "img-1.zip").write_bytes((source / "img-1.zip").read_bytes()[:-30])
    with pytest.raises(UserError, match=r"^[^\n]*img-1\.zip is not a readable zip[^\n]*$"):
        plan(source)
    assert not Path(f"{source}-output").exists()


def test_what_macos_writes_beside_files_is_no_archive(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_files(source, fld_lists(LISTED))
    for number, name in enumerate(("a.zip", "b.zip")):
        write_archive(source / "img" / name, dict(list(PHOTOS.items())[3 * number : 3 * number + 3]))
        (source / "img" / f"._{name}").write_bytes(b"\0\5\x16\7")
    check(plan(source))


def test_classes_in_archives_of_their_split(tmp_path: Path) -> None:
    """An image folder may be several archives, each with some of its files."""
    files = {
        f"{split}/{name}/{i}.jpg": jpeg(i) for split in ("train", "val") for name in "ab" for i in range(2)
    }
    for split in ("train", "val"):
        part = {name: data for name, data in files.items() if name.startswith(split)}
        write_archive(tmp_path / "source" / f"{split}.tar", part)
    assert planned_photos(plan(tmp_path / "source", "image-folder")) == files


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
    source = tmp_path / "source"
    for absent in ("absent", "absent.zip"):
        with pytest.raises(UserError, match="neither a folder nor an archive"):
            find_source(str(tmp_path / absent), "img")
    write_files(source, fld_lists(LISTED))
    with pytest.raises(UserError, match=r"no photos: --source or its folder Img/ needs img\.zip"):
        find_source(str(source), "img")
    (source / "img.zip").write_bytes(b"<html>please log in</html>")
    with pytest.raises(UserError, match=r"img\.zip is not a readable zip"):
        plan(source)
    (source / "img.zip").unlink()
    write_archive(source / "img" / "0.tar", PHOTOS)
    write_files(source / "img" / "folder", BELOW)
    with pytest.raises(UserError, match=r"img holds archives and the folder folder: leave either"):
        find_source(str(source), "img")
