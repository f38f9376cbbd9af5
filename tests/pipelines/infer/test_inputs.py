"""Inputs of inference: one row per garment, and what is not predicted is counted or refused."""

import datetime
import decimal
import itertools
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glefld.data.photos import is_picture
from glefld.errors import BadPhoto, UserError
from pipelines.infer.inputs import open_input
from pipelines.resumable import source_state
from pipelines.rowfile import RowFile, read_stretch
from tests.raw_layouts import jpeg, write_archive


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
        rows = pa.concat_tables(found.rows)
        keys = list(zip(rows["uri"].to_pylist(), rows["garment"].to_pylist(), strict=True))
        assert len(set(keys)) == len(keys) == 2
        assert [photo.data for photo in found.photos.read(found.rows.read(0))] == [
            jpeg(seed) for seed in photos
        ]
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
    photos = [photo.data for photo in found.photos.read(found.rows.read(0))]
    names = [uri.rpartition("::")[2] for uri in found.rows.read(0)["uri"].to_pylist()]
    read = dict(zip(names, photos, strict=True))
    bad = read.pop("gone.jpg")
    assert isinstance(bad, BadPhoto)
    assert read == dict.fromkeys(["a.jpg", "hard.jpg", "soft.jpg"], jpeg(1))


def test_a_folder_of_archives_is_one_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zips and tars at any depth, in the order of their names; boxes name members by the path of their archive."""
    monkeypatch.setattr("pipelines.infer.inputs.INDEXERS", 1)
    folder = tmp_path / "archives"
    expected: dict[str, bytes] = {}
    for i, name in enumerate(("a.zip", "b.tar.gz", "deep/c.tar", "deep/d.zip")):
        files = {f"img/{j}.jpg": jpeg(10 * i + j) for j in range(3)} | {"notes.txt": b"notes"}
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_archive(folder / name, files)
        expected |= {f"{folder}/{name}::{member}": data for member, data in files.items() if data != b"notes"}
    (folder / "readme.md").write_text("what is in them")
    found = open_input(str(folder), None, None, str(tmp_path / "staging"), 5)
    rows = pa.concat_tables(found.rows)
    assert rows["uri"].to_pylist() == list(expected)
    assert [photo.data for photo in found.photos.read(rows)] == list(expected.values())
    assert (found.photo_count, found.skipped) == (12, {"not a picture's name": 5})
    listed = ["deep/c.tar::img/1.jpg", "a.zip::img/0.jpg", "deep/c.tar::img/1.jpg", "a.zip::img/9.jpg"]
    (tmp_path / "boxes.csv").write_text("uri,x1,y1,x2,y2\n" + "".join(f"{uri},1,1,9,9\n" for uri in listed))
    boxed = open_input(str(folder), str(tmp_path / "boxes.csv"), None, str(tmp_path / "staging"))
    rows = boxed.rows.read(0)
    uris = [f"{folder}/{listed[i]}" for i in (1, 0, 2, 3)]
    assert rows["uri"].to_pylist() == uris
    assert rows["garment"].to_pylist() == [0, 0, 1, 0]
    photos = [photo.data for photo in boxed.photos.read(rows)]
    assert photos[:3] == [expected[uri] for uri in uris[:3]]
    assert isinstance(photos[3], BadPhoto)
    assert boxed.skipped["picture without a box in --boxes"] == 10


def test_archives_beside_photos_are_not_read(tmp_path: Path) -> None:
    """They may hold the same photos: they are counted with what is no picture."""
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    write_archive(tmp_path / "b.zip", {"a.jpg": jpeg(2)})
    found = open_input(str(tmp_path), None, None, "")
    assert found.rows.read(0)["uri"].to_pylist() == [f"{tmp_path}/a.jpg"]
    assert found.skipped == {"not a picture's name": 1}


def test_what_a_mac_leaves_beside_archives_is_none(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.zip", {"a.jpg": jpeg(1)})
    (tmp_path / "__MACOSX").mkdir()
    for name in ("._a.zip", "__MACOSX/b.zip"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    found = open_input(str(tmp_path), None, None, "")
    assert found.rows.read(0)["uri"].to_pylist() == [f"{tmp_path}/a.zip::a.jpg"]
    assert found.skipped == {"not a picture's name": 2}


def test_a_folder_may_be_named_like_an_archive(tmp_path: Path) -> None:
    (tmp_path / "photos.zip").mkdir()
    (tmp_path / "photos.zip" / "a.jpg").write_bytes(jpeg(1))
    for url in (tmp_path / "photos.zip", tmp_path / "photos.zip" / "a.jpg"):
        found = open_input(str(url), None, None, "")
        assert [photo.data for photo in found.photos.read(found.rows.read(0))] == [jpeg(1)]


def test_a_damaged_archive_of_many_is_named(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.zip", {"a.jpg": jpeg(1)})
    (tmp_path / "b.zip").write_bytes(b"PK\x03\x04 and no directory")
    with pytest.raises(UserError, match=r"b\.zip is not a readable zip"):
        open_input(str(tmp_path), None, None, "")


@pytest.mark.parametrize(
    "name",
    [
        *(
            "a.jpg",
            "a.JPEG",
            "b/._a.jpg",
            "._b/a.jpg",
            "__MACOSX/a.jpg",
            "a/__MACOSX/b/c.png",
            "x__MACOSX/a.webp",
        ),
        *("a.jpg/b", "jpg", ".jpg", "a.jpg ", "a\nb.jpg", "a.jpgx", "a.tiff", "é.Gif", "a/b.txt"),
    ],
)
def test_a_picture_is_what_is_one_elsewhere(name: str, tmp_path: Path) -> None:
    """The pattern for a table of names agrees with the function for one name."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(name, b"x")
        archive.writestr("other.png", b"x")
    found = open_input(str(tmp_path / "a.zip"), None, None, "")
    assert found.photo_count == 1 + is_picture(name)


