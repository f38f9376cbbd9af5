"""GLE: a global-local embedding module for fashion landmark detection (Lee et al. 2019).

VGG16 to conv4_3, k modules (2 for DeepFashion, 3 for FLD in the paper), and Liu & Lu's landmark branch. A module is a
non-local block, which relates every position to every other, and two 3x3 convolutions, which put that back in place.

This is the paper. The code released with it differs: its module drops the non-local output and the first convolution.
One thing is the released code's: the batch norm after the non-local block's w, which eq. 3 does not show.
"""

import dataclasses
from typing import Literal

from torch import Tensor, nn

from glefld.errors import UserError
from glefld.models.backbones import Stride8, load_features, stride8
from glefld.models.blocks import LandmarkBranch, NonLocal
from glefld.models.system import Model, Output, Preset, System
from glefld.recipe import SMALL, Recipe
from glefld.schema import Labels


@dataclasses.dataclass(frozen=True)
class GLEConfig:
    backbone: Stride8 = "vgg16"
    """Features at stride 8: vgg16 to conv4_3 as in the paper, a narrow one for small machines, or resnet18's."""
    modules: int = 2
    """Global-local embedding modules: the paper's 2 for DeepFashion, 3 for FLD; 0 leaves them out."""
    start: Literal["random", "identity"] = "random"
    """How the modules start: from random weights, or so that each at first passes its input on (ours)."""
    width: int = 64
    """Width of the landmark branch; the paper's is 64."""

    def __post_init__(self) -> None:
        if self.modules < 0:
            raise UserError(f"--model.modules must be 0 or more, not {self.modules}")
        if self.width < 4 or self.width % 4:
            raise UserError(f"--model.width must be a multiple of 4, not {self.width}")


class GlobalLocalModule(nn.Module):
    """One module: non-local block with residual, then two of {3x3 convolution, batch norm, ReLU}."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.non_local = NonLocal(channels)
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
        return self.local(self.non_local(x))

    def start_as_identity(self) -> None:
        """Silence the non-local term and let the convolutions copy, so that depth costs nothing at first."""
        self.non_local.start_as_identity()
        for layer in self.local:
            if isinstance(layer, nn.Conv2d):
                noise = layer.weight.detach().clone()
                nn.init.dirac_(layer.weight)
                layer.weight.data.add_(noise, alpha=0.1)  # equal weights would stay alike
            elif isinstance(layer, nn.BatchNorm2d):
                nn.init.ones_(layer.bias)  # centred features would lose their lower half in the ReLU


class GLE(Model):
    """The whole network: one heatmap a landmark, at the input's size."""

    def __init__(self, config: GLEConfig, labels: Labels) -> None:
        super().__init__(labels)
        self.features, channels = stride8(config.backbone)
        self.embedding = nn.Sequential(*(GlobalLocalModule(channels) for _ in range(config.modules)))
        self.branch = LandmarkBranch(channels, self.landmarks, config.width)
        if config.start == "identity":
            for module in self.embedding.children():
                assert isinstance(module, GlobalLocalModule)
                module.start_as_identity()

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        load_features(self.features, state)

    def forward(self, images: Tensor) -> Output:
        """[B, 3, H, W] -> heatmaps [B, K, H, W]"""
        return Output(self.branch(self.embedding(self.features(images))))


def preset(name: Preset, dataset: str) -> tuple[GLEConfig, Recipe]:
    """The paper names only the mirror image as augmentation; its released code does not swap left and right."""
    modules = 3 if dataset == "fld" else 2  # the paper's choice
    if name == "paper":
        return GLEConfig(modules=modules), Recipe()
    return GLEConfig(backbone="vgg-small", modules=modules, start="identity"), SMALL


SYSTEM = System("landmarks", GLEConfig, GLE, preset)
