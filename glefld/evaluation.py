"""A model over the rows of a split, in fp32: counters of what it got right."""

import numpy as np
import torch
from torch import nn

from glefld import heatmap
from glefld.loader import NO_AUGMENTATION, BatchLoader, to_photo
from glefld.metrics import Counters
from glefld.reader import SplitReader


@torch.inference_mode()
def evaluate(
    model: nn.Module, rows: SplitReader, loader: BatchLoader, r: float, rank: int, world: int, batch_size: int
) -> Counters:
    """Counters of a rank's batches of the split; those of all ranks add up to the split's, each row once.

    Ranks take whole batches in turn, so the same rows share a batch however many ranks there are.
    """
    was_training = model.training
    model.eval()
    counters = Counters(loader.landmark_set)
    batches = [np.arange(i, min(i + batch_size, rows.rows)) for i in range(0, rows.rows, batch_size)][rank::world]
    for batch in loader.run(rows.read(batches), NO_AUGMENTATION):
        predicted, _ = heatmap.decode(model(batch.images.contiguous(memory_format=torch.channels_last)), r)
        counters.update(to_photo(predicted.cpu(), batch.to_photo), *batch.truth)
    model.train(was_training)
    return counters
