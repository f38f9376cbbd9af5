"""GLE: a global-local embedding module for fashion landmark detection (Lee et al. 2019).

VGG16 to conv4_3, k modules (2 for DeepFashion, 3 for FLD in the paper), and Liu & Lu's landmark branch. A module is a
non-local block, which relates every position to every other, and two 3x3 convolutions, which put that back in place.

This is the paper. The code released with it differs: its module drops the non-local output and the first convolution.
One thing is the released code's: the batch norm after the non-local block's w, which eq. 3 does not show.
"""

import dataclasses
from typing import Literal

from torch import Tensor, nn

from glefld.models.blocks import LandmarkBranch, NonLocal, vgg_features


@dataclasses.dataclass(frozen=True)
class GLEConfig:
    backbone: Literal["vgg16", "vgg-small"] = "vgg16"
    """Features at stride 8: vgg16 to conv4_3 as in the paper, or a narrow one with batch norm for small machines."""
    modules: int = 2
    """Global-local embedding modules: the paper's 2 for DeepFashion, 3 for FLD; 0 leaves them out."""
    start: Literal["random", "identity"] = "random"
    """How the modules start: from random weights, or so that each at first passes its input on (ours)."""
    width: int = 64
    """Width of the landmark branch; the paper's is 64."""

    def __post_init__(self) -> None:
        if self.modules < 0:
            raise ValueError(f"--model.modules must be 0 or more, not {self.modules}")
        if self.width < 4 or self.width % 4:
            raise ValueError(f"--model.width must be a multiple of 4, not {self.width}")


class GlobalLocalModule(nn.Module):
    """One module: non-local block with residual, then two of {3x3 convolution, batch norm, ReLU}."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.non_local = NonLocal(channels)
        self.local = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]"""
        return self.local(self.non_local(x))

    def start_as_identity(self) -> None:
        """Silence the non-local term and let the convolutions copy, so that depth costs nothing at first."""
        nn.init.zeros_(self.non_local.norm.weight)
        for layer in self.local:
            if isinstance(layer, nn.Conv2d):
                noise = layer.weight.detach().clone()
                nn.init.dirac_(layer.weight)
                layer.weight.data.add_(noise, alpha=0.1)  # equal weights would stay alike
            elif isinstance(layer, nn.BatchNorm2d):
                nn.init.ones_(layer.bias)  # centred features would lose their lower half in the ReLU


class GLE(nn.Module):
    """The whole network: normalised RGB in, one heatmap a landmark out, at the input's size (a multiple of 8)."""

    def __init__(self, config: GLEConfig, landmarks: int) -> None:
        super().__init__()
        self.features, channels = vgg_features(config.backbone)
        self.embedding = nn.Sequential(*(GlobalLocalModule(channels) for _ in range(config.modules)))
        self.branch = LandmarkBranch(channels, landmarks, config.width)
        if config.start == "identity":
            for module in self.embedding.children():
                assert isinstance(module, GlobalLocalModule)
                module.start_as_identity()

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, K, H, W]"""
        return self.branch(self.embedding(self.features(images)))
