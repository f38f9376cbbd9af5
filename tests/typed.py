"""A model that also tells the garment's type: of two dots, ``both`` has both and ``left`` the left one alone."""

import dataclasses
from typing import Any

import torch

from glefld.models import build_model, checkpoint
from glefld.models.system import Model
from glefld.schema import GarmentType, Labels, LandmarkSet
from tests.dots import SIZE, card

PAIR = LandmarkSet(
    "pair", ("left_dot", "right_dot"), (1, 0), (GarmentType(1, "both", (0, 1)), GarmentType(7, "left", (0,)))
)
LABELS = Labels(PAIR)
CONFIG: dict[str, Any] = {"backbone": "test_resnet", "width": 16}


def network(told: str, labels: Labels = LABELS) -> Model:
    """``fpn`` with random weights, always the same, but for the type that it tells of every garment, with .9."""
    torch.manual_seed(0)
    model = build_model("fpn", CONFIG, labels).eval()
    names = [garment.name for garment in labels.landmark_set.garment_types]
    if len(names) > 1:
        with torch.no_grad():
            last = model.garment_type[-1]
            last.weight.zero_()
            chances = torch.full((len(names),), 0.1 / (len(names) - 1))
            chances[names.index(told)] = 0.9
            last.bias.copy_(chances.log())
            # Both dots are to be seen, whatever is in the photo.
            model.visibility.whole.weight.zero_()
            model.visibility.whole.bias.copy_(torch.tensor([9.0, 0, 0]).repeat(model.landmarks))
    return model


def write_checkpoint(url: str, told: str, labels: Labels = LABELS) -> str:
    """The network as a checkpoint folder; its URL again."""
    model = network(told, labels)
    checkpoint.save(url, model, dataclasses.replace(card("fpn", CONFIG, labels, SIZE, model.normalisation)))
    return url
