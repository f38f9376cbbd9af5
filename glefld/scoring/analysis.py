"""Where the error of a split lies: statistics of its rows (``rows``) for the page of an evaluation.

Intervals are of the bootstrap over garments: the landmarks of one garment are wrong together, and so they are drawn
together.

Letters in shapes: N garments, M landmarks, G groups, T classes, Q points of a curve.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from glefld.scoring.bootstrap import ratio_intervals
from glefld.scoring.rows import LandmarkRows

#: Groups of garments by the size of their boxes, as equal in number as can be.
SIZE_GROUPS = 6
#: A garment looks as if left and right had been exchanged if exchanging them back leaves less than this of its error.
EXCHANGED = 0.5


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean over some garments."""

    garments: int
    mean: float
    interval: tuple[float, float]
    """95 % of it."""


@dataclasses.dataclass(frozen=True)
class SizeGroup(Mean):
    """A mean over the garments of some sizes."""

    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Sides:
    """Garments whose answers look as if left and right had been exchanged, in the answer or in the annotation."""

    garments: NDArray[np.int64]
    """Their numbers, those with the most error first."""
    error: float
    """Their share of the error of all garments."""
    ne_without: float
    """Mean NE over the other garments."""


def share_within(error: NDArray[np.floating], at: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the share of errors [N], NaN left out, that are at most each of the distances [Q]."""
    ordered = np.sort(error[~np.isnan(error)])
    return np.searchsorted(ordered, at, side="right") / max(len(ordered), 1)


def within(rows: LandmarkRows, distance: float) -> tuple[float, tuple[float, float]]:
    """Return the share of the landmarks that are within a distance, and its interval."""
    right = np.bincount(rows.owner, rows.error <= distance, len(rows.visible))
    everything = np.zeros(len(right), np.int64)
    ((low, high),) = ratio_intervals(right, rows.visible, everything, 1)
    return float(right.sum() / rows.visible.sum()), (low, high)


def worst(error: NDArray[np.floating], number: int) -> NDArray[np.int64]:
    """Return the numbers of the rows with the greatest errors [N], greatest first; those that are NaN are left out."""
    order = np.argsort(-error, kind="stable")  # NaN last
    return order[: min(number, int((~np.isnan(error)).sum()))]


def share_of_worst(error: NDArray[np.floating], part: float) -> float:
    """Return the share of the summed error that the worst garments have, so large a part of all, rounded up."""
    ordered = np.sort(error[~np.isnan(error)])[::-1]
    total = ordered.sum()
    return float(ordered[: int(np.ceil(part * len(ordered)))].sum() / total) if total > 0 else 0.0


def by_group(
    group: NDArray[np.integer], value: NDArray[np.floating], names: Sequence[str]
) -> dict[str, Mean]:
    """Return the mean of values [N] in each of the named groups that has any; group [N], -1 if unknown."""
    known = (group >= 0) & ~np.isnan(value)
    return {names[i]: mean for i, mean in _means(group[known], value[known], len(names)).items()}


def by_size(size: NDArray[np.floating], value: NDArray[np.floating]) -> list[SizeGroup]:
    """Return the mean of values [N] in up to ``SIZE_GROUPS`` groups of about as many rows each, by their sizes [N].

    Rows whose value is NaN are left out. Equal sizes stay together, so there may be fewer groups.
    """
    size, value = size[~np.isnan(value)], value[~np.isnan(value)]
    if not len(size):
        return []
    edges = np.unique(np.quantile(size, np.linspace(0, 1, SIZE_GROUPS + 1)[1:-1], method="higher"))
    group = np.searchsorted(edges, size, side="right")
    return [
        SizeGroup(
            mean.garments,
            mean.mean,
            mean.interval,
            float(size[group == i].min()),
            float(size[group == i].max()),
        )
        for i, mean in _means(group, value, len(edges) + 1).items()
    ]


def _means(group: NDArray[np.integer], value: NDArray[np.floating], groups: int) -> dict[int, Mean]:
    """Return the mean of values [N] in each group [N] that has any."""
    intervals = ratio_intervals(value, np.ones(len(value)), group, groups)
    number = np.bincount(group, minlength=groups)
    total = np.bincount(group, value, groups)
    return {
        i: Mean(int(number[i]), float(total[i] / number[i]), intervals[i])
        for i in np.flatnonzero(number).tolist()
    }


def by_landmark_and_type(rows: LandmarkRows, landmarks: int, types: int) -> NDArray[np.float64]:
    """Return mean NE by landmark and garment type, [K, T]; NaN where none is visible."""
    kind = rows.garment_type[rows.owner].astype(np.int64)
    known = kind >= 0
    slot = rows.landmark[known].astype(np.int64) * types + kind[known]
    count = np.bincount(slot, minlength=landmarks * types)
    total = np.bincount(slot, rows.error[known], landmarks * types)
    mean = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
    return mean.reshape(landmarks, types)


def exchanged_sides(rows: LandmarkRows) -> Sides:
    """Return the garments that are much nearer to the annotation with left and right exchanged."""
    error, other = rows.by_garment(rows.error), rows.by_garment(rows.exchanged)
    found = np.flatnonzero(other < EXCHANGED * error)  # False for NaN
    known = ~np.isnan(error)
    rest = known.copy()
    rest[found] = False
    total = error[known].sum()
    return Sides(
        found[np.argsort(-error[found], kind="stable")],
        float(error[found].sum() / total) if total > 0 else 0.0,
        float(error[rest].mean()) if rest.any() else float("nan"),
    )


def bias(rows: LandmarkRows, landmarks: int) -> NDArray[np.float64]:
    """Return each landmark's mean offset in box sides, [K, 2]: where its predictions lie besides their spread."""
    count = np.bincount(rows.landmark, minlength=landmarks)
    total = np.stack([np.bincount(rows.landmark, rows.offset[:, i], landmarks) for i in range(2)], axis=1)
    return np.divide(total, count[:, None], out=np.full((landmarks, 2), np.nan), where=count[:, None] > 0)


def confusion(true: NDArray[np.integer], told: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """Return how often each class [T] was told for each, [T, T], true by told; rows where either is -1 are left out."""
    both = (true >= 0) & (told >= 0)
    slot = true[both].astype(np.int64) * classes + told[both]
    return np.bincount(slot, minlength=classes * classes).reshape(classes, classes)
