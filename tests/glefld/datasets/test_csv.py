"""CSV with one row per landmark: garments as written, whatever spreadsheet wrote them, and lines that are wrong."""

import io
from functools import partial
from typing import Any

import numpy as np
import pytest

from glefld.datasets import read_annotations
from glefld.datasets.lists import Annotations, ListFiles, OwnOptions
from glefld.errors import UserError
from glefld.schema import GarmentType, Visibility

VISIBLE, OCCLUDED, ABSENT = Visibility.VISIBLE, Visibility.OCCLUDED, Visibility.ABSENT
PLAIN = """photo,name,x,y
a.jpg,left_hem,10.5,20
a.jpg,right_hem,30,20
b.jpg,right_hem,31,21
b.jpg,left_hem,11,21
"""
FULL = """photo,garment,garment_type,split,x1,y1,x2,y2,name,x,y,visibility
a.jpg,1,top,train,0,0,50,60,left_hem,10,20,2
a.jpg,1,top,train,,,,,right_hem,30,20,1
a.jpg,two,skirt,train,5,5,45,70,waist,20,25,visible
a.jpg,two,skirt,train,5,5,45,70,left_hem,,,absent
b.jpg,,top,val,,,,,right_hem,31,21,occluded
b.jpg,,top,val,,,,,left_hem,11,22,0
"""


def read(files: dict[str, str | bytes] | str | bytes, **options: Any) -> Annotations:
    files = files if isinstance(files, dict) else {"all.csv": files}
    data = {name: text if isinstance(text, bytes) else text.encode() for name, text in files.items()}
    tables = {name: partial(io.BytesIO, content) for name, content in data.items()}
    return read_annotations(
        "csv", ListFiles("raw", {}, ["a.jpg", "b.jpg"], tables=tables, own=OwnOptions(**options))
    )


def test_four_columns_will_do() -> None:
    """Landmarks in the order in which they first appear; one type; boxes around the landmarks."""
    found = read(PLAIN)
    landmark_set = found.labels.landmark_set
    assert (landmark_set.landmarks, landmark_set.mirror) == (("left_hem", "right_hem"), (1, 0))
    assert landmark_set.garment_types == (GarmentType(1, "garment", (0, 1)),)
    assert found.labels.categories == ("garment",)
    assert landmark_set.sigmas == (0.04, 0.04)
    first, second = found.table.to_pylist()
    assert (first["sample_id"], second["sample_id"]) == ("csv/a.jpg#0", "csv/b.jpg#0")
    assert (first["landmarks"], second["landmarks"]) == ([10.5, 20, 30, 20], [11, 21, 31, 21])
    assert (first["visibility"], first["garment_type"]) == ([VISIBLE, VISIBLE], 1)
    # 19.5 wide, so 9.75 high at least; .2 and .1 of that around.
    np.testing.assert_allclose(first["box"], [10.5 - 3.9, 20 - 5.85, 30 + 3.9, 20 + 5.85], rtol=1e-6)
    assert {first["split"], second["split"]} == {"train", "val"}


@pytest.mark.parametrize("form", ["commas", "semicolons", "tabs", "mark", "lines", "order", "quotes"])
def test_all_columns_in_any_form(form: str) -> None:
    text: str | bytes = FULL
    if form == "semicolons":
        text = FULL.replace(",", ";")
    elif form == "tabs":
        text = FULL.replace(",", "\t")
    elif form == "mark":
        text = b"\xef\xbb\xbf" + FULL.encode()
    elif form == "lines":
        text = FULL.replace("\n", "\r\n") + "\r\n,,,,,,,,,,,\r\n"
    elif form == "order":
        text = "".join(",".join(line.split(",")[::-1]) + "\n" for line in FULL.splitlines())
    elif form == "quotes":
        text = FULL.replace("a.jpg", '"a.jpg"').replace("photo,", "Photo,")
    found = read(text)
    landmark_set = found.labels.landmark_set
    assert landmark_set.landmarks == ("left_hem", "right_hem", "waist")
    assert landmark_set.garment_types == (GarmentType(1, "top", (0, 1)), GarmentType(2, "skirt", (0, 2)))
    assert found.labels.categories == ("top", "skirt")
    top, skirt, other = found.table.to_pylist()
    assert [row["sample_id"] for row in (top, skirt, other)] == ["csv/a.jpg#0", "csv/a.jpg#1", "csv/b.jpg#0"]
    assert [row["split"] for row in (top, skirt, other)] == ["train", "train", "val"]
    assert (top["box"], skirt["box"]) == ([0, 0, 50, 60], [5, 5, 45, 70])
    assert other["box"] == [-np.inf, -np.inf, np.inf, np.inf], "one place makes no box"
    # All are whole numbers, so they name pixels.
    np.testing.assert_array_equal(top["landmarks"], [10.5, 20.5, 30.5, 20.5, np.nan, np.nan])
    assert [row["visibility"] for row in (top, skirt, other)] == [
        [VISIBLE, OCCLUDED, ABSENT],
        [ABSENT, ABSENT, VISIBLE],
        [ABSENT, OCCLUDED, ABSENT],
    ]
    assert (top["garment_type"], skirt["garment_type"], skirt["category"]) == (1, 2, 2)


