"""GLE: global-local embedding.

Lee et al., "A Global-Local Embedding Module for Fashion Landmark Detection", ICCV Workshops 2019
(https://arxiv.org/abs/1908.10548).

The network is VGG16 up to conv4_3, a number of modules (in the paper 2 for DeepFashion, 3 for FLD) and Liu & Lu's
landmark branch. A module is a non-local block for global context, followed by two 3x3 convolutions for local context.

This implements the paper, not the released code, whose module discards the output of the non-local block and of the
first convolution. What the paper does not say is from the released code: the batch norm after the non-local block's w,
which eq. 3 lacks, and of the recipe Adam, batch 50, 30 epochs and mirroring.
"""

import dataclasses
from typing import Literal

from torch import Tensor, nn

from glefld.errors import UserError, require_between
from glefld.models.backbones import EMBEDDED, Backbone
from glefld.models.blocks import LandmarkBranch, NonLocal, Products, Pyramid
from glefld.models.system import Model, Output, Preset, System
from glefld.recipe import BEST, Recipe
from glefld.schema import Labels


@dataclasses.dataclass(frozen=True)
class GLEConfig:
    """Options of ``gle``. UserError for fewer than 0 or more than 100 modules, or a width that is no multiple of 4."""

    backbone: str = "vgg16"
    """Network from timm with features at stride 8. The paper has vgg16, up to conv4_3."""
    pyramid: int = 0
    """Channels of a feature pyramid from stride 32 to 8 before the modules. 0: none, as in the paper."""
    modules: int = 2
    """Number of global-local embedding modules. The paper has 2 for DeepFashion and 3 for FLD."""
    start: Literal["random", "identity"] = "random"
    """Initial weights of the modules. random: as in the paper. identity: each module starts close to the identity."""
    width: int = 64
    """Channels of the landmark branch. The paper has 64."""
    residual: bool = False
    """Add what a module computes to its input, at first nothing, whatever --model.start says. Not in the paper."""
    norm: bool = False
    """Batch norm in the landmark branch. Not in the paper."""
    products: Products = "plain"
    """What the non-local blocks' softmax is of. plain: products, as in the paper. scaled: by the root of their number
    of terms. cosine: cosines, with a learned sharpness."""

    def __post_init__(self) -> None:
        require_between("--model.modules", self.modules, 0, 100)
        require_between("--model.pyramid", self.pyramid, 0)
        if self.width < 4 or self.width % 4:
            raise UserError(f"--model.width must be a multiple of 4, not {self.width}")


class GlobalLocalModule(nn.Module):
    """One module: a residual non-local block, then twice 3x3 convolution, batch norm and ReLU.

    Residual, which the paper's is not: relu(x + all of that but the last ReLU).
    """

    def __init__(self, channels: int, products: Products = "plain", residual: bool = False) -> None:
        super().__init__()
        self.residual = residual
        self.non_local = NonLocal(channels, products)
        self.local = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]"""
        y = self.non_local(x)
        return (x + self.local[:-1](y)).relu() if self.residual else self.local(y)

    def start_as_identity(self) -> None:
        """Start close to the identity: zero the non-local term and make the convolutions near copies.

        A residual module starts as the identity itself, of features that are not negative.
        """
        self.non_local.start_as_identity()
        if self.residual:
            last = self.local[-2]
            assert isinstance(last, nn.BatchNorm2d)
            nn.init.zeros_(last.weight)
            return
        for layer in self.local:
            if isinstance(layer, nn.Conv2d):
                noise = layer.weight.detach().clone()
                nn.init.dirac_(layer.weight)
                layer.weight.data.add_(noise, alpha=0.1)  # breaks the symmetry between weights
            elif isinstance(layer, nn.BatchNorm2d):
                nn.init.ones_(layer.bias)  # the ReLU would cut off the lower half of centred features


class GLE(Model):
    """Backbone, modules and landmark branch: one heatmap per landmark, at the input's size."""

    features: Backbone

    def __init__(self, config: GLEConfig, labels: Labels) -> None:
        super().__init__(labels, Backbone(config.backbone, (8, 16, 32) if config.pyramid else (8,)))
        channels = config.pyramid or self.features.channels[0]
        self.pyramid = Pyramid(self.features.channels, channels) if config.pyramid else None
        modules = [
            GlobalLocalModule(channels, config.products, config.residual) for _ in range(config.modules)
        ]
        self.embedding = nn.Sequential(*modules)
        self.branch = LandmarkBranch(channels, self.landmarks, config.width, config.norm)
        if config.start == "identity" or config.residual:
            for module in modules:
                module.start_as_identity()

    def forward(self, images: Tensor) -> Output:
        """[B, 3, H, W] -> heatmaps [B, K, H, W]"""
        features = self.features(images)
        x = features[0] if self.pyramid is None else self.pyramid(features)
        return Output(self.branch(self.embedding(x)))


def preset(name: Preset, dataset: str) -> tuple[GLEConfig, Recipe]:
    """Return the preset's config and recipe for a data set.

    The recipe of ``paper`` is ``Recipe``'s defaults. Mirroring is the released code's, which leaves it out for FLD and
    does not swap left and right landmarks; this one mirrors every data set and swaps them. ``best`` has what made the
    modules harm least (docs/experiments.md): a norm in the branch, scaled products, and modules that add.
    """
    modules = 3 if dataset == "fld" else 2  # as in the paper
    if name == "paper":
        return GLEConfig(modules=modules), Recipe()
    best = GLEConfig(EMBEDDED, pyramid=96, modules=modules, residual=True, norm=True, products="scaled")
    return best, BEST


SYSTEM = System("landmarks", GLEConfig, GLE, preset)
