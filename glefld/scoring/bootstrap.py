"""Intervals of a score by the bootstrap: how much it would vary with other photos of the same kind.

The Poisson bootstrap (Chamandy et al., "Estimating Uncertainty for Massive Data Streams", 2012): in each replicate a
row counts as often as a Poisson number says. The numbers follow from the row's own annotation, so sums over ranks and
batches are the same however the rows are divided among them.
Letters in shapes: B rows, K landmarks, R replicates.
"""

import zlib

import numpy as np
import torch
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
