"""AP over OKS: cases by hand, and pycocotools called directly on the whole space of 294 landmarks."""

import contextlib
import io
import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from glefld.datasets.deepfashion2_landmarks import DEEPFASHION2, SIGMAS
from glefld.schema import Visibility
from glefld.scoring import oks
from glefld.scoring.oks import Annotated, Found

SKIRT = 9  # 8 landmarks
AREA = 10_000.0
CODES = {garment.name: garment.code for garment in DEEPFASHION2.garment_types}


def garments(categories: list[int], photos: list[int]) -> Annotated:
    """One garment each, all landmarks visible, in boxes of 200 x 100 whose masks cover half of it."""
    n = len(categories)
    own = oks.own_slots(np.array(categories), DEEPFASHION2)
    points = np.random.default_rng(1).uniform(0, 100, (*own.shape, 2))
    return Annotated(
        photo=np.array(photos),
        category=np.array(categories),
        points=np.where((own >= 0)[..., None], points, np.nan),
        visibility=np.where(own >= 0, Visibility.VISIBLE, Visibility.ABSENT),
        box=np.tile([0.0, 0, 200, 100], (n, 1)),
        area=np.full(n, AREA),
    )


def off_by(similarity: float) -> np.ndarray:
    """[8]: how far to the right each landmark of a skirt must be for it to be so similar."""
    sigma = np.array([SIGMAS[i] for i in DEEPFASHION2.garment_type(SKIRT).landmarks])
    return 2 * sigma * math.sqrt(-2 * AREA * math.log(similarity))


def moved(truth: Annotated, similarities: list[float], scores: list[float]) -> Found:
    """Skirts whose prediction is that similar to their truth."""
    points = truth.points.copy()
    for i, similarity in enumerate(similarities):
        points[i, :8, 0] += off_by(similarity)
    return Found(points, np.array(scores))


def test_similarity_by_hand() -> None:
    """exp(-d^2 / (2 (2 sigma)^2 area)), averaged over labelled landmarks alone."""
    truth = garments([SKIRT], [0])
    truth.visibility[0, 2:8] = Visibility.CUT_OFF
    points = truth.points.copy()
    points[0, 1, 0] += 3.0
    first, second = SIGMAS[182], SIGMAS[183]
    assert (first, second) == (0.0253, 0.0195)
    points[0, 0, 1] -= 4.0
    labelled = truth.visibility <= Visibility.OCCLUDED
    (found,) = oks.oks(Found(points, np.ones(1)), truth, truth.area, labelled, DEEPFASHION2)
    expected = math.exp(-16 / (8 * first**2 * AREA)) + math.exp(-9 / (8 * second**2 * AREA))
    assert found == pytest.approx(expected / 2, rel=1e-12)
    assert np.isnan(
        oks.oks(Found(points, np.ones(1)), truth, truth.area, np.zeros_like(labelled), DEEPFASHION2)
    )


def test_perfect_predictions() -> None:
    """Every garment found at every threshold: AP 1 in each reading, two skirts of one photo among them."""
    truth = garments([SKIRT, SKIRT, 1, 4], [0, 0, 0, 1])
    scores = oks.score(Found(truth.points, np.array([0.1, 0.9, 0.5, 0.5])), truth, DEEPFASHION2)
    for reading in (scores.mask_area, scores.box_area, scores.box_area_visible):
        assert (reading.ap, reading.ap50, reading.ap75, reading.oks) == (1, 1, 1, 1)
        given = {name for name, value in reading.by_category.items() if value is not None}
        assert given == {"skirt", "short sleeve top", "long sleeve outwear"}


# Similarities and scores of skirts, each in a photo of its own, and what AP, AP50 and AP75 must be.
CASES = {
    "right at .5 to .7": ([0.72], [1.0], (0.5, 1, 0)),
    "right at .5 to .9": ([0.92], [1.0], (0.9, 1, 1)),
    "right nowhere": ([0.49], [1.0], (0, 0, 0)),
    # Of two, the surer one right: precision 1 up to recall .5, which is 51 of the 101 recalls; then 0.
    "the surer of two is right": ([0.99, 0.1], [0.9, 0.1], (51 / 101, 51 / 101, 51 / 101)),
    # The surer one wrong: precision 1/2 up to recall .5.
    "the surer of two is wrong": ([0.1, 0.99], [0.9, 0.1], (51 / 202, 51 / 202, 51 / 202)),
}


@pytest.mark.parametrize("case", CASES)
def test_average_precision_by_hand(case: str) -> None:
    similarities, scores, (ap, ap50, ap75) = CASES[case]
    truth = garments([SKIRT] * len(scores), list(range(len(scores))))
    found = oks.score(moved(truth, similarities, scores), truth, DEEPFASHION2).mask_area
    assert (found.ap, found.ap50, found.ap75) == (
        pytest.approx(ap),
        pytest.approx(ap50),
        pytest.approx(ap75),
    )
    assert found.by_category["skirt"] == pytest.approx(ap)
    assert found.oks == pytest.approx(np.mean(similarities))


