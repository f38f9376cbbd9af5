"""Intervals of a score by the bootstrap: how much it would vary with other photos of the same kind.

The Poisson bootstrap (Chamandy et al., "Estimating Uncertainty for Massive Data Streams", 2012): in each replicate a
row counts as often as a Poisson number says. The numbers follow from the row's own annotation, so sums over ranks and
batches are the same however the rows are divided among them.
Letters in shapes: B rows, K landmarks, R replicates, G groups.
"""

import zlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Replicates of an evaluation: the ends of its intervals then vary by a few per cent of their width.
REPLICATES = 200
#: What an interval covers, in per cent.
COVERED = 95


def weights(points: Tensor, box: Tensor, replicates: int) -> Tensor:
    """Return how often each row counts in each replicate: points [B, K, 2] and box [B, 4] -> [B, R] float64."""
    rows = torch.cat([points.flatten(1), box], dim=1).numpy()
    drawn = [np.random.default_rng(zlib.crc32(row.tobytes())).poisson(1.0, replicates) for row in rows]
    return torch.from_numpy(np.array(drawn, np.float64).reshape(-1, replicates))


def interval(values: list[float]) -> tuple[float, float]:
    """Return the ends of the middle ``COVERED`` per cent of the replicates' scores."""
    tail = (100 - COVERED) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def ratio_intervals(
    total: NDArray[np.number], count: NDArray[np.number], group: NDArray[np.integer], groups: int
) -> list[tuple[float, float]]:
    """Return, by group, the interval of the sum of ``total`` by the sum of ``count``: each [B], group [B] of 0 to G.

    For rows that are all here, in their order: one stream of numbers weighs them. NaN for a group without counts.
    """
    rng = np.random.default_rng(0)
    values = np.full((REPLICATES, groups), np.nan)
    for replicate in values:
        often = rng.poisson(1.0, len(total))
        counted = np.bincount(group, often * count, groups)
        np.divide(np.bincount(group, often * total, groups), counted, out=replicate, where=counted > 0)
    return [
        interval(there.tolist()) if len(there := column[~np.isnan(column)]) else (np.nan, np.nan)
        for column in values.T
    ]