def test_files_by_split_and_columns_that_are_not_known() -> None:
    found = read(
        {"train.csv": PLAIN.replace("y\n", "y,note\n").replace("20\n", "20,x\n").replace("21\n", "21,\n")}
    )
    assert "columns not used: note" in found.notes
    found = read({"train.csv": PLAIN, "valid/annotations.csv": PLAIN})
    assert [row["split"] for row in found.table.to_pylist()] == ["train", "train", "val", "val"]
    assert len(set(found.table["sample_id"].to_pylist())) == 4


MISTAKES = {
    "no column": (
        PLAIN.replace("name", "landmark"),
        "all.csv: the first line must name the columns photo, name, x, y",
    ),
    "a column twice": (PLAIN.replace("y\n", "y,x\n", 1), "the column 'x' is there more than once"),
    "half a box": (
        PLAIN.replace("y\n", "y,x1\n", 1),
        "a box needs the columns x1, y1, x2, y2; y1 is missing",
    ),
    "too few values": (PLAIN + "b.jpg,x\n", "all.csv, line 6: 2 values for 4 columns"),
    "text for a number": (
        PLAIN.replace("31", "3l"),
        "all.csv, line 4: x must be a number within a photo, not '3l'",
    ),
    "a decimal comma": (PLAIN.replace(",", ";").replace("10.5", "10,5"), "line 2: x must be a number"),
    "NaN": (PLAIN.replace("31", "nan"), "line 4: x must be a number"),
    "infinite": (PLAIN.replace("31", "1e999"), "line 4: x must be a number"),
    "huge": (PLAIN.replace("31", "1e12"), "line 4: x must be a number"),
    "one coordinate": (PLAIN.replace("31,21", "31,"), "line 4: y must be a number within a photo, not ''"),
    "no photo": (PLAIN.replace("b.jpg,right", ",right"), "line 4: photo is empty"),
    "no name": (PLAIN.replace("b.jpg,right_hem", "b.jpg,"), "line 4: name is empty"),
    "a landmark twice": (
        PLAIN + "b.jpg,left_hem,1,2\n",
        "line 6: 'left_hem' was there before: give each garment",
    ),
    "visibility 3": (
        FULL.replace("20,2", "20,3"),
        "line 2: visibility must be 2, 1, 0 or visible, occluded, absent",
    ),
    "a split of another name": (
        FULL.replace("val", "evaluation"),
        "line 6: split must be one of train, val, test",
    ),
    "two splits": (
        FULL.replace("1,top,train,,", "1,top,val,,"),
        "line 3: split is 'val', but 'train' in an earlier row",
    ),
    "two boxes": (
        FULL.replace("skirt,train,5,5,45,70,left", "skirt,train,5,5,45,71,left"),
        "line 5: the box is not",
    ),
    "types for some": (
        FULL.replace(",,top,", ",,,"),
        "a garment of 'b.jpg' has no garment_type, but others do",
    ),
    "not UTF-8": (PLAIN.encode().replace(b"hem", b"h\xe9m"), "all.csv cannot be read as CSV in UTF-8"),
    "NUL": (PLAIN.encode().replace(b"31", b"\0"), "line 4"),
    "nothing": ("", "all.csv: the first line must name the columns"),
    "a header alone": ("photo,name,x,y\n", "has no CSV file with rows"),
    "other photos": (PLAIN.replace(".jpg", ".png"), "none of the 2 annotated photos is there"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_names_its_line(case: str) -> None:
    content, words = MISTAKES[case]
    with pytest.raises(UserError) as raised:
        read(content)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
