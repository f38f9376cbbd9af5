"""SANL: spatial-aware non-local attention.

Li et al., "Spatial-Aware Non-Local Attention for Fashion Landmark Detection", ICME 2019
(https://arxiv.org/abs/1903.04104).

The network is a feature pyramid on a ResNet, with a non-local block on each of its outputs, at strides 4, 8, 16 and 32.
The blocks are guided by the Grad-CAM of a ResNet-18 trained to classify the garments. CoarseNet predicts wide heatmaps,
and FineNet refines them with narrow ones.

From the paper: the pyramid, the four blocks, one at each stride, Grad-CAM at the matching stride, coarse to fine. The
details are not known, so these are this project's: the blocks' place on the pyramid's outputs (the paper has them "in
the backbone"), how attention enters a block (``blocks.NonLocal``), the peaks' widths (sigma 16 and 8 pixels at 224),
channels, heads and recipe.
"""

import dataclasses
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glefld.errors import UserError
from glefld.models.backbones import EMBEDDED, STRIDES, Backbone
from glefld.models.blocks import HeatmapHead, Merge, NonLocal, Products
from glefld.models.classifier import Guide, Label
from glefld.models.heatmap import Codec
from glefld.models.system import Guidance, Model, Output, Preset, System
from glefld.recipe import BEST, Recipe
from glefld.schema import Labels

COARSE = Codec("gaussian", width=16, stride=4)
FINE = Codec("gaussian", width=8, stride=4)


@dataclasses.dataclass(frozen=True)
class SANLConfig:
    """Options of ``sanl``. UserError for an odd width."""

    backbone: str = "resnet101"
    """Network from timm below the feature pyramid, with features at strides 4, 8, 16 and 32. The paper has
    resnet101."""
    attention: Literal["none", "nonlocal", "top", "matching"] = "matching"
    """none: no blocks. nonlocal: blocks without maps. top: stride 32's map for all. matching: each stride's own map."""
    refine: bool = True
    """Refine CoarseNet's heatmaps with FineNet. Without it CoarseNet's heatmaps are the output."""
    guide: str = "resnet18"
    """Backbone of the classifier whose attention guides the blocks. The paper has resnet18."""
    label: Label | None = None
    """Label that --classifier was trained on. Default: category if the data set has it, else attributes, else type."""
    width: int = 256
    """Channels of the feature pyramid."""
    products: Products = "plain"
    """What the blocks' softmax is of. plain: products. scaled: by the root of their number of terms. cosine: cosines,
    with a learned sharpness."""

    def __post_init__(self) -> None:
        if self.width < 2 or self.width % 2:
            raise UserError(f"--model.width must be a multiple of 2, not {self.width}")


class SANL(Model):
    """Feature pyramid, guided non-local blocks, CoarseNet and FineNet; heatmaps at stride 4, both supervised."""

    features: Backbone
    stride = 4
    coarse_codec = COARSE

    def __init__(self, config: SANLConfig, labels: Labels) -> None:
        super().__init__(labels, Backbone(config.backbone, STRIDES))
        from torchvision.ops import FeaturePyramidNetwork

        self.attention = config.attention
        self.codec = FINE if config.refine else COARSE
        self.pyramid = FeaturePyramidNetwork(self.features.channels, config.width)
        levels = len(self.features.channels)
        self.blocks = nn.ModuleList(
            NonLocal(config.width, config.products)
            for _ in range(levels if config.attention != "none" else 0)
        )
        for block in self.blocks:
            assert isinstance(block, NonLocal)
            block.start_as_identity()
        self.merge = Merge(levels, config.width)
        self.coarse = HeatmapHead(config.width, config.width, self.landmarks)
        self.fine = (
            HeatmapHead(config.width + self.landmarks, config.width, self.landmarks)
            if config.refine
            else None
        )
        guided = config.attention in ("top", "matching")
        self.guide = Guide(config.guide, config.label, labels, self.normalisation) if guided else None

    @property
    def guided_by(self) -> Guidance | None:
        return self.guide.needed if self.guide is not None else None

    def load_classifier(self, classifier: Model) -> None:
        if self.guide is None:
            return super().load_classifier(classifier)
        return self.guide.load(classifier)

    def forward(self, images: Tensor) -> Output:
        """[B, 3, H, W] -> heatmaps and coarse heatmaps, each [B, K, H / 4, W / 4]"""
        stages = self.features(images)
        levels = list(self.pyramid({str(i): stage for i, stage in enumerate(stages)}).values())
        if self.blocks:
            maps = self.look(images, levels)
            levels = [block(x, m) for block, x, m in zip(self.blocks, levels, maps, strict=True)]
        merged = self.merge(levels)
        coarse = self.coarse(merged)
        if self.fine is None:
            return Output(coarse)
        return Output(self.fine(torch.cat([merged, coarse], dim=1)), coarse=coarse)

    def look(self, images: Tensor, levels: list[Tensor]) -> list[Tensor | None]:
        """Return the attention map [B, 1, h, w] of each level, or None for plain non-local blocks."""
        if self.guide is None:
            return [None] * len(levels)
        maps: list[Tensor] = self.guide(images)
        if self.attention == "matching":
            return list(maps)
        return [F.interpolate(maps[-1], x.shape[2:], mode="bilinear") for x in levels]


def preset(name: Preset, dataset: str) -> tuple[SANLConfig, Recipe]:
    """Return the preset's config and recipe. The paper's schedule is not known; the recipes are this project's."""
    if name == "paper":
        return SANLConfig(), Recipe(batch_size=32, learning_rate=5e-4, schedule="cosine", weight_decay=0.01)
    return SANLConfig(EMBEDDED, guide=EMBEDDED, width=96), BEST


SYSTEM = System("landmarks", SANLConfig, SANL, preset)
