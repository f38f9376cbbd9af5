"""FPN: a pretrained network of timm's, a feature pyramid down to stride 4, and distributions. This project's own.

The feature pyramid is that of Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017
(https://arxiv.org/abs/1612.03144).
"""

import dataclasses

from torch import Tensor

from glefld.errors import require_between
from glefld.models.backbones import EMBEDDED, STRIDES, Backbone
from glefld.models.blocks import HeatmapHead, Pyramid, VisibilityHead
from glefld.models.distribution import Distribution
from glefld.models.system import Model, Output, Preset, System
from glefld.recipe import BEST, Recipe
from glefld.schema import Labels


@dataclasses.dataclass(frozen=True)
class FPNConfig:
    """Options of ``fpn``. UserError for a width below 1 or a sigma that is not above 0."""

    backbone: str = EMBEDDED
    """Network from timm with features at strides 4, 8, 16 and 32."""
    width: int = 96
    """Channels of the pyramid and the head."""
    sigma: float = 8.0
    """Standard deviation of the distributions that are aimed at, in pixels of a 224-pixel input."""

    def __post_init__(self) -> None:
        require_between("--model.width", self.width, 1)
        require_between("--model.sigma", self.sigma, 0.1)


class FPN(Model):
    """Backbone, feature pyramid and one distribution per landmark, at stride 4."""

    features: Backbone
    stride = 4

    def __init__(self, config: FPNConfig, labels: Labels) -> None:
        super().__init__(labels, Backbone(config.backbone, STRIDES))
        self.codec = Distribution(config.sigma, stride=4)
        self.pyramid = Pyramid(self.features.channels, config.width)
        self.head = HeatmapHead(config.width, config.width, self.landmarks, bias=False)
        self.visibility = VisibilityHead(config.width, self.features.channels[-1], self.landmarks)

    def forward(self, images: Tensor) -> Output:
        """[B, 3, H, W] -> logits [B, K, H / 4, W / 4] and visibility [B, K, 3]"""
        features = self.features(images)
        x = self.pyramid(features)
        heatmaps = self.head(x)
        return Output(heatmaps, visibility=self.visibility(x, heatmaps, features[-1]))


def preset(name: Preset, dataset: str) -> tuple[FPNConfig, Recipe]:
    """Return the config and recipe; there is no paper of this system, so both presets are the same."""
    return FPNConfig(), BEST


SYSTEM = System("landmarks", FPNConfig, FPN, preset)
