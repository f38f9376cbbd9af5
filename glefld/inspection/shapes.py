"""Garments whose landmarks do not lie as those of their type do: exchanged sides, and places far off.

A type's shape is a normal distribution of all of its landmarks' places within the box, fitted to the garments that fit
it best. It says where a landmark is expected, given the garment's others. A back view is the same shape with left and
right exchanged, so a garment is compared with both.
Letters in shapes: n garments of one type, k landmarks of the type, p mirror pairs among them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

#: The share of garments that a shape is fitted to, the likeliest ones; and how often it is fitted.
KEPT = 0.9
FITS = 4
#: The least standard deviation in any direction, in box sides: annotators do not agree better.
LEAST_DEVIATION = 0.01
#: A type with fewer garments has no shape.
LEAST_GARMENTS = 50
#: A shape is fitted to at most so many garments, evenly spread.
MOST_FITTED = 20_000
#: Numbers of matrices that are computed together: 30 MB.
TOGETHER = 4_000_000


class Shape(NamedTuple):
    """Where the landmarks of a type lie within the box, with left and right as in most garments."""

    mean: np.ndarray  # [k, 2]
    covariance: np.ndarray  # [2k, 2k]


class Fit(NamedTuple):
    """How garments fit their type's shape. Distances are squared Mahalanobis distances."""

    back: np.ndarray
    """[n] bool: it fits better with all pairs exchanged, as back views do."""
    outlier: np.ndarray
    """[n, k]: the distance of each landmark from where the others say that it is; 0 where it is missing."""
    exchanged: np.ndarray
    """[n, p]: by how much the whole garment's distance shrinks if only this pair's sides are exchanged."""


def pairs(landmarks: Sequence[int], mirror: Sequence[int]) -> list[tuple[int, int]]:
    """Return the mirror pairs among a type's landmarks, as positions in ``landmarks``, [p]."""
    place = {landmark: i for i, landmark in enumerate(landmarks)}
    return [
        (place[landmark], place[mirror[landmark]])
        for landmark in landmarks
        if landmark < mirror[landmark] and mirror[landmark] in place
    ]


def fit_shape(points: np.ndarray, sides: Sequence[tuple[int, int]]) -> Shape | None:
    """Fit a type's shape to its garments' places [n, k, 2] within the box, NaN where missing.

    None if there are too few garments, or no landmarks.
    """
    if len(points) < LEAST_GARMENTS or not points.shape[1]:
        return None
    points = points[:: -(-len(points) // MOST_FITTED)]
    upright = np.where(_back_by_order(points, sides)[:, None, None], _swapped(points, sides), points)
    kept = np.ones(len(points), bool)
    for _ in range(FITS):
        shape = _moments(upright[kept])
        distance = np.empty(len(points))
        for part in _parts(points):
            straight = _Distances(upright[part], shape)
            turned = _Distances(_swapped(upright[part], sides), shape)
            better = turned.whole() < straight.whole()
            upright[part] = np.where(better[:, None, None], _swapped(upright[part], sides), upright[part])
            distance[part] = np.minimum(straight.whole(), turned.whole()) / straight.dimensions
        kept = distance <= np.quantile(distance, KEPT)
    return shape


def compare(points: np.ndarray, shape: Shape, sides: Sequence[tuple[int, int]]) -> Fit:
    """Compare garments [n, k, 2] with their type's shape."""
    n, k = points.shape[:2]
    result = Fit(np.zeros(n, bool), np.zeros((n, k)), np.zeros((n, len(sides))))
    for part in _parts(points):
        straight = _Distances(points[part], shape)
        turned = _Distances(_swapped(points[part], sides), shape)
        back = turned.whole() < straight.whole()
        result.back[part] = back
        result.outlier[part] = np.where(
            back[:, None], _swapped(turned.landmarks(), sides), straight.landmarks()
        )
        for p, pair in enumerate(sides):
            gains = (best.whole() - best.exchanged(pair) for best in (turned, straight))
            result.exchanged[part, p] = np.where(back, *gains)
    return result


class _Distances:
    """The distances of garments [m, k, 2] from a shape."""

    def __init__(self, points: np.ndarray, shape: Shape) -> None:
        k = points.shape[1]
        self._there = ~np.isnan(points).any(axis=2)
        self._shape, self._points = shape, points
        there = np.repeat(self._there, 2, axis=1)
        both = there[:, :, None] & there[:, None, :]
        # What is missing is independent of the rest, and exactly in its place.
        covariance = np.where(both, shape.covariance, np.eye(2 * k))
        self._precision = np.linalg.inv(covariance)
        self._off = self._residual(points)
        self.dimensions = np.maximum(1, there.sum(axis=1))

    def _residual(self, points: np.ndarray) -> np.ndarray:
        off = np.where(self._there[..., None], points - self._shape.mean, 0)
        return off.reshape(len(points), -1)

    def whole(self) -> np.ndarray:
        """[m]"""
        return self._squared(self._off)

    def _squared(self, off: np.ndarray) -> np.ndarray:
        return np.einsum("md,mde,me->m", off, self._precision, off, optimize=True)

    def landmarks(self) -> np.ndarray:
        """[m, k]: each landmark's distance, given all others."""
        m, k = self._there.shape
        weighed = np.einsum("mde,me->md", self._precision, self._off).reshape(m, k, 2)
        blocks = self._precision.reshape(m, k, 2, k, 2)[:, np.arange(k), :, np.arange(k)]  # [k, m, 2, 2]
        return np.einsum("mki,kmij,mkj->mk", weighed, np.linalg.inv(blocks), weighed, optimize=True)

    def exchanged(self, pair: tuple[int, int]) -> np.ndarray:
        """[m]: the whole garments' distances with the sides of one pair exchanged, where both are there."""
        a, b = pair
        both = self._there[:, a] & self._there[:, b]
        points = self._points.copy()
        points[both, a], points[both, b] = self._points[both, b], self._points[both, a]
        return self._squared(self._residual(points))


def _moments(points: np.ndarray) -> Shape:
    """Return mean and covariance of places [n, k, 2], each from the garments that have what it is about."""
    flat = points.reshape(len(points), -1)
    there = ~np.isnan(flat)
    count = there.sum(axis=0)
    mean = np.where(there, flat, 0).sum(axis=0) / np.maximum(count, 1)
    off = np.where(there, flat - mean, 0)
    together = there.T.astype(np.float64) @ there
    covariance = off.T @ off / np.maximum(together, 1)
    values, vectors = np.linalg.eigh(covariance)  # of pairs that few garments have, it may not be one
    covariance = (vectors * np.maximum(values, LEAST_DEVIATION**2)) @ vectors.T
    return Shape(mean.reshape(-1, 2), covariance)


def _swapped(points: np.ndarray, sides: Sequence[tuple[int, int]]) -> np.ndarray:
    order = np.arange(points.shape[1])
    for a, b in sides:
        order[[a, b]] = b, a
    return points[:, order]


def _back_by_order(points: np.ndarray, sides: Sequence[tuple[int, int]]) -> np.ndarray:
    """[n] bool: whether most of a garment's pairs are the other way round than in most garments."""
    across = np.stack([points[:, a, 0] - points[:, b, 0] for a, b in sides] or [np.zeros(len(points))])
    way = np.nansum(np.sign(across), axis=0)
    return way * np.sign(way.sum() or 1) < 0


def _parts(points: np.ndarray) -> list[slice]:
    n, k = points.shape[:2]
    step = max(1, TOGETHER // (2 * k) ** 2)
    return [slice(first, first + step) for first in range(0, n, step)]
