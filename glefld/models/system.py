"""What every system is: a module with an output, targets and an objective, and how it is trained."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from glefld.errors import UserError
from glefld.models.heatmap import Codec
from glefld.recipe import Recipe
from glefld.schema import ClassLabel, Labels

Preset = Literal["paper", "small"]
Task = Literal["landmarks", "classify"]


class Output(NamedTuple):
    """What a system says of B inputs; None where it has no such head. K landmarks, C classes, A attributes."""

    heatmaps: Tensor | None = None  # [B, K, H, W]
    coarse: Tensor | None = None  # [B, K, H, W], an earlier answer that is supervised too
    classes: Tensor | None = None  # [B, C] logits
    attributes: Tensor | None = None  # [B, A, 2] logits: no, yes


@dataclasses.dataclass(frozen=True)
class Objective:
    """The weight of each part of the loss; a part without the output it needs is left out."""

    landmarks: float = 1.0
    coarse: float = 1.0
    classes: float = 1.0
    attributes: float = 1.0


class Model(nn.Module):
    """Base of the systems: images [B, 3, S, S], normalised RGB, to an ``Output``. S is a multiple of ``stride``."""

    stride: int = 8
    codec: Codec = Codec()
    coarse_codec: Codec = Codec()
    objective: Objective = Objective()
    label: ClassLabel = "category"
    """What ``Output.classes`` tells apart."""

    def __init__(self, labels: Labels) -> None:
        super().__init__()
        self.labels = labels

    @property
    def landmarks(self) -> int:
        """K"""
        return len(self.labels.landmark_set)

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Take ImageNet weights from a torchvision checkpoint. UserError if they do not fit."""
        raise UserError("this system has no backbone that takes --weights")

    def load_classifier(self, classifier: "Model") -> None:
        """Take the classifier whose attention guides this system. UserError if it does not fit."""
        raise UserError("this system is not guided by a classifier: leave --classifier out")

    @property
    def guided_by(self) -> str | None:
        """What the classifier that training must be given tells apart; None if it needs none."""
        return None


class System(NamedTuple):
    """A line of ``MODELS``."""

    task: Task
    config: type[Any]
    module: Callable[[Any, Labels], Model]
    preset: Callable[[Preset, str], tuple[Any, Recipe]]
    """The config and recipe of a preset for a data set's name."""