def test_the_rows_of_a_folder_do_not_depend_on_how_it_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan's hash, and so its shards, are those of the photos, and the state is what a later run finds."""
    for i in range(40):
        path = tmp_path / f"{i % 3}/{i % 5}/{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    found = set()
    for listers, group_rows in ((1, 7), (16, 7), (100, 7)):
        monkeypatch.setattr("glefld.listing.LISTERS", listers)
        made = open_input(str(tmp_path), None, None, "", group_rows)
        assert [len(group) for group in made.rows] == [7] * 5 + [5]
        assert made.state == source_state([str(tmp_path)])
        found.add((made.rows.digest, made.state))
    assert len(found) == 1
    (tmp_path / "0/0/0.jpg").write_bytes(b"yy")
    other = open_input(str(tmp_path), None, None, "", 7)
    assert {other.rows.digest, other.state}.isdisjoint(*found)


def test_tasks_read_their_rows_from_the_uploaded_file(tmp_path: Path) -> None:
    """Each stretch of the file is one group, whatever groups are before it."""
    rows = pa.table({"name": [f"{i}.jpg" for i in range(50)], "box": [[1.0, 2.0]] * 25 + [None] * 25})
    file = RowFile.of([rows.slice(0, 3), rows.slice(3)], rows.schema, 8)
    file.upload(str(tmp_path / "rows"))
    assert (len(file), file.groups) == (50, 7)
    for group, table in enumerate(file):
        assert table.equals(rows.slice(8 * group, 8))
        assert read_stretch(file.stretch(group, str(tmp_path / "rows"))).equals(table)
    with pytest.raises(FileNotFoundError):
        read_stretch(file.stretch(0, str(tmp_path / "gone")))


def test_the_digest_of_rows_is_that_of_their_values() -> None:
    """However tables were cut, and whatever lies where a value is null; another value is another digest."""

    def rows(hidden: float, name: str = "7.jpg") -> pa.Table:
        boxes = pa.FixedSizeListArray.from_arrays(
            pa.array([hidden] * 4 * 20, pa.float32()), 4, mask=pa.array([True] * 20)
        )
        names = [name if i == 7 else f"{i}.jpg" for i in range(20)]
        sizes = pa.array([None if i % 3 else i for i in range(20)], pa.int64())
        return pa.table({"name": names, "size": sizes, "box": boxes})

    def digest(table: pa.Table, *cuts: int) -> str:
        edges = [0, *cuts, len(table)]
        parts = [table.slice(a, b - a) for a, b in itertools.pairwise(edges)]
        return RowFile.of(parts, table.schema, 8).digest

    same = {
        digest(rows(0)),
        digest(rows(1)),
        digest(rows(0), 1, 2, 13),
        digest(rows(1), 8),
        digest(rows(2), 9),
    }
    assert len(same) == 1
    assert same.isdisjoint([digest(rows(0, "8.jpg")), digest(rows(0).slice(0, 19)), digest(rows(0).slice(1))])


