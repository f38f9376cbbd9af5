"""Landmark heatmaps: encode coordinates into targets, decode predictions into sub-pixel coordinates.

B batch, K landmarks, H and W the map's size. Coordinates are continuous: the pixel in row i and column j has its
centre at (j + 0.5, i + 0.5). A map may be smaller than the input by its stride; coordinates are always the input's.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

#: The input to which the widths of targets refer; at other sizes the peak covers the same part of the garment.
PAPER_SIZE = 224
LEAST_SCALE = 0.75
#: How much the target's width weighs beside one pixel of value 1, when a Gaussian peak is fitted.
WIDTH_PRIOR = 1e-3


@dataclass(frozen=True)
class Codec:
    """The shape of a peak: how coordinates become heatmaps, and heatmaps coordinates.

    exponential: exp(-d / 2R), d the distance (not its square); Liu & Lu 2018 and GLE, R = 8 at an input of 224.
    gaussian: exp(-d^2 / 2 sigma^2).
    """

    kind: Literal["exponential", "gaussian"] = "exponential"
    width: float = 8.0
    """R or sigma, in pixels of a 224-pixel input."""
    stride: int = 1
    """Input pixels a map pixel."""

    def scale(self, side: int) -> float:
        """R or sigma in pixels of a map of this side; not so narrow that a peak could pass between two pixels."""
        return max(self.width * side / PAPER_SIZE, LEAST_SCALE)

    def encode(self, landmarks: Tensor, side: int) -> Tensor:
        """Targets for landmarks of the input: [B, K, 2] -> [B, K, side, side]; NaN coordinates give NaN maps."""
        centres = torch.arange(side, device=landmarks.device, dtype=landmarks.dtype) + 0.5
        dx = centres - landmarks[..., 0, None] / self.stride  # [B, K, W]
        dy = centres - landmarks[..., 1, None] / self.stride  # [B, K, H]
        square = dx.square()[..., None, :] + dy.square()[..., :, None]
        if self.kind == "exponential":
            return square.sqrt_().div_(-2 * self.scale(side)).exp_()
        return square.div_(-2 * self.scale(side) ** 2).exp_()

    def decode(self, heatmaps: Tensor, window: int = 2) -> tuple[Tensor, Tensor]:
        """Sub-pixel peaks and their heights: [B, K, H, W] -> [B, K, 2] (x, y in input pixels), [B, K].

        The logarithm of a peak of any height is linear in a few unknowns (``_system``), the landmark among them. A
        least-squares fit over the (2 window + 1)^2 neighbours of the maximum, weighted by their values, gives it,
        exactly for targets and without a bias where the border cuts the window. It is held within 1.5 pixels of the
        maximum, beyond which a neighbour would have been the maximum.
        """
        b, k, h, w = heatmaps.shape
        maps = heatmaps.float().reshape(b * k, h * w)
        score, peak = maps.max(dim=1)
        row, col = peak // w, peak % w

        # Pixels beyond the border get weight 0; clamping keeps the gather in range.
        offset = torch.arange(-window, window + 1, device=maps.device)
        dy, dx = (t.flatten() for t in torch.meshgrid(offset, offset, indexing="ij"))
        rows, cols = row[:, None] + dy, col[:, None] + dx  # [BK, P]
        inside = (rows >= 0) & (rows < h) & (cols >= 0) & (cols < w)
        index = rows.clamp(0, h - 1) * w + cols.clamp(0, w - 1)
        value = maps.gather(1, index).clamp(min=1e-6).double()

        weight = torch.where(inside, value, 0.0)
        design, observed = self._system(value.log(), torch.stack([dx, dy], dim=-1).double(), h)
        gram = torch.einsum("np,npi,npj->nij", weight, design, design)
        moment = torch.einsum("np,npi,np->ni", weight, design, observed)
        # A flat map has no solution of its own.
        gram = gram + 1e-9 * torch.eye(4, device=gram.device, dtype=gram.dtype)
        if self.kind == "gaussian":
            # In a corner a narrow peak covers too few pixels to tell its width: it then has the target's.
            sharp = 1 / (2 * self.scale(h) ** 2)
            gram[:, 2, 2] += WIDTH_PRIOR / sharp**2
            moment[:, 2] += WIDTH_PRIOR / sharp
        centre = self._centre(torch.linalg.solve(gram, moment)).clamp(-1.5, 1.5)
        xy = torch.stack([col, row], dim=-1) + 0.5 + centre
        limit = torch.tensor([w, h], device=xy.device, dtype=xy.dtype)
        xy = torch.minimum(xy.clamp(min=0), limit) * self.stride
        return xy.float().reshape(b, k, 2), score.reshape(b, k)

    def _system(self, log: Tensor, p: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """The equations, linear in 4 unknowns, of the window's pixels: [N, P, 4] and [N, P].

        log [N, P]: the values' logarithm; p [P, 2]: offsets from the maximum; c the landmark's.
        exponential (ours): a map a exp(-d / 2R) tells distances up to its height: with u = 2R log(value) and
        A = 2R log a, d = A - u, and d^2 = |p|^2 - 2 p.c + |c|^2 becomes u^2 - |p|^2 = -2 p.c + 2 A u + (|c|^2 - A^2).
        gaussian (the idea of DARK, Zhang et al. 2020, whose Taylor series needs both neighbours of the maximum):
        log(value) = 2 s p.c - s |p|^2 + constant, for a peak of any height and width.
        """
        p = p.expand(len(log), -1, -1)
        square, one = p.square().sum(-1), torch.ones_like(log)
        if self.kind == "exponential":
            u = 2 * self.scale(side) * log
            return torch.cat([-2 * p, 2 * u[..., None], one[..., None]], dim=-1), u.square() - square
        return torch.cat([2 * p, -square[..., None], one[..., None]], dim=-1), log

    def _centre(self, solution: Tensor) -> Tensor:
        """[N, 4] unknowns to c [N, 2]."""
        if self.kind == "exponential":
            return solution[:, :2]
        # A window that is no peak opens upwards (s <= 0): the maximum's own centre is then the best guess.
        s = solution[:, 2:3]
        return torch.where(s > 1e-6, solution[:, :2] / s.clamp(min=1e-6), 0.0)


def loss(predicted: Tensor, landmarks: Tensor, weight: Tensor, codec: Codec, rows: int) -> Tensor:
    """The papers' loss: mean over rows x K x H x W of (weight x (predicted - target))^2, as a scalar.

    predicted [B, K, H, W] on any device; on the host landmarks [B, K, 2] in input pixels and weight [B, K] (0 where a
    landmark does not count; its coordinates may then be NaN). ``rows`` is the global batch's size, so that shares of it
    add up to its mean.
    """
    _, k, h, w = predicted.shape
    # Of DeepFashion2's 294 landmarks a garment has 8 to 39: the others' maps need no target. The host knows which.
    which = tuple(index.to(predicted.device, non_blocking=True) for index in weight.nonzero(as_tuple=True))
    landmarks, weight = (
        value[weight > 0].to(predicted.device, non_blocking=True) for value in (landmarks, weight)
    )
    error = F.mse_loss(predicted[which].float(), codec.encode(landmarks, h), reduction="none").sum(dim=(1, 2))
    return (weight.square() * error).sum() / (rows * k * h * w)
