"""Grad-CAM: attention maps of a classifier, at each of its strides.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017
(https://arxiv.org/abs/1610.02391).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def grad_cam(
    images: Tensor, network: Callable[[Tensor], list[Tensor]], score: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """Return a map for each of the network's features, each [B, 1, h, w] in [0, 1]: 1 where most of the score is from.

    images: [B, 3, H, W]. ``network`` maps them to its features, [B, C, h, w], each computed from the one before.
    ``score`` maps the last of them to [B, n], and the largest score of each row is explained. A map is
    relu(sum_c w_c A_c) divided by its maximum, with w_c the mean of the gradient over positions; if no position
    contributes, it is 1 everywhere. Gradients stay inside this function: it works under ``no_grad`` and leaves none on
    the parameters.
    """
    with torch.enable_grad():
        features = network(images.detach().requires_grad_())  # the network itself may be frozen
        largest = score(features[-1]).float().amax(dim=1)
        gradients = torch.autograd.grad(largest.sum(), features)
    maps = []
    for activation, gradient in zip(features, gradients, strict=True):
        weight = gradient.float().mean(dim=(2, 3), keepdim=True)
        cam = F.relu((weight * activation.detach().float()).sum(dim=1, keepdim=True))
        peak = cam.amax(dim=(2, 3), keepdim=True)
        maps.append(torch.where(peak > 0, cam / peak.clamp(min=1e-12), torch.ones_like(cam)))
    return maps
