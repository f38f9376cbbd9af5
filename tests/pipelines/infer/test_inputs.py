"""Inputs of inference: one row per garment, and what is not predicted is counted or refused."""

import datetime
import decimal
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glefld.errors import BadPhoto, UserError
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
    assert found.rows["box"].to_pylist() == [BOX, *([None] if nullable else [])]
