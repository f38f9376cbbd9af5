"""What an evaluation's page says of its rows, against plain computations garment by garment."""

import itertools
import math

import numpy as np
import pytest
import torch

from glefld.data.truth import Truth
from glefld.schema import FASHION8, Visibility
from glefld.scoring import analysis
from glefld.scoring.bootstrap import ratio_intervals
from glefld.scoring.metrics import Counters
from glefld.scoring.rows import BoxRows, LandmarkRows, join, landmark_rows
from tests.erring import LABELS, TYPES, K, garments


@pytest.fixture
def rng() -> np.random.Generator:
    seed = int(np.random.default_rng().integers(1 << 31))
    print("seed", seed)
    return np.random.default_rng(seed)


def one_by_one(predicted: torch.Tensor, truth: Truth, *, exchanged: bool = False) -> list[dict[int, float]]:
    """By garment, the error of each visible landmark."""
    result = []
    for points, answer, box, visibility in zip(
        truth.points.tolist(), predicted.tolist(), truth.box.tolist(), truth.visibility.tolist(), strict=True
    ):
        own = {}
        for k in range(K):
            if visibility[k] == Visibility.VISIBLE:
                x, y = answer[FASHION8.mirror[k] if exchanged else k]
                own[k] = math.hypot(
                    (x - points[k][0]) / (box[2] - box[0]), (y - points[k][1]) / (box[3] - box[1])
                )
        result.append(own)
    return result


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


@pytest.mark.parametrize("sizes", [[61], [32, 29], [1, 40, 20]])
def test_rows_are_the_errors_of_each_garment(rng: np.random.Generator, sizes: list[int]) -> None:
    """However they are divided into batches; their sum is what the counters have."""
    predicted, truth, logits = garments(rng, 61)
    parts = zip(predicted.split(sizes), logits.split(sizes), *(f.split(sizes) for f in truth), strict=True)
    rows = join([landmark_rows(p, Truth(*t), LABELS, told) for p, told, *t in parts])
    assert isinstance(rows, LandmarkRows)
    expected = one_by_one(predicted, truth)
    assert rows.visible.tolist() == list(map(len, expected))
    assert rows.landmark.tolist() == [k for own in expected for k in own]
    np.testing.assert_allclose(rows.error, [v for own in expected for v in own.values()], rtol=1e-5)
    np.testing.assert_allclose(
        rows.by_garment(rows.error), [mean(list(own.values())) for own in expected], rtol=1e-5
    )
    other = one_by_one(predicted, truth, exchanged=True)
    np.testing.assert_allclose(
        rows.by_garment(rows.exchanged), [mean(list(own.values())) for own in other], rtol=1e-5
    )
    assert rows.garment_type.tolist() == [code - 1 for code in truth.garment_type.tolist()]
    assert rows.told_type.tolist() == logits.argmax(dim=1).tolist()
    counters = Counters(LABELS)
    counters.add_landmarks(predicted, truth)
    ne = counters.report().ne_by_landmark
    for k, name in enumerate(FASHION8.landmarks):
        assert rows.error[rows.landmark == k].mean() == pytest.approx(ne[name], rel=1e-5)


def test_by_landmark_and_type_and_the_mean_offset(rng: np.random.Generator) -> None:
    predicted, truth, _ = garments(rng, 200)
    rows = landmark_rows(predicted, truth, LABELS)
    assert (rows.told_type == -1).all()
    expected = one_by_one(predicted, truth)
    both = analysis.by_landmark_and_type(rows, K, TYPES)
    for k in range(K):
        for code in range(1, TYPES + 1):
            own = [
                e[k]
                for e, kind in zip(expected, truth.garment_type.tolist(), strict=True)
                if kind == code and k in e
            ]
            assert both[k, code - 1] == pytest.approx(mean(own), rel=1e-5)
    size = truth.box[:, 2:] - truth.box[:, :2]
    offsets = ((predicted - truth.points) / size[:, None]).numpy()
    offsets[truth.visibility.numpy() != Visibility.VISIBLE] = np.nan
    np.testing.assert_allclose(analysis.bias(rows, K), np.nanmean(offsets, axis=0), atol=1e-6)


def test_shares_within_and_the_worst(rng: np.random.Generator) -> None:
    error = np.r_[rng.exponential(0.1, 50), np.nan, 0.1]
    at = np.array([0.0, 0.05, 0.1, 9.0])
    known = [e for e in error.tolist() if not math.isnan(e)]
    assert analysis.share_within(error, at).tolist() == [sum(e <= d for e in known) / 51 for d in at]
    order = sorted((i for i in range(52) if i != 50), key=lambda i: -error[i])
    assert analysis.worst(error, 5).tolist() == order[:5]
    assert len(analysis.worst(error, 100)) == 51
    assert 50 not in analysis.worst(error, 100)
    tenth = sorted(known)[-6:]  # of 51, rounded up
    assert analysis.share_of_worst(error, 0.1) == pytest.approx(sum(tenth) / sum(known))
    assert analysis.share_of_worst(np.zeros(3), 0.1) == 0


