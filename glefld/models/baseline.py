"""A standard pose estimation baseline: a backbone at stride 32, a deconvolution head, Gaussian heatmaps.

The head is that of Xiao et al., "Simple Baselines for Human Pose Estimation and Tracking", ECCV 2018
(https://arxiv.org/abs/1804.06208): three transposed convolutions of 256 channels, from stride 32 to stride 4.
Sub-pixel decoding follows DARK (Zhang et al., CVPR 2020, https://arxiv.org/abs/1910.06278) in fitting the logarithm
of the heatmap, but uses a least-squares fit: see ``heatmap.Codec``.
"""

import dataclasses

from torch import Tensor, nn

from glefld.errors import require_between
from glefld.models.backbones import Stride32, load_features, stride32
from glefld.models.blocks import start_heatmaps
from glefld.models.heatmap import Codec
from glefld.models.system import Model, Output, Preset, System
from glefld.recipe import SMALL, Recipe
from glefld.schema import Labels


@dataclasses.dataclass(frozen=True)
class BaselineConfig:
    """Options of ``baseline``. UserError for a width below 1."""

    backbone: Stride32 = "resnet50"
    """Backbone at stride 32, from torchvision."""
    width: int = 256
    """Channels of the deconvolution head."""

    def __post_init__(self) -> None:
        require_between("--model.width", self.width, 1)


class Baseline(Model):
    """Backbone, deconvolution head and one heatmap per landmark, at stride 4."""

    stride = 4
    codec = Codec("gaussian", width=8, stride=4)

    def __init__(self, config: BaselineConfig, labels: Labels) -> None:
        super().__init__(labels)
        self.features, channels = stride32(config.backbone)
        if config.backbone == "convnext-tiny":
            self.stride = 32  # ConvNeXt drops the right and bottom remainder of sides not divisible by 32
        self.up = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose2d(c_in, config.width, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(config.width),
                nn.ReLU(inplace=True),
            )
            for c_in in (channels, config.width, config.width)
        )
        self.last = nn.Conv2d(config.width, self.landmarks, 1)
        start_heatmaps(self.last)

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        load_features(self.features, state)

    def forward(self, images: Tensor) -> Output:
        """[B, 3, H, W] -> heatmaps [B, K, H / 4, W / 4]"""
        x = self.features(images)
        height, width = images.shape[2:]
        for stride, up in zip((16, 8, 4), self.up, strict=True):
            # A ResNet rounds odd sides up, so the doubled map can be one longer than the map at this stride.
            x = up(x)[..., : -(-height // stride), : -(-width // stride)]
        return Output(self.last(x))


def preset(name: Preset, dataset: str) -> tuple[BaselineConfig, Recipe]:
    """Return the preset's config and recipe. The recipe follows later baselines: AdamW with a cosine schedule."""
    if name == "paper":
        return BaselineConfig(), Recipe(
            batch_size=64, learning_rate=5e-4, schedule="cosine", weight_decay=0.01
        )
    return BaselineConfig("resnet18", width=64), SMALL


SYSTEM = System("landmarks", BaselineConfig, Baseline, preset)
