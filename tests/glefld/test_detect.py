"""Detection: the garments of photos of any kind, in pixels of the upright photo, and what is said of those without."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from glefld.data.augmentation import NO_AUGMENTATION
from glefld.data.dataset import open_dataset
from glefld.data.garments import PhotoBoxes
from glefld.data.loader import BatchLoader
from glefld.detect import Detector
from glefld.errors import BadAnswer, BadPhoto, UserError
from glefld.landmarks import Landmarks
from glefld.models import checkpoint
from glefld.models.checkpoint import ModelCard
from glefld.models.system import Found, Model
from glefld.predict import Predictor
from glefld.prediction import Bad, Crop, Detected, Prediction, open_upright
from glefld.scoring.evaluation import pair
from tests import boxed, dots

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def finder(detector: tuple[str, str]) -> Detector:
    return Detector(checkpoint.resolve(detector[1]), CPU, batch_size=4)


def encode(image: Image.Image, orientation: int = 1, format_: str = "JPEG") -> bytes:
    """The photo as a camera that was held otherwise stores it."""
    stored = {
        1: lambda i: i,
        3: lambda i: i.transpose(Image.Transpose.ROTATE_180),
        6: lambda i: i.transpose(Image.Transpose.ROTATE_90),
        7: lambda i: i.transpose(Image.Transpose.TRANSVERSE),
    }[orientation](image)
    exif = Image.Exif()
    exif[0x0112] = orientation
    return dots.encoded(stored, format_, exif=exif, **({"quality": 95} if format_ == "JPEG" else {}))


def opened(finder: Detector, data: bytes) -> Crop | Bad:
    try:
        return open_upright(data).whole(finder.card.input_size)
    except BadPhoto as bad:
        return bad


def examples(count: int) -> list[tuple[Image.Image, list[boxed.Card]]]:
    rng = np.random.default_rng(99)
    return [boxed.make_photo(rng) for _ in range(count)]


@pytest.mark.parametrize(("orientation", "format_"), [(1, "JPEG"), (3, "JPEG"), (6, "JPEG"), (7, "PNG")])
def test_it_finds_the_garments_of_the_upright_photo(orientation: int, format_: str, finder: Detector) -> None:
    """Whatever the photo's orientation tag and format; best first, and each garment once."""
    photos = examples(8)
    crops = [opened(finder, encode(photo, orientation, format_)) for photo, _ in photos]
    right = garments = 0
    for answer, (_, cards) in zip(finder.detect(crops), photos, strict=True):
        assert isinstance(answer, Detected)
        assert answer.boxes.shape == (len(answer.score), 4)
        assert (np.diff(answer.score) <= 0).all()
        assert (answer.score >= finder.least_score).all()
        assert (answer.boxes >= 0).all()
        assert (answer.boxes <= [boxed.WIDTH, boxed.HEIGHT] * 2).all()
        places = pair(torch.from_numpy(answer.boxes).double(), torch.tensor(np.array([c.box for c in cards])))
        right += sum(place >= 0 for place in places)
        garments += len(cards)
    assert right >= 0.8 * garments


def test_landmarks_in_found_boxes_are_those_in_the_photo(finder: Detector, tmp_path: Path) -> None:
    """The crop of a found box is made of the photo that was opened once; its landmarks are in the same frame."""
    predictor = Predictor(dots.write_checkpoint(str(tmp_path / "landmarks")), CPU, 8)
    photos = examples(4)
    for (_, cards), answer in zip(
        photos, finder.detect([opened(finder, encode(photo, 6)) for photo, _ in photos]), strict=True
    ):
        assert isinstance(answer, Detected)
        crops = [answer.photo.crop(box, dots.SIZE) for box in answer.boxes.tolist()]
        boxes = torch.from_numpy(answer.boxes).double()
        found = list(predictor.predict(crops))
        for card, place in zip(
            cards, pair(boxes, torch.tensor(np.array([c.box for c in cards]))), strict=True
        ):
            if place >= 0:
                prediction = found[place]
                assert isinstance(prediction, Prediction)
                np.testing.assert_allclose(prediction.landmarks, card.points, atol=3)


