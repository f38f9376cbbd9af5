"""Scores of boxes: what pycocotools makes of them, from sums that add up."""

import contextlib
import io
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from glefld.errors import UserError
from glefld.models.system import Found
from glefld.schema import NO_LANDMARKS, Labels
from glefld.scoring.boxes import THRESHOLDS, match
from glefld.scoring.metrics import Counters, Report

Photos = list[tuple[Found, torch.Tensor]]


def found(*boxes: tuple[float, ...]) -> Found:
    """Boxes with their scores as a last number."""
    values = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 5)
    return Found(values[:, :4], values[:, 4].float())


def garments(*boxes: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)


def count(photos: Photos) -> Counters:
    counters = Counters(Labels(NO_LANDMARKS), detects=True)
    counters.add_boxes(torch.zeros(1, 1, 6), [f for f, _ in photos], [g for _, g in photos])
    counters.add_rows(len(photos))
    return counters


def report(photos: Photos) -> Report:
    return count(photos).report()


def random_photos(seed: int, number: int = 60) -> Photos:
    """Garments, boxes around some of them at any distance, and boxes of nothing."""
    rng = np.random.default_rng(seed)
    photos = []
    for _ in range(number):
        corner, side = rng.uniform(0, 60, (3, 2)), rng.uniform(10, 40, (3, 2))
        true = np.concatenate([corner, corner + side], axis=1)[: rng.integers(0, 4)]
        near = true + rng.normal(0, 3, true.shape)
        stray = np.sort(rng.uniform(0, 100, (rng.integers(0, 3), 2, 2)), axis=1).reshape(-1, 4)
        boxes = np.concatenate([near, stray])
        score = rng.permutation(np.linspace(0.05, 0.95, 900))[: len(boxes)]
        order = np.argsort(-score)
        photos.append(
            (Found(torch.tensor(boxes[order]), torch.tensor(score[order]).float()), torch.tensor(true))
        )
    return photos


