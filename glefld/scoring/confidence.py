"""Whether scores can be trusted: calibration error and sparsification, from sums over bins of the score.

Letters in shapes: N bins, by score.
"""

import dataclasses

import torch
from torch import Tensor

#: Bins of the sums. They are fine, so that a calibration can be fitted to them.
BINS = 1000
#: Bins of the expected calibration error, as in Guo et al. 2017 (https://arxiv.org/abs/1706.04599).
GROUPS = 15
#: Points of a curve.
POINTS = 50


def centres() -> Tensor:
    """Return the score in the middle of each bin, [N] float64."""
    return (torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS


def bins(score: Tensor) -> Tensor:
    """Return each score's bin: [...] -> [...] int64; what is below 0 or above 1, or no number, is put to the ends."""
    return (score.double().nan_to_num(0) * BINS).long().clamp(0, BINS - 1)


@dataclasses.dataclass(frozen=True)
class Confidence:
    """What the scores of an evaluation are worth. Curves are lists of points, for a chart."""

    calibration_error: float
    """Mean distance between the score and the share of right answers, over ranges of scores."""
    reliability: list[list[float]]
    """By range of scores: their mean, the share that was right, and how many there were."""
    sparsification: float
    """Area under the curve below: 1 is what scores without meaning reach."""
    sparsified: list[list[float]]
    """By share of the landmarks, best scores first: their mean error, as a part of the mean error of all."""


def confidence(count: Tensor, right: Tensor, error: Tensor) -> Confidence | None:
    """Return what scores are worth, from sums over bins [N]: of scores, of right answers and of errors; None if empty.

    Sparsification: Ilg et al., "Uncertainty Estimates and Multi-Hypotheses Networks for Optical Flow", ECCV 2018
    (https://arxiv.org/abs/1802.07095).
    """
    if not count.sum() > 0:
        return None
    group = (centres() * GROUPS).long()
    number, told, found = (
        torch.zeros(GROUPS, dtype=torch.float64).index_add_(0, group, value)
        for value in (count, count * centres(), right)
    )
    kept, wrong = count.flip(0).cumsum(0), error.flip(0).cumsum(0)
    kept, wrong = kept[kept > 0], wrong[kept > 0]
    share, mean = kept / kept[-1], wrong / kept
    share, mean = torch.cat([share.new_zeros(1), share]), torch.cat([mean[:1], mean])
    relative = (
        mean / mean[-1] if mean[-1] > 0 else torch.ones_like(mean)
    )  # nothing is wrong: no order is better
    points = torch.linspace(0, len(share) - 1, min(len(share), POINTS)).round().long()
    return Confidence(
        calibration_error=float((told - found).abs().sum() / number.sum()),
        reliability=[
            [float(told[i] / number[i]), float(found[i] / number[i]), float(number[i])]
            for i in range(GROUPS)
            if number[i] > 0
        ],
        sparsification=float(torch.trapezoid(relative, share)),
        sparsified=torch.stack([share, relative], dim=1)[points].tolist(),
    )
