"""A model over the rows of a split, in fp32: counters of what it got right, and pictures of it."""

import io

import numpy as np
import torch
from PIL import Image
from torch import nn

from glefld import draw, heatmap
from glefld.loader import NO_AUGMENTATION, Batch, BatchLoader, to_photo
from glefld.metrics import Counters
from glefld.reader import SplitReader

#: Rows of a batch. Fixed, so that the same rows share a batch on any number of workers.
EVAL_BATCH = 32


@torch.no_grad()
def evaluate(
    model: nn.Module, rows: SplitReader, loader: BatchLoader, r: float, rank: int, world: int
) -> Counters:
    """Counters of a rank's batches of the split; those of all ranks add up to the split's, each row once.

    Ranks take whole batches in turn, so a row's prediction does not depend on how many ranks there are.
    """
    was_training = model.training
    model.eval()
    counters = Counters(loader.landmark_set)
    batches = [np.arange(i, min(i + EVAL_BATCH, rows.rows)) for i in range(0, rows.rows, EVAL_BATCH)]
    for batch in loader.run(rows.read(batches[rank::world]), NO_AUGMENTATION):
        counters.update(_predict(model, batch, r), *batch.truth)
    model.train(was_training)
    return counters


@torch.no_grad()
def examples(
    model: nn.Module, rows: SplitReader, loader: BatchLoader, r: float, count: int
) -> list[tuple[Image.Image, str]]:
    """Captioned pictures of predictions beside the truth: ``count`` rows (up to ``EVAL_BATCH``) all over the split."""
    chosen = np.unique(np.linspace(0, rows.rows - 1, min(count, EVAL_BATCH)).astype(np.int64))
    (table,) = rows.read([chosen])
    (batch,) = loader.run([table], NO_AUGMENTATION)
    predicted = _predict(model.eval(), batch, r)
    tiles = []
    for i, row in enumerate(table.to_pylist()):
        counters = Counters(loader.landmark_set)
        counters.update(predicted[i : i + 1], *(field[i : i + 1] for field in batch.truth))
        ne = counters.report().ne
        stored = np.array(row["crop_box"][:2])
        picture = draw.overlay(
            Image.open(io.BytesIO(row["image"])),
            loader.landmark_set,
            predicted=predicted[i].numpy() - stored,
            truth=batch.truth.points[i].numpy() - stored,
            visibility=batch.truth.visibility[i].numpy(),
        )
        name = row["sample_id"].rsplit("/", 1)[-1]
        tiles.append((picture, f"{name}  NE {ne:.3f}" if ne is not None else name))
    return tiles


def _predict(model: nn.Module, batch: Batch, r: float) -> torch.Tensor:
    """[b, K, 2] in the photo's pixels, float64, on the host."""
    # cuDNN's convolutions would round fp32 to TF32 by default, and choose their algorithm by the moment.
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        heatmaps = model(batch.images.contiguous(memory_format=torch.channels_last))
    return to_photo(heatmap.decode(heatmaps, r)[0].cpu(), batch.to_photo)
