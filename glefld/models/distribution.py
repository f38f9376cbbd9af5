"""Landmarks as probability distributions over a map's pixels: targets, decoding, the score, and the loss.

A network predicts logits, and a softmax over the map makes them the probability that the landmark is in each pixel. The
answer is the point with the least expected distance to the landmark, which is what NE measures, and the score is the
probability that the landmark is near it. Both follow from the distribution; a peak's position and height do not say
either when there are two peaks.
Coordinates are continuous and in input pixels, as in ``heatmap``.
Letters in shapes: B batch, K landmarks, N their product, H and W the map's size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from glefld.models.calibration import RIGHT_WITHIN
from glefld.models.heatmap import PAPER_SIZE

#: Steps of Weiszfeld's iteration, which is slow where a distribution has several peaks of one height.
STEPS = 30
#: Distance in map pixels below which a pixel's pull stops growing. With less the points stick to pixels' centres: of
#: targets whose landmark is known, 0.3 misses by up to 0.17 pixels, 1 by 0.03.
NEAREST = 1.0
#: Least standard deviation of a target in map pixels: a narrower one hardly tells where in a pixel the landmark is.
LEAST_SIGMA = 0.5


@dataclass(frozen=True)
class Distribution:
    """Maps of logits at a stride. The target is a Gaussian around the landmark, normalised to a sum of 1."""

    sigma: float = 8.0
    """Standard deviation of the target, in pixels of a 224-pixel input; on a map ``LEAST_SIGMA`` pixels at least."""
    stride: int = 4
    """Input pixels per map pixel."""

    def encode(self, landmarks: Tensor, side: int) -> Tensor:
        """Return target distributions: [..., 2] (x, y in input pixels) -> [..., side, side]."""
        sigma = max(self.sigma * side / PAPER_SIZE, LEAST_SIGMA)
        centres = torch.arange(side, device=landmarks.device, dtype=landmarks.dtype) + 0.5

        def along(axis: int) -> Tensor:
            offset = centres - landmarks[..., axis, None] / self.stride
            return (-offset.square() / (2 * sigma**2)).softmax(dim=-1)

        return along(1)[..., :, None] * along(0)[..., None, :]

    def decode(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the points of least expected distance and their scores: [B, K, H, W] -> [B, K, 2] and [B, K].

        Points are x, y in input pixels. The score is the probability that the landmark is within 0.1 of the input, and
        so of the box, from the point. A map with a value that is NaN or plus infinity gives NaN for both.
        """
        b, k, h, w = logits.shape
        p = logits.float().reshape(b * k, h * w).softmax(dim=-1).view(b * k, h, w)
        rows, cols = (torch.arange(n, device=p.device, dtype=p.dtype) + 0.5 for n in (h, w))

        def centre(weight: Tensor) -> Tensor:
            """[N, H, W] -> [N, 2]"""
            along = torch.stack([weight.sum(dim=1) @ cols, weight.sum(dim=2) @ rows], dim=-1)
            return along / weight.sum(dim=(1, 2))[:, None]

        def square_distance(point: Tensor) -> Tensor:
            """[N, 2] -> [N, H, W]"""
            x, y = (point[:, axis, None] for axis in (0, 1))
            return (rows - y).square()[:, :, None] + (cols - x).square()[:, None, :]

        point = centre(p)
        for _ in range(STEPS):
            point = centre(p * square_distance(point).clamp(min=NEAREST**2).rsqrt())
        # A pixel that the circle's edge cuts counts in part: maps have few pixels.
        near = (RIGHT_WITHIN * max(h, w) + 0.5 - square_distance(point).sqrt()).clamp(0, 1)
        score = (p * near).sum(dim=(1, 2))
        return (point * self.stride).view(b, k, 2), score.view(b, k)

    def loss(self, logits: Tensor, landmarks: Tensor, weight: Tensor, rows: int) -> Tensor:
        """Return the weighted cross entropy, a scalar: a sum over B and K, divided by rows K.

        logits: [B, K, H, W] on any device. On the host are landmarks [B, K, 2] in input pixels and weight [B, K]; where
        the weight is 0 the landmark is ignored and may be NaN. ``rows`` is the global batch size, so that the losses
        of a batch's shares add up to the batch's mean.
        """
        k, h = logits.shape[1:3]
        which = tuple(index.to(logits.device, non_blocking=True) for index in weight.nonzero(as_tuple=True))
        landmarks, weight = (
            value[weight > 0].to(logits.device, non_blocking=True) for value in (landmarks, weight)
        )
        entropy = -(self.encode(landmarks, h) * log_softmax2d(logits[which].float())).sum(dim=(1, 2))
        return (weight * entropy).sum() / (rows * k)


def log_softmax2d(logits: Tensor) -> Tensor:
    """[N, H, W] -> [N, H, W], normalised over both"""
    return logits.flatten(1).log_softmax(dim=-1).view_as(logits)
