"""Types' shapes: what is planted is found, and little else."""

import numpy as np
import pytest

from glefld.inspection import shapes
from glefld.schema import FASHION8

UPPER = FASHION8.garment_types[0].landmarks
SIDES = shapes.pairs(UPPER, FASHION8.mirror)


def garments(n: int, seed: int = 0) -> np.ndarray:
    """Upper garments [n, 6, 2] of varied width, place and tilt, a tenth of them backs, some landmarks missing."""
    rng = np.random.default_rng(seed)
    half = np.array([[0.1, -0.4], [-0.1, -0.4], [0.4, 0], [-0.4, 0], [0.2, 0.4], [-0.2, 0.4]])
    points = half * rng.uniform(0.8, 1.2, (n, 1, 2)) + rng.normal(0, 0.05, (n, 1, 2)) + 0.5
    points += rng.normal(0, 0.01, points.shape)
    points[: n // 10] = points[: n // 10][:, [1, 0, 3, 2, 5, 4]]
    points[rng.random((n, 6)) < 0.1] = np.nan
    return points


def test_pairs_are_those_of_the_type() -> None:
    assert SIDES == [(0, 1), (2, 3), (4, 5)]
    assert shapes.pairs((4, 5, 6), FASHION8.mirror) == [(0, 1)]


def test_backs_are_told_from_fronts() -> None:
    points = garments(2000)
    shape = shapes.fit_shape(points, SIDES)
    assert shape is not None
    fit = shapes.compare(points, shape, SIDES)
    there = (~np.isnan(points[:, 0::2, 0]) & ~np.isnan(points[:, 1::2, 0])).any(axis=1)
    assert (fit.back[there] == (np.arange(2000) < 200)[there]).all()


def test_an_exchanged_pair_and_a_landmark_far_off_are_found() -> None:
    points = garments(2000)
    rng = np.random.default_rng(1)
    exchanged, moved = np.split(rng.permutation(2000)[:100], 2)
    planted = {*exchanged, *moved}
    for i in exchanged:
        a, b = SIDES[i % 3]
        points[i, [a, b]] = points[i, [b, a]]
    exchanged = exchanged[[not np.isnan(points[i, SIDES[i % 3]]).any() for i in exchanged]]
    points[moved, moved % 6] += [0.25, 0.2]
    moved = moved[~np.isnan(points[moved, moved % 6, 0])]
    shape = shapes.fit_shape(points, SIDES)
    assert shape is not None
    fit = shapes.compare(points, shape, SIDES)
    found = np.flatnonzero(fit.exchanged.max(axis=1) > 10)
    assert len(set(exchanged) & set(found)) > 0.9 * len(exchanged)
    assert len(set(found) - planted) <= 2
    worst = np.argsort(-fit.outlier.max(axis=1))[: len(moved) + len(exchanged)]
    assert len(set(moved) & set(worst)) > 0.9 * len(moved)
    right = fit.outlier[moved].argmax(axis=1) == moved % 6
    assert right.mean() > 0.8


def test_distances_are_those_of_the_inverse_covariance() -> None:
    """Against the conditional normal distribution, computed landmark by landmark."""
    points = garments(300)
    shape = shapes.fit_shape(points, SIDES)
    assert shape is not None
    fit = shapes.compare(points, shape, SIDES)
    mean, covariance = shape.mean.ravel(), shape.covariance
    for i in range(40, 60):  # no backs
        flat = points[i].ravel()
        there = ~np.isnan(flat)
        for landmark in range(6):
            own = np.array([2 * landmark, 2 * landmark + 1])
            if not there[own].all():
                assert fit.outlier[i, landmark] == 0
                continue
            rest = np.setdiff1d(np.flatnonzero(there), own)
            gain = covariance[np.ix_(own, rest)] @ np.linalg.inv(covariance[np.ix_(rest, rest)])
            off = flat[own] - mean[own] - gain @ (flat[rest] - mean[rest])
            left = covariance[np.ix_(own, own)] - gain @ covariance[np.ix_(rest, own)]
            assert fit.outlier[i, landmark] == pytest.approx(off @ np.linalg.inv(left) @ off, rel=1e-6)


def test_few_garments_have_no_shape() -> None:
    assert shapes.fit_shape(garments(shapes.LEAST_GARMENTS - 1), SIDES) is None


def test_landmarks_without_pairs_have_outliers_only() -> None:
    points = garments(200)[:, :1]
    points[7, 0] = [2.0, 2.0]
    shape = shapes.fit_shape(points, [])
    assert shape is not None
    fit = shapes.compare(points, shape, [])
    assert not fit.back.any()
    assert fit.exchanged.shape == (200, 0)
    assert fit.outlier[:, 0].argmax() == 7
