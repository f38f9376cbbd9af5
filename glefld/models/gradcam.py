"""Grad-CAM (Selvaraju et al. 2017): where a classifier looks, at each of its strides."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def grad_cam(
    stem: Tensor, stages: Sequence[Callable[[Tensor], Tensor]], score: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """Maps of the stages' features, each [B, 1, H, W] in [0, 1]: 1 where the score owes most to a position.

    stem [B, C, H, W] goes through the stages in turn; ``score`` turns the last one's features into [B, n] and the
    largest of each row is explained. A map is relu(sum_c w_c A_c), w_c the gradient's mean over positions, divided by
    its maximum; where nothing speaks for the score it is 1 everywhere. Nothing outside is differentiated: it works
    within ``no_grad`` and leaves no gradient on parameters.
    """
    with torch.enable_grad():
        x = stem.detach().requires_grad_()
        features = []
        for stage in stages:
            x = stage(x)
            features.append(x)
        largest = score(x).float().amax(dim=1)
        gradients = torch.autograd.grad(largest.sum(), features)
    maps = []
    for activation, gradient in zip(features, gradients, strict=True):
        weight = gradient.float().mean(dim=(2, 3), keepdim=True)
        cam = F.relu((weight * activation.detach().float()).sum(dim=1, keepdim=True))
        peak = cam.amax(dim=(2, 3), keepdim=True)
        maps.append(torch.where(peak > 0, cam / peak.clamp(min=1e-12), torch.ones_like(cam)))
    return maps
