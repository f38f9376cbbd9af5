"""Evaluating a model on a split, in fp32."""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from glefld.data.augmentation import NO_AUGMENTATION
from glefld.data.loader import Batch, BatchLoader, to_photo
from glefld.data.order import share
from glefld.data.reader import SplitReader
from glefld.models.system import Found, Model, Output
from glefld.schema import Labels
from glefld.scoring.baselines import Baselines
from glefld.scoring.metrics import Counters, Report

#: Batch size. It is fixed, so that the same rows share a batch on any number of workers.
EVAL_BATCH = 32
#: A detected box is a garment's if they overlap by this much, as intersection over union.
MATCHING = 0.5


@dataclasses.dataclass(frozen=True)
class EndToEnd:
    """The scores of landmarks in detected boxes: of the garments that were found, in their true boxes' units."""

    detector: str
    garments: int
    """Those to be found."""
    report: Report
    """Of those that were."""

    @property
    def recall(self) -> float:
        """The share of the garments that was found."""
        return self.report.rows / self.garments

    def to_json(self) -> dict[str, Any]:
        """Return what the JSON of an evaluation has of it."""
        report = self.report
        return {
            "detector": self.detector,
            "garments": self.garments,
            "found": report.rows,
            "recall": self.recall,
            "ne": {
                "average": report.ne,
                "by_landmark": report.ne_by_landmark,
                "by_type": report.ne_by_type,
                "intervals": {name: list(ends) for name, ends in report.ne_intervals.items()},
            },
            "counted": report.counted,
            "pck": report.pck,
        }


class Answer(NamedTuple):
    """What a model answers for a batch."""

    output: Output
    points: Tensor | None
    """[b, K, 2] float64 in photo pixels, if landmarks are scored."""
    scores: Tensor | None
    """[b, K]"""
    found: list[Found] | None
    """A detector's boxes in each row's photo."""


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
    on_batch: Callable[[Batch, Answer], object] = lambda batch, answer: None,
    boxes: np.ndarray | None = None,
) -> Counters:
    """Evaluate a rank's share of the split; the counters of all ranks add up to those of the split.

    A rank takes a run of whole batches, so a row's prediction does not depend on the number of ranks, and joined in
    their order the ranks' batches are the split. labels: those to score, which the model and the data set share.
    mirror: average with the mirror images. replicates: of the bootstrap (``Counters``).
    ``on_batch`` is called with each batch and what the model answers.
    boxes: of the rank's rows [n, 4], in which the model looks instead of the true ones; rows without one, NaN, are left
    out.
    """
    was_training = model.training
    model.eval()
    counters = Counters(labels, model.label, replicates, model.detects)
    true: deque[Tensor] = deque()
    tables = rows.read(shared(rows, rank, world))
    if boxes is not None:
        tables = _in_boxes(tables, boxes, true)
    for batch in loader.run(tables, NO_AUGMENTATION):
        if boxes is not None:
            batch.truth = batch.truth._replace(box=true.popleft())
        output = run_model(model, batch, mirror)
        counters.add_rows(len(batch.images))
        points, scores = None, None
        if output.heatmaps is not None and len(labels.landmark_set):
            points, scores = predicted_points(model, output.heatmaps, batch)
            counters.add_landmarks(points, batch.truth, scores)
            if output.visibility is not None:
                counters.add_visibility(output.visibility.float().cpu(), batch.truth)
            if output.garment_type is not None:
                counters.add_garment_types(
                    output.garment_type.float().cpu(), batch.truth.label("garment_type", model.labels)
                )
        count_labels(counters, model, output, batch)
        found = count_boxes(counters, model, output, batch)
        on_batch(batch, Answer(output, points, scores, found))
    model.train(was_training)
    return counters


def shared(rows: SplitReader, rank: int, world: int) -> list[np.ndarray]:
    """Return a rank's run of the split's whole batches, as row numbers."""
    batches = [np.arange(i, min(i + EVAL_BATCH, rows.rows)) for i in range(0, rows.rows, EVAL_BATCH)]
    first, end = share(0, len(batches), rank, world)
    return batches[first:end]


def _in_boxes(tables: Iterator[pa.Table], boxes: np.ndarray, true: deque[Tensor]) -> Iterator[pa.Table]:
    """Yield the tables with other boxes [n, 4], without the rows whose box is NaN; ``true`` gets their own [b, 4]."""
    start = 0
    for table in tables:
        own = boxes[start : start + len(table)]
        start += len(table)
        kept = ~np.isnan(own).any(axis=1)
        if not kept.any():
            continue
        found = table.filter(pa.array(kept))
        true.append(torch.tensor(found["box"].to_pylist(), dtype=torch.float64))
        column = found.column_names.index("box")
        other = pa.FixedSizeListArray.from_arrays(pa.array(own[kept].astype(np.float32).ravel()), 4)
        yield found.set_column(column, "box", other)
    assert start == len(boxes)


@torch.no_grad()
def detect_rows(model: Model, rows: SplitReader, loader: BatchLoader, rank: int, world: int) -> np.ndarray:
    """Detect the garments of a rank's rows: the box found for each, [n, 4] in photo pixels, NaN where there is none.

    Boxes and garments of a photo are matched one to one, largest overlaps first, if they overlap by ``MATCHING``.
    """
    assert model.least_score is not None
    result = [np.empty((0, 4))]
    model.eval()
    for batch in loader.run(rows.read(shared(rows, rank, world)), NO_AUGMENTATION):
        output = run_model(model, batch)
        assert output.boxes is not None
        assert batch.garments is not None
        for found, garments, own in zip(
            found_boxes(model, output.boxes, batch), batch.garments.in_photo, batch.garments.own, strict=True
        ):
            boxes = found.best(model.least_score).boxes
            place = pair(boxes, garments)[own]
            result.append(boxes[place : place + 1].numpy() if place >= 0 else np.full((1, 4), np.nan))
    return np.concatenate(result)


def pair(boxes: Tensor, garments: Tensor) -> list[int]:
    """Return the number of the box [n, 4] that is each garment's [G, 4], -1 where there is none."""
    from torchvision.ops import box_iou  # torchvision is slow to import

    overlap = box_iou(boxes, garments)
    answer = [-1] * len(garments)
    while overlap.numel() and overlap.max() >= MATCHING:
        box, garment = divmod(int(overlap.argmax()), len(garments))
        answer[garment] = box
        overlap[box], overlap[:, garment] = 0, 0
    return answer


def count_labels(counters: Counters, model: Model, output: Output, batch: Batch) -> None:
    """Add the scores of a batch's predicted classes and attributes to the counters, if their labels are counted."""
    if output.classes is not None and counters.labels.classes(model.label):
        target = batch.truth.label(model.label, model.labels)
        counters.add_classes(output.classes.float().cpu(), target)
    if output.attributes is not None and counters.labels.attributes:
        # Rank by the logit of yes, as Liu & Lu's released code does. A softmax over no and yes would rank differently.
        counters.add_attributes(output.attributes[..., 1].float().cpu(), batch.truth.attributes)


def count_boxes(counters: Counters, model: Model, output: Output, batch: Batch) -> list[Found] | None:
    """Add the scores of a batch's detected boxes to the counters: of photos whose first row is in it.

    Returns the boxes of each row's photo, None of a system that is no detector.
    """
    if output.boxes is None:
        return None
    assert batch.garments is not None
    found = found_boxes(model, output.boxes, batch)
    photos = [i for i, first in enumerate(batch.garments.first) if first]
    counters.add_boxes(output.boxes, [found[i] for i in photos], [batch.garments.in_photo[i] for i in photos])
    return found


def found_boxes(model: Model, boxes: Tensor, batch: Batch) -> list[Found]:
    """Decode a batch's boxes: of each row's photo in photo pixels, with calibrated scores, on the host."""
    assert batch.garments is not None
    found = model.find_boxes(boxes, batch.images.shape[-1])
    return [
        one.in_photo(affine, (0, 0, *sides))
        for one, affine, sides in zip(found, batch.to_photo, batch.garments.sides, strict=True)
    ]


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
    detected: EndToEnd | None = None,
) -> dict[str, Any]:
    """Return the JSON value that ``jobs.evaluate`` writes; None where nothing was counted or without a baseline.

    ``oks_ap`` is present only if that score is defined for the data set, ``boxes`` only of a detector, and
    ``detected`` only with one.
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
            "landmark_intervals": {name: list(ends) for name, ends in report.ne_landmark_intervals.items()},
        },
        "counted": report.counted,
        "ne_occluded": report.ne_occluded,
        "pck": report.pck,
        "auc": report.auc,
        "epe": report.epe_px,
        "left_right_confusion": report.left_right_confusion,
        "confidence": dataclasses.asdict(report.confidence) if report.confidence is not None else None,
        "visibility_f1": report.visibility_f1,
        "garment_type_accuracy": report.garment_type_accuracy,
        "label": report.label,
        "accuracy": report.accuracy,
        "attribute_recall": report.recall,
        **({"boxes": dataclasses.asdict(report.boxes)} if report.boxes else {}),
        **({"oks_ap": report.oks.to_json()} if report.oks else {}),
        **({"detected": detected.to_json()} if detected else {}),
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
