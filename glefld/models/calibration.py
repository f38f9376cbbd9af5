"""What a landmark's score says: the probability that it is right, once it has been calibrated on the val split.

Platt scaling (Platt, "Probabilistic Outputs for Support Vector Machines", 1999): a logistic regression from the log
odds of the score to what was right. With a scale alone it would be the temperature of Guo et al., "On Calibration of
Modern Neural Networks", ICML 2017 (https://arxiv.org/abs/1706.04599).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

#: A landmark is right within this distance, as a part of the box, the unit of NE.
RIGHT_WITHIN = 0.1
#: Bounds of a score, so that its log odds are finite.
LEAST, MOST = 1e-4, 1 - 1e-4
#: Steps of Newton's method, which needs about six.
STEPS = 50
#: A weak prior towards no change: counts that all agree have no finite answer.
PRIOR = 1e-2


@dataclass(frozen=True)
class Calibration:
    """Maps a score in [0, 1] to a probability: sigmoid(scale log(score / (1 - score)) + offset)."""

    scale: float = 1.0
    offset: float = 0.0

    def __call__(self, score: Tensor) -> Tensor:
        """[...] -> [...]; NaN stays NaN"""
        return torch.sigmoid(self.scale * score.clamp(LEAST, MOST).logit() + self.offset)


def fit(score: Tensor, count: Tensor, right: Tensor) -> Calibration:
    """Return the most likely calibration of scores [N], each given ``count`` [N] and right ``right`` [N] times."""
    score, count, right = score.double(), count.double(), right.double()
    x = torch.stack([score.clamp(LEAST, MOST).logit(), torch.ones_like(score)], dim=1)  # [N, 2]
    start = torch.tensor([1.0, 0.0], dtype=torch.float64)
    found = start.clone()
    for _ in range(STEPS):
        p = torch.sigmoid(x @ found)
        gradient = x.T @ (right - count * p) - PRIOR * (found - start)
        curvature = (x.T * (count * p * (1 - p))) @ x + PRIOR * torch.eye(2, dtype=torch.float64)
        step = torch.linalg.solve(curvature, gradient)
        # The likelihood is concave, but a full step from afar can pass its maximum.
        found = found + step * min(1.0, 2.0 / float(step.norm().clamp(min=1e-12)))
    return Calibration(*found.tolist())
