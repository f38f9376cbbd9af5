"""FCOS: finds the garments in a whole photo. A backbone, and torchvision's feature pyramid and heads.

The paper is in ``anchors``. There is one class, garment: which landmarks a garment has is the landmark model's answer.
"""

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from glefld.data.augmentation import Augmentation
from glefld.errors import UserError, require_between
from glefld.models.backbones import EMBEDDED, Backbone
from glefld.models.system import Found, Model, Output, Preset, System
from glefld.recipe import Recipe
from glefld.schema import Labels

#: In inputs of 160 to 224 pixels a garment covers hundreds of places of stride 8 to 32; with stride 4 or 64 too,
#: nothing would be left for the levels between.
LEVELS = (8, 16, 32)
#: Channels that are normalised together in torchvision's heads.
GROUP = 32


@dataclasses.dataclass(frozen=True)
class FCOSConfig:
    """Options of ``fcos``. UserError for a width that is not a multiple of 32, or for fewer than one layer."""

    backbone: str = EMBEDDED
    """Network from timm with features at strides 8, 16 and 32."""
    width: int = 64
    """Channels of the pyramid and the heads, a multiple of 32."""
    layers: int = 2
    """Convolutions of each head. The paper has 4."""

    def __post_init__(self) -> None:
        if self.width < GROUP or self.width % GROUP:
            raise UserError(f"--model.width must be a multiple of {GROUP}, not {self.width}")
        require_between("--model.layers", self.layers, 1)


class FCOS(Model):
    """Backbone, feature pyramid and heads for boxes at the strides 8, 16 and 32."""

    features: Backbone
    stride = LEVELS[-1]
    detects = True

    def __init__(self, config: FCOSConfig, labels: Labels) -> None:
        super().__init__(labels, Backbone(config.backbone, LEVELS))
        from glefld.models.anchors import Detector  # torchvision is slow to import

        self.detector = Detector(self.features.channels, LEVELS, config.width, config.layers)

    def forward(self, images: Tensor) -> Output:
        """[B, 3, S, S] -> boxes [B, A, 6]"""
        return Output(boxes=self.detector(self.features(images)))

    def box_loss(self, output: Tensor, boxes: Sequence[Tensor], size: int) -> tuple[Tensor, Tensor]:
        return self.detector.sums(output, boxes, size)

    def find_boxes(self, output: Tensor, size: int) -> list[Found]:
        return [
            found._replace(score=self.calibration(found.score))
            for found in self.detector.decode(output, size)
        ]


def preset(name: Preset, dataset: str) -> tuple[FCOSConfig, Recipe]:
    """Return the config and recipe. The paper's are for 800 pixels and 8 GPUs; both presets are this project's."""
    return FCOSConfig(), Recipe(
        input_size=160,
        epochs=4,
        batch_size=16,
        learning_rate=1e-3,
        backbone_rate=0.5,
        schedule="cosine",
        warmup_epochs=0.3,
        weight_decay=0.01,
        augmentation=Augmentation(rotate=0, scale=0.5, shift=0.1, colour=0.2),
    )


SYSTEM = System("detect", FCOSConfig, FCOS, preset)
