"""A reference network with a receptive field of 31 pixels: what local appearance alone can achieve.

Not a published system. The ends of the left and the right sleeve look alike, so this network must confuse them, while
a system that sees the whole garment need not. An evaluation reports this as ``left_right_confusion``.
"""

import dataclasses

from torch import Tensor, nn

from glefld.errors import require_between
from glefld.models.system import Model, Output, System
from glefld.recipe import BEST
from glefld.schema import Labels

#: Dilations of the 3x3 convolutions. The receptive field is 1 + 2 (1 + 1 + 2 + 4 + 7) = 31 pixels.
DILATIONS = (1, 1, 2, 4, 7)


@dataclasses.dataclass(frozen=True)
class LocalConfig:
    """Options of ``local``. UserError for a width below 1."""

    width: int = 32
    """Channels of each layer."""

    def __post_init__(self) -> None:
        require_between("--model.width", self.width, 1)


class Local(Model):
    """Dilated convolutions at the input's resolution, and one heatmap per landmark."""

    stride = 1

    def __init__(self, config: LocalConfig, labels: Labels) -> None:
        super().__init__(labels)
        layers: list[nn.Module] = []
        channels = 3
        for dilation in DILATIONS:
            layers += [
                nn.Conv2d(channels, config.width, 3, padding=dilation, dilation=dilation, bias=False),
                nn.BatchNorm2d(config.width),
                nn.ReLU(inplace=True),
            ]
            channels = config.width
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, self.landmarks, 1))

    def forward(self, images: Tensor) -> Output:
        """[B, 3, H, W] -> heatmaps [B, K, H, W]"""
        return Output(self.layers(images))


SYSTEM = System("landmarks", LocalConfig, Local, lambda preset, dataset: (LocalConfig(), BEST))
