"""Landmark heatmaps: encode coordinates as targets, decode predictions to sub-pixel coordinates, and the loss.

Coordinates are continuous: the pixel in row i and column j has its centre at (j + 0.5, i + 0.5). They are always in
input pixels, also where the map is smaller than the input by its stride.
Letters in shapes: B batch, K landmarks, H and W the map's size.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

#: Input size that peak widths refer to. At other sizes the width scales, so a peak covers the same part of the garment.
PAPER_SIZE = 224
LEAST_SCALE = 0.75
#: Weight of the prior on a Gaussian peak's width in the fit, relative to one pixel of value 1.
WIDTH_PRIOR = 1e-3


@dataclass(frozen=True)
class Codec:
    """The shape of a heatmap peak, which defines both encoding and decoding.

    exponential: exp(-d / 2R), with d the distance, not its square. Liu & Lu and GLE use R = 8 for an input of 224.
    gaussian: exp(-d^2 / 2 sigma^2).
    """

    kind: Literal["exponential", "gaussian"] = "exponential"
    width: float = 8.0
    """R or sigma, in pixels of a 224-pixel input."""
    stride: int = 1
    """Input pixels per map pixel."""

    def scale(self, side: int) -> float:
        """Return R or sigma in pixels of a map of this side, bounded below so that no peak falls between two pixels."""
        return max(self.width * side / PAPER_SIZE, LEAST_SCALE)

    def encode(self, landmarks: Tensor, side: int) -> Tensor:
        """Return target maps: [..., 2] (x, y in input pixels) -> [..., side, side]; NaN coordinates give NaN maps."""
        centres = torch.arange(side, device=landmarks.device, dtype=landmarks.dtype) + 0.5
        dx = centres - landmarks[..., 0, None] / self.stride  # [B, K, W]
        dy = centres - landmarks[..., 1, None] / self.stride  # [B, K, H]
        square = dx.square()[..., None, :] + dy.square()[..., :, None]
        if self.kind == "exponential":
            return square.sqrt_().div_(-2 * self.scale(side)).exp_()
        return square.div_(-2 * self.scale(side) ** 2).exp_()

    def decode(self, heatmaps: Tensor, window: int = 2) -> tuple[Tensor, Tensor]:
        """Return sub-pixel peaks and their heights: [B, K, H, W] -> [B, K, 2] (x, y in input pixels) and [B, K].

        A map with a value that is NaN or infinite gives NaN for both: a network that has diverged has no peaks.

        The logarithm of a peak of any height gives equations linear in a few unknowns, the landmark among them
        (``_system``). They are solved by least squares over the (2 window + 1)^2 neighbours of the maximum, weighted
        by their values. The result is exact for targets and unbiased where the border cuts the window. It is clamped
        to 1.5 pixels from the maximum, since a peak further away would have its maximum elsewhere.

        A window whose values are all equal, or all below 1e-6, has no peak to fit. Its landmark is the centre of the
        maximum's pixel; of equal maxima the first by rows counts. So a map of zeros gives the first pixel's centre.
        """
        b, k, h, w = heatmaps.shape
        maps = heatmaps.float().reshape(b * k, h * w)
        score, peak = maps.max(dim=1)
        finite = score.isfinite() & maps.amin(dim=1).isfinite()  # NaN is both the maximum and the minimum
        row, col = peak // w, peak % w

        # Pixels beyond the border get weight 0; clamping keeps the gather in range.
        offset = torch.arange(-window, window + 1, device=maps.device)
        dy, dx = (t.flatten() for t in torch.meshgrid(offset, offset, indexing="ij"))
        rows, cols = row[:, None] + dy, col[:, None] + dx  # [BK, P]
        inside = (rows >= 0) & (rows < h) & (cols >= 0) & (cols < w)
        index = rows.clamp(0, h - 1) * w + cols.clamp(0, w - 1)
        value = torch.where(finite[:, None], maps.gather(1, index), 0).clamp(min=1e-6).double()

        weight = torch.where(inside, value, 0.0)
        design, observed = self._system(value.log(), torch.stack([dx, dy], dim=-1).double(), h)
        gram = torch.einsum("np,npi,npj->nij", weight, design, design)
        moment = torch.einsum("np,npi,np->ni", weight, design, observed)
        # A flat window makes the system singular.
        gram = gram + 1e-9 * torch.eye(4, device=gram.device, dtype=gram.dtype)
        if self.kind == "gaussian":
            # In a corner a narrow peak covers too few pixels to determine its width: fall back on the target's.
            sharp = 1 / (2 * self.scale(h) ** 2)
            gram[:, 2, 2] += WIDTH_PRIOR / sharp**2
            moment[:, 2] += WIDTH_PRIOR / sharp
        centre = self._centre(torch.linalg.solve(gram, moment)).clamp(-1.5, 1.5)
        flat = (value == value.amax(dim=1, keepdim=True)).all(dim=1)
        xy = torch.stack([col, row], dim=-1) + 0.5 + torch.where(flat[:, None], 0, centre)
        limit = torch.tensor([w, h], device=xy.device, dtype=xy.dtype)
        xy = torch.minimum(xy.clamp(min=0), limit) * self.stride
        xy, score = torch.where(finite[:, None], xy, torch.nan), torch.where(finite, score, torch.nan)
        return xy.float().reshape(b, k, 2), score.reshape(b, k)

    def _system(self, log: Tensor, p: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """Return the window's equations, linear in 4 unknowns: coefficients [N, P, 4] and right-hand side [N, P].

        log [N, P] is the logarithm of the values, p [P, 2] the pixels' offsets from the maximum, and c the landmark's.
        exponential (this project's): in a map a exp(-d / 2R), let u = 2R log(value) and A = 2R log a. Then d = A - u,
        and d^2 = |p|^2 - 2 p.c + |c|^2 becomes u^2 - |p|^2 = -2 p.c + 2 A u + (|c|^2 - A^2).
        gaussian: log(value) = 2 s p.c - s |p|^2 + constant, for a peak of any height and width. Fitting the logarithm
        is the idea of DARK (Zhang et al., CVPR 2020, https://arxiv.org/abs/1910.06278). DARK uses a Taylor expansion,
        which needs a neighbour on both sides of the maximum.
        """
        p = p.expand(log.shape[0], -1, -1)
        square, one = p.square().sum(-1), torch.ones_like(log)
        if self.kind == "exponential":
            u = 2 * self.scale(side) * log
            return torch.cat([-2 * p, 2 * u[..., None], one[..., None]], dim=-1), u.square() - square
        return torch.cat([2 * p, -square[..., None], one[..., None]], dim=-1), log

    def _centre(self, solution: Tensor) -> Tensor:
        """Return the landmark's offset c [N, 2] from the unknowns [N, 4]."""
        if self.kind == "exponential":
            return solution[:, :2]
        # A window without a peak has s <= 0: the centre of the maximum is then the best guess.
        s = solution[:, 2:3]
        return torch.where(s > 1e-6, solution[:, :2] / s.clamp(min=1e-6), 0.0)

    def loss(self, predicted: Tensor, landmarks: Tensor, weight: Tensor, rows: int) -> Tensor:
        """Return the loss of Liu & Lu and GLE, a scalar: the mean over rows, K, H and W.

        It is that of (weight (predicted - target))^2. predicted [B, K, H, W] may be on any device. On the host are
        landmarks [B, K, 2] in input pixels and weight [B, K]; where the weight is 0 the landmark is ignored and may be
        NaN. ``rows`` is the global batch size, so that the losses of a batch's shares add up to the batch's mean.
        """
        _, k, h, w = predicted.shape
        # A garment has 8 to 39 of DeepFashion2's 294 landmarks: only those maps need a target. Indexing on the host
        # avoids a device synchronisation.
        which = tuple(
            index.to(predicted.device, non_blocking=True) for index in weight.nonzero(as_tuple=True)
        )
        landmarks, weight = (
            value[weight > 0].to(predicted.device, non_blocking=True) for value in (landmarks, weight)
        )
        error = F.mse_loss(predicted[which].float(), self.encode(landmarks, h), reduction="none").sum(
            dim=(1, 2)
        )
        return (weight.square() * error).sum() / (rows * k * h * w)
