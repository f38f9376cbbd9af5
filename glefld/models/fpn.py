"""FPN: a pretrained network of timm's, a feature pyramid down to stride 4, and distributions. This project's own.

The feature pyramid is that of Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017
(https://arxiv.org/abs/1612.03144).
"""

import dataclasses

from torch import Tensor

from glefld.errors import require_between
from glefld.models.backbones import EMBEDDED, STRIDES, Backbone
from glefld.models.blocks import GarmentTypeHead, HeatmapHead, Pyramid, VisibilityHead
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
    """Backbone, feature pyramid and one distribution per landmark, at stride 4.

    It also tells what is to be seen of each landmark and, where the landmark set has several, the garment's type.
    """

    features: Backbone
    stride = 4

    def __init__(self, config: FPNConfig, labels: Labels) -> None:
        super().__init__(labels, Backbone(config.backbone, STRIDES))
        self.codec = Distribution(config.sigma, stride=4)
        self.pyramid = Pyramid(self.features.channels, config.width)
        self.head = HeatmapHead(config.width, config.width, self.landmarks, bias=False)
        self.visibility = VisibilityHead(config.width, self.features.channels[-1], self.landmarks)
        types = len(labels.landmark_set.garment_types)
        # Last, so that it draws from the seed after all others.
        self.garment_type = GarmentTypeHead(self.features.channels[-1], types) if types > 1 else None

    def forward(self, images: Tensor) -> Output:
        """[B, 3, H, W] -> logits [B, K, H / 4, W / 4], visibility [B, K, 3] and garment type [B, T] or None"""
        features = self.features(images)
        x = self.pyramid(features)
        heatmaps = self.head(x)
        return Output(
            heatmaps,
            visibility=self.visibility(x, heatmaps, features[-1]),
            garment_type=self.garment_type(features[-1]) if self.garment_type is not None else None,
        )


def preset(name: Preset, dataset: str) -> tuple[FPNConfig, Recipe]:
    """Return the config and recipe; there is no paper of this system, so both presets are the same."""
    return FPNConfig(), BEST


SYSTEM = System("landmarks", FPNConfig, FPN, preset)
