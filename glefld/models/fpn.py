"""FPN: a pretrained network of timm's, a feature pyramid, and distributions, coarse to fine.

This project's own. The feature pyramid is that of Lin et al., "Feature Pyramid Networks for Object Detection", CVPR
2017 (https://arxiv.org/abs/1612.03144). That its levels are added up at the finest one's size is from Kirillov et al.,
"Panoptic Feature Pyramid Networks", CVPR 2019 (https://arxiv.org/abs/1901.02446), and that a second head refines what a
first one has found from SANL (``sanl``).

The pyramid ends at stride 8, where layers cost a quarter of what they would at stride 4: what a larger input shows is
worth far more (docs/experiments.md). The last layer predicts the 2 x 2 map pixels of each position, the sub-pixel
convolution of Shi et al., CVPR 2016 (https://arxiv.org/abs/1609.05158), so that the maps have stride 4 at hardly any
cost.
"""

import dataclasses

import torch
from torch import Tensor, nn

from glefld.errors import require_between
from glefld.models.backbones import EMBEDDED, Backbone
from glefld.models.blocks import GarmentTypeHead, HeatmapHead, Merge, TopDown, VisibilityHead
from glefld.models.distribution import Distribution
from glefld.models.system import Model, Output, Preset, System
from glefld.recipe import BEST, Recipe
from glefld.schema import Labels

#: Strides of the pyramid's levels.
STRIDES = (8, 16, 32)
#: Map pixels to a position of the finest level, along each side.
UPSCALE = 2
#: How much wider the first head's distributions are than the second one's, as in SANL.
COARSER = 2.0


@dataclasses.dataclass(frozen=True)
class FPNConfig:
    """Options of ``fpn``. UserError for a width below 1 or a sigma below 0.1."""

    backbone: str = EMBEDDED
    """Network from timm with features at strides 8, 16 and 32."""
    width: int = 96
    """Channels of the pyramid and the heads."""
    refine: bool = True
    """Refine what a first head has found, in wider distributions, with a second one. Without it one head is all."""
    sigma: float = 8.0
    """Standard deviation of the distributions that are aimed at, in pixels of a 224-pixel input."""

    def __post_init__(self) -> None:
        require_between("--model.width", self.width, 1)
        require_between("--model.sigma", self.sigma, 0.1)


class FPN(Model):
    """Backbone, feature pyramid and one distribution per landmark, at stride 4; the first head's are at stride 8.

    It also tells what is to be seen of each landmark and, where the landmark set has several, the garment's type.
    """

    features: Backbone
    stride = STRIDES[0]

    def __init__(self, config: FPNConfig, labels: Labels) -> None:
        super().__init__(labels, Backbone(config.backbone, STRIDES))
        own, width = self.features.channels, config.width
        self.codec = Distribution(config.sigma, self.stride // UPSCALE)
        self.coarse_codec = Distribution(COARSER * config.sigma, self.stride)
        self.top_down = TopDown(own, width)
        self.merge = Merge(len(own), width)
        self.coarse = HeatmapHead(width, width, self.landmarks, bias=False) if config.refine else None
        seen = width + (self.landmarks if config.refine else 0)
        self.head = HeatmapHead(seen, width, self.landmarks * UPSCALE**2, bias=False)
        self.pixel_shuffle = nn.PixelShuffle(UPSCALE)
        self.visibility = VisibilityHead(width, own[-1], self.landmarks)
        types = len(labels.landmark_set.garment_types)
        # Last, so that it draws from the seed after all others.
        self.garment_type = GarmentTypeHead(own[-1], types) if types > 1 else None

    def forward(self, images: Tensor) -> Output:
        """[B, 3, H, W] -> logits [B, K, H / 4, W / 4] and [B, K, H / 8, W / 8], visibility [B, K, 3], type [B, T]

        The coarse logits are None without ``refine``, the type where the landmark set has less than two.
        """
        features = self.features(images)
        x = self.merge(self.top_down(features))
        coarse = self.coarse(x) if self.coarse is not None else None
        pixels = self.head(x if coarse is None else torch.cat([x, by_peak(coarse)], dim=1))
        # A position's probability is that of its map pixels together.
        places = pixels.unflatten(1, (self.landmarks, UPSCALE**2)).logsumexp(dim=2)
        return Output(
            self.pixel_shuffle(pixels),
            coarse=coarse,
            visibility=self.visibility(x, places, features[-1]),
            garment_type=self.garment_type(features[-1]) if self.garment_type is not None else None,
        )


def by_peak(logits: Tensor) -> Tensor:
    """Logits [B, K, H, W] -> the distributions divided by their greatest values, so in [0, 1]"""
    # The peak is a unit here: its gradient would only move it against all else.
    peak = logits.detach().amax(dim=(2, 3), keepdim=True)
    return (logits - peak).exp()


def preset(name: Preset, dataset: str) -> tuple[FPNConfig, Recipe]:
    """Return the config and recipe; there is no paper of this system, so both presets are the same."""
    return FPNConfig(), BEST


SYSTEM = System("landmarks", FPNConfig, FPN, preset)
