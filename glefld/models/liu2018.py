"""Liu & Lu: landmark detection by feature map upsampling, and category and attributes with landmark-driven attention.

Jingyuan Liu and Hong Lu, "Deep Fashion Analysis with Feature Map Upsampling and Landmark-driven Attention",
ECCV Workshops 2018.

``liu2018`` is the landmark branch alone. ``liu2018-full`` adds the attention and the heads for category and attributes.
The data set's labels set the size of the heads; a head without labels is left out.
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.vgg import make_layers

from glefld.data.augmentation import NO_AUGMENTATION
from glefld.errors import UserError
from glefld.models.backbones import Stride8, load_features, stride8
from glefld.models.blocks import LandmarkBranch
from glefld.models.system import Model, Objective, Output, Preset, System
from glefld.recipe import SMALL, Recipe
from glefld.schema import Labels


@dataclasses.dataclass(frozen=True)
class Liu2018Config:
    """Options of ``liu2018``."""

    backbone: Stride8 = "vgg16"
    """Backbone at stride 8: vgg16 as in the paper, vgg-small for small machines, or resnet18."""


class Liu2018(Model):
    """Backbone and landmark branch: one heatmap per landmark, at the input's size."""

    def __init__(self, config: Liu2018Config, labels: Labels) -> None:
        super().__init__(labels)
        self.features, self.channels = stride8(config.backbone)
        self.branch = LandmarkBranch(self.channels, self.landmarks)

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        load_features(self.features, state)

    def forward(self, images: Tensor) -> Output:
        """[B, 3, H, W] -> heatmaps [B, K, H, W]"""
        return Output(self.branch(self.features(images)))


@dataclasses.dataclass(frozen=True)
class Liu2018FullConfig(Liu2018Config):
    """Options of ``liu2018-full``. UserError for a hidden layer without units."""

    hidden: int = 1024
    """Units in the hidden layer of both heads. The paper has 1024."""

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise UserError(f"--model.hidden must be at least 1, not {self.hidden}")


class Liu2018Full(Liu2018):
    """The full network: landmarks, and category and attributes from features weighted by landmark-driven attention.

    UserError if the data set has neither categories nor attributes.
    """

    objective = Objective(landmarks=10, classes=1, attributes=20)

    def __init__(self, config: Liu2018FullConfig, labels: Labels) -> None:
        super().__init__(config, labels)
        if not labels.categories and not labels.attributes:
            raise UserError(
                "liu2018-full needs categories or attributes, and the data set has neither: use liu2018"
            )
        self.attention = Attention(self.channels)
        self.conv5 = make_layers([self.channels] * 3, batch_norm=config.backbone != "vgg16")
        flat = self.channels * 7 * 7

        def head(outputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(flat, config.hidden), nn.ReLU(inplace=True), nn.Linear(config.hidden, outputs)
            )

        # make_layers assumes three input channels.
        self.conv5[0] = nn.Conv2d(self.channels, self.channels, 3, padding=1)
        self.category = head(len(labels.categories)) if labels.categories else None
        self.attribute = head(2 * len(labels.attributes)) if labels.attributes else None

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Load VGG16's ImageNet weights, conv5's included, as in the paper; UserError if they do not fit."""
        super().load_backbone(state)
        if "features.24.weight" in state:
            names = {
                f"{i}.{part}": f"features.{i + 24}.{part}" for i in (0, 2, 4) for part in ("weight", "bias")
            }
            load_features(self.conv5, {ours: state[theirs] for ours, theirs in names.items()})

    def forward(self, images: Tensor) -> Output:
        """[B, 3, H, W] -> heatmaps [B, K, H, W], category logits [B, C], attribute logits [B, A, 2]"""
        features = self.features(images)
        heatmaps = self.branch(features)
        attended = (1 + self.attention(features, heatmaps)) * features
        x = self.conv5(F.max_pool2d(attended, 2))
        # At 224 pixels this is the paper's 2 x 2 max-pool. At other sizes it keeps the heads' input size.
        x = F.adaptive_max_pool2d(x, 7).flatten(1)
        return Output(
            heatmaps,
            classes=self.category(x) if self.category is not None else None,
            attributes=self.attribute(x).unflatten(1, (-1, 2)) if self.attribute is not None else None,
        )


class Attention(nn.Module):
    """The attention: a small U-Net (width 32, two downsamplings) over the features and the landmark heatmaps.

    The layers are this project's; the released code upsamples by transposed convolutions.
    """

    def __init__(self, channels: int, width: int = 32) -> None:
        super().__init__()

        def block(layer: nn.Module, c_out: int) -> nn.Sequential:
            return nn.Sequential(layer, nn.BatchNorm2d(c_out), nn.LeakyReLU(0.2, inplace=True))

        def down(c_in: int, c_out: int) -> nn.Sequential:
            return block(nn.Conv2d(c_in, c_out, 4, stride=2, padding=1), c_out)

        self.first = block(nn.Conv2d(channels + 1, width, 3, padding=1), width)
        self.down1 = down(width, 2 * width)
        self.down2 = down(2 * width, 4 * width)
        self.up1 = block(nn.Conv2d(6 * width, 2 * width, 3, padding=1), 2 * width)
        self.up2 = block(nn.Conv2d(3 * width, width, 3, padding=1), width)
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, features: Tensor, heatmaps: Tensor) -> Tensor:
        """[B, C, h, w] and [B, K, H, W] -> [B, C, h, w] in (-1, 1)"""
        where = heatmaps.amax(dim=1, keepdim=True)
        where = F.adaptive_avg_pool2d(where, (features.shape[2], features.shape[3]))
        x0 = self.first(torch.cat([features, where], dim=1))
        x1 = self.down1(x0)
        x2 = self.down2(x1)
        # Interpolation rather than transposed convolution, so that sides need not be divisible by 4.
        y1 = self.up1(torch.cat([F.interpolate(x2, x1.shape[2:], mode="bilinear"), x1], dim=1))
        y0 = self.up2(torch.cat([F.interpolate(y1, x0.shape[2:], mode="bilinear"), x0], dim=1))
        return torch.tanh(self.last(y0))


#: The paper's recipe: Adam 1e-4, x0.8 every epoch, batch 16, 20 epochs, no augmentation.
PAPER = Recipe(epochs=20, batch_size=16, step_epochs=1, step_factor=0.8, augmentation=NO_AUGMENTATION)


def landmarks_preset(name: Preset, dataset: str) -> tuple[Liu2018Config, Recipe]:
    """Return the preset's config and recipe for the landmark branch alone."""
    return (Liu2018Config(), PAPER) if name == "paper" else (Liu2018Config("vgg-small"), SMALL)


def full_preset(name: Preset, dataset: str) -> tuple[Liu2018FullConfig, Recipe]:
    """Return the preset's config and recipe for the full network."""
    return (
        (Liu2018FullConfig(), PAPER)
        if name == "paper"
        else (Liu2018FullConfig("vgg-small", hidden=256), SMALL)
    )


LANDMARKS = System("landmarks", Liu2018Config, Liu2018, landmarks_preset)
FULL = System("landmarks", Liu2018FullConfig, Liu2018Full, full_preset)
