"""The raw lists: rows are joined by photo and none is lost; a broken line is named."""

import io
from collections import Counter
from functools import partial

import numpy as np
import pytest

from glefld.datasets import read_annotations
from glefld.datasets.lists import ListFiles
from glefld.errors import UserError
from glefld.schema import FASHION8
from tests.raw_layouts import LANDMARK_COLUMNS, Row, fine_lists, fld_lists, listing, rows


def list_files(files: dict[str, str]) -> ListFiles:
    return ListFiles(
        "raw", {name.lower(): partial(io.BytesIO, text.encode()) for name, text in files.items()}
    )


def test_join_keeps_every_listed_photo_once_per_listing() -> None:
    """Lists lack photos, repeat them and are in any order: each listing stays, with what is known of it."""
    seed = int(np.random.default_rng().integers(1 << 31))
    print("seed", seed)
    rng = np.random.default_rng(seed)
    listed = rows(40)
    chosen = {}
    for column in ("landmarks", "bbox", "partition"):
        picks = rng.choice(40, size=50, replace=True)
        files = fld_lists([listed[i] for i in picks])
        chosen[column] = (Counter(listed[i].photo for i in picks), files)
    names = ("Anno/list_landmarks.txt", "Anno/list_bbox.txt", "Eval/list_eval_partition.txt")
    files = {name: chosen[column][1][name] for name, column in zip(names, chosen, strict=True)}
    table = read_annotations("fld", list_files(files)).table.to_pylist()

    counts = [counter for counter, _ in chosen.values()]
    expected = {photo: max(c[photo] for c in counts) for photo in {p for c in counts for p in c}}
    assert Counter(row["photo"] for row in table) == expected
    for photo in expected:
        found = [row for row in table if row["photo"] == photo]
        assert sorted(row["duplicate"] for row in found) == [False] + [True] * (len(found) - 1)
        assert len({row["sample_id"] for row in found}) == 1
        for column, counter in zip(("landmarks", "box", "split"), counts, strict=True):
            assert sum(row[column] is not None for row in found) == counter[photo]


@pytest.mark.parametrize("varied", [True, False])
def test_landmarks_spread_into_the_common_order(varied: bool) -> None:
    """A garment's own slots land on its type's landmarks, half a pixel in; codes 2 and 0 0 have no point."""
    points = {1: "0 010 020 1 030 040 2 000 000 0 000 000 0 050 060 1 070 080", 2: "0 001 002 " * 4}
    lines = [f"img/{code}.jpg {code} {'3 ' if varied else ''}{text}" for code, text in points.items()]
    files = fld_lists([Row("img/1.jpg"), Row("img/2.jpg")])
    files["Anno/list_landmarks.txt"] = listing(LANDMARK_COLUMNS, lines)
    upper, lower = read_annotations("fld", list_files(files)).table.to_pylist()
    nan = float("nan")
    expected = [10.5, 20.5, 30.5, 40.5, nan, nan, nan, nan, nan, nan, nan, nan, 50.5, 60.5, 70.5, 80.5]
    np.testing.assert_array_equal(upper["landmarks"], expected)
    assert upper["visibility"] == [0, 1, 2, 3, 3, 3, 0, 1]
    np.testing.assert_array_equal(lower["landmarks"], [nan] * 8 + [1.5, 2.5] * 4)
    assert lower["visibility"] == [3, 3, 3, 3, 0, 0, 0, 0]
    assert upper["variation"] == (3 if varied else None)


def deepfashion_lists(listed: list[Row]) -> dict[str, str]:
    """The coarse benchmark's lists, with two categories and three attributes."""
    names = [row.photo for row in listed]
    return fld_lists(listed) | {
        "Anno/list_category_cloth.txt": listing("category_name category_type", ["Anorak  1", "Jeans   2"]),
        "Anno/list_category_img.txt": listing("image_name category_label", [f"{name} 2" for name in names]),
        "Anno/list_attr_cloth.txt": listing("attribute_name attribute_type", ["a-line 3", "a b c 1", "d 2"]),
        "Anno/list_attr_img.txt": listing(
            "image_name attribute_labels", [f"{name} 1 -1 {i % 2}" for i, name in enumerate(names)]
        ),
        "Anno/list_view.txt": listing("image_name view", [f"{name} side" for name in names]),
    }