def cocos(photos: Sequence[tuple[Found, torch.Tensor]]) -> np.ndarray:
    """AP, AP50, AP75 and the mean recall, as pycocotools computes them of all photos at once."""
    images = [{"id": i + 1} for i in range(len(photos))]

    def listed(boxes: list[tuple[int, list[float], float]]) -> COCO:
        coco = COCO()
        coco.dataset = {
            "images": images,
            "categories": [{"id": 1}],
            "annotations": [
                {
                    "id": i + 1,
                    "image_id": photo + 1,
                    "category_id": 1,
                    "iscrowd": 0,
                    "score": score,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                }
                for i, (photo, (x1, y1, x2, y2), score) in enumerate(boxes)
            ],
        }
        coco.createIndex()
        return coco

    with contextlib.redirect_stdout(io.StringIO()):
        truth = listed([(i, box, 1.0) for i, (_, g) in enumerate(photos) for box in g.tolist()])
        boxes = [
            (i, box, score)
            for i, (f, _) in enumerate(photos)
            for box, score in zip(f.boxes.tolist(), f.score.tolist(), strict=True)
        ]
        evaluation = COCOeval(truth, listed(boxes), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[[0, 1, 2, 8]]


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_pycocotools(seed: int) -> None:
    """Photo by photo and in bins they are those of all photos at once, but for the order within a bin."""
    photos = random_photos(seed)
    scores = report(photos).boxes
    assert scores is not None
    ours = [scores.ap, scores.ap50, scores.ap75, scores.ar]
    assert 0.1 < scores.ap < 0.9
    np.testing.assert_allclose(ours, cocos(photos), atol=0.004)
    assert scores.ar == pytest.approx(cocos(photos)[3], abs=1e-9)  # no order matters to it


def test_scores_do_not_depend_on_the_division_of_the_photos() -> None:
    photos = random_photos(5)
    whole, parts = count(photos), count(photos[:20])
    parts += count(photos[20:21])
    parts += count(photos[21:])
    assert torch.equal(whole.vector(), parts.vector())


def test_by_hand() -> None:
    """One right box above a stray one, and a garment that nobody finds."""
    photos = [
        (found((0, 0, 10, 10, 0.9)), garments((0, 0, 10, 10))),
        (found((50, 50, 60, 60, 0.5)), garments((0, 0, 10, 10))),
    ]
    scores = report(photos).boxes
    assert scores is not None
    assert scores.ap == scores.ap50 == pytest.approx(51 / 101)  # precision 1 up to a recall of a half
    assert scores.ar == 0.5
    assert (scores.precision, scores.recall, scores.f1) == (1, 0.5, pytest.approx(2 / 3))
    assert 0.5 < scores.least_score <= 0.9
    assert scores.garments == 2


@pytest.mark.parametrize(("overlap", "thresholds"), [(0.45, 0), (0.52, 1), (0.77, 6), (1.0, 10)])
def test_a_box_is_right_up_to_its_overlap(overlap: float, thresholds: int) -> None:
    """A box of a part of the garment has that part as its IoU."""
    _, right = match([found((0, 0, 100 * overlap, 10, 0.5))], [garments((0, 0, 100, 10))])
    assert right.sum() == thresholds == sum(overlap >= t for t in THRESHOLDS)


def test_nothing_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Train puts its own function in place of print, which does not write to sys.stdout; afterwards it is back."""
    said: list[object] = []
    monkeypatch.setattr("builtins.print", lambda *words, **_: said.append(words))
    match([found((0, 0, 10, 10, 0.4))], [garments((0, 0, 10, 10))])
    assert not said
    COCO().createIndex()
    assert said


def test_a_second_box_of_a_garment_is_wrong() -> None:
    _, right = match([found((0, 0, 10, 10, 0.4), (0, 0, 10, 9, 0.8))], [garments((0, 0, 10, 10))])
    assert right[:, 0].tolist() == [False, True]


def test_photos_without_boxes_or_garments() -> None:
    """Nothing found is no error; without any garment there is no score."""
    nothing = found()
    scores = report([(nothing, garments((0, 0, 5, 5)))]).boxes
    assert scores is not None
    assert (scores.ap, scores.ar, scores.f1) == (0, 0, 0)
    assert report([(nothing, garments())]).boxes is None
    assert report([(found((0, 0, 5, 5, 0.5)), garments())]).boxes is None
    one = report([(found((0, 0, 5, 5, 0.5)), garments()), (found((0, 0, 5, 5, 0.7)), garments((0, 0, 5, 5)))])
    assert one.boxes is not None
    assert one.boxes.ap == pytest.approx(1)


def test_the_best_checkpoint_has_the_highest_ap() -> None:
    photos = random_photos(1)
    found_ = report(photos)
    assert found_.boxes is not None
    assert found_.error == 1 - found_.boxes.ap
    assert found_.numbers()["box_ap50"] == found_.boxes.ap50


def test_calibrated_scores_are_shares_of_right_boxes() -> None:
    """After the fit, of boxes with a score of about s a part of about s is right; the order stays."""
    photos = [photo for seed in range(6) for photo in random_photos(seed)]
    counters = count(photos)
    before = counters.report().boxes
    calibration = counters.calibrate()
    after = counters.report().boxes
    assert before is not None
    assert after is not None
    assert after.ap == pytest.approx(before.ap, abs=0.01)
    given, right = counters.sums["boxes_given"], counters.sums["boxes_right"][0]
    middle = (torch.arange(len(given)) + 0.5) / len(given)
    assert float((given * middle).sum() - right.sum()) == pytest.approx(0, abs=0.03 * float(given.sum()))
    assert calibration.scale > 0


def test_an_output_that_is_no_number_is_an_error() -> None:
    counters = count(random_photos(0))
    counters.add_boxes(torch.full((1, 3, 6), torch.nan), [found()], [garments((0, 0, 5, 5))])
    with pytest.raises(UserError, match="3 predictions are not finite"):
        counters.report()
