"""COCO keypoints: rows as annotated, one landmark space, faults counted, mistakes named, as exports really are."""

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest

from glefld.coco_format import categories
from glefld.datasets.lists import Annotations, unpack
from glefld.errors import UserError
from glefld.schema import FASHION8, GarmentType, LandmarkSet, Visibility
from tests.coco_files import TOP, annotation, category, coco, image, read_coco

VISIBLE, OCCLUDED, ABSENT = Visibility.VISIBLE, Visibility.OCCLUDED, Visibility.ABSENT
SKIRT = ("waist_L", "waist_R", "left_hem", "right_hem")


def unpacked(found: Annotations) -> list[tuple[np.ndarray, np.ndarray]]:
    """Points [K, 2] and visibility [K] of each row."""
    rows = found.table.to_pylist()
    return [
        unpack(
            np.array(row["landmarks"], np.float32).reshape(-1, 2),
            np.array(row["visibility"]),
            row["garment_type"],
            found.labels.landmark_set,
        )
        for row in rows
    ]


def test_a_row_an_annotation() -> None:
    """Several garments a photo; v 2, 1, 0 are visible, occluded, absent; boxes are corners; sizes are kept."""
    found = read_coco(
        coco([annotation(7), annotation(8, 2), annotation(9)], [image(1, "a/x.jpg"), image(2, "y.png")])
    )
    first, second, third = found.table.to_pylist()
    assert [row["sample_id"] for row in (first, second, third)] == [
        "coco/a/x.jpg#0",
        "coco/y.png#0",
        "coco/a/x.jpg#1",
    ]
    assert (first["box"], first["area"], first["garment_type"], first["category"]) == (
        [5, 10, 45, 70],
        1200,
        1,
        1,
    )
    assert (first["photo_width"], first["photo_height"], first["fault"]) == (60, 80, None)
    assert first["visibility"] == [VISIBLE, OCCLUDED, ABSENT, VISIBLE, OCCLUDED]
    np.testing.assert_array_equal(
        first["landmarks"], [10.5, 20.25, 11.5, 21.25, np.nan, np.nan, 13.5, 23.25, 14.5, 24.25]
    )
    labels = found.labels
    assert labels.categories == ("top",)
    assert labels.landmark_set == LandmarkSet(
        "coco", TOP, (1, 0, 3, 2, 4), (GarmentType(1, "top", (0, 1, 2, 3, 4)),)
    )
    assert labels.landmark_set.sigmas == (0.04,) * 5
    assert (
        "mirror pairs, from the names: left_collar - right_collar, left_hem - right_hem; alone: back"
        in found.notes
    )


def test_whole_numbers_name_pixels() -> None:
    """Their centres are half a pixel further. A fraction anywhere in the source says that all are continuous."""
    whole = [v for i in range(5) for v in (10 + i, 20, 2)]
    one = coco([annotation(1, keypoints=whole)])
    (points, _), *_ = unpacked(read_coco(one))
    np.testing.assert_array_equal(points, [[10.5 + i, 20.5] for i in range(5)])
    other = coco([annotation(1, 2, keypoints=[10.25, 20, 1] * 5)])
    (points, _), *_ = unpacked(read_coco({"train.json": one, "val.json": other}))
    np.testing.assert_array_equal(points, [[10 + i, 20] for i in range(5)])
    said = {**one, "info": {"glefld_coordinates": "continuous"}}
    (points, _), *_ = unpacked(read_coco(said))
    assert points[0].tolist() == [10, 20]


def test_categories_share_the_landmarks_of_one_name() -> None:
    """As upper, lower and full bodies share hems; each is a garment type with its own keypoints."""
    found = read_coco(
        coco(
            [annotation(1), annotation(2, n=4, category_id="skirt")],
            categories=[category(), category("skirt", SKIRT, "skirt")],
        )
    )
    landmark_set = found.labels.landmark_set
    assert landmark_set.landmarks == (*TOP, "waist_L", "waist_R")
    assert [(t.name, t.landmarks) for t in landmark_set.garment_types] == [
        ("top", (0, 1, 2, 3, 4)),
        ("skirt", (2, 3, 5, 6)),
    ]
    assert landmark_set.mirror == (1, 0, 3, 2, 4, 6, 5)
    _, (points, codes) = unpacked(found)
    # The skirt's own order is another one than the set's.
    assert points[5].tolist() == [10.5, 20.25]
    assert points[3].tolist() == [13.5, 23.25]
    assert codes.tolist() == [ABSENT, ABSENT, ABSENT, VISIBLE, ABSENT, VISIBLE, OCCLUDED]
    assert "landmarks of several garment types: left_hem, right_hem" in found.notes


