"""A standard pose estimation baseline: a backbone at stride 32, a deconvolution head, Gaussian heatmaps.

The head is that of Xiao et al., "Simple Baselines for Human Pose Estimation and Tracking", ECCV 2018
(https://arxiv.org/abs/1804.06208): three transposed convolutions of 256 channels, from stride 32 to stride 4.
Sub-pixel decoding follows DARK (Zhang et al., CVPR 2020, https://arxiv.org/abs/1910.06278) in fitting the logarithm
of the heatmap, but uses a least-squares fit: see ``heatmap.Codec``.
"""

import dataclasses

from torch import Tensor, nn

from glefld.errors import require_between
from glefld.models.backbones import EMBEDDED, Backbone
from glefld.models.blocks import start_heatmaps
from glefld.models.heatmap import Codec
from glefld.models.system import Model, Output, Preset, System
from glefld.recipe import BEST, Recipe
from glefld.schema import Labels


@dataclasses.dataclass(frozen=True)
class BaselineConfig:
    """Options of ``baseline``. UserError for a width below 1."""

    backbone: str = "resnet50"
    """Network from timm with features at stride 32."""
    width: int = 256
    """Channels of the deconvolution head."""

    def __post_init__(self) -> None:
        require_between("--model.width", self.width, 1)


class Baseline(Model):
    """Backbone, deconvolution head and one heatmap per landmark, at stride 4."""

    features: Backbone
    stride = 4
    codec = Codec("gaussian", width=8, stride=4)

    def __init__(self, config: BaselineConfig, labels: Labels) -> None:
        super().__init__(labels, Backbone(config.backbone, (32,)))
        if not self.features.rounds_up:
            self.stride = 32  # the remainder of other sides would be missing on the right and at the bottom
        self.up = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose2d(c_in, config.width, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(config.width),
                nn.ReLU(inplace=True),
            )
            for c_in in (self.features.channels[0], config.width, config.width)
        )
        self.last = nn.Conv2d(config.width, self.landmarks, 1)
        start_heatmaps(self.last)

    def forward(self, images: Tensor) -> Output:
        """[B, 3, H, W] -> heatmaps [B, K, H / 4, W / 4]"""
        (x,) = self.features(images)
        height, width = images.shape[2:]
        for stride, up in zip((16, 8, 4), self.up, strict=True):
            # Odd sides are rounded up, so the doubled map can be one longer than the map at this stride.
            x = up(x)[..., : -(-height // stride), : -(-width // stride)]
        return Output(self.last(x))


def preset(name: Preset, dataset: str) -> tuple[BaselineConfig, Recipe]:
    """Return the preset's config and recipe. The recipe follows later baselines: AdamW with a cosine schedule."""
    if name == "paper":
        return BaselineConfig(), Recipe(
            batch_size=64, learning_rate=5e-4, schedule="cosine", weight_decay=0.01
        )
    return BaselineConfig(EMBEDDED, width=96), BEST


SYSTEM = System("landmarks", BaselineConfig, Baseline, preset)