NOW = datetime.datetime(2026, 1, 1)
CORNERS = {"x1": [1], "y1": [2], "x2": [30], "y2": [40]}
WRONG_BOXES = {
    "a CSV with a column twice": (b"uri,x1,y1,x2,y2,x1\na.jpg,1,2,30,40,9\n", "2 columns x1"),
    "a CSV with the uri twice": (b"uri,uri,x1,y1,x2,y2\na.jpg,b.jpg,1,2,30,40\n", "2 columns uri"),
    "a Parquet file with a column twice": (
        pa.table([["a.jpg"], [[1, 2, 3, 4]], [[1, 2, 3, 5]]], names=["uri", "box", "box"]),
        "2 columns box",
    ),
    "a CSV with 10^400": (
        b"uri,x1,y1,x2,y2\na.jpg,1,2,3,1" + b"0" * 400 + b"\n",
        "row 1: .*beyond any photo",
    ),
    "a CSV with infinity": (
        b"uri,x1,y1,x2,y2\na.jpg,1,2,3,4\na.jpg,1,2,3,inf\n",
        "row 2: .*beyond any photo",
    ),
    "a CSV with an underscore": (b"uri,x1,y1,x2,y2\na.jpg,1,2,30,4_0\n", "not a readable CSV"),
    "a CSV in another encoding": (b"uri,x1,y1,x2,y2\ncaf\xe9.jpg,1,2,30,40\n", "not a readable CSV"),
    "a header in another encoding": (b"uri,x1,y1,x2,y2,\xe9\na.jpg,1,2,30,40,1\n", "not a readable CSV"),
    "a row too short": (b"uri,x1,y1,x2,y2\na.jpg,1,2,30\n", "not a readable CSV"),
    "an empty file": (b"", "not a readable CSV"),
    "no box": (pa.table({"uri": ["a.jpg"], "x1": [1]}), "must have rows with the columns uri and x1"),
    "uris as lists": (pa.table({"uri": [["a.jpg"]], **CORNERS}), "uri must be text, not list"),
    "uris as numbers": (pa.table({"uri": [1], **CORNERS}), "uri must be text, not int64"),
    "a row without a uri": (
        pa.table({"uri": pa.array([None], pa.string()), **CORNERS}),
        "1 rows without a uri",
    ),
    "corners as lists": (
        pa.table({"uri": ["a.jpg"], **CORNERS, "x1": [[1]]}),
        "x1 must hold numbers, not list",
    ),
    "corners as times": (
        pa.table({"uri": ["a.jpg"], **CORNERS, "y2": [NOW]}),
        "y2 must hold numbers, not time",
    ),
    "corners as words": (
        pa.table({"uri": ["a.jpg"], **CORNERS, "y2": ["4"]}),
        "y2 must hold numbers, not string",
    ),
    "boxes of three": (
        pa.table({"uri": ["a.jpg"] * 2, "box": [[1, 2, 3, 4], [1, 2, 3]]}),
        "list of four numbers",
    ),
    "boxes of eight and none": (
        pa.table({"uri": ["a.jpg"] * 2, "box": [[1] * 8, []]}),
        "list of four numbers",
    ),
    "boxes as numbers": (pa.table({"uri": ["a.jpg"], "box": [7]}), "list of four numbers"),
    "boxes of times": (pa.table({"uri": ["a.jpg"], "box": [[NOW] * 4]}), "box must hold numbers, not time"),
    "boxes of lists": (pa.table({"uri": ["a.jpg"], "box": [[[1]] * 4]}), "box must hold numbers, not list"),
    "boxes beyond float32": (pa.table({"uri": ["a.jpg"], "box": [[1, 2, 3, 1e300]]}), "beyond any photo"),
    "boxes of 70 digits": (
        pa.table({"uri": ["a.jpg"], "box": [[decimal.Decimal(10) ** 70] * 4]}),
        "beyond any photo",
    ),
}


def write_boxes(folder: Path, content: bytes | pa.Table) -> str:
    path = folder / ("boxes.csv" if isinstance(content, bytes) else "boxes.parquet")
    path.write_bytes(content) if isinstance(content, bytes) else pq.write_table(content, path)
    return str(path)


@pytest.mark.parametrize("case", WRONG_BOXES)
def test_boxes_that_cannot_be_used_are_told_in_one_line(case: str, tmp_path: Path) -> None:
    content, message = WRONG_BOXES[case]
    boxes = write_boxes(tmp_path, content)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(jpeg(1))
    with pytest.raises(UserError, match=message) as error:
        open_input(str(tmp_path / "photos"), boxes, None, "")
    assert boxes in str(error.value)


BOX = [1.0, 2.0, 30.0, 40.0]
GOOD_BOXES = {
    "integers": pa.table({"uri": ["a.jpg"], **CORNERS}),
    "decimals": pa.table({"uri": ["a.jpg"], "box": [[decimal.Decimal(int(v)) for v in BOX]]}),
    "half floats": pa.table({"uri": ["a.jpg"], "box": pa.array([np.array(BOX, np.float16)])}),
    "fixed lists": pa.table({"uri": ["a.jpg"], "box": pa.array([BOX], pa.list_(pa.float32(), 4))}),
    "large lists": pa.table({"uri": ["a.jpg"], "box": pa.array([BOX], pa.large_list(pa.float64()))}),
    "a dictionary of uris": pa.table({"uri": pa.array(["a.jpg"]).dictionary_encode(), "box": [BOX]}),
    "large strings": pa.table({"uri": pa.array(["a.jpg"], pa.large_string()), "box": [BOX]}),
}


@pytest.mark.parametrize("case", GOOD_BOXES)
def test_boxes_of_any_numbers(case: str, tmp_path: Path) -> None:
    """In whatever type they are stored, and a whole photo beside them where Parquet can store a null."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(jpeg(1))
    listed = GOOD_BOXES[case]
    nullable = "box" in listed.column_names and case != "fixed lists"
    if nullable:
        nothing = pa.table([listed["uri"], pa.nulls(1, listed["box"].type)], schema=listed.schema)
        listed = pa.concat_tables([listed, nothing])
    found = open_input(str(tmp_path / "photos"), write_boxes(tmp_path, listed), None, "")
    assert found.rows.read(0)["box"].to_pylist() == [BOX, *([None] if nullable else [])]
