"""DAFE: dual attention feature enhancement.

Chen et al., "Improving Fashion Landmark Detection by Dual Attention Feature Enhancement", ICCV Workshops 2019.

From the paper: a feature pyramid with two kinds of attention. Pixel-wise, an attention matrix computed from high-level
features selects the low-level spatial detail to reuse. Channel-wise, long-range relations between channels re-weight
the important features. The details are not known, so these are this project's: the backbone (ResNet-50), the equations
of both attentions, heads, widths and recipe.
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glefld.errors import UserError
from glefld.models.backbones import ResNet, ResNetFeatures, load_features
from glefld.models.blocks import HeatmapHead, conv_norm
from glefld.models.heatmap import Codec
from glefld.models.system import Model, Output, Preset, System
from glefld.recipe import SMALL, Recipe
from glefld.schema import Labels


@dataclasses.dataclass(frozen=True)
class DAFEConfig:
    """Options of ``dafe``. UserError for a width that is not a multiple of 8."""

    backbone: ResNet = "resnet50"
    """Backbone of the feature pyramid."""
    pixel: bool = True
    """Pixel-wise attention on low-level features. Without it the levels are added, as in a plain pyramid."""
    channel: bool = True
    """Channel-wise attention."""
    width: int = 256
    """Channels of the feature pyramid."""

    def __post_init__(self) -> None:
        if self.width < 8 or self.width % 8:
            raise UserError(f"--model.width must be a multiple of 8, not {self.width}")


class PixelReuse(nn.Module):
    """Pixel-wise attention: up(high) + A * low, with A = sigmoid(conv(up(high))), [H, W]. This project's equations."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(
            conv_norm(channels, channels // 4), nn.Conv2d(channels // 4, 1, 3, padding=1), nn.Sigmoid()
        )

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        """high and low [B, C, H, W], high already resized to low's size -> [B, C, H, W]"""
        return high + self.attention(high) * low


class ChannelEnhancement(nn.Module):
    """Channel-wise attention: x * (1 + w), with w [C] from each channel's mean and its related channels' means.

    The relation of two channels is the cosine similarity of their maps, followed by a softmax over channels with a
    learned sharpness. A channel's own mean and the weighted mean of the related ones then go through an excitation as
    in squeeze-and-excitation (Hu et al., CVPR 2018, https://arxiv.org/abs/1709.01507). This project's equations.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(5.0))
        self.excite = nn.Sequential(
            nn.Linear(2 * channels, channels // 4),
            nn.ReLU(),
            nn.Linear(channels // 4, channels),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]"""
        maps = F.normalize(x.flatten(2), dim=2)
        relation = (self.sharpness * maps @ maps.transpose(1, 2)).softmax(dim=2)  # [B, C, C]
        mean = x.mean(dim=(2, 3))
        related = (relation @ mean[..., None].to(relation.dtype))[..., 0]
        weight = self.excite(torch.cat([mean, related], dim=1))
        return x * (1 + weight[..., None, None])


class DAFE(Model):
    """A feature pyramid with both attentions, and one heatmap per landmark at stride 4."""

    stride = 4
    codec = Codec("gaussian", width=8, stride=4)

    def __init__(self, config: DAFEConfig, labels: Labels) -> None:
        super().__init__(labels)
        self.features = ResNetFeatures(config.backbone)
        c_in = self.features.channels
        self.lateral = nn.ModuleList(nn.Conv2d(c, config.width, 1) for c in c_in)
        self.reuse = nn.ModuleList(PixelReuse(config.width) for _ in c_in[:-1]) if config.pixel else None
        self.smooth = nn.ModuleList(conv_norm(config.width, config.width) for _ in c_in)
        self.enhance = (
            nn.ModuleList(ChannelEnhancement(config.width) for _ in c_in) if config.channel else None
        )
        self.head = HeatmapHead(config.width, config.width, self.landmarks)

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        load_features(self.features, state)

    def forward(self, images: Tensor) -> Output:
        """[B, 3, H, W] -> heatmaps [B, K, H / 4, W / 4]"""
        levels = [conv(x) for conv, x in zip(self.lateral, self.features.stages(images), strict=True)]
        x = levels[-1]
        for i in reversed(range(len(levels))):
            if i < len(levels) - 1:
                high = F.interpolate(x, levels[i].shape[2:], mode="bilinear")
                x = self.reuse[i](high, levels[i]) if self.reuse is not None else high + levels[i]
            x = self.smooth[i](x)
            if self.enhance is not None:
                x = self.enhance[i](x)
        return Output(self.head(x))


def preset(name: Preset, dataset: str) -> tuple[DAFEConfig, Recipe]:
    """Return the preset's config and recipe. The paper's schedule is not known; the recipes are this project's."""
    if name == "paper":
        return DAFEConfig(), Recipe(batch_size=32, learning_rate=5e-4, schedule="cosine", weight_decay=0.01)
    return DAFEConfig("resnet18", width=64), SMALL


SYSTEM = System("landmarks", DAFEConfig, DAFE, preset)
