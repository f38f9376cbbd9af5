"""Whether scores can be trusted: calibration error and sparsification, from sums over bins of the score.

Letters in shapes: N bins, by score.
"""

import torch
from torch import Tensor

#: Bins of the sums. They are fine, so that a calibration can be fitted to them.
BINS = 1000
#: Bins of the expected calibration error, as in Guo et al. 2017 (https://arxiv.org/abs/1706.04599).
GROUPS = 15


def centres() -> Tensor:
    """Return the score in the middle of each bin, [N] float64."""
    return (torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS


def bins(score: Tensor) -> Tensor:
    """Return each score's bin: [...] -> [...] int64; what is below 0 or above 1, or no number, is put to the ends."""
    return (score.double().nan_to_num(0) * BINS).long().clamp(0, BINS - 1)


def expected_calibration_error(count: Tensor, right: Tensor) -> float | None:
    """Return the mean distance between the score and the share that was right, over ``GROUPS`` equal ranges of scores.

    count, right: [N]. Ranges weigh by their counts; None if nothing was counted.
    """
    if not count.sum() > 0:
        return None
    group = (centres() * GROUPS).long()
    told, found = (
        torch.zeros(GROUPS, dtype=torch.float64).index_add_(0, group, value)
        for value in (count * centres(), right)
    )
    return float((told - found).abs().sum() / count.sum())


def sparsification(count: Tensor, error: Tensor) -> float | None:
    """Return the area under the sparsification curve: the mean error of the best share by score, over all shares.

    It is relative to the mean error of all, so 1 is what scores without meaning reach. count: [N]; error: [N], the
    sum of each bin's errors. None if nothing was counted. See Ilg et al., "Uncertainty Estimates and Multi-Hypotheses
    Networks for Optical Flow", ECCV 2018 (https://arxiv.org/abs/1802.07095).
    """
    if not count.sum() > 0 or not error.sum() > 0:
        return None
    kept, wrong = count.flip(0).cumsum(0), error.flip(0).cumsum(0)
    kept, wrong = kept[kept > 0], wrong[kept > 0]
    share, mean = kept / kept[-1], wrong / kept
    share, mean = torch.cat([share.new_zeros(1), share]), torch.cat([mean[:1], mean])
    return float(torch.trapezoid(mean, share) / mean[-1])