@pytest.mark.parametrize(("one", "other"), [("1234", "123"), (("kp_1", "kp_2"), ("kp_1",))])
def test_names_that_only_number_belong_to_their_category(one: Any, other: Any) -> None:
    """Tools number the points of each skeleton from 1: the first of a top is not that of a skirt."""
    found = read_coco(
        coco(
            [annotation(1, n=len(one)), annotation(2, n=len(other), category_id=2)],
            categories=[category(keypoints=one), category("skirt", other, 2)],
        )
    )
    landmark_set = found.labels.landmark_set
    assert landmark_set.landmarks == (*(f"top_{n}" for n in one), *(f"skirt_{n}" for n in other))
    assert [len(t.landmarks) for t in landmark_set.garment_types] == [len(one), len(other)]


def test_a_list_that_categories_repeat_is_shared_out_if_they_share_no_label() -> None:
    """DeepFashion2 in COCO's form has all 294 keypoints in each category."""
    names = [str(i) for i in range(1, 7)]
    first, second = ([1.5, 2.5, 2] * 2 + [0, 0, 0] * 4), ([0, 0, 0] * 2 + [3.5, 4.5, 1] * 4)
    repeated = [category(keypoints=names), category("skirt", names, 2), category("cape", names, 3)]
    found = read_coco(
        coco(
            [annotation(1, keypoints=first), annotation(2, category_id=2, keypoints=second)],
            categories=repeated,
        )
    )
    types = {t.name: t.landmarks for t in found.labels.landmark_set.garment_types}
    assert types == {"top": (0, 1), "skirt": (2, 3, 4, 5), "cape": ()}
    assert [len(row["visibility"]) for row in found.table.to_pylist()] == [2, 4]
    # One label in common: the categories mean the same points.
    shared = [1.5, 2.5, 2] * 3 + [0, 0, 0] * 3
    found = read_coco(
        coco(
            [annotation(1, keypoints=shared), annotation(2, category_id=2, keypoints=second)],
            categories=repeated,
        )
    )
    assert {t.landmarks for t in found.labels.landmark_set.garment_types} == {(0, 1, 2, 3, 4, 5)}


FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "an unknown image": ({"image_id": 99}, "unknown_image", "image_id 99"),
    "no image": ({"image_id": None}, "unknown_image", "image_id None"),
    "an unknown category": ({"category_id": 5}, "unknown_category", "category_id 5"),
    "a category without keypoints": ({"category_id": 0}, "no_keypoints", "category_id 0"),
    "a crowd": ({"iscrowd": 1, "segmentation": {"counts": [1, 2], "size": [3, 4]}}, "crowd", "iscrowd"),
    "too few numbers": ({"keypoints": [1, 2, 2]}, "wrong_annotation", "1 keypoints, but its category has 5"),
    "no triples": ({"keypoints": [1, 2]}, "wrong_annotation", "x, y, v of each, not 2 numbers"),
    "text": ({"keypoints": ["1", 2, 2] * 5}, "wrong_annotation", "list of numbers"),
    "lists": ({"keypoints": [[1, 2, 2]] * 5}, "wrong_annotation", "list of numbers"),
    "an object": ({"keypoints": {"a": 1}}, "wrong_annotation", "list of numbers"),
    "truth values": ({"keypoints": [True, 2, 2] * 5}, "wrong_annotation", "list of numbers"),
    "NaN": ({"keypoints": [float("nan"), 2, 2] * 5}, "wrong_annotation", "finite"),
    "infinite": ({"keypoints": [float("inf"), 2, 2] * 5}, "wrong_annotation", "finite"),
    "null": ({"keypoints": [None, 2, 2] * 5}, "wrong_annotation", "finite"),
    "huge": ({"keypoints": [10**400, 2, 2] * 5}, "wrong_annotation", "within a photo"),
    "v 3": ({"keypoints": [1, 2, 3] * 5}, "wrong_annotation", "v of a keypoint must be 0, 1 or 2"),
    "a box of three": ({"bbox": [1, 2, 3]}, "wrong_annotation", "bbox must be 4 numbers"),
    "a box of text": ({"bbox": "5 10 40 60"}, "wrong_annotation", "bbox must be 4 numbers"),
    "a box of NaN": ({"bbox": [float("nan"), 2, 3, 4]}, "wrong_annotation", "bbox must be finite"),
    "a huge box": ({"bbox": [0, 0, 1e300, 4]}, "wrong_annotation", "bbox must be finite"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_faulty_annotation_is_set_aside(case: str) -> None:
    """It is named by its id and file, and the others stay as they are."""
    changes, fault, words = FAULTS[case]
    given = [annotation(1), annotation(70, **changes), annotation(3)]
    roboflow = [{"id": 0, "name": "tops", "supercategory": "none"}, category(supercategory="tops")]
    rows = read_coco(coco(given, [image(1)], roboflow)).table.to_pylist()
    assert [row["fault"] for row in rows] == [None, fault, None]
    assert "annotation 70 of all.json: " in rows[1]["fault_detail"]
    assert words in rows[1]["fault_detail"]
    assert len({row["sample_id"] for row in rows}) == 3


def test_a_repeated_annotation_is_a_duplicate() -> None:
    rows = read_coco(coco([annotation(1), annotation(1), annotation("1"), annotation(2)])).table.to_pylist()
    assert [row["duplicate"] for row in rows] == [False, True, True, False]


REAL: dict[str, Any] = {
    # CVAT: boxes without size, track ids as attributes, v 0 with a place.
    "cvat": coco(
        [
            annotation(1, bbox=[0.0, 0.0, 0.0, 0.0], num_keypoints=4, attributes={"occluded": False}),
            annotation(2, keypoints=[9.5, 9.5, 0] + [20, 30.5, 2, 30, 40, 1] * 2),
        ],
        info={"contributor": "", "year": 0},
        licenses=[{"id": 0, "name": "", "url": ""}],
    ),
    # Label Studio: neither num_keypoints nor info; ids from 0; names with its upload's hash.
    "label studio": coco(
        [annotation(0, 0, ignore=0)],
        [image(0, "images/1ab2c3d4-dress 1.jpg")],
        [category(key=1)],
        info={"version": "1.0"},
    ),
    # Roboflow: category 0 is the supercategory and has no keypoints.
    "roboflow": coco(
        [annotation(0, 0, segmentation=[])],
        [image(0, "a_jpg.rf.0123.jpg", date_captured="2024-01-01", license=1)],
        [{"id": 0, "name": "top", "supercategory": "none"}, category(supercategory="top")],
    ),
    # mmpose: sigmas, numbered file names, ids as floats.
    "mmpose": coco(
        [annotation(1.0, 785.0, category_id=1.0)],
        [image(785, "000000000785.jpg", coco_url="")],
        [category(sigmas=[0.1, 0.2, 0.3, 0.4, 0.5])],
    ),
    "text ids": coco(
        [annotation("a-1", "img 1", category_id="1")], [image("img 1", "x.jpg")], [category(key=" 1 ")]
    ),
    "no area, no segmentation": coco(
        [
            {
                k: v
                for k, v in annotation(1).items()
                if k not in ("area", "segmentation", "iscrowd", "bbox", "id")
            }
        ]
    ),
    "one category unsaid": coco([{k: v for k, v in annotation(1).items() if k != "category_id"}]),
    "no sizes": coco([annotation(1)], [{"id": 1, "file_name": "1.jpg", "height": 0, "width": None}]),
    "unicode and folders": coco([annotation(1)], [image(1, "été/北京/cafe\u0301 №1.jpg")]),
    "windows": coco([annotation(1)], [image(1, "photos\\top.jpg")]),
    "images without annotations": coco([annotation(1)], [image(1), image(2), image(3)]),
    "annotations first": dict(reversed(list(coco([annotation(1)]).items()))),
}


@pytest.mark.parametrize("case", REAL)
def test_exports_as_they_are(case: str) -> None:
    """Nothing is set aside, all photos are found, and boxes are there."""
    names = [name["file_name"].replace("\\", "/") for name in REAL[case]["images"]]
    found = read_coco(REAL[case], names)
    rows = found.table.to_pylist()
    assert len(rows) == len(REAL[case]["annotations"])
    assert [row["fault"] for row in rows] == [None] * len(rows)
    assert all(row["photo"] in names and row["box"] is not None for row in rows)
    sigmas = (0.1, 0.2, 0.3, 0.4, 0.5) if case == "mmpose" else (0.04,) * 5
    assert found.labels.landmark_set.sigmas == sigmas
    if case == "cvat":
        # The extent is 10.5 to 14.5 by 20.25 to 24.25: a fifth of its width and a tenth of its height around.
        np.testing.assert_allclose(rows[0]["box"], [9.7, 19.85, 15.3, 24.65], rtol=1e-6)
        assert rows[1]["visibility"][0] == ABSENT
        assert "boxes: 1 of 2 are missing and made from the landmarks" in found.notes
    if case == "images without annotations":
        assert "photos without annotations, left out: 2" in found.notes


MISTAKES: dict[str, tuple[Any, str]] = {
    "no JSON": (b"<html>not found</html>", "all.json is not"),
    "empty": (b"", "all.json is not a JSON object"),
    "a list": ([], "all.json is not a JSON object"),
    "cut off": (json.dumps(coco([annotation(1)])).encode()[:-30], "all.json is not JSON"),
    "not UTF-8": (
        json.dumps(coco([annotation(1)]), ensure_ascii=False).encode().replace(b"back", b"b\xe9ck"),
        "utf-8",
    ),
    "a key twice": (b'{"images": [{"id": 1, "id": 2}]}', "the key 'id' is there twice"),
    "a list twice": (b'{"images": [], "images": []}', "the key 'images' is there twice"),
    "more behind": (json.dumps(coco([annotation(1)])).encode() + b"{}", "expected the end of the file"),
    "an endless number": (b'{"images": [{"id": ' + b"1" * 5000 + b"}]}", "all.json is not JSON"),
    "too deep": (b'{"images": ' + b"[" * 100_000, "all.json is not JSON"),
    "no images": ({"annotations": [], "categories": []}, "all.json has no list of images"),
    "no categories": ({"annotations": [], "images": []}, "all.json has no list of categories"),
    "images of text": (
        coco([annotation(1)], ["1.jpg"]),
        "an element of images must be an object, not \"'1.jpg'\"",
    ),
    "annotations as an object": ({**coco([]), "annotations": {"a": 1}}, "annotations must be a list"),
    "an annotation of text": (coco(["x"], [image(1)]), "an element of annotations must be an object"),
    "an image without a name": (coco([annotation(1)], [{"id": 1}]), "all.json: image 1 has no file_name"),
    "an image without id": (coco([annotation(1)], [{"file_name": "1.jpg"}]), "an image has the id 'None'"),
    "an image twice": (coco([annotation(1)], [image(1), image("1")]), "two images have the id 1"),
    "a category twice": (
        coco([annotation(1)], categories=[category(), category("b")]),
        "two categories have the id 1",
    ),
    "a name twice": (
        coco([annotation(1)], categories=[category(), category(key=2)]),
        "two categories with keypoints are named 'top'",
    ),
    "keypoints twice": (
        coco([annotation(1)], categories=[category(keypoints="aba")]),
        "two keypoints are named 'a'",
    ),
    "keypoints as text": (
        coco([annotation(1)], categories=[{**category(), "keypoints": "abc"}]),
        "list of names",
    ),
    "detection": (coco([annotation(1)], categories=[{"id": 1, "name": "top"}]), "no category has keypoints"),
    "wrong sigmas": (coco([annotation(1)], categories=[category(sigmas=[0.1])]), "sigmas must be 5 numbers"),
    "no annotations": (coco([], [image(1)]), "no annotations"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_told_in_one_line(case: str) -> None:
    content, words = MISTAKES[case]
    with pytest.raises(UserError) as raised:
        read_coco({"all.json": content}, ["1.jpg"])
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_splits_by_the_files_names() -> None:
    """COCO's, Roboflow's and plain names; other JSON files are left out and named."""
    for names in (
        ("annotations/person_keypoints_train2017.json", "annotations/person_keypoints_val2017.json"),
        ("train/_annotations.coco.json", "valid/_annotations.coco.json"),
        ("train.json", "val.json"),
    ):
        files = {name: coco([annotation(1)], [image(1, f"{i}.jpg")]) for i, name in enumerate(names)}
        detection = {**coco([annotation(1)]), "categories": [{"id": 1, "name": "top"}]}
        found = read_coco(files | {"annotations/instances_train2017.json": detection})
        assert [(row["photo"], row["split"]) for row in found.table.to_pylist()] == [
            ("0.jpg", "train"),
            ("1.jpg", "val"),
        ]
        assert (
            "files left out, as they have no keypoints: annotations/instances_train2017.json" in found.notes
        )
    files = {"train.json": coco([annotation(1)]), "more.json": coco([annotation(1)])}
    with pytest.raises(UserError, match=r"more\.json does not say its split, but others do"):
        read_coco(files)
    files = {
        "train.json": coco([annotation(1)]),
        "val.json": coco([annotation(1, n=4)], categories=[category(keypoints=SKIRT)]),
    }
    with pytest.raises(
        UserError, match=r"val\.json: the keypoints of category 'top' are not those that it has in train"
    ):
        read_coco(files)


def test_a_name_that_says_a_split_by_chance() -> None:
    """A project's folder is none, and files without train are told."""
    project = {"shirts-test-2/annotations/instances_default.json": coco([annotation(i, i) for i in range(9)])}
    assert {row["split"] for row in read_coco(project).table.to_pylist()} == {"train", "val"}
    found = read_coco({"my_test.json": coco([annotation(1)])})
    assert {row["split"] for row in found.table.to_pylist()} == {"test"}
    assert any(
        note.startswith("warning: no photo is for training: my_test.json is test") for note in found.notes
    )


@pytest.mark.parametrize("seed", range(3))
def test_photos_are_divided_by_their_names(seed: int) -> None:
    """Garments of a photo stay together; a photo keeps its split when others come; fractions come out."""
    print("seed", seed)
    rng = np.random.default_rng(seed)
    count = 2000
    items = [annotation(i, int(of)) for i, of in enumerate(rng.integers(0, count, 2 * count))]
    options = {"val_fraction": 0.25, "test_fraction": 0.1, "split_seed": seed}

    def splits(keep: int) -> dict[str, str]:
        chosen = [item for item in items if item["image_id"] < keep]
        rows = read_coco(coco(chosen), **options).table.to_pylist()
        found = {row["photo"]: row["split"] for row in rows}
        assert all(found[row["photo"]] == row["split"] for row in rows)
        return found

    whole, part = splits(count), splits(300)
    assert part.items() <= whole.items()
    shares = {split: list(whole.values()).count(split) / len(whole) for split in ("train", "val", "test")}
    assert shares["val"] == pytest.approx(0.25, abs=0.04)
    assert shares["test"] == pytest.approx(0.1, abs=0.03)


def test_few_photos_have_train_and_val_all_the_same() -> None:
    for count in range(2, 8):
        rows = read_coco(coco([annotation(i, i) for i in range(count)])).table.to_pylist()
        assert {row["split"] for row in rows} == {"train", "val"}
    # Train alone gives some to val; asked for beside a val that is there, a fraction is a mistake.
    train = coco([annotation(i, i) for i in range(40)])
    rows = read_coco({"train.json": train}).table.to_pylist()
    assert {row["split"] for row in rows} == {"train", "val"}
    with pytest.raises(UserError, match="--val-fraction: the annotations have a split val"):
        read_coco({"train.json": train, "val.json": coco([annotation(1, 99)])}, val_fraction=0.1)


PLACES = {
    "beside": ("set/a.json", "1.jpg", ["set/1.jpg", "other/1.jpg"], "set/1.jpg"),
    "in images": ("set/a.json", "1.jpg", ["set/images/1.jpg", "other/1.jpg"], "set/images/1.jpg"),
    "around annotations": ("annotations/a.json", "1.jpg", ["images/1.jpg", "b/1.jpg"], "images/1.jpg"),
    "COCO": (
        "annotations/person_keypoints_val2017.json",
        "1.jpg",
        ["train2017/1.jpg", "val2017/1.jpg"],
        "val2017/1.jpg",
    ),
    "CVAT": (
        "annotations/person_keypoints_default.json",
        "1.jpg",
        ["images/default/1.jpg"],
        "images/default/1.jpg",
    ),
    "the split's folder": ("a/valid.json", "1.jpg", ["a/train/1.jpg", "a/valid/1.jpg"], "a/valid/1.jpg"),
    "anywhere": ("a.json", "1.jpg", ["deep/er/1.jpg"], "deep/er/1.jpg"),
    "by the longest end": ("a.json", "x/b/1.jpg", ["deep/b/1.jpg", "deep/c/1.jpg"], "deep/b/1.jpg"),
    "an absolute path": ("a.json", "/home/me/b/1.jpg", ["photos/b/1.jpg", "photos/1.jpg"], "photos/b/1.jpg"),
    "a URL": ("a.json", "https://host/data/1.jpg?x=1", ["images/1.jpg"], "images/1.jpg"),
    "a broken URL": ("a.json", "http://[x/1.jpg", ["images/1.jpg"], "images/1.jpg"),
    "Label Studio's disk": ("a.json", "/data/local-files/?d=1.jpg", ["1.jpg"], "1.jpg"),
    "the same as a URL": (
        "a.json",
        "http://host/data/local-files/?d=b/1.jpg",
        ["a/1.jpg", "b/1.jpg"],
        "b/1.jpg",
    ),
    "quoted": ("a.json", "upload/my%20top.jpg", ["images/my top.jpg"], "images/my top.jpg"),
    "other capitals": ("a.json", "IMG_1.JPG", ["images/img_1.jpg"], "images/img_1.jpg"),
    "the right capitals": ("a.json", "A.jpg", ["x/a.jpg", "y/A.jpg"], "y/A.jpg"),
    "decomposed letters": ("a.json", "e\u0301.jpg", ["images/\u00e9.jpg"], "images/\u00e9.jpg"),
    "in an archive": ("a.json", "1.jpg", ["images.zip/1.jpg"], "images.zip/1.jpg"),
    "in the split's archive": (
        "train.json",
        "1.jpg",
        ["train.zip/1.jpg", "val.zip/1.jpg"],
        "train.zip/1.jpg",
    ),
    "not what macOS adds": ("a.json", "1.jpg", ["images/._1.jpg", "images/1.jpg"], "images/1.jpg"),
}


@pytest.mark.parametrize("case", PLACES)
def test_photos_are_found(case: str) -> None:
    file, name, photos, expected = PLACES[case]
    (row,) = read_coco({file: coco([annotation(1)], [image(1, name)])}, photos).table.to_pylist()
    assert (row["photo"], row["fault"]) == (expected, None)


def test_two_names_are_not_one_photo() -> None:
    """Of two folders' photos of one name, the one that is not there is not taken to be the other."""
    given = coco([annotation(1, 1), annotation(2, 2)], [image(1, "p2/1.jpg"), image(2, "p1/1.jpg")])
    lost, found = read_coco({"a.json": given}, ["all/p1/1.jpg"]).table.to_pylist()
    assert (lost["photo"], found["photo"]) == ("p2/1.jpg", "all/p1/1.jpg")


def test_a_photo_in_several_files_is_told() -> None:
    given = coco([annotation(1)])
    found = read_coco({"a.json": given, "copy of a.json": given}, ["1.jpg"])
    (note,) = [note for note in found.notes if note.startswith("photos annotated in several files: 1, ")]
    assert "in a.json, copy of a.json. " in note
    assert not [note for note in read_coco(given).notes if "several files" in note]


@pytest.mark.parametrize("other", [{"categories": {"a": 1}}, {"images": ["1.jpg"], "annotations": 1}])
def test_other_json_beside_the_annotations_is_left_out(other: Any) -> None:
    found = read_coco({"a.json": coco([annotation(1)]), "b.json": other}, ["1.jpg"])
    assert len(found.table) == 1
    assert "files left out, as they have no keypoints: b.json" in found.notes
    wrong = coco([annotation(1)], [image(1), 2])
    with pytest.raises(UserError, match=r"b\.json: an element of images must be an object"):
        read_coco({"a.json": coco([annotation(1)]), "b.json": wrong}, ["1.jpg"])


def test_photos_that_are_not_found() -> None:
    """One of several is left to the archive's index to miss; one of two equals is a fault; all are a mistake."""
    given = coco([annotation(1, 1), annotation(2, 2), annotation(3, 3)])
    lost, two, found = read_coco({"a.json": given}, ["x/2.jpg", "y/2.jpg", "3.jpg"]).table.to_pylist()
    assert (lost["photo"], lost["fault"]) == ("1.jpg", None)
    assert two["fault"] == "ambiguous_photo"
    assert "'2.jpg' may be x/2.jpg, y/2.jpg" in two["fault_detail"]
    assert found["fault"] is None
    with pytest.raises(
        UserError, match=r"none of the 3 annotated photos is there: the first, '1\.jpg', is neither"
    ):
        read_coco({"a.json": given}, ["x/4.jpg"])


NAMES = {
    "words": ("left_collar", "right_collar", "neck", (1, 0, 2)),
    "capitals and spaces": ("Left Sleeve", "RIGHT-sleeve", "x", (1, 0, 2)),
    "letters": ("l_collar", "r_collar", "x", (1, 0, 2)),
    "camel case": ("collarL", "collarR", "neckline", (1, 0, 2)),
    "behind": ("hem.left", "hem.right", "x", (1, 0, 2)),
    "between": ("sleeve_l_top", "sleeve_r_top", "sleeve_top", (1, 0, 2)),
    "joined": ("leftcollar", "rightcollar", "bright", (1, 0, 2)),
    "a bare letter": ("lcollar", "rcollar", "lapel", (1, 0, 2)),
    "no partner": ("left_collar", "x", "y", (0, 1, 2)),
    "two of a side": ("left_collar", "leftCollar", "right_collar", (0, 1, 2)),
}


@pytest.mark.parametrize("case", NAMES)
def test_pairs_are_found_by_names(case: str) -> None:
    *names, mirror = NAMES[case]
    found = read_coco(coco([annotation(1, n=3)], categories=[category(keypoints=names)]))
    assert found.labels.landmark_set.mirror == mirror
    warned = [
        note for note in found.notes if note.startswith("warning: landmarks of a side without a partner")
    ]
    assert bool(warned) == (case in ("no partner", "two of a side"))


def test_names_that_may_be_sides_are_told() -> None:
    """Abbreviations are not taken for sides, but whoever uses them learns what to give."""
    names = ["left_collar", "right_collar", "lh", "rh", "lace"]
    found = read_coco(coco([annotation(1, n=5)], categories=[category(keypoints=names)]))
    assert found.labels.landmark_set.mirror == (1, 0, 2, 3, 4)
    (told,) = (note for note in found.notes if "may be left and right" in note)
    assert told.startswith("warning: lh and rh may be")
    assert told.endswith("--pairs left_collar:right_collar,lh:rh")
    told_pairs = told.rpartition(" ")[2]
    again = read_coco(coco([annotation(1, n=5)], categories=[category(keypoints=names)]), pairs=told_pairs)
    assert again.labels.landmark_set.mirror == (1, 0, 3, 2, 4)
    assert not any("may be left and right" in note for note in again.notes)


def test_pairs_by_option() -> None:
    def mirror(pairs: str, names: Any = "abcd") -> tuple[int, ...]:
        file = coco([annotation(1, n=4)], categories=[category(keypoints=names)])
        return read_coco(file, pairs=pairs).labels.landmark_set.mirror

    assert mirror("a:c, b:d") == (2, 3, 0, 1)
    assert mirror("none", ("left_a", "right_a", "c", "d")) == (0, 1, 2, 3)
    for pairs, words in (
        ("a:x", "'x' is no landmark: they are a, b, c, d"),
        ("a", "'a' is not LEFT:RIGHT"),
        ("a:a", "a landmark is in one pair with another"),
        ("a:b,b:c", "a landmark is in one pair with another"),
    ):
        with pytest.raises(UserError, match=words):
            mirror(pairs)


def test_sigmas_by_option() -> None:
    file = coco([annotation(1)], categories=[category(sigmas=[0.1] * 5)])
    assert read_coco(file, sigmas="0.05").labels.landmark_set.sigmas == (0.05,) * 5
    assert read_coco(file, sigmas=".1,.2,.3,.4,.5").labels.landmark_set.sigmas == (0.1, 0.2, 0.3, 0.4, 0.5)
    for sigmas in ("0", "1", "x", ".1,.2", "nan"):
        with pytest.raises(UserError, match="--sigmas"):
            read_coco(file, sigmas=sigmas)


def test_one_landmark() -> None:
    """Its box cannot be made from it: it is the whole photo."""
    one = category(keypoints=["button"])
    rows = read_coco(coco([annotation(1, n=1, bbox=[])], categories=[one])).table.to_pylist()
    assert rows[0]["box"] == [-np.inf, -np.inf, np.inf, np.inf]


def test_what_is_exported_is_the_set_again() -> None:
    """Order, pairs and types, though the types alone would give another order."""
    found = read_coco(
        coco(
            [annotation(1, n=6)],
            categories=categories(FASHION8, untyped=False),
            info={
                "glefld_landmarks": FASHION8.landmarks,
                "glefld_mirror_pairs": [["left_collar", "right_collar"]],
                "glefld_coordinates": "continuous",
            },
        )
    )
    landmark_set = found.labels.landmark_set
    assert (landmark_set.landmarks, landmark_set.garment_types) == (
        FASHION8.landmarks,
        FASHION8.garment_types,
    )
    assert landmark_set.mirror == (1, 0, 2, 3, 4, 5, 6, 7)


def test_a_large_file_is_read_in_pieces() -> None:
    """Masks, most of such a file, are not kept: of 16 MB some 1 MB is."""
    mask = [[round(1.5 * i, 1) for i in range(2000)]]
    data = json.dumps(coco([annotation(i, i, segmentation=mask) for i in range(1200)])).encode()
    assert len(data) > 14_000_000
    tracemalloc.start()
    rows = read_coco({"a.json": data}, [f"{i}.jpg" for i in range(1200)]).table
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(rows) == 1200
    print("peak", peak)
    assert peak < 12_000_000


@pytest.mark.parametrize("seed", range(3))
def test_damaged_bytes_are_told_or_survived(seed: int) -> None:
    """Whatever is changed, there are rows or one line; nothing is lost without being counted."""
    print("seed", seed)
    rng = np.random.default_rng(seed)
    whole = json.dumps(coco([annotation(i, i % 3) for i in range(4)])).encode()
    told = 0
    for _ in range(150):
        data = bytearray(whole)
        for at in rng.integers(0, len(data), rng.integers(1, 4)):
            data[at] = rng.choice(bytearray(b'0123456789eE+-.,:"[]{} NIat\\\xff'))
        try:
            rows = read_coco({"a.json": bytes(data)}, [f"{i}.jpg" for i in range(3)]).table
        except UserError as error:
            told += "\n" not in str(error)
            continue
        assert len(rows) == 4
        assert all(row["fault"] is not None or row["visibility"] is not None for row in rows.to_pylist())
    assert 20 < told < 150


def test_sigmas_travel_and_make_no_other_set() -> None:
    """A manifest keeps them; a checkpoint from before they were changed still fits the data."""
    file = coco([annotation(1)])
    one, other = (read_coco(file, sigmas=s).labels.landmark_set for s in ("0.05", "0.1"))
    assert one == other
    assert hash(one) == hash(other)
    back = LandmarkSet.from_json(json.loads(json.dumps(one.to_json())))
    assert (back, back.sigmas) == (one, (0.05,) * 5)
    assert "sigmas" not in FASHION8.to_json()
    with pytest.raises(UserError, match="1 sigmas for 8 landmarks"):
        LandmarkSet("x", FASHION8.landmarks, FASHION8.mirror, (), (0.1,))