def test_categories_weigh_the_same() -> None:
    """Three perfect skirts and one top that is nowhere near average .5."""
    truth = garments([SKIRT, SKIRT, SKIRT, 1], [0, 1, 2, 3])
    points = truth.points.copy()
    points[3] += 500
    found = oks.score(Found(points, np.ones(4)), truth, DEEPFASHION2).mask_area
    assert found.ap == pytest.approx(0.5)
    assert (found.by_category["skirt"], found.by_category["short sleeve top"]) == (1, 0)


def test_a_garment_is_matched_within_its_photo() -> None:
    """Two skirts of a photo, each found in the other's place, are both found: COCO matches by similarity."""
    truth = garments([SKIRT, SKIRT], [7, 7])
    swapped = oks.score(Found(truth.points[::-1].copy(), np.array([0.9, 0.8])), truth, DEEPFASHION2).mask_area
    assert swapped.ap == 1
    apart = truth._replace(photo=np.array([7, 8]))
    assert (
        oks.score(Found(truth.points[::-1].copy(), np.array([0.9, 0.8])), apart, DEEPFASHION2).mask_area.ap
        == 0
    )


def test_the_readings_differ_where_they_should() -> None:
    """The box is twice the mask, so more lenient; an occluded landmark far off harms only where it is counted."""
    truth = garments([SKIRT], [0])
    found = moved(truth, [0.72], [1.0])
    scores = oks.score(found, truth, DEEPFASHION2)
    assert scores.box_area.oks == pytest.approx(math.sqrt(0.72))
    assert scores.box_area.ap == pytest.approx(0.7)
    truth.visibility[0, 0] = Visibility.OCCLUDED
    found.points[0, 0] += 1000
    scores = oks.score(found, truth, DEEPFASHION2)
    assert scores.box_area.oks == pytest.approx(math.sqrt(0.72) * 7 / 8)
    assert scores.box_area_visible.oks == pytest.approx(math.sqrt(0.72))
    value = scores.to_json()
    assert list(value) == ["ap", "ap50", "ap75", "oks", "by_category", "box_area", "box_area_visible"]
    assert value["ap"] == scores.mask_area.ap
    assert "oks_ap/skirt" in scores.numbers()


def test_nothing_labelled_is_null() -> None:
    """A category of which no landmark is labelled has no AP; it does not count as 0."""
    truth = garments([SKIRT, 1], [0, 1])
    truth.visibility[0, :8] = Visibility.CUT_OFF
    found = oks.score(Found(truth.points, np.ones(2)), truth, DEEPFASHION2).mask_area
    assert (found.ap, found.by_category["skirt"]) == (pytest.approx(1), None)


@pytest.mark.parametrize("seed", range(4))
def test_as_pycocotools_says(seed: int) -> None:
    """One run of pycocotools over all categories and 294 landmarks, built here from scratch, gives the same."""
    print("seed", seed)
    rng = np.random.default_rng(seed)
    n = 150
    truth = garments(rng.integers(1, 14, n).tolist(), rng.integers(0, 60, n).tolist())
    there = truth.visibility == Visibility.VISIBLE
    truth.visibility[there] = rng.integers(0, 3, there.sum())
    truth = truth._replace(area=rng.uniform(500, 20_000, n))
    spread = rng.uniform(0, 8, (n, 1, 1))
    found = Found(truth.points + rng.normal(0, 1, truth.points.shape) * spread, rng.random(n).round(1))
    got = oks.score(found, truth, DEEPFASHION2)
    box = np.full(n, 20_000.0)
    visible = truth.visibility == Visibility.VISIBLE
    labelled = truth.visibility <= Visibility.OCCLUDED
    for reading, area, counted in (
        (got.mask_area, truth.area, labelled),
        (got.box_area, box, labelled),
        (got.box_area_visible, box, visible),
    ):
        stats = direct(found, truth, area, counted)
        assert 0.05 < stats[0] < 0.95
        assert (reading.ap, reading.ap50, reading.ap75) == pytest.approx(tuple(stats[:3]), abs=1e-12)


def direct(found: Found, truth: Annotated, area: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """pycocotools' own summary, with the default area ranges."""
    annotations, results = [], []
    for i, code in enumerate(truth.category.tolist()):
        slots = list(DEEPFASHION2.garment_type(code).landmarks)
        true, guess = np.zeros((294, 3)), np.zeros((294, 3))
        true[slots, :2] = truth.points[i, : len(slots)]
        true[slots, 2] = np.where(counted[i, : len(slots)], 2, 0)
        guess[slots, :2] = found.points[i, : len(slots)]
        guess[slots, 2] = 1
        common = {"image_id": int(truth.photo[i]), "category_id": code}
        annotations.append(
            {
                **common,
                **{"id": i + 1, "iscrowd": 0, "area": area[i], "bbox": [0, 0, 200, 100]},
                "num_keypoints": int((true[:, 2] > 0).sum()),
                "keypoints": true.ravel().tolist(),
            }
        )
        results.append({**common, "keypoints": guess.ravel().tolist(), "score": float(found.score[i])})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": i} for i in sorted(set(truth.photo.tolist()))],
            "categories": [{"id": code} for code in CODES.values()],
            "annotations": annotations,
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "keypoints")
        evaluation.params.kpt_oks_sigmas = np.array(SIGMAS)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats
