"""The interface of a system: its module, output, heatmap targets, loss weights and presets."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from glefld.data.picture import IMAGENET, Normalisation
from glefld.errors import UserError
from glefld.models.backbones import Backbone
from glefld.models.calibration import Calibration
from glefld.models.distribution import Distribution
from glefld.models.heatmap import Codec
from glefld.recipe import Recipe
from glefld.schema import MOST_GARMENTS, ClassLabel, Labels

Preset = Literal["paper", "best"]
Task = Literal["landmarks", "classify", "detect"]


class Output(NamedTuple):
    """A system's output for B inputs, None for heads it does not have.

    K landmarks, T garment types of the landmark set, C classes, A attributes, P places where boxes may be.
    """

    heatmaps: Tensor | None = None  # [B, K, H, W]
    coarse: Tensor | None = None  # [B, K, h, w], an intermediate prediction, also supervised
    visibility: Tensor | None = None  # [B, K, 3] logits of ``truth.SEEN``
    classes: Tensor | None = None  # [B, C] logits
    attributes: Tensor | None = None  # [B, A, 2] logits of no and yes
    garment_type: Tensor | None = None  # [B, T] logits, of a system that also has heatmaps
    boxes: Tensor | None = None  # [B, P, ...], which ``Model.find_boxes`` decodes


class Found(NamedTuple):
    """The n boxes that were found in one photo, best first."""

    boxes: Tensor  # [n, 4] x1 y1 x2 y2
    score: Tensor  # [n]

    def in_photo(self, affine: Tensor, bounds: Sequence[float]) -> "Found":
        """Move boxes of the input to the photo by an affine map [2, 3] that does not turn, on the host, in float64.

        They are clipped to bounds, x1 y1 x2 y2; what is all outside is left out.
        """
        corners = self.boxes.cpu().double().view(-1, 2, 2) @ affine[:, :2].T + affine[:, 2]
        low, high = torch.tensor(bounds, dtype=torch.float64).view(2, 2)
        corners = corners.clamp(low, high)
        kept = (corners[:, 1] > corners[:, 0]).all(dim=1)
        return Found(corners.flatten(1)[kept], self.score.cpu()[kept])

    def best(self, least_score: float, most: int = MOST_GARMENTS) -> "Found":
        """Return those with at least this score, and of these the best ones, so many at most."""
        kept = (self.score >= least_score).nonzero()[:most, 0]
        return Found(self.boxes[kept], self.score[kept])


@dataclasses.dataclass(frozen=True)
class Objective:
    """The weight of each term of the loss. Terms whose output is None are left out."""

    landmarks: float = 1.0
    coarse: float = 1.0
    visibility: float = 1.0
    classes: float = 1.0
    attributes: float = 1.0
    garment_type: float = 1.0
    boxes: float = 1.0


class Guidance(NamedTuple):
    """A classifier whose attention guides another system."""

    backbone: str
    label: str
    """What it classifies."""


class Model(nn.Module):
    """Base class: normalised RGB images [B, 3, S, S], S a multiple of ``stride``, to an ``Output``."""

    stride: int = 8
    codec: Codec | Distribution = Codec()
    coarse_codec: Codec | Distribution = Codec()
    objective: Objective = Objective()
    label: ClassLabel = "category"
    """The label that ``Output.classes`` predicts."""
    detects: bool = False
    """Whether it sees whole photos and finds the garments in them."""

    def __init__(self, labels: Labels, features: Backbone | None = None) -> None:
        super().__init__()
        self.labels = labels
        self.features = features
        self.normalisation: Normalisation = IMAGENET if features is None else features.normalisation
        """What the images are normalised with."""
        self.calibration = Calibration()
        """What makes the scores of landmarks or boxes probabilities; training fits it on the val split."""
        self.least_score: float | None = None
        """Boxes of a lower score are no garments; training chooses it on the val split. None: not a detector."""

    @property
    def landmarks(self) -> int:
        """K, the number of landmarks."""
        return len(self.labels.landmark_set)

    def both_ways(self, images: Tensor) -> Output:
        """[B, 3, S, S] -> the mean of the outputs for the images and for their mirror images, mirrored back"""
        mirror = list(self.labels.landmark_set.mirror)
        assert not self.detects, "places of mirror images are not those of the images"
        own, other = self(images), self(images.flip(-1).contiguous(memory_format=torch.channels_last))

        def mean(name: str, value: Tensor | None) -> Tensor | None:
            if value is None:
                return None
            turned = getattr(other, name)
            if name in ("heatmaps", "coarse"):
                turned = turned.flip(-1)
            by_landmark = name in ("heatmaps", "coarse", "visibility")
            return (value + (turned[:, mirror] if by_landmark else turned)) / 2

        return Output(**{name: mean(name, value) for name, value in own._asdict().items()})

    def box_loss(self, output: Tensor, boxes: Sequence[Tensor], size: int) -> tuple[Tensor, Tensor]:
        """Return the loss of ``Output.boxes`` as a sum, and the number that it is to be divided by, two scalars.

        boxes: of each image, the garments [G, 4] x1 y1 x2 y2 in input pixels; size: side of the input.
        """
        raise AssertionError("this system finds no boxes")

    def find_boxes(self, output: Tensor, size: int) -> list[Found]:
        """Return the boxes of each image in input pixels, with calibrated scores, from ``Output.boxes``."""
        raise AssertionError("this system finds no boxes")

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Load the backbone's weights, as ``Backbone.load`` does; UserError if they do not fit."""
        assert self.features is not None
        self.features.load(state)

    def load_classifier(self, classifier: "Model") -> None:
        """Copy the classifier whose attention guides this system; UserError if it does not fit."""
        raise UserError("this system is not guided by a classifier: leave --classifier out")

    @property
    def guided_by(self) -> Guidance | None:
        """The classifier that training needs, or None if it needs none."""
        return None


class System(NamedTuple):
    """An entry of ``MODELS``."""

    task: Task
    config: type[Any]
    module: Callable[[Any, Labels], Model]
    preset: Callable[[Preset, str], tuple[Any, Recipe]]
    """Returns the config and recipe of a preset, given the data set's name."""
    forms: tuple[str, ...] = ()
    """Other forms that a comparison trains by default, each as ``OPTION=VALUE,...`` of the config."""