def test_a_landmark_model_with_a_detector(detector: tuple[str, str], tmp_path: Path) -> None:
    """Photos without boxes get those that are found, with their scores; boxes that are given are taken as they are."""
    model = Landmarks.load(
        dots.write_checkpoint(str(tmp_path / "landmarks")), detector=detector[1], device="cpu", threads=1
    )
    finder = model.detector
    assert finder is not None
    photos = [photo for photo, _ in examples(5)]
    empty, _ = boxed.make_photo(np.random.default_rng(0), garments=0)
    box = (10.0, 10.0, 60.0, 60.0)
    sources = [photos[0], b"no picture", photos[1], empty, photos[2], encode(photos[3], 6), photos[4]]
    results = model(sources, [None, None, box, None, None, None, []])
    assert [len(result.answers) for result in (results[1], results[3], results[6])] == [1, 1, 0]
    assert str(results[1].errors[0]).startswith("unreadable_photo")
    assert str(results[3].errors[0]).startswith("no_garment")
    assert results[3].size == (boxed.WIDTH, boxed.HEIGHT)
    assert results[2].garment.box == box
    assert results[2].garment.box_score is None
    crops = [open_upright(dots.encoded(photo, "PNG")).whole(boxed.SIZE) for photo in (photos[0], photos[2])]
    for result, found in zip((results[0], results[4]), finder.detect(crops), strict=True):
        assert isinstance(found, Detected)
        assert len(found.boxes) == len(result.garments) > 0
        for garment, expected, score in zip(result.garments, found.boxes, found.score, strict=True):
            np.testing.assert_allclose(garment.box, expected, atol=1e-3)
            assert garment.box_score == pytest.approx(float(score), abs=1e-4)
    annotations = results[0].to_coco()["annotations"]
    assert [a["box_score"] for a in annotations] == [
        pytest.approx(g.box_score, abs=1e-4) for g in results[0].garments
    ]
    assert results[5].garments


def test_it_sees_what_it_was_trained_on(finder: Detector, detector: tuple[str, str]) -> None:
    """A photo gives the very same input here and in training, and the same way back to the photo."""
    data, _ = detector
    table = pq.read_table(f"{data}/split=val").slice(0, 1)
    photos = PhotoBoxes.read(data, open_dataset(data), "val")
    (batch,) = BatchLoader(dots.LABELS, finder.pipeline, photos).run([table], NO_AUGMENTATION)
    crop = open_upright(table["image"][0].as_py()).whole(boxed.SIZE)
    assert torch.equal(finder.pipeline.run([crop.picture]), batch.images)
    np.testing.assert_allclose(crop.to_photo, batch.to_photo[0])


def test_a_part_of_a_photo_is_found_in_the_photo(finder: Detector) -> None:
    """With the place of its corner, boxes are in the whole photo's pixels."""
    photo, _ = examples(1)[0]
    crops = [open_upright(encode(photo), origin).whole(boxed.SIZE) for origin in ((0, 0), (100, 7))]
    first, second = finder.detect(crops)
    assert isinstance(first, Detected)
    assert isinstance(second, Detected)
    assert len(first.boxes)
    np.testing.assert_allclose(first.boxes + np.array([100, 7, 100, 7]), second.boxes, atol=1e-4)


def test_what_is_bad_is_told_in_its_place(finder: Detector) -> None:
    """Neighbours answer as they would without it; a photo of nothing has no boxes, which can be said."""
    good = [encode(photo) for photo, _ in examples(3)]
    empty = encode(boxed.make_photo(np.random.default_rng(0), garments=0)[0])
    cut = encode(examples(1)[0][0])[:-400]
    alone = list(finder.detect([opened(finder, data) for data in good]))
    mixed = [good[0], b"no picture", good[1], cut, empty, good[2]]
    found = list(finder.detect([opened(finder, data) for data in mixed]))
    assert [type(answer) for answer in found] == [Detected, BadPhoto, Detected, BadPhoto, Detected, Detected]
    for answer, expected in zip((found[0], found[2], found[5]), alone, strict=True):
        assert isinstance(answer, Detected)
        assert isinstance(expected, Detected)
        np.testing.assert_allclose(answer.boxes, expected.boxes, atol=1e-3)
    nothing = found[4]
    assert isinstance(nothing, Detected)
    assert len(nothing.boxes) == 0
    assert str(finder.nothing()).startswith("no_garment: no box has a score of 0.")


def test_how_many_and_how_sure_can_be_chosen(detector: tuple[str, str]) -> None:
    url = checkpoint.resolve(detector[1])
    crops = [open_upright(encode(photo)).whole(boxed.SIZE) for photo, cards in examples(8) if len(cards) == 2]
    usual, one, all_, none = (
        [len(a.boxes) for a in Detector(url, CPU, **chosen).detect(crops) if isinstance(a, Detected)]
        for chosen in ({}, {"most": 1}, {"least_score": 0.0, "most": 30}, {"least_score": 1.0})
    )
    assert max(usual) == 2
    assert set(one) == {1}
    assert sum(all_) > sum(usual)
    assert not any(none)
    with pytest.raises(UserError, match="most must be at least 1"):
        Detector(url, CPU, most=0)


def copied(run: str, folder: Path, **changes: object) -> tuple[str, Model, ModelCard]:
    model, card = checkpoint.load(checkpoint.resolve(run))
    return str(folder), model, dataclasses.replace(card, **changes)  # type: ignore[arg-type]


def test_an_answer_that_is_no_number_is_told(detector: tuple[str, str], tmp_path: Path) -> None:
    url, model, card = copied(detector[1], tmp_path / "nan")
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)
    checkpoint.save(url, model, card)
    broken = Detector(url, CPU)
    (answer,) = broken.detect([opened(broken, encode(examples(1)[0][0]))])
    assert isinstance(answer, BadAnswer)
    places = sum((boxed.SIZE // stride) ** 2 for stride in (8, 16, 32))
    assert str(answer) == f"not_finite: {places} of {places} places, so the model has diverged"


def test_only_a_detector_that_was_scored_detects(detector: tuple[str, str], tmp_path: Path) -> None:
    landmarks = dots.write_checkpoint(str(tmp_path / "landmarks"))
    with pytest.raises(UserError, match="is no detector \\(local\\): give a checkpoint of --task detect"):
        Detector(landmarks, CPU)
    url, model, card = copied(detector[1], tmp_path / "unscored", least_score=None)
    checkpoint.save(url, model, card)
    with pytest.raises(UserError, match="was saved before its first epoch ended"):
        Detector(url, CPU)
    assert Detector(url, CPU, least_score=0.5).least_score == 0.5
    with pytest.raises(UserError, match="is a detector \\(fcos\\): give a checkpoint of a landmark model"):
        Predictor(url, CPU)


def test_boxes_of_the_input_are_clipped_to_the_photo() -> None:
    """A box in the border around the photo is none; one that reaches into it ends at the photo's edge."""
    found = Found(
        torch.tensor([[0.0, 0, 64, 64], [0, 0, 64, 7], [8, 8, 16, 64]]), torch.tensor([0.9, 0.8, 0.7])
    )
    crop = open_upright(dots.encoded(Image.new("RGB", (128, 96)), "PNG")).whole(64)
    moved = found.in_photo(torch.from_numpy(crop.to_photo), crop.photo.bounds)
    np.testing.assert_allclose(moved.boxes, [[0, 0, 128, 96], [16, 0, 32, 96]], atol=1e-9)
    np.testing.assert_allclose(moved.score, [0.9, 0.7])
