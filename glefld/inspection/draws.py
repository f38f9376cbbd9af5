"""Pictures of a page about a data set: garments before and after augmentation, suspects, and maps of positions."""

import io
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from PIL import Image

from glefld.data.augmentation import NO_AUGMENTATION, Augmentation
from glefld.data.loader import Batch, BatchLoader, InputPipeline
from glefld.data.picture import IMAGENET
from glefld.schema import Labels, LandmarkSet
from glefld.scoring import draw

#: Side of an input, as it is drawn.
INPUT = 224
#: What is shown around a suspect's box, in box sides, and the picture's longer side.
AROUND = 0.12
SIDE = 320
#: A map of positions: cells in each direction, the part of the plane that it shows, in box sides, and pixels a cell.
CELLS = 48
LOW, HIGH = -0.1, 1.1
CELL = 3


def augmented(
    table: pa.Table, labels: Labels, augmentation: Augmentation, seeds: Sequence[Sequence[tuple[int, ...]]]
) -> list[Image.Image]:
    """Return a picture for each row: its input as validation sees it, then one for each draw of augmentation.

    seeds: for each draw, those of the rows, as in training.
    """
    loader = BatchLoader(labels, InputPipeline(INPUT, IMAGENET, table.num_rows))
    columns = [
        _drawn(next(iter(loader.run([table], NO_AUGMENTATION))), labels.landmark_set),
        *(_drawn(next(iter(loader.run([table], augmentation, draw))), labels.landmark_set) for draw in seeds),
    ]
    return [beside(row) for row in zip(*columns, strict=True)]


def _drawn(batch: Batch, landmark_set: LandmarkSet) -> list[Image.Image]:
    mean, std = np.array(IMAGENET.mean), np.array(IMAGENET.std)
    pixels = batch.images.permute(0, 2, 3, 1).numpy() * std + mean
    return [
        draw.overlay(
            image.round().clip(0, 255).astype(np.uint8),
            landmark_set,
            truth=points.numpy(),
            visibility=visibility.numpy(),
            long_side=INPUT,
        )
        for image, points, visibility in zip(pixels, batch.landmarks, batch.visibility, strict=True)
    ]


def beside(pictures: Sequence[Image.Image], gap: int = 4) -> Image.Image:
    """Put pictures side by side."""
    width = sum(picture.width for picture in pictures) + gap * (len(pictures) - 1)
    whole = Image.new("RGB", (width, max(picture.height for picture in pictures)), draw.PAPER)
    x = 0
    for picture in pictures:
        whole.paste(picture, (x, 0))
        x += picture.width + gap
    return whole


def stored(row: dict[str, Any]) -> Image.Image:
    """Return a row's stored picture in small."""
    image = Image.open(io.BytesIO(row["image"]))
    image.draft("RGB", (SIDE, SIDE))
    image.thumbnail((SIDE, SIDE))
    return image.convert("RGB")


def garment(
    row: dict[str, Any], landmark_set: LandmarkSet, predicted: np.ndarray | None = None
) -> Image.Image:
    """Draw a row's garment with its annotation, and a model's answer [K, 2] in photo pixels."""
    image = Image.open(io.BytesIO(row["image"])).convert("RGB")
    crop, box = np.array(row["crop_box"]), np.array(row["box"])
    around = AROUND * (box[2:] - box[:2])
    first = np.maximum(np.floor(box[:2] - around), crop[:2])
    last = np.minimum(np.ceil(box[2:] + around), crop[2:])
    moved = first - crop[:2]
    return draw.overlay(
        image.crop((*moved.astype(int).tolist(), *(last - crop[:2]).astype(int).tolist())),
        landmark_set,
        truth=np.array(row["landmarks"]).reshape(-1, 2) - moved,
        predicted=None if predicted is None else predicted - first,
        visibility=np.array(row["visibility"]),
        long_side=SIDE,
    )


def position_map(points: np.ndarray) -> Image.Image:
    """Draw where points [n, 2] within the box lie: the brighter, the more. The white lines are the box."""
    points = points[~np.isnan(points).any(axis=1)]
    cells = ((points - LOW) / (HIGH - LOW) * CELLS).astype(int)
    inside = ((cells >= 0) & (cells < CELLS)).all(axis=1)
    count = np.zeros((CELLS, CELLS), np.float32)
    np.add.at(count, (cells[inside, 1], cells[inside, 0]), 1)
    # The root, as a few cells hold most of the points.
    level = np.sqrt(count / max(1, count.max()))
    large = cv2.resize((255 * level).astype(np.uint8), None, fx=CELL, fy=CELL, interpolation=cv2.INTER_LINEAR)
    pixels = cv2.applyColorMap(large, cv2.COLORMAP_INFERNO)
    for edge in (0.0, 1.0):
        at = round((edge - LOW) / (HIGH - LOW) * CELLS * CELL)
        pixels[at, ::2] = pixels[::2, at] = 150
    return Image.fromarray(pixels[..., ::-1])
