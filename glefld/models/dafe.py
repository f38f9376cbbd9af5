"""DAFE: dual attention feature enhancement.

Chen et al., "Improving Fashion Landmark Detection by Dual Attention Feature Enhancement", ICCV Workshops 2019.

From the paper: a feature pyramid with two kinds of attention. Pixel-wise, an attention matrix computed from high-level
features selects the low-level spatial detail to reuse. Channel-wise, long-range relations between channels re-weight
the important features. The details are not known, so there are two forms of each:

- ``pixel``: ``spatial`` has one weight per position, for all channels of a pyramid of one width. ``elementwise`` has
  one per position and channel, in a pyramid of the backbone's own widths.
- ``channel``: ``affinity`` weighs a channel by the channels that its map resembles. ``se`` is a squeeze-and-excitation
  without the sigmoid.

``spatial`` and ``affinity`` are this project's reading of the paper. ``elementwise`` and ``se`` are second hand, from
reimplementations that do not agree with one another. The default is this project's, since it is the one that has been
measured (docs/experiments.md); ``jobs.compare`` trains both unless told otherwise. Backbone (ResNet-50), heads, hidden
widths, how the layers start and the recipe are this project's in both.
"""

import dataclasses
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator
from torch import Tensor, nn

from glefld.errors import UserError
from glefld.models.backbones import EMBEDDED, STRIDES, Backbone
from glefld.models.blocks import HeatmapHead, conv_norm, upsampled
from glefld.models.heatmap import Codec
from glefld.models.system import Model, Output, Preset, System
from glefld.recipe import BEST, Recipe
from glefld.schema import Labels


def _switch(on: str) -> BeforeValidator:
    """Read what the first checkpoints say of ``pixel`` and ``channel``, which could then only be on or off."""
    return BeforeValidator(lambda value: (on if value else "none") if isinstance(value, bool) else value)


@dataclasses.dataclass(frozen=True)
class DAFEConfig:
    """Options of ``dafe``. UserError for a width that is not a multiple of 8."""

    backbone: str = "resnet50"
    """Network from timm below the feature pyramid, with features at strides 4, 8, 16 and 32."""
    pixel: Annotated[Literal["spatial", "elementwise", "none"], _switch("spatial")] = "spatial"
    """Pixel-wise attention on low-level features. spatial: a weight per position. elementwise: one per position and
    channel, with the backbone's own widths (second hand). none: the levels are added, as in a plain pyramid."""
    channel: Annotated[Literal["affinity", "se", "none"], _switch("affinity")] = "affinity"
    """Channel-wise attention. affinity: by the similarity of the channels' maps. se: squeeze-and-excitation without the
    sigmoid (second hand). none: no such attention."""
    width: int = 256
    """Channels of the feature pyramid and of the head; with --model.pixel elementwise of the head alone."""

    def __post_init__(self) -> None:
        if self.width < 8 or self.width % 8:
            raise UserError(f"--model.width must be a multiple of 8, not {self.width}")


class PlainSum(nn.Module):
    """No pixel-wise attention: up(high) + low."""

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        """high [B, C, h, w], low [B, C, H, W] -> [B, C, H, W]"""
        return upsampled(high, low) + low


