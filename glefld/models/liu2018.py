"""Liu & Lu: landmark detection by feature map upsampling, and category and attributes with landmark-driven attention.

Jingyuan Liu and Hong Lu, "Deep Fashion Analysis with Feature Map Upsampling and Landmark-driven Attention",
ECCV Workshops 2018.

``liu2018`` is the landmark branch alone. ``liu2018-full`` adds the attention and the heads for category and attributes.
The branch and the attention are the released network's, layer by layer.

The data set's labels set the size of the heads; a head without labels is left out. DeepFashion lists 50 categories, of
which four were merged into Dress, the last two among them. The data set keeps the list up to the largest label that
occurs, so the category head has 48 outputs as in the paper, two of which are never the answer.
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glefld.data.augmentation import NO_AUGMENTATION
from glefld.errors import UserError, require_between
from glefld.models.backbones import EMBEDDED, Backbone
from glefld.models.blocks import LandmarkBranch
from glefld.models.system import Model, Objective, Output, Preset, System
from glefld.recipe import BEST, Recipe
from glefld.schema import Labels


@dataclasses.dataclass(frozen=True)
class Liu2018Config:
    """Options of ``liu2018``."""

    backbone: str = "vgg16"
    """Network from timm with features at stride 8. The paper has vgg16, up to conv4_3."""


class Liu2018(Model):
    """Backbone and landmark branch: one heatmap per landmark, at the input's size."""

    features: Backbone

    def __init__(self, config: Liu2018Config, labels: Labels) -> None:
        super().__init__(labels, Backbone(config.backbone, (8,)))
        (self.channels,) = self.features.channels
        self.branch = LandmarkBranch(self.channels, self.landmarks)

    def forward(self, images: Tensor) -> Output:
        """[B, 3, H, W] -> heatmaps [B, K, H, W]"""
        return Output(self.branch(*self.features(images)))


@dataclasses.dataclass(frozen=True)
class Liu2018FullConfig(Liu2018Config):
    """Options of ``liu2018-full``. UserError for a hidden layer without units."""

    hidden: int = 1024
    """Units in the hidden layer of both heads. The paper has 1024."""

    def __post_init__(self) -> None:
        require_between("--model.hidden", self.hidden, 1)


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
        conv5: list[nn.Module] = []
        for _ in range(3):
            conv5.append(nn.Conv2d(self.channels, self.channels, 3, padding=1))
            if config.backbone != "vgg16":
                conv5.append(nn.BatchNorm2d(self.channels))
            conv5.append(nn.ReLU(inplace=True))
        self.conv5 = nn.Sequential(*conv5)
        flat = self.channels * 7 * 7

        def head(outputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(flat, config.hidden), nn.ReLU(inplace=True), nn.Linear(config.hidden, outputs)
            )

        self.category = head(len(labels.categories)) if labels.categories else None
        self.attribute = head(2 * len(labels.attributes)) if labels.attributes else None

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Load VGG16's ImageNet weights, conv5's included, as in the paper; UserError if they do not fit."""
        super().load_backbone(state)
        if self.features.name == "vgg16" and "features.24.weight" in state:
            names = [f"{i}.{part}" for i in (0, 2, 4) for part in ("weight", "bias")]
            theirs = [name.replace(name[0], f"features.{int(name[0]) + 24}", 1) for name in names]
            self.conv5.load_state_dict(
                {ours: state[other] for ours, other in zip(names, theirs, strict=True)}
            )

    def forward(self, images: Tensor) -> Output:
        """[B, 3, H, W] -> heatmaps [B, K, H, W], category logits [B, C], attribute logits [B, A, 2]"""
        (features,) = self.features(images)
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
    """The attention of the released network: a U-Net over the features and the landmark heatmaps.

    Strides 1, 2 and 4 of the features, with ``WIDTHS`` channels. Activations come before the convolutions, and what a
    level of the way down puts out is joined to that of the way up before its activation. For 512 features that makes
    574,944 parameters. The released network has 28 x 28 positions; here a side may be any from 4 on, and where halving
    rounds down, the transposed convolution adds the row or column again.
    """

    WIDTHS = (32, 64, 128)

    def __init__(self, channels: int) -> None:
        super().__init__()
        w0, w1, w2 = self.WIDTHS

        def down(c_in: int, c_out: int) -> nn.Sequential:
            halve = nn.Conv2d(c_in, c_out, 4, stride=2, padding=1, bias=False)
            return nn.Sequential(nn.LeakyReLU(0.2), halve, nn.BatchNorm2d(c_out))

        self.first = nn.Conv2d(channels + 1, w0, 1, bias=False)
        self.down1 = down(w0, w1)
        self.down2 = down(w1, w2)
        self.inner = nn.Sequential(
            nn.LeakyReLU(0.2),
            nn.Conv2d(w2, w2, 1, bias=False),
            nn.ReLU(),
            nn.ConvTranspose2d(w2, w2, 1),
            nn.BatchNorm2d(w2),
        )
        self.up2 = nn.ConvTranspose2d(2 * w2, w1, 4, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(w1)
        self.up1 = nn.ConvTranspose2d(2 * w1, w0, 4, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(w0)
        self.last = nn.ConvTranspose2d(2 * w0, channels, 1)

    def forward(self, features: Tensor, heatmaps: Tensor) -> Tensor:
        """[B, C, h, w] and [B, K, H, W] -> [B, C, h, w] in (-1, 1)"""
        where = heatmaps.amax(dim=1, keepdim=True)
        where = F.interpolate(where, features.shape[2:], mode="bilinear")
        e0 = self.first(torch.cat([features, where], dim=1))
        e1 = self.down1(e0)
        e2 = self.down2(e1)
        x = torch.cat([self.inner(e2), e2], dim=1)
        x = torch.cat([self.norm2(self.up2(x.relu(), list(e1.shape[2:]))), e1], dim=1)
        x = torch.cat([self.norm1(self.up1(x.relu(), list(e0.shape[2:]))), e0], dim=1)
        return torch.tanh(self.last(x.relu()))


#: The paper's recipe: Adam 1e-4, x0.8 every epoch, batch 16, 20 epochs, no augmentation.
PAPER = Recipe(epochs=20, batch_size=16, step_epochs=1, step_factor=0.8, augmentation=NO_AUGMENTATION)


def landmarks_preset(name: Preset, dataset: str) -> tuple[Liu2018Config, Recipe]:
    """Return the preset's config and recipe for the landmark branch alone."""
    return (Liu2018Config(), PAPER) if name == "paper" else (Liu2018Config(EMBEDDED), BEST)


def full_preset(name: Preset, dataset: str) -> tuple[Liu2018FullConfig, Recipe]:
    """Return the preset's config and recipe for the full network."""
    return (
        (Liu2018FullConfig(), PAPER) if name == "paper" else (Liu2018FullConfig(EMBEDDED, hidden=256), BEST)
    )


LANDMARKS = System("landmarks", Liu2018Config, Liu2018, landmarks_preset)
FULL = System("landmarks", Liu2018FullConfig, Liu2018Full, full_preset)
