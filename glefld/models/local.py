"""A network that sees 31 pixels around each point and nothing else: what local appearance alone can tell.

Not a published system but a ruler. A sleeve's end looks the same on the left and on the right, so this network must
confuse the two wherever a system that takes in the whole garment need not (``left_right_confusion`` of an evaluation).
"""

import dataclasses

from torch import Tensor, nn

from glefld.errors import UserError
from glefld.models.system import Model, Output, System
from glefld.recipe import SMALL
from glefld.schema import Labels

#: Dilations of its 3x3 convolutions: 1 + 2 (1 + 1 + 2 + 4 + 7) = 31 pixels.
DILATIONS = (1, 1, 2, 4, 7)


@dataclasses.dataclass(frozen=True)
class LocalConfig:
    width: int = 32
    """Channels of each layer."""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise UserError(f"--model.width must be at least 1, not {self.width}")


class Local(Model):
    """Dilated convolutions at the input's own resolution, one heatmap a landmark out."""

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


SYSTEM = System("landmarks", LocalConfig, Local, lambda preset, dataset: (LocalConfig(), SMALL))
