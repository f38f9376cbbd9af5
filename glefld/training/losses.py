"""The loss of any system: the sum of the parts whose outputs it has, weighted by its objective."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from glefld.data.loader import Batch
from glefld.models import heatmap
from glefld.models.system import Model, Output
from glefld.recipe import Recipe

#: Weights of "no" and "yes" in the attributes' cross entropy (Liu & Lu 2018): most attributes are absent.
ATTRIBUTE_WEIGHTS = (0.1, 1.0)


def total_loss(model: Model, output: Output, batch: Batch, recipe: Recipe, rows: int, world: int) -> Tensor:
    """A rank's part of the loss of a global batch of ``rows``, a scalar: the parts of all ranks add up to it.

    Parts: heatmaps (``heatmap.loss``), classes (mean cross entropy over the rows, unknown ones adding nothing),
    attributes (mean of the two-way cross entropy, weighted by ``ATTRIBUTE_WEIGHTS``, over the known ones).
    """
    device = batch.images.device
    parts = []
    if output.heatmaps is not None:
        weight = batch.weight(recipe.landmarks)
        part = heatmap.loss(output.heatmaps, batch.landmarks, weight, model.codec, rows)
        parts.append(model.objective.landmarks * part)
        if output.coarse is not None:
            part = heatmap.loss(output.coarse, batch.landmarks, weight, model.coarse_codec, rows)
            parts.append(model.objective.coarse * part)
    if output.classes is not None:
        target = batch.truth.label(model.label, model.labels).to(device, non_blocking=True)
        part = F.cross_entropy(output.classes.float(), target, ignore_index=-1, reduction="sum") / rows
        parts.append(model.objective.classes * part)
    if output.attributes is not None:
        attributes = batch.truth.attributes.to(device, non_blocking=True)
        parts.append(model.objective.attributes * attribute_loss(output.attributes, attributes, world))
    return torch.stack(parts).sum()


def attribute_loss(logits: Tensor, target: Tensor, world: int) -> Tensor:
    """Weighted cross entropy of [B, A, 2] logits for [B, A] targets (1, 0, NaN unknown), a rank's part of the mean.

    The mean divides by the weights' sum over all ranks, as one worker with the whole batch would.
    """
    known = ~target.isnan()
    yes = target.nan_to_num()
    no_weight, yes_weight = ATTRIBUTE_WEIGHTS
    weight = torch.where(yes == 1, yes_weight, no_weight) * known
    error = F.cross_entropy(logits.float().flatten(0, 1), yes.long().flatten(), reduction="none")
    total = weight.sum()
    if world > 1:
        dist.all_reduce(total)
    return (weight.flatten() * error).sum() / total.clamp(min=1e-6)
