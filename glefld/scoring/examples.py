"""Example pictures with predictions and ground truth."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from glefld.data.augmentation import NO_AUGMENTATION
from glefld.data.loader import Batch, BatchLoader
from glefld.data.reader import SplitReader
from glefld.data.truth import Truth
from glefld.models.system import Model, Output
from glefld.schema import Labels
from glefld.scoring import draw
from glefld.scoring.evaluation import EVAL_BATCH, found_boxes, predicted_points, run_model
from glefld.scoring.metrics import Counters


class Example(NamedTuple):
    """A row's picture with what was predicted and what is true."""

    picture: Image.Image
    sample_id: str
    source_uri: str
    words: str
    """Its error, or what a classifier says; empty for a detector."""


def examples(
    model: Model, rows: SplitReader, loader: BatchLoader, number: int, mirror: bool = False
) -> list[tuple[Image.Image, str]]:
    """Return captioned pictures with predictions and ground truth of up to ``EVAL_BATCH`` rows across the split.

    mirror: average each prediction with that for the mirror image.
    """
    chosen = np.unique(np.linspace(0, rows.rows - 1, min(number, EVAL_BATCH)).astype(np.int64))
    return [
        (one.picture, "  ".join(filter(None, (one.sample_id.rsplit("/", 1)[-1], one.words))))
        for one in draw_rows(model, rows, loader, chosen, mirror)
    ]


@torch.no_grad()
def draw_rows(
    model: Model, rows: SplitReader, loader: BatchLoader, chosen: np.ndarray, mirror: bool = False
) -> list[Example]:
    """Draw the rows of these numbers, at most ``EVAL_BATCH`` different ones; in their order."""
    (table,) = rows.read([np.sort(chosen)])
    (batch,) = loader.run([table], NO_AUGMENTATION)
    output = run_model(model.eval(), batch, mirror)
    pictures = [Image.open(io.BytesIO(data)) for data in table["image"].to_pylist()]
    if output.boxes is not None:
        drawn = [(picture, "") for picture in _boxed(model, output.boxes, batch, pictures)]
    elif output.heatmaps is not None:
        crops = table["crop_box"].to_pylist()
        drawn = _landmarks(model, output.heatmaps, batch, pictures, crops, loader.labels)
    else:
        words = _classified(model, output, batch)
        drawn = [(picture.convert("RGB"), told) for picture, told in zip(pictures, words, strict=True)]
    ids, uris = table["sample_id"].to_pylist(), table["source_uri"].to_pylist()
    found = [
        Example(picture, id_, uri, told) for (picture, told), id_, uri in zip(drawn, ids, uris, strict=True)
    ]
    return [found[place] for place in np.argsort(np.argsort(chosen))]


def _landmarks(
    model: Model,
    heatmaps: Tensor,
    batch: Batch,
    pictures: Sequence[Image.Image],
    crops: Sequence[Sequence[float]],
    labels: Labels,
) -> list[tuple[Image.Image, str]]:
    """Draw each garment's predicted and true landmarks, and tell its NE."""
    predicted, _ = predicted_points(model, heatmaps, batch)
    tiles = []
    for i, (picture, crop) in enumerate(zip(pictures, crops, strict=True)):
        counters = Counters(labels)
        counters.add_landmarks(predicted[i : i + 1], Truth(*(field[i : i + 1] for field in batch.truth)))
        ne = counters.report().ne
        stored = np.array(crop[:2])
        overlay = draw.overlay(
            picture,
            labels.landmark_set,
            predicted=predicted[i].numpy() - stored,
            truth=batch.truth.points[i].numpy() - stored,
            visibility=batch.truth.visibility[i].numpy(),
        )
        tiles.append((overlay, f"NE {ne:.3f}" if ne is not None else ""))
    return tiles


def _boxed(model: Model, boxes: Tensor, batch: Batch, pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Draw each photo's boxes of at least the score that garments have, and the true ones."""
    assert batch.garments is not None
    assert model.least_score is not None
    result = []
    for picture, found, truth in zip(
        pictures, found_boxes(model, boxes, batch), batch.garments.in_photo, strict=True
    ):
        best = found.best(model.least_score)
        result.append(draw.boxes(picture, best.boxes.numpy(), best.score.numpy(), truth.numpy()))
    return result


def _classified(model: Model, output: Output, batch: Batch) -> list[str]:
    """Return each row's predicted label as text, with the true one if it differs."""
    if output.classes is not None:
        names = model.labels.classes(model.label)
        target = batch.truth.label(model.label, model.labels).tolist()
        found = output.classes.argmax(dim=1).tolist()
        return [
            names[f] if f == t or t < 0 else f"{names[f]}, not {names[t]}"
            for f, t in zip(found, target, strict=True)
        ]
    assert output.attributes is not None
    chosen = output.attributes.argmax(dim=2)
    return [
        ", ".join(model.labels.attributes[i].name for i in row.nonzero().flatten().tolist()) for row in chosen
    ]
