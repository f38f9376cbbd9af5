"""Evaluating a model on a split, in fp32."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glefld.data.augmentation import NO_AUGMENTATION
from glefld.data.loader import Batch, BatchLoader, to_photo
from glefld.data.order import share
from glefld.data.reader import SplitReader
from glefld.models.system import Model, Output
from glefld.schema import Labels
from glefld.scoring.baselines import Baselines
from glefld.scoring.metrics import Counters, Report

#: Batch size. It is fixed, so that the same rows share a batch on any number of workers.
EVAL_BATCH = 32


@torch.no_grad()
def evaluate(
    model: Model,
    rows: SplitReader,
    loader: BatchLoader,
    rank: int,
    world: int,
    labels: Labels,
    mirror: bool = False,
    replicates: int = 0,
    on_landmarks: Callable[[Batch, Tensor, Tensor], object] = lambda batch, points, scores: None,
) -> Counters:
    """Evaluate a rank's share of the split; the counters of all ranks add up to those of the split.

    A rank takes a run of whole batches, so a row's prediction does not depend on the number of ranks, and joined in
    their order the ranks' batches are the split. labels: those to score, which the model and the data set share.
    mirror: average with the mirror images. replicates: of the bootstrap (``Counters``).
    ``on_landmarks`` is called with each batch, its predicted points [b, K, 2] in photo pixels and their scores [b, K].
    """
    was_training = model.training
    model.eval()
    counters = Counters(labels, model.label, replicates)
    batches = [np.arange(i, min(i + EVAL_BATCH, rows.rows)) for i in range(0, rows.rows, EVAL_BATCH)]
    first, end = share(0, len(batches), rank, world)
    for batch in loader.run(rows.read(batches[first:end]), NO_AUGMENTATION):
        output = run_model(model, batch, mirror)
        counters.add_rows(len(batch.images))
        if output.heatmaps is not None and len(labels.landmark_set):
            points, scores = predicted_points(model, output.heatmaps, batch)
            counters.add_landmarks(points, batch.truth, scores)
            on_landmarks(batch, points, scores)
            if output.visibility is not None:
                counters.add_visibility(output.visibility.float().cpu(), batch.truth)
            if output.garment_type is not None:
                counters.add_garment_types(
                    output.garment_type.float().cpu(), batch.truth.label("garment_type", model.labels)
                )
        count_labels(counters, model, output, batch)
    model.train(was_training)
    return counters


def count_labels(counters: Counters, model: Model, output: Output, batch: Batch) -> None:
    """Add the scores of a batch's predicted classes and attributes to the counters, if their labels are counted."""
    if output.classes is not None and counters.labels.classes(model.label):
        target = batch.truth.label(model.label, model.labels)
        counters.add_classes(output.classes.float().cpu(), target)
    if output.attributes is not None and counters.labels.attributes:
        # Rank by the logit of yes, as Liu & Lu's released code does. A softmax over no and yes would rank differently.
        counters.add_attributes(output.attributes[..., 1].float().cpu(), batch.truth.attributes)


def run_model(model: Model, batch: Batch, mirror: bool = False) -> Output:
    """Run the model on a batch's images, deterministically and in full fp32. mirror: and on their mirror images."""
    # By default cuDNN's convolutions round fp32 to TF32, and their algorithm can vary between runs.
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        images = batch.images.contiguous(memory_format=torch.channels_last)
        return model.both_ways(images) if mirror else model(images)


def predicted_points(model: Model, heatmaps: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Decode heatmaps to points [b, K, 2] in photo pixels, float64, and scores [b, K], both on the host."""
    landmarks, scores = model.codec.decode(heatmaps)
    return to_photo(landmarks.cpu(), batch.to_photo), model.calibration(scores.cpu())


def evaluation_json(
    report: Report,
    *,
    dataset: str,
    split: str,
    checkpoint: str,
    baseline: Baselines | None,
    mirror: bool = False,
) -> dict[str, Any]:
    """Return the JSON value that ``jobs.evaluate`` writes; None where nothing was counted or without a baseline.

    ``oks_ap`` is present only if that score is defined for the data set.
    """
    return {
        "dataset": dataset,
        "split": split,
        "rows": report.rows,
        "checkpoint": checkpoint,
        "mirror": mirror,
        "ne": {
            "average": report.ne,
            "by_landmark": report.ne_by_landmark,
            "by_type": report.ne_by_type,
            "by_view": report.ne_by_view,
            "intervals": {name: list(ends) for name, ends in report.ne_intervals.items()},
        },
        "counted": report.counted,
        "ne_occluded": report.ne_occluded,
        "pck": report.pck,
        "auc": report.auc,
        "epe": report.epe,
        "left_right_confusion": report.left_right_confusion,
        "confidence": dataclasses.asdict(report.confidence) if report.confidence is not None else None,
        "visibility_f1": report.visibility_f1,
        "garment_type_accuracy": report.garment_type_accuracy,
        "label": report.label,
        "accuracy": report.accuracy,
        "attribute_recall": report.recall,
        **({"oks_ap": report.oks.to_json()} if report.oks else {}),
        "baseline": {
            "mean_position": baseline.mean_position.ne if baseline else None,
            "mean_position_by_type": baseline.mean_position_by_type.ne if baseline else None,
            "most_frequent": {
                "accuracy": baseline.most_frequent.accuracy,
                "attribute_recall": baseline.most_frequent.recall,
            }
            if baseline
            else None,
        },
    }
