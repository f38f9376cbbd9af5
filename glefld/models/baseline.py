"""What a user would otherwise take: a modern backbone, a deconvolution head, Gaussian heatmaps decoded below a pixel.

The head is Xiao et al.'s (Simple Baselines for Human Pose Estimation, 2018): three transposed convolutions of 256
channels from stride 32 to 4. The decoding has the aim of DARK (Zhang et al. 2020) by another way, a fit in the
logarithm: see ``heatmap.Codec``.
"""

import dataclasses

from torch import Tensor, nn

from glefld.errors import UserError
from glefld.models.backbones import Stride32, load_features, stride32
from glefld.models.blocks import start_heatmaps
from glefld.models.heatmap import Codec
from glefld.models.system import Model, Output, Preset, System
from glefld.recipe import SMALL, Recipe
from glefld.schema import Labels


@dataclasses.dataclass(frozen=True)
class BaselineConfig:
    backbone: Stride32 = "resnet50"
    """Features at stride 32, from torchvision."""
    width: int = 256
    """Channels of the head."""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise UserError(f"--model.width must be at least 1, not {self.width}")


class Baseline(Model):
    """Heatmaps at stride 4."""

    stride = 4
    codec = Codec("gaussian", width=8, stride=4)

    def __init__(self, config: BaselineConfig, labels: Labels) -> None:
        super().__init__(labels)
        self.features, channels = stride32(config.backbone)
        if config.backbone == "convnext-tiny":
            self.stride = 32  # it drops what its strides do not divide, at the right and below
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
            # Features of a side that the stride does not divide are one longer than their doubles' halves.
            x = up(x)[..., : -(-height // stride), : -(-width // stride)]
        return Output(self.last(x))


def preset(name: Preset, dataset: str) -> tuple[BaselineConfig, Recipe]:
    """The recipe is ours, in the manner of later baselines: AdamW and a cosine."""
    if name == "paper":
        return BaselineConfig(), Recipe(
            batch_size=64, learning_rate=5e-4, schedule="cosine", weight_decay=0.01
        )
    return BaselineConfig("resnet18", width=64), SMALL


SYSTEM = System("landmarks", BaselineConfig, Baseline, preset)
