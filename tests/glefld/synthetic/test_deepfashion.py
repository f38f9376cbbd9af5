"""Rendered data sets: the benchmarks' exact layouts, the same for a seed, irregular only where planted."""

import hashlib
import io
import json
import re
import zipfile
from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from glefld.errors import UserError
from glefld.schema import SPLITS, VIEWS, Visibility
from glefld.synthetic.deepfashion import (
    SPLIT_SIZES,
    SyntheticLayout,
    draw_one,
    list_photos,
    write_dataset,
)
from glefld.synthetic.faults import KINDS, REJECTED

LAYOUTS: tuple[SyntheticLayout, ...] = get_args(SyntheticLayout)
COUNT = 70
LANDMARKS = {"1": 6, "2": 4, "3": 8}


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def listed(path: Path) -> list[list[str]]:
    """The rows after the header, whose count must be right."""
    count, _, *rows = path.read_text().splitlines()
    assert int(count) == len(rows), path
    return [row.split() for row in rows]


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One plain data set of each layout."""
    root = tmp_path_factory.mktemp("plain")
    for layout in LAYOUTS:
        write_dataset(str(root / layout), layout, COUNT, seed=4, processes=2 if layout == "fld" else 1)
    return {layout: root / layout for layout in LAYOUTS}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("planted") / "raw"
    write_dataset(str(root), "deepfashion", 120, seed=9, irregularities=2)
    return root


def test_deepfashion_bytes_depend_on_the_seed_alone(roots: dict[str, Path], tmp_path: Path) -> None:
    """However many processes draw, the files are the same; another seed's photos are not."""
    write_dataset(str(tmp_path / "one"), "fld", COUNT, seed=4, processes=1)
    assert digests(tmp_path / "one") == digests(roots["fld"])
    write_dataset(str(tmp_path / "other"), "fld", 5, seed=5)
    with zipfile.ZipFile(roots["fld"] / "img.zip") as a, zipfile.ZipFile(tmp_path / "other/img.zip") as b:
        assert a.read(a.namelist()[0]) != b.read(b.namelist()[0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_larger_count_goes_on(layout: SyntheticLayout, roots: dict[str, Path], tmp_path: Path) -> None:
    """The first photos of a larger data set are the smaller data set's, name, split and bytes."""
    write_dataset(str(tmp_path), layout, 12, seed=4)
    with zipfile.ZipFile(tmp_path / "img.zip") as few, zipfile.ZipFile(roots[layout] / "img.zip") as many:
        assert few.namelist() == many.namelist()[:12]
        assert all(few.read(name) == many.read(name) for name in few.namelist())
    assert list_photos(layout, 12, 4) == list_photos(layout, COUNT, 4)[:12]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_splits_are_the_benchmarks_in_proportion(layout: SyntheticLayout) -> None:
    """No split is empty from ten photos on, and the shares are never off by more than a row."""
    for count in (10, 11, 37, 400):
        splits = Counter(row.split for row in list_photos(layout, count, 0))
        sizes = np.array(SPLIT_SIZES[layout]) / sum(SPLIT_SIZES[layout]) * count
        for split, size in zip(SPLITS, sizes, strict=True):
            assert splits[split] >= 1
            assert abs(splits[split] - size) <= 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_archive_holds_the_listed_photos(layout: SyntheticLayout, roots: dict[str, Path]) -> None:
    """Names are unique, members stand in list order with a fixed time, and long sides are 300 pixels."""
    with zipfile.ZipFile(roots[layout] / "img.zip") as file:
        assert file.namelist() == [row.name for row in list_photos(layout, COUNT, 4)]
        assert len(set(file.namelist())) == COUNT
        assert {info.date_time for info in file.infolist()} == {(2016, 1, 1, 0, 0, 0)}
        for name in file.namelist():
            picture = Image.open(io.BytesIO(file.read(name)))
            assert (picture.format, max(picture.size)) == ("JPEG", 300)


@pytest.mark.parametrize("layout", ["fld", "deepfashion"])
def test_coarse_lists(layout: str, roots: dict[str, Path]) -> None:
    """Every list has a row a photo, in the same order, with the benchmark's columns and zero-padded integers."""
    root, fld = roots[layout], layout == "fld"
    landmarks = listed(root / "Anno/list_landmarks.txt")
    names = [row[0] for row in landmarks]
    assert names == [row.name for row in list_photos("fld" if fld else "deepfashion", COUNT, 4)]
    pattern = r"img/img_\d{8}\.jpg" if fld else r"img/[A-Z][\w-]*/img_\d{8}\.jpg"
    assert all(re.fullmatch(pattern, name) for name in names)
    assert {row[1] for row in landmarks} == {"1", "2", "3"}
    for row in landmarks:
        points = row[3:] if fld else row[2:]
        assert len(points) == 3 * LANDMARKS[row[1]]
        if fld:
            assert row[2] in ("1", "2", "3", "4", "5")
        for code, x, y in zip(points[::3], points[1::3], points[2::3], strict=True):
            assert code in ("0", "1", "2")
            assert re.fullmatch(r"\d{3}", x)
            assert re.fullmatch(r"\d{3}", y)
            assert (code == "2") == ((x, y) == ("000", "000"))
    for name, columns, check in (
        ("Anno/list_bbox.txt", 5, lambda row: all(re.fullmatch(r"\d{3}", v) for v in row[1:])),
        ("Anno/list_view.txt", 2, lambda row: row[1] in VIEWS),
        ("Eval/list_eval_partition.txt", 2, lambda row: row[1] in SPLITS),
    ):
        rows = listed(root / name)
        assert [row[0] for row in rows] == names, name
        assert all(len(row) == columns and check(row) for row in rows), name
    second = (root / "Anno/list_bbox.txt").read_text().splitlines()[1]
    assert second == "image_name x_1 y_1 x_2 y_2"


def test_fld_ids_have_gaps() -> None:
    """FLD's 123,016 photos are numbered up to 123,059; the numbers still ascend."""
    numbers = [int(row.name[8:16]) for row in list_photos("fld", 1000, 0)]
    steps = np.diff(numbers)
    assert (steps >= 1).all()
    assert 0 < (steps > 1).sum() < 100


def test_categories_and_attributes(roots: dict[str, Path]) -> None:
    """50 categories of three types, merged ones never used; 1,000 attributes by type, some with spaces."""
    root = roots["deepfashion"] / "Anno"
    categories = listed(root / "list_category_cloth.txt")
    assert Counter(row[1] for row in categories) == {"1": 20, "2": 16, "3": 14}
    assert (categories[0], categories[49]) == (["Anorak", "1"], ["Sundress", "3"])
    types = [row[1] for row in listed(root / "list_landmarks.txt")]
    for (_, category), code in zip(listed(root / "list_category_img.txt"), types, strict=True):
        assert int(category) not in (38, 45, 49, 50)
        assert categories[int(category) - 1][1] == code
    attributes = listed(root / "list_attr_cloth.txt")
    assert Counter(row[-1] for row in attributes) == {"1": 156, "2": 218, "3": 180, "4": 216, "5": 230}
    assert len({" ".join(row[:-1]) for row in attributes}) == 1000
    assert any(len(row) > 2 for row in attributes)
    for row in listed(root / "list_attr_img.txt"):
        assert len(row) == 1001
        counts = Counter(row[1:])
        assert set(counts) <= {"1", "-1", "0"}
        assert 5 <= counts["1"] <= 20


def test_fine_lists(roots: dict[str, Path]) -> None:
    """Row-aligned files without header; 16 packed integers, 0 0 after the type's last landmark; 26 attributes.

    As in the benchmark only visible landmarks are listed.
    """
    root = roots["deepfashion-fine"] / "Anno_fine"
    types = [int(row[-1]) for row in listed(root / "list_category_cloth.txt")]
    assert len(listed(root / "list_attr_cloth.txt")) == 26
    for split in SPLITS:
        rows = [row for row in list_photos("deepfashion-fine", COUNT, 4) if row.split == split]
        names = [row.name for row in rows]
        drawn = [draw_one((4, row.product, row.drawn))[0] for row in rows]
        suffixes = ("", "_bbox", "_landmards", "_cate", "_attr", "_view")
        columns = {s: (root / f"{split}{s}.txt").read_text().splitlines() for s in suffixes}
        assert columns[""] == names
        assert {len(rows) for rows in columns.values()} == {len(names)}
        assert all(re.fullmatch(r"\d{3}( \d{3}){3}", row) for row in columns["_bbox"])
        assert all(re.fullmatch(r"[01]( [01]){25}", row) for row in columns["_attr"])
        assert all(row in VIEWS for row in columns["_view"])
        for photo, packed, category in zip(drawn, columns["_landmards"], columns["_cate"], strict=True):
            values = packed.split()
            assert sum(value != "0" for value in values) == 2 * (photo.visibility == Visibility.VISIBLE).sum()
            used = 2 * LANDMARKS[str(types[int(category) - 1])]
            assert len(values) == 16
            assert values[used:] == ["0"] * (16 - used)
            assert all(re.fullmatch(r"0|\d{3}", value) for value in values[:used])
            assert any(value != "0" for value in values[:used])


def test_planted_rows_are_what_they_are_called(planted: Path) -> None:
    """Each kind of irregularity is there as often as asked for, and only the rows that planted.json names are bad."""
    facts = json.loads((planted / "planted.json").read_text())["rows"]
    assert Counter(row["kind"] for row in facts) == dict.fromkeys(KINDS, 2)
    assert all(row["rejected"] == (row["kind"] in REJECTED) for row in facts)
    kinds = {row["image_name"]: row["kind"] for row in facts}
    twins = {row["image_name"]: row["same_as"] for row in facts if row["kind"] == "two_splits"}
    landmarks, boxes = (listed(planted / f"Anno/list_{name}.txt") for name in ("landmarks", "bbox"))
    splits = {row[0]: row[1] for row in listed(planted / "Eval/list_eval_partition.txt")}
    times = Counter(row[0] for row in boxes)
    with zipfile.ZipFile(planted / "img.zip") as file:
        members = set(file.namelist())
        for (name, *points), (_, *corners) in zip(landmarks, boxes, strict=True):
            kind = kinds.get(name, "")
            assert times[name] == (2 if kind == "duplicate_id" else 1)
            member = name.lower() if kind == "folder_capitals" else name
            assert (member in members) == (kind != "missing_photo")
            if kind == "missing_photo":
                continue
            data = file.read(member)
            assert state_of_photo(data) == {
                "unreadable_photo": "unreadable",
                "truncated_photo": "truncated",
                "grey": "L",
                "cmyk": "CMYK",
                "png": "PNG",
                "exif_orientation": "turned",
            }.get(kind, "RGB"), (name, kind)
            if kind in ("unreadable_photo", "truncated_photo"):
                continue
            width, height = Image.open(io.BytesIO(data)).size
            assert state_of_annotation(points[1:], [int(v) for v in corners], width, height) == (
                kind if kind in STATES else "good"
            ), (name, kind)
            if kind == "two_splits":
                assert data == file.read(twins[name])
                assert splits[name] != splits[twins[name]]


def state_of_photo(data: bytes) -> str:
    try:
        picture = Image.open(io.BytesIO(data))
        picture.load()
    except UnidentifiedImageError:
        return "unreadable"
    except OSError:
        return "truncated"
    if picture.getexif().get(0x0112, 1) != 1:
        return "turned"
    return "PNG" if picture.format == "PNG" else picture.mode


STATES = ("empty_box", "box_outside_photo", "box_beyond_edge", "no_landmarks", "landmark_outside_box")


def state_of_annotation(points: list[str], box: list[int], width: int, height: int) -> str:
    x1, y1, x2, y2 = box
    if x2 <= x1 or y2 <= y1:
        return "empty_box"
    if x1 >= width or y1 >= height:
        return "box_outside_photo"
    if x2 > width or y2 > height:
        return "box_beyond_edge"
    there = [
        (int(x), int(y))
        for code, x, y in zip(points[::3], points[1::3], points[2::3], strict=True)
        if code != "2"
    ]
    if not there:
        return "no_landmarks"
    inside = all(x1 <= x < x2 and y1 <= y < y2 for x, y in there)
    return "good" if inside else "landmark_outside_box"


@pytest.mark.parametrize(
    ("count", "irregularities", "message"),
    [(0, 0, "at least 1"), (40, 1, "need a count of at least 60")],
)
def test_a_count_that_is_too_small_is_refused(
    count: int, irregularities: int, message: str, tmp_path: Path
) -> None:
    """The user is told what to do, and nothing is written."""
    with pytest.raises(UserError, match=message):
        write_dataset(str(tmp_path / "raw"), "deepfashion", count, irregularities=irregularities)
    assert not (tmp_path / "raw").exists()


def test_an_archive_is_not_written_over(roots: dict[str, Path]) -> None:
    """What is there may be somebody's real photos."""
    with pytest.raises(UserError, match="choose another --output"):
        write_dataset(str(roots["fld"]), "fld", 3)
