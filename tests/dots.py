"""Photos of two dots, and a network made by hand to find them: geometry that is wrong anywhere shows."""

import dataclasses
import io
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn

from glefld.data.picture import IMAGENET, Normalisation
from glefld.models import build_model, checkpoint
from glefld.models.calibration import Calibration
from glefld.models.checkpoint import ModelCard
from glefld.models.system import Model
from glefld.schema import GarmentType, Labels, LandmarkSet

DOTS = LandmarkSet("dots", ("left_dot", "right_dot"), (1, 0), (GarmentType(1, "dots", (0, 1)),))
LABELS = Labels(DOTS)
COLOURS = ((255, 40, 40), (40, 40, 255))
SIZE = 64
CELLS = SIZE // 8  # a side has this many cells, and a dot fills the middle of its own
MODEL = "local"
CONFIG: dict[str, Any] = {"width": 8}
#: The rows and columns of the blurs, at the dilations 2 and 4: together a hill of 13 pixels, highest in the middle.
BLUR = torch.tensor([0.25, 0.5, 0.25])


def random_points(rng: np.random.Generator, box: tuple[float, float, float, float]) -> np.ndarray:
    """Two points [2, 2] in the box (x1 y1 x2 y2), each the centre of another cell."""
    cells = rng.choice(CELLS * CELLS, 2, replace=False)
    place = np.stack([cells % CELLS, cells // CELLS], axis=1)
    return (place + 0.5) / CELLS * (box[2] - box[0], box[3] - box[1]) + box[:2]


def photo(
    points: np.ndarray, width: int, height: int, box: tuple[float, float, float, float] | None = None
) -> Image.Image:
    """Grey, with a coloured dot within its cell of the box (else the photo) on each of the points [n, 2]."""
    x1, y1, x2, y2 = box or (0, 0, width, height)
    rx, ry = (x2 - x1) / CELLS / 4, (y2 - y1) / CELLS / 4
    image = Image.new("RGB", (4 * width, 4 * height), (128, 128, 128))
    draw = ImageDraw.Draw(image)
    for i, (x, y) in enumerate(points):
        corners = np.array([x - rx, y - ry, x + rx, y + ry]) * 4
        draw.ellipse([*corners], fill=COLOURS[i % 2])
    return image.resize((width, height), Image.Resampling.BOX)


def encoded(image: Image.Image, format_: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def network() -> Model:
    """``local`` whose first two channels carry redness and blueness; blurs put each map's peak at its dot's middle."""
    model = build_model(MODEL, CONFIG, LABELS).eval()
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    first_norm = next(layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d))
    with torch.no_grad():
        for layer in convolutions:
            layer.weight.zero_()
            blurs = layer.dilation[0] in (2, 4)
            for i in range(2):
                if blurs:
                    layer.weight[i, i] = torch.outer(BLUR, BLUR)
                else:
                    middle = layer.kernel_size[0] // 2
                    layer.weight[i, i, middle, middle] = 1
        for i, (plus, minus) in enumerate(((0, 2), (2, 0))):
            weight = torch.zeros(3)
            weight[plus], weight[minus] = IMAGENET.std[plus] / 255, -IMAGENET.std[minus] / 255
            convolutions[0].weight[i, :, 1, 1] = weight
            first_norm.bias[i] = (IMAGENET.mean[plus] - IMAGENET.mean[minus]) / 255
        last = convolutions[-1]
        assert last.bias is not None
        last.weight.mul_(6)  # a dot is a seventh of its blurs: so a score is almost 1
        last.bias.zero_()
    return model


def overflowing() -> Model:
    """The same network with weights so large that a dot's heatmaps overflow, but not those of a grey photo."""
    model = network()
    last = [m for m in model.modules() if isinstance(m, nn.Conv2d)][-2:]
    with torch.no_grad():
        for layer in last:
            layer.weight.mul_(1e20)
    return model


def card(
    name: str, config: dict[str, Any], labels: Labels, size: int, normalisation: Normalisation = IMAGENET
) -> ModelCard:
    """What a checkpoint says of a model that no job trained."""
    return ModelCard(
        model=name,
        config=config,
        labels=labels,
        input_size=size,
        normalisation=normalisation,
        calibration=Calibration(),
        least_score=None,
        weights="random",
        dataset=labels.landmark_set.name,
        data_hash="",
        recipe={},
        epoch=1,
        step=1,
        val={},
    )


def write_checkpoint(
    url: str,
    model: Model | None = None,
    calibration: Calibration = Calibration(),  # noqa: B008
) -> str:
    """The network, or one of its kind with other weights, as a checkpoint folder; its URL again."""
    described = dataclasses.replace(card(MODEL, CONFIG, LABELS, SIZE), calibration=calibration)
    checkpoint.save(url, model or network(), described)
    return url