class SpatialReuse(nn.Module):
    """Pixel-wise attention: up(high) + A * low, with A = sigmoid(conv(up(high))), [H, W]. This project's equations."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(
            conv_norm(channels, channels // 4), nn.Conv2d(channels // 4, 1, 3, padding=1), nn.Sigmoid()
        )

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        """high [B, C, h, w], low [B, C, H, W] -> [B, C, H, W]"""
        high = upsampled(high, low)
        return high + self.attention(high) * low


class ElementwiseReuse(nn.Module):
    """Pixel-wise attention: transposed(high) + A * low, with A = up(sigmoid(conv1x1(high))), [C, H, W]. Second hand.

    The transposed convolution doubles the sides, with kernels of 4 as everywhere here.
    """

    def __init__(self, c_high: int, c_low: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.Conv2d(c_high, c_low, 1), nn.Sigmoid())
        self.up = nn.ConvTranspose2d(c_high, c_low, 4, stride=2, padding=1)

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        """high [B, D, h, w], low [B, C, H, W] -> [B, C, H, W]"""
        height, width = low.shape[2:]
        attention = F.interpolate(self.attention(high), (height, width), mode="bilinear")
        # A ResNet rounds odd sides up, so the doubled map can be one longer than the lower level's.
        return self.up(high)[..., :height, :width] + attention * low


class ChannelAffinity(nn.Module):
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


class ChannelExcitation(nn.Module):
    """Channel-wise attention: x * conv1x1(relu(conv1x1(mean(x)))), without a sigmoid. Second hand.

    The hidden layer has C, C / 2 or C / 4 channels, depending on the reimplementation; here C / 4. The weights start
    near 1: from the default, near 0, a small DAFE had not learnt eight samples after 300 steps (here after 5).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        last = nn.Conv2d(channels // 4, channels, 1)
        assert last.bias is not None
        nn.init.ones_(last.bias)
        self.excite = nn.Sequential(nn.Conv2d(channels, channels // 4, 1), nn.ReLU(), last)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]"""
        return x * self.excite(x.mean(dim=(2, 3), keepdim=True))


class DAFE(Model):
    """A feature pyramid with both attentions, and one heatmap per landmark at stride 4."""

    features: Backbone
    stride = 4
    codec = Codec("gaussian", width=8, stride=4)

    def __init__(self, config: DAFEConfig, labels: Labels) -> None:
        super().__init__(labels, Backbone(config.backbone, STRIDES))
        own = self.features.channels
        if config.pixel == "elementwise":
            widths = own
            self.lateral = nn.ModuleList(nn.Identity() for _ in own)
            self.reuse = nn.ModuleList(
                ElementwiseReuse(high, low) for high, low in zip(own[1:], own[:-1], strict=True)
            )
            self.smooth = nn.ModuleList(nn.Identity() for _ in own)
        else:
            widths = [config.width] * len(own)
            self.lateral = nn.ModuleList(nn.Conv2d(c, config.width, 1) for c in own)
            self.reuse = nn.ModuleList(
                SpatialReuse(c) if config.pixel == "spatial" else PlainSum() for c in widths[:-1]
            )
            self.smooth = nn.ModuleList(conv_norm(c, c) for c in widths)
        self.enhance = nn.ModuleList(channel_attention(config, c) for c in widths)
        if config.pixel == "elementwise":
            self.enhance[-1] = (
                nn.Identity()
            )  # second hand, attention begins where two levels meet: at stride 16
        self.head = HeatmapHead(widths[0], config.width, self.landmarks)

    def forward(self, images: Tensor) -> Output:
        """[B, 3, H, W] -> heatmaps [B, K, H / 4, W / 4]"""
        levels = [conv(x) for conv, x in zip(self.lateral, self.features(images), strict=True)]
        x = levels[-1]
        for i in reversed(range(len(levels))):
            if i < len(levels) - 1:
                x = self.reuse[i](x, levels[i])
            x = self.enhance[i](self.smooth[i](x))
        return Output(self.head(x))


def channel_attention(config: DAFEConfig, channels: int) -> nn.Module:
    """Return the config's channel-wise attention, [B, C, H, W] -> [B, C, H, W]."""
    if config.channel == "affinity":
        return ChannelAffinity(channels)
    return ChannelExcitation(channels) if config.channel == "se" else nn.Identity()


def preset(name: Preset, dataset: str) -> tuple[DAFEConfig, Recipe]:
    """Return the preset's config and recipe. The paper's schedule is not known; the recipes are this project's."""
    if name == "paper":
        return DAFEConfig(), Recipe(batch_size=32, learning_rate=5e-4, schedule="cosine", weight_decay=0.01)
    return DAFEConfig(EMBEDDED, width=96), BEST


SYSTEM = System("landmarks", DAFEConfig, DAFE, preset, forms=("pixel=elementwise,channel=se",))
