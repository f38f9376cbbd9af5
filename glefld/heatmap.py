"""Landmark heatmaps: encode coordinates into targets, decode predictions into sub-pixel coordinates.

B batch, K landmarks, H and W the map's size. Coordinates are continuous: the pixel in row i and column j has its
centre at (j + 0.5, i + 0.5). Target of Liu & Lu 2018 and GLE: exp(-d / 2R), d the distance in pixels (not its square),
R = 8 at an input of 224; R shrinks with the input, so that the peak covers the same part of the garment.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

PAPER_RADIUS = 8.0
PAPER_SIZE = 224


def radius(size: int) -> float:
    """R in pixels for a square input of this size: the papers' 8 at 224, in proportion elsewhere."""
    return PAPER_RADIUS * size / PAPER_SIZE


def encode(landmarks: Tensor, size: int, r: float) -> Tensor:
    """Targets for landmarks in map pixels: [B, K, 2] -> [B, K, size, size]; NaN coordinates give NaN maps."""
    centres = torch.arange(size, device=landmarks.device, dtype=landmarks.dtype) + 0.5
    dx = centres - landmarks[..., 0, None]  # [B, K, W]
    dy = centres - landmarks[..., 1, None]  # [B, K, H]
    distance = (dx.square()[..., None, :] + dy.square()[..., :, None]).sqrt_()
    return distance.div_(-2 * r).exp_()


def decode(heatmaps: Tensor, r: float, window: int = 2) -> tuple[Tensor, Tensor]:
    """Sub-pixel peaks and their heights: [B, K, H, W] -> [B, K, 2] (x, y in map pixels), [B, K].

    A map a exp(-d / 2R) tells distances up to its height a: with u = 2R log(value) and A = 2R log a, d = A - u. So
    the pixels around the maximum trilaterate the landmark: p a pixel's offset from the maximum and c the landmark's,
    d^2 = |p|^2 - 2 p.c + |c|^2 becomes u^2 - |p|^2 = -2 p.c + 2 A u + (|c|^2 - A^2), linear in c, A and a constant.
    A least-squares fit over the (2 window + 1)^2 neighbours, weighted by their values, gives c, for peaks of any
    height and without a bias where the border cuts the window. It is held within 1.5 pixels of the maximum, beyond
    which a neighbour would have been the maximum. The method is ours; the papers take the argmax.
    """
    b, k, h, w = heatmaps.shape
    maps = heatmaps.float().reshape(b * k, 1, h, w)
    score, peak = maps.flatten(1).max(dim=1)
    row, col = peak // w, peak % w

    # Pixels beyond the border get weight 0; a constant pad keeps the gather in range.
    offset = torch.arange(-window, window + 1, device=maps.device)
    dy, dx = (t.flatten() for t in torch.meshgrid(offset, offset, indexing="ij"))
    rows, cols = row[:, None] + dy, col[:, None] + dx  # [BK, P]
    inside = (rows >= 0) & (rows < h) & (cols >= 0) & (cols < w)
    index = rows.clamp(0, h - 1) * w + cols.clamp(0, w - 1)
    value = maps.flatten(1).gather(1, index).clamp(1e-4, 1.0)

    weight = torch.where(inside, value, 0.0).double()
    u = 2 * r * value.double().log()
    p = torch.stack([dx, dy], dim=-1).double().expand(b * k, -1, -1)
    design = torch.cat([-2 * p, 2 * u[..., None], torch.ones_like(u[..., None])], dim=-1)
    observed = u.square() - p.square().sum(-1)
    gram = torch.einsum("np,npi,npj->nij", weight, design, design)
    moment = torch.einsum("np,npi,np->ni", weight, design, observed)
    gram = gram + 1e-9 * torch.eye(
        4, device=gram.device, dtype=gram.dtype
    )  # a flat map has no solution of its own
    centre = torch.linalg.solve(gram, moment)[:, :2].clamp(-1.5, 1.5)
    xy = torch.stack([col, row], dim=-1) + 0.5 + centre
    limit = torch.tensor([w, h], device=xy.device, dtype=xy.dtype)
    return torch.minimum(xy.clamp(min=0), limit).float().reshape(b, k, 2), score.reshape(b, k)


def loss(predicted: Tensor, landmarks: Tensor, weight: Tensor, r: float, rows: int) -> Tensor:
    """The papers' loss: mean over rows x K x H x W of (weight x (predicted - target))^2, as a scalar.

    predicted [B, K, H, W], landmarks [B, K, 2] in map pixels, weight [B, K] (0 where a landmark does not count; its
    coordinates may then be NaN). ``rows`` is the global batch's size, so that shares of it add up to its mean.
    """
    _, k, h, w = predicted.shape
    target = encode(torch.nan_to_num(landmarks), h, r)
    error = F.mse_loss(predicted.float(), target, reduction="none").sum(dim=(2, 3))
    return (weight.square() * error).sum() / (rows * k * h * w)