def test_exchanged_sides_are_found(rng: np.random.Generator) -> None:
    """The garments whose answers were exchanged, if any of their pairs is visible and far apart."""
    predicted, truth, _ = garments(rng, 300)
    rows = landmark_rows(predicted, truth, LABELS)
    sides = analysis.exchanged_sides(rows)
    as_is, other = one_by_one(predicted, truth), one_by_one(predicted, truth, exchanged=True)
    error, turned = ([mean(list(own.values())) for own in both] for both in (as_is, other))
    found = [i for i in range(300) if turned[i] < error[i] / 2]
    assert set(sides.garments.tolist()) == set(found)
    assert [error[i] for i in sides.garments] == sorted((error[i] for i in found), reverse=True)
    wrong = set(range(0, 300, 5)) - {0}
    assert len(wrong & set(found)) > 0.8 * len(wrong)
    assert len(set(found) - wrong) < 0.05 * 300
    known = [e for e in error if not math.isnan(e)]
    assert sides.error == pytest.approx(sum(error[i] for i in found) / sum(known), rel=1e-5)
    rest = [e for i, e in enumerate(error) if i not in found and not math.isnan(e)]
    assert sides.ne_without == pytest.approx(mean(rest), rel=1e-5)


def test_groups_by_size_are_equal_and_whole(rng: np.random.Generator) -> None:
    size, value = rng.integers(20, 400, 600).astype(float), rng.uniform(0, 1, 600)
    value[7] = np.nan
    groups = analysis.by_size(size, value)
    assert len(groups) == analysis.SIZE_GROUPS
    assert sum(group.garments for group in groups) == 599
    assert all(80 < group.garments < 120 for group in groups)
    assert all(a.high < b.low for a, b in itertools.pairwise(groups))
    for group in groups:
        own = [v for s, v in zip(size, value, strict=True) if group.low <= s <= group.high and v == v]
        assert (group.garments, group.mean) == (len(own), pytest.approx(mean(own)))
        assert group.interval[0] < group.mean < group.interval[1]
    (same,) = analysis.by_size(np.full(9, 50.0), np.arange(9.0))
    assert (same.low, same.high, same.garments, same.mean) == (50, 50, 9, 4)
    assert analysis.by_size(np.ones(2), np.full(2, np.nan)) == []


def test_groups_by_name() -> None:
    found = analysis.by_group(np.array([0, 2, 2, -1]), np.array([0.1, 0.2, 0.4, 9.0]), ("a", "b", "c"))
    assert {name: (group.garments, group.mean) for name, group in found.items()} == {
        "a": (1, 0.1),
        "c": (2, pytest.approx(0.3)),
    }


def test_confusion_counts_what_is_known(rng: np.random.Generator) -> None:
    true, told = rng.integers(-1, 4, 500), rng.integers(-1, 4, 500)
    found = analysis.confusion(true, told, 4)
    for i in range(4):
        for j in range(4):
            assert found[i, j] == sum(a == i and b == j for a, b in zip(true, told, strict=True))


def test_intervals_are_over_garments_not_over_landmarks(rng: np.random.Generator) -> None:
    """Eight landmarks that are right or wrong together say as much as one: their interval is as wide."""
    right = rng.integers(0, 2, 400)
    (one,) = ratio_intervals(right, np.ones(400), np.zeros(400, int), 1)
    (eight,) = ratio_intervals(8 * right, np.full(400, 8), np.zeros(400, int), 1)
    assert one == pytest.approx(eight)
    # The standard error of a share of a half among 400 is .025.
    assert one[1] - one[0] == pytest.approx(2 * 1.96 * 0.025, rel=0.25)


def test_intervals_cover_the_true_ratio(rng: np.random.Generator) -> None:
    inside = 0
    for _ in range(100):
        count = rng.integers(1, 9, 60)
        total = count * 0.1 + rng.normal(0, 0.05, 60) * count
        ((low, high),) = ratio_intervals(total, count, np.zeros(60, int), 1)
        inside += low <= 0.1 <= high
    assert (
        inside >= 84
    )  # 95 are expected, with a standard deviation of 2.2; a bootstrap of 60 covers a little less


def test_a_group_without_rows_has_no_interval() -> None:
    low, high = ratio_intervals(np.ones(3), np.ones(3), np.array([0, 0, 2]), 3)[1]
    assert math.isnan(low)
    assert math.isnan(high)


def test_a_photos_mistakes() -> None:
    """Two photos: of three garments one is missed, and one box is nobody's; of one garment none."""
    rows = BoxRows(
        row=np.array([0, 3]),
        garments=np.array([3, 1], np.int16),
        boxes=np.array([3, 1], np.int16),
        surest=np.array([0.4, 0.0], np.float32),
        overlap=np.array([0.9, 0.0, 0.6, 0.7], np.float32),
        size=np.ones(4, np.float32),
    )
    assert rows.missed.tolist() == [1, 0]
    assert rows.wrong.tolist() == [1, 0]