def in_another_order(text: str, order: np.ndarray, triple: np.ndarray) -> str:
    """A list with its columns in another order: ``order`` of all, or of those before the landmarks.

    The last or only column of several values keeps them together. ``triple``: the order within a landmark.
    """
    count, names, *lines = (line.split() for line in text.splitlines())
    landmarks = "clothes_type" in names
    moved = []
    for line in (names, *lines):
        if landmarks:
            points = np.array(line[3:]).reshape(-1, 3)[:, triple]
            moved.append([line[i] for i in np.argsort(order[:3])] + points.ravel().tolist())
        else:
            last = names[-1] == "attribute_labels"
            width = len(line) - len(names) + 1
            cells = (
                [*([t] for t in line[:-width]), line[-width:]]
                if last
                else [line[:width], *([t] for t in line[width:])]
            )
            moved.append([t for i in np.argsort(order[: len(names)]) for t in cells[i]])
    return "\n".join(map(" ".join, [count, *moved])) + "\n"


def test_columns_are_found_by_their_names() -> None:
    """In whatever order the header names them, the rows are the same."""
    seed = int(np.random.default_rng().integers(1 << 31))
    print("seed", seed)
    rng = np.random.default_rng(seed)
    files = deepfashion_lists(rows(6))
    expected = read_annotations("deepfashion", list_files(files))
    for _ in range(20):
        moved = {
            name: in_another_order(text, rng.permutation(5), rng.permutation(3))
            for name, text in files.items()
        }
        assert moved != files
        found = read_annotations("deepfashion", list_files(moved))
        assert found.labels == expected.labels
        for column in expected.table.column_names:
            assert str(found.table[column].to_pylist()) == str(expected.table[column].to_pylist()), column


BOX = "1\nimage_name x_1 y_1 x_2 y_2\n"
SPLIT = "1\nimage_name evaluation_status\n"
POINTS = f"1\n{LANDMARK_COLUMNS}\n"
TRIPLE = "landmark_visibility_1 landmark_location_x_1 landmark_location_y_1"
BROKEN = {
    "promised rows are missing": ("Anno/list_bbox.txt", f"2{BOX[1:]}img/1.jpg 1 2 3 4\n", "says 2 rows"),
    "no count": ("Anno/list_bbox.txt", "image_name x\n", "line 1"),
    "a count in words": ("Anno/list_bbox.txt", f"0_1{BOX[1:]}img/1.jpg 1 2 3 4\n", "line 1: .*'0_1'"),
    "an empty list": ("Anno/list_bbox.txt", "", "line 1"),
    "no header": (
        "Anno/list_bbox.txt",
        "1\nimg/1.jpg 1 2 3 4\n",
        "line 2: expected the column names image_name",
    ),
    "another list's header": (
        "Anno/list_bbox.txt",
        f"{SPLIT}img/1.jpg 1 2 3 4\n",
        "line 2: .*evaluation_status",
    ),
    "a column twice": ("Anno/list_bbox.txt", "1\nimage_name x_1 x_1 x_2 y_2\nimg/1.jpg 1 2 3 4\n", "line 2"),
    "a column too many": ("Anno/list_bbox.txt", f"{BOX[:-1]} z\nimg/1.jpg 1 2 3 4 5\n", "line 2"),
    "a box of three": ("Anno/list_bbox.txt", f"{BOX}img/1.jpg 1 2 3\n", "line 3: expected 5 values, got 4"),
    "a box of five": (
        "Anno/list_bbox.txt",
        f"{BOX}img/1.jpg 1 2 3 4 5\n",
        "line 3: expected 5 values, got 6",
    ),
    "a box of words": (
        "Anno/list_bbox.txt",
        f"{BOX}img/1.jpg 1 2 3 x\n",
        "line 3: expected a number, got 'x'",
    ),
    "an underscore": (
        "Anno/list_bbox.txt",
        f"{BOX}img/1.jpg 1 2 3 1_0\n",
        "line 3: expected a number, got '1_0'",
    ),
    "other digits": ("Anno/list_bbox.txt", f"{BOX}img/1.jpg 1 2 3 ４\n", "line 3: expected a number"),
    "a box without end": ("Anno/list_bbox.txt", f"{BOX}img/1.jpg 1 2 3 inf\n", "line 3: expected a number"),
    "a box beyond float32": (
        "Anno/list_bbox.txt",
        f"{BOX}img/1.jpg 1 2 3 1e39\n",
        "line 3: '1e39' is larger",
    ),
    "400 digits": (
        "Anno/list_bbox.txt",
        f"{BOX}img/1.jpg 1 2 3 1{'0' * 400}\n",
        r"line 3: '10{76}\.\.\.' is larger",
    ),
    "a line without end": ("Anno/list_bbox.txt", f"{BOX}" + "x" * (3 << 20), "line 3: longer than"),
    "an unknown split": (
        "Eval/list_eval_partition.txt",
        f"{SPLIT}img/1.jpg dev\n",
        "line 3: .*train, val, test",
    ),
    "two splits": (
        "Eval/list_eval_partition.txt",
        f"{SPLIT}img/1.jpg train val\n",
        "line 3: expected 2 values",
    ),
    "no split": ("Eval/list_eval_partition.txt", f"{SPLIT}img/1.jpg\n", "line 3: expected 2 values, got 1"),
    "an unknown type": ("Anno/list_landmarks.txt", f"{POINTS}img/1.jpg 4 1 0 1 1\n", r"\[1, 2, 3\]"),
    "too few points": ("Anno/list_landmarks.txt", f"{POINTS}img/1.jpg 2 1 0 1 1\n", "line 3"),
    "too many points": ("Anno/list_landmarks.txt", f"{POINTS}img/1.jpg 2 1 {'0 1 1 ' * 5}\n", "line 3"),
    "an unknown visibility": (
        "Anno/list_landmarks.txt",
        f"{POINTS}img/1.jpg 2 1 {'3 1 1 ' * 4}\n",
        "line 3: visibility must be 0, 1 or 2",
    ),
    "a variation beyond its column": (
        "Anno/list_landmarks.txt",
        f"{POINTS}img/1.jpg 2 300 {'0 1 1 ' * 4}\n",
        "line 3: expected a whole number from 0 to 127, got '300'",
    ),
    "a variation that no column names": (
        "Anno/list_landmarks.txt",
        f"1\nimage_name clothes_type {TRIPLE}\nimg/1.jpg 2 1 {'0 1 1 ' * 4}\n",
        "line 3: expected 12 numbers, got 13",
    ),
    "landmarks before the type": (
        "Anno/list_landmarks.txt",
        f"1\nimage_name {TRIPLE} clothes_type\nimg/1.jpg {'0 1 1 ' * 4}2\n",
        "line 2: expected image_name, clothes_type",
    ),
    "landmarks in changing order": (
        "Anno/list_landmarks.txt",
        f"1\n{LANDMARK_COLUMNS} landmark_location_x_2 landmark_visibility_2 landmark_location_y_2\n",
        "line 2: .*in the same order",
    ),
    "a category that is not listed": (
        "Anno/list_category_img.txt",
        "1\nimage_name category_label\nimg/1.jpg 3\n",
        "line 3: expected a whole number from 1 to 2, got '3'",
    ),
    "half a category": (
        "Anno/list_category_img.txt",
        "1\nimage_name category_label\nimg/1.jpg 1.5\n",
        "line 3: .*'1.5'",
    ),
    "an unknown garment type": (
        "Anno/list_category_cloth.txt",
        "1\ncategory_name category_type\nAnorak 4\n",
        "line 3: expected a whole number from 1 to 3, got '4'",
    ),
    "an attribute without a name": (
        "Anno/list_attr_cloth.txt",
        "1\nattribute_name attribute_type\n3\n",
        "line 3: expected 2 values, got 1",
    ),
    "an unknown attribute type": (
        "Anno/list_attr_cloth.txt",
        "1\nattribute_name attribute_type\nlace 6\n",
        "line 3: expected a whole number from 1 to 5, got '6'",
    ),
    "attributes in other words": (
        "Anno/list_attr_img.txt",
        "1\nimage_name attribute_labels\nimg/1.jpg 1 0 yes\n",
        "line 3: expected a whole number from -1 to 1, got 'yes'",
    ),
    "an attribute too few": (
        "Anno/list_attr_img.txt",
        "1\nimage_name attribute_labels\nimg/1.jpg 1 0\n",
        "line 3: expected 3 values",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_list_is_named(case: str) -> None:
    """What a list says wrongly ends in one line that names the file and what is wrong in it."""
    name, text, message = BROKEN[case]
    files = deepfashion_lists([Row("img/1.jpg")]) | {name: text}
    with pytest.raises(UserError, match=message) as error:
        read_annotations("deepfashion", list_files(files))
    assert name in str(error.value)
    assert len(str(error.value)) < 400


BROKEN_FINE = {
    "an underscore": ("bbox", "1 2 3 1_0", "line 1: expected a number, got '1_0'"),
    "a point beyond float32": ("landmards", "1 2 " * 7 + "1 1e39", "line 1: '1e39' is larger"),
    "a category that is not listed": ("cate", "3", "line 1: expected a whole number from 1 to 2"),
    "two categories": ("cate", "1 2", "line 1: expected a whole number from 1 to 2, got '1 2'"),
    "an attribute of 2": ("attr", "2", "line 1: expected a whole number from -1 to 1, got '2'"),
    "two views": ("view", "front back", "line 1: expected one of front, side, back, got 'front back'"),
}


@pytest.mark.parametrize("case", BROKEN_FINE)
def test_a_broken_fine_list_is_named(case: str) -> None:
    name, text, message = BROKEN_FINE[case]
    files = fine_lists([Row("img/1.jpg")]) | {
        "Anno_fine/list_category_cloth.txt": listing("category_name category_type", ["Anorak 1", "Jeans 2"]),
        "Anno_fine/list_attr_cloth.txt": listing("attribute_name attribute_type", ["floral 1"]),
        f"Anno_fine/train_{name}.txt": f"{text}\n",
    }
    with pytest.raises(UserError, match=message) as error:
        read_annotations("deepfashion-fine", list_files(files))
    assert f"train_{name}.txt" in str(error.value)


@pytest.mark.parametrize("name", list(fld_lists([])))
def test_a_missing_list_is_named(name: str) -> None:
    files = fld_lists(rows(3))
    del files[name]
    with pytest.raises(ValueError, match=name.split("/")[1]):
        read_annotations("fld", list_files(files))


def test_deepfashion_reads_categories_attributes_and_views() -> None:
    """Only the value 1 is an attribute the garment has; names with spaces stay whole."""
    files = fld_lists([Row("img/A/1.jpg"), Row("img/B/2.jpg")])
    files = {name.replace("Anno/", "Anno_coarse/"): text for name, text in files.items()} | {
        "Anno_coarse/list_category_cloth.txt": listing(
            "category_name category_type", ["Anorak  1", "Jeans   2"]
        ),
        "Anno_coarse/list_category_img.txt": listing(
            "image_name category_label", ["img/A/1.jpg 2", "img/B/2.jpg 1"]
        ),
        "Anno_coarse/list_attr_cloth.txt": listing(
            "attribute_name  attribute_type", ["a-line 3", "abstract chevron   1", "lace 2"]
        ),
        "Anno_coarse/list_attr_img.txt": listing(
            "image_name attribute_labels", ["img/B/2.jpg 1  0 -1", "img/A/1.jpg -1 1  1"]
        ),
        "Anno_coarse/list_view.txt": listing("image_name view", ["img/B/2.jpg back"]),
    }
    annotations = read_annotations("deepfashion", list_files(files))
    table = annotations.table.to_pylist()
    assert [(r["category"], r["attributes"], r["view"]) for r in table] == [
        (2, [1, 2], None),
        (1, [0], "back"),
    ]
    assert annotations.labels.categories == ("Anorak", "Jeans")
    assert [(a.name, a.type) for a in annotations.labels.attributes][1] == ("abstract chevron", 1)

    files["Anno_coarse/list_attr_img.txt"] = listing("image_name attribute_labels", ["img/A/1.jpg 1 1"])
    with pytest.raises(ValueError, match="expected 3 values"):
        read_annotations("deepfashion", list_files(files))


def test_categories_end_with_the_largest_that_occurs() -> None:
    """DeepFashion lists 50, and photos have at most the 48th: 48 it is, those in between without photos included."""
    labels = [1, 48, 5]
    photos = [f"img/A/{label}.jpg" for label in labels]
    files = fld_lists([Row(photo) for photo in photos])
    files |= {
        "Anno/list_category_cloth.txt": listing(
            "category_name category_type", [f"name{i} 1" for i in range(1, 51)]
        ),
        "Anno/list_category_img.txt": listing(
            "image_name category_label",
            [f"{photo} {label}" for photo, label in zip(photos, labels, strict=True)],
        ),
    }
    annotations = read_annotations("deepfashion", list_files(files))
    assert annotations.labels.categories == tuple(f"name{i}" for i in range(1, 49))


# Slots in use, the category's garment type if there is a category, the type expected.
FINE_TYPES = [
    (8, None, 3),
    (7, None, 3),
    (6, None, 1),
    (5, None, 1),
    (4, None, 2),
    (1, None, 2),
    (0, None, 2),
]
FINE_TYPES += [(4, 1, 1), (4, 3, 3), (4, 2, 2), (6, 2, 1), (8, 1, 3), (0, 3, 3)]


@pytest.mark.parametrize(("used", "category_type", "expected"), FINE_TYPES)
def test_fine_garment_type(used: int, category_type: int | None, expected: int) -> None:
    """The category decides, unless more slots are in use than its type has; else the last slot does."""
    points = [f"{i + 1} {i + 2}" if i == used - 1 else "0 0" for i in range(8)]
    files = fine_lists([Row("img/1.jpg")]) | {"Anno_fine/train_landmards.txt": " ".join(points) + "\n"}
    if category_type is not None:
        files["Anno_fine/list_category_cloth.txt"] = listing(
            "category_name category_type", ["Upper 1", "Lower 2", "Full 3"]
        )
        files["Anno_fine/train_cate.txt"] = f"{category_type}\n"
    (row,) = read_annotations("deepfashion-fine", list_files(files)).table.to_pylist()
    assert row["garment_type"] == expected
    assert row["category"] == category_type
    visible = [i for i, code in enumerate(row["visibility"]) if code == 0]
    assert visible == ([FASHION8.garment_type(expected).landmarks[used - 1]] if used else [])


def test_fine_reads_the_splits_that_are_there() -> None:
    """A split without its list is not there; one whose other files are missing or shorter is an error."""
    files = fine_lists(rows(8)) | {"Anno_fine/val_view.txt": "side\n"}
    table = read_annotations("deepfashion-fine", list_files(files)).table
    assert Counter(table["split"].to_pylist()) == {"train": 7, "val": 1}
    assert Counter(table["view"].to_pylist()) == {None: 7, "side": 1}
    with pytest.raises(ValueError, match=r"train_bbox\.txt"):
        read_annotations("deepfashion-fine", list_files(files | {"Anno_fine/train_bbox.txt": "1 2 3 4\n"}))
    del files["Anno_fine/val_landmards.txt"]
    with pytest.raises(ValueError, match=r"val_landmards\.txt is missing"):
        read_annotations("deepfashion-fine", list_files(files))
