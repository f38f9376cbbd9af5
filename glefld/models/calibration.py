"""What a landmark's score says: the probability that it is right, once it has been calibrated on the val split.

Platt scaling (Platt, "Probabilistic Outputs for Support Vector Machines", 1999): a logistic regression from the log
odds of the score to what was right. With a scale alone it would be the temperature of Guo et al., "On Calibration of
Modern Neural Networks", ICML 2017 (https://arxiv.org/abs/1706.04599).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

#: A landmark is right within this distance, as a part of the box, the unit of NE.
RIGHT_WITHIN = 0.1
#: Bounds of a score, so that its log odds are finite.
LEAST, MOST = 1e-4, 1 - 1e-4
#: Most steps of the fit, which needs about ten.
STEPS = 50
#: Prior towards no change, as the precision of normal distributions of the offset and of the logarithm of the scale. A
#: few answers then change little, and ones that all agree have a finite answer.
PRIOR = 1.0


@dataclass(frozen=True)
class Calibration:
    """Maps a score in [0, 1] to a probability: sigmoid(scale log(score / (1 - score)) + offset)."""

    scale: float = 1.0
    offset: float = 0.0

    def __call__(self, score: Tensor) -> Tensor:
        """[...] -> [...]; NaN stays NaN"""
        return torch.sigmoid(self.scale * score.clamp(LEAST, MOST).logit() + self.offset)


def fit(score: Tensor, count: Tensor, right: Tensor) -> Calibration:
    """Return the most likely calibration of scores [N], each given ``count`` [N] and right ``right`` [N] times.

    The scale is above 0, so a calibration never changes the order of scores.
    """
    score, count, right = score.double(), count.double(), right.double()
    odds = score.clamp(LEAST, MOST).logit()
    found = torch.zeros(2, dtype=torch.float64, requires_grad=True)  # logarithm of the scale, offset
    optimizer = torch.optim.LBFGS([found], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logit = found[0].exp() * odds + found[1]
        unlikely = (count * F.softplus(logit) - right * logit).sum() + PRIOR / 2 * found.square().sum()
        value = unlikely / count.sum().clamp(min=1)
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    log_scale, offset = found.detach()
    return Calibration(log_scale.exp().item(), offset.item())
