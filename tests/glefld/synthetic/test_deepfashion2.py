"""Rendered photos in DeepFashion2's layout: the same for a seed, readable, and true of the picture."""

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from glefld.datasets.deepfashion2 import mask_area, read_photo
from glefld.datasets.deepfashion2_landmarks import CATEGORIES
from glefld.errors import UserError
from glefld.synthetic.deepfashion2 import list_splits, write_dataset

COUNT = 70


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("raw")
    write_dataset(str(root), COUNT, seed=4, processes=2)
    return root


@pytest.fixture(scope="module")
def photos(root: Path) -> list[tuple[Image.Image, dict[str, Any]]]:
    """Each photo with its JSON."""
    found = []
    for split in ("train", "validation"):
        with zipfile.ZipFile(root / f"{split}.zip") as file:
            for name in sorted(file.namelist()):
                if name.endswith(".jpg"):
                    content = json.loads(file.read(name.replace("image", "annos").replace(".jpg", ".json")))
                    found.append((Image.open(io.BytesIO(file.read(name))), content))
    return found


def garments(photos: list[tuple[Image.Image, dict[str, Any]]]) -> list[tuple[Image.Image, dict[str, Any]]]:
    return [(image, item) for image, content in photos for key, item in content.items() if "item" in key]


def test_deepfashion2_bytes_depend_on_the_seed_alone(root: Path, tmp_path: Path) -> None:
    """However many processes draw, the files are the same; a larger count begins with the smaller one's photos."""
    write_dataset(str(tmp_path / "one"), COUNT, seed=4)
    assert digests(tmp_path / "one") == digests(root)
    assert sorted(digests(root)) == ["rendered.json", "train.zip", "validation.zip"]
    write_dataset(str(tmp_path / "few"), 6, seed=4)
    write_dataset(str(tmp_path / "other"), 6, seed=5)
    with (
        zipfile.ZipFile(root / "train.zip") as many,
        zipfile.ZipFile(tmp_path / "few/train.zip") as few,
        zipfile.ZipFile(tmp_path / "other/train.zip") as other,
    ):
        assert few.namelist() == many.namelist()[: len(few.namelist())]
        assert all(few.read(name) == many.read(name) for name in few.namelist())
        assert many.read("train/image/000001.jpg") != other.read("train/image/000001.jpg")


def test_members_are_named_as_the_benchmarks_are(root: Path) -> None:
    splits = list_splits(COUNT)
    for split in ("train", "validation"):
        expected = [
            f"{split}/{folder}/{i:06d}.{ending}"
            for i in range(1, splits.count(split) + 1)
            for folder, ending in (("image", "jpg"), ("annos", "json"))
        ]
        with zipfile.ZipFile(root / f"{split}.zip") as file:
            assert file.namelist() == expected
    assert 0.9 < splits.count("train") / COUNT < 0.94


def test_several_garments_a_photo_of_many_categories(
    photos: list[tuple[Image.Image, dict[str, Any]]],
) -> None:
    counts = [sum("item" in key for key in content) for _, content in photos]
    assert min(counts) >= 1
    assert max(counts) >= 3
    assert np.mean(counts) > 1.4
    assert len({item["category_id"] for _, item in garments(photos)}) >= 10
    for _, content in photos:
        assert {"source", "pair_id"} <= set(content)
        for item in (item for key, item in content.items() if "item" in key):
            assert CATEGORIES[item["category_id"] - 1][0] == item["category_name"]
            assert all(item[key] in (1, 2, 3) for key in ("scale", "occlusion", "zoom_in", "viewpoint"))


def test_the_annotation_is_within_the_photo(photos: list[tuple[Image.Image, dict[str, Any]]]) -> None:
    """Boxes in photos, labelled landmarks and masks in boxes; each visibility occurs."""
    seen = np.zeros(3)
    for image, item in garments(photos):
        x1, y1, x2, y2 = item["bounding_box"]
        assert 0 <= x1 < x2 <= image.width
        assert 0 <= y1 < y2 <= image.height
        points = np.array(item["landmarks"]).reshape(-1, 3)
        assert len(points) == CATEGORIES[item["category_id"] - 1][1]
        labelled = points[points[:, 2] > 0, :2]
        assert len(labelled) >= 3
        assert ((labelled >= (x1, y1)) & (labelled < (x2, y2))).all()
        assert (points[points[:, 2] == 0] == 0).all()
        for polygon in item["segmentation"]:
            corners = np.array(polygon).reshape(-1, 2)
            # A box begins at 1 at least, a mask at -.5, where pixel 0 does.
            assert ((corners >= (x1 - 1.5, y1 - 1.5)) & (corners <= (x2 + 1, y2 + 1))).all()
        assert 100 < mask_area(item["segmentation"]) <= (x2 - x1) * (y2 - y1)
        seen += np.bincount(points[:, 2], minlength=3)
    assert (seen / seen.sum() > 0.05).all()
    assert seen[2] / seen.sum() > 0.5


def test_visible_landmarks_lie_in_the_mask(photos: list[tuple[Image.Image, dict[str, Any]]]) -> None:
    """The polygons, filled, have each visible landmark in them or within two pixels of their edge."""
    for image, item in garments(photos):
        mask = Image.new("1", image.size)
        for polygon in item["segmentation"]:
            ImageDraw.Draw(mask).polygon(polygon, fill=1)
        filled = np.asarray(mask)
        for x, y, v in np.array(item["landmarks"]).reshape(-1, 3):
            if v == 2:
                around = filled[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3]
                assert around.any(), (item["category_name"], x, y)


def test_the_reader_reads_it(root: Path) -> None:
    with zipfile.ZipFile(root / "train.zip") as file:
        name = "train/annos/000001.json"
        rows = list(read_photo(name, file.read(name)))
        assert len(rows) == sum("item" in key for key in json.loads(file.read(name)))


def test_mistakes_are_told(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 1"):
        write_dataset(str(tmp_path / "raw"), 0)
    with pytest.raises(UserError, match=r"train\.zip already exists"):
        write_dataset(str(root), 3)
