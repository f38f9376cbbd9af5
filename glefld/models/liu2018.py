"""Liu & Lu 2018: fashion analysis with feature map upsampling and landmark-driven attention.

The landmark branch alone (``liu2018``), or with the attention that its heatmaps drive, the category and the attributes
(``liu2018-full``). Heads have the sizes of the data set's labels; one without labels is left out.
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
    backbone: Stride8 = "vgg16"
    """Features at stride 8: vgg16 to conv4_3 as in the paper, a narrow one for small machines, or resnet18's."""


class Liu2018(Model):
    """Features and the landmark branch."""

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
    hidden: int = 1024
    """Width of the two heads' hidden layer; the paper's is 1024."""

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise UserError(f"--model.hidden must be at least 1, not {self.hidden}")


class Liu2018Full(Liu2018):
    """The whole of the paper: landmarks, and the category and attributes of features that they draw attention in."""

    objective = Objective(landmarks=10, classes=1, attributes=20)

    def __init__(self, config: Liu2018FullConfig, labels: Labels) -> None:
        super().__init__(config, labels)
        if not labels.categories and not labels.attributes:
            raise UserError(
                "liu2018-full predicts categories and attributes, and the data set has neither: use liu2018"
            )
        self.attention = Attention(self.channels)
        self.conv5 = make_layers([self.channels] * 3, batch_norm=config.backbone != "vgg16")
        flat = self.channels * 7 * 7

        def head(outputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(flat, config.hidden), nn.ReLU(inplace=True), nn.Linear(config.hidden, outputs)
            )

        # make_layers makes convolutions for pictures: three channels in.
        self.conv5[0] = nn.Conv2d(self.channels, self.channels, 3, padding=1)
        self.category = head(len(labels.categories)) if labels.categories else None
        self.attribute = head(2 * len(labels.attributes)) if labels.attributes else None

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """conv5 starts from VGG16's too, as in the paper."""
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
        # At 224 pixels the paper's 2 x 2 max-pool; at others it keeps the heads' size.
        x = F.adaptive_max_pool2d(x, 7).flatten(1)
        return Output(
            heatmaps,
            classes=self.category(x) if self.category is not None else None,
            attributes=self.attribute(x).unflatten(1, (-1, 2)) if self.attribute is not None else None,
        )


class Attention(nn.Module):
    """A small U-Net (width 32, two downsamplings) over the features and the landmarks' heatmaps."""

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
        # Upsampling by interpolation rather than transposed convolution: sides need not divide by 4.
        y1 = self.up1(torch.cat([F.interpolate(x2, x1.shape[2:], mode="bilinear"), x1], dim=1))
        y0 = self.up2(torch.cat([F.interpolate(y1, x0.shape[2:], mode="bilinear"), x0], dim=1))
        return torch.tanh(self.last(y0))


#: Adam 1e-4, x0.8 an epoch, batch 16, 20 epochs, no augmentation.
PAPER = Recipe(epochs=20, batch_size=16, step_epochs=1, step_factor=0.8, augmentation=NO_AUGMENTATION)


def landmarks_preset(name: Preset, dataset: str) -> tuple[Liu2018Config, Recipe]:
    return (Liu2018Config(), PAPER) if name == "paper" else (Liu2018Config("vgg-small"), SMALL)


def full_preset(name: Preset, dataset: str) -> tuple[Liu2018FullConfig, Recipe]:
    return (
        (Liu2018FullConfig(), PAPER)
        if name == "paper"
        else (Liu2018FullConfig("vgg-small", hidden=256), SMALL)
    )


LANDMARKS = System("landmarks", Liu2018Config, Liu2018, landmarks_preset)
FULL = System("landmarks", Liu2018FullConfig, Liu2018Full, full_preset)
