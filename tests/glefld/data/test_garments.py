"""Whole photos as a detector's input: every garment of a photo is known to each of its rows, and moves as pixels do."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from glefld.data.augmentation import NO_AUGMENTATION, Augmentation, square_around
from glefld.data.dataset import open_dataset
from glefld.data.garments import PhotoBoxes, boxes_to_input, require_whole_photos
from glefld.data.loader import Batch, BatchLoader, InputPipeline
from glefld.data.picture import IMAGENET
from glefld.errors import UserError
from tests import boxed, dots

IDENTITY = np.eye(2, 3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return boxed.write_dataset(tmp_path_factory.mktemp("data"), {"train": 12, "val": 3})


def batches(data: str, augmentation: Augmentation, seeds: int = 40) -> list[Batch]:
    photos = PhotoBoxes.read(data, open_dataset(data), "train")
    loader = BatchLoader(dots.LABELS, InputPipeline(boxed.SIZE, IMAGENET, 16), photos)
    table = pq.read_table(f"{data}/split=train")
    tables = [table.slice(start, 8) for start in range(0, len(table), 8)]
    return list(loader.run(tables, augmentation, ((0, 0, i) for i in range(seeds))))


def test_each_row_knows_all_garments_of_its_photo(data: str) -> None:
    """Also those in other tables; each photo has one first row, and each row finds its own box."""
    table = pq.read_table(f"{data}/split=train")
    uris, boxes = table["source_uri"].to_pylist(), np.array(table["box"].to_pylist())
    assert len(set(uris)) == 12 < len(uris)
    first, row = [], 0
    for batch in batches(data, NO_AUGMENTATION):
        assert batch.garments is not None
        for i, found in enumerate(batch.garments.in_photo):
            expected = boxes[[uri == uris[row] for uri in uris]]
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(found[batch.garments.own[i]], boxes[row])
            assert batch.garments.sides[i] == (boxed.WIDTH, boxed.HEIGHT)
            first.append(batch.garments.first[i])
            row += 1
    assert row == len(uris)
    assert [uri for uri, is_first in zip(uris, first, strict=True) if is_first] == list(dict.fromkeys(uris))


def test_boxes_stay_on_their_garments_however_the_photo_moves(data: str) -> None:
    """Cards are lighter than their ground: what is in a box is light, also mirrored, scaled and shifted."""
    moves = Augmentation(mirror=0.5, rotate=0, scale=0.3, shift=0.2, colour=0)
    seen = 0
    for batch in batches(data, moves):
        assert batch.garments is not None
        light = batch.images.mean(dim=1) > -0.7  # grey cards are at 0 or so, their dark ground is below -1
        for image, boxes in zip(light, batch.garments.boxes, strict=True):
            inside = torch.zeros_like(image)
            for x1, y1, x2, y2 in boxes.round().int().tolist():
                inside[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1] = True
                seen += 1
            assert image[inside].float().mean() > 0.9 or not len(boxes)
    assert seen > 15


@pytest.mark.parametrize(
    ("affine", "expected"),
    [
        ([[1, 0, 0], [0, 1, 0]], [[10, 20, 30, 60]]),
        ([[-1, 0, 64], [0, 1, 0]], [[34, 20, 54, 60]]),  # mirrored
        ([[0, -1, 64], [1, 0, 0]], [[4, 10, 44, 30]]),  # turned by a right angle
        ([[1, 0, -16], [0, 1, 0]], [[0, 20, 14, 60]]),  # cut
        ([[1, 0, -25], [0, 1, 0]], []),  # a quarter is left, which is too little
        ([[1, 0, 90], [0, 1, 0]], []),  # outside
    ],
)
def test_what_is_left_of_a_box(affine: list[list[float]], expected: list[list[float]]) -> None:
    found = boxes_to_input(np.array([[10.0, 20, 30, 60]]), np.array(affine, np.float64), 64)
    np.testing.assert_allclose(found, np.array(expected, np.float32).reshape(-1, 4), atol=1e-5)
    assert found.dtype == np.float32


def test_a_turned_box_is_the_extent_of_its_corners() -> None:
    turn = np.array([[0.8, -0.6, 20], [0.6, 0.8, 0]])
    (found,) = boxes_to_input(np.array([[10.0, 10, 30, 20]]), turn, 64)
    corners = np.array([[10, 10], [30, 10], [30, 20], [10, 20]]) @ turn[:, :2].T + turn[:, 2]
    np.testing.assert_allclose(found, [*corners.min(axis=0), *corners.max(axis=0)], rtol=1e-6)


def test_a_photo_keeps_its_shape() -> None:
    np.testing.assert_array_equal(square_around(300, 200), [0, -50, 300, 250])
    np.testing.assert_array_equal(
        square_around(np.array([10, 4]), np.array([10, 8])), [[0, 0, 10, 10], [-2, 0, 6, 8]]
    )


def test_crops_are_refused(tmp_path: object) -> None:
    url = boxed.write_dataset(tmp_path, {"train": 1, "val": 1}, margin=0.25)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="ingest it with --margin full"):
        require_whole_photos(url, open_dataset(url))
    with pytest.raises(UserError, match="a detector needs whole photos"):
        PhotoBoxes.read(url, open_dataset(url), "train")
