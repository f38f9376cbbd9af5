"""The loss of every system: a weighted sum with one part for each of its outputs."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from glefld.data.loader import Batch
from glefld.models.system import Model, Output
from glefld.recipe import Recipe

#: Weights of absent and present attributes in the cross entropy (Liu & Lu 2018): most attributes are absent.
ATTRIBUTE_WEIGHTS = (0.1, 1.0)


def total_loss(model: Model, output: Output, batch: Batch, recipe: Recipe, rows: int, world: int) -> Tensor:
    """This rank's part of the loss of a global batch of ``rows``, a scalar. The sum over the ranks is the loss.

    Heatmaps: the codecs' own. Visibility: cross entropy, mean over rows and landmarks. Classes and garment types: cross
    entropy, zero for unknown ones, mean over the rows. Attributes: ``attribute_loss``. Boxes: ``box_loss``. The
    system's ``objective`` weights them.
    """
    device = batch.images.device
    parts = []
    if output.heatmaps is not None:
        weight = batch.weight(recipe.landmarks)
        part = model.codec.loss(output.heatmaps, batch.landmarks, weight, rows)
        parts.append(model.objective.landmarks * part)
        if output.coarse is not None:
            part = model.coarse_codec.loss(output.coarse, batch.landmarks, weight, rows)
            parts.append(model.objective.coarse * part)
    if output.visibility is not None:
        target = batch.seen().to(device, non_blocking=True).flatten()
        part = F.cross_entropy(
            output.visibility.float().flatten(0, 1), target, ignore_index=-1, reduction="sum"
        )
        parts.append(model.objective.visibility * part / (rows * len(model.labels.landmark_set)))
    for logits, label, scale in (
        (output.classes, model.label, model.objective.classes),
        (output.garment_type, "garment_type", model.objective.garment_type),
    ):
        if logits is not None:
            target = batch.truth.label(label, model.labels).to(device, non_blocking=True)
            part = F.cross_entropy(logits.float(), target, ignore_index=-1, reduction="sum") / rows
            parts.append(scale * part)
    if output.attributes is not None:
        attributes = batch.truth.attributes.to(device, non_blocking=True)
        parts.append(model.objective.attributes * attribute_loss(output.attributes, attributes, world))
    if output.boxes is not None:
        assert batch.garments is not None
        parts.append(model.objective.boxes * box_loss(model, output.boxes, batch, world))
    return torch.stack(parts).sum()


def box_loss(model: Model, output: Tensor, batch: Batch, world: int) -> Tensor:
    """A detector's loss: this rank's part of the mean over the places on garments of all ranks' photos."""
    assert batch.garments is not None
    total, count = model.box_loss(output, batch.garments.boxes, batch.images.shape[-1])
    if world > 1:
        dist.all_reduce(count)
    return total / count.clamp(min=1)


def attribute_loss(logits: Tensor, target: Tensor, world: int) -> Tensor:
    """Two-way cross entropy weighted by ``ATTRIBUTE_WEIGHTS``: this rank's part of the mean over the known attributes.

    logits: [B, A, 2], for absent and present. target: [B, A], 1 present, 0 absent, NaN unknown. The mean divides by
    the sum of the weights over all ranks, as one worker with the whole batch would.
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
