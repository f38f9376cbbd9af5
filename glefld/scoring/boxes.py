"""Scores of detected boxes: COCO's average precision (AP) over box overlap, from sums over photos.

A box is right at a threshold of the intersection over union (IoU) if it is matched to a garment with at least that.
pycocotools matches, photo by photo: best scores first, each garment once. Right and other boxes are counted in bins of
the score, so counts add up over batches and ranks; precision over recall, interpolated at 101 recalls as in COCO,
follows from them. AP is the mean over the thresholds .50 to .95 in steps of .05. It differs from what pycocotools makes
of all boxes at once only by the order within a bin, a thousandth of the score.

Letters in shapes: T thresholds, N bins of the score, D boxes of a list of photos.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glefld.models.system import Found
from glefld.scoring.confidence import BINS, centres

THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
#: The recalls at which COCO reads off the precision.
RECALLS = torch.linspace(0, 1, 101, dtype=torch.float64)
#: Points of the curve of precision over recall.
POINTS = 100


@dataclasses.dataclass(frozen=True)
class BoxScores:
    """How well the garments of photos are found."""

    ap: float
    """Mean over IoU .50, .55 ... .95."""
    ap50: float
    ap75: float
    ar: float
    """The share of the garments that is found at all, mean over the same thresholds."""
    least_score: float
    """The least score of a box to be taken for a garment, for the best F1 at IoU .5."""
    f1: float
    """With that score; precision and recall too."""
    precision: float
    recall: float
    garments: int
    by_overlap: list[float]
    """AP at each of ``THRESHOLDS``."""
    curve: list[list[float]]
    """At IoU .5, from the best boxes to all: recall, precision and the least score, for a chart."""

    def numbers(self) -> dict[str, float]:
        """Return the scores with their names in MLflow and model cards."""
        names = {"ap": "box_ap", "ap50": "box_ap50", "ap75": "box_ap75", "ar": "box_ar", "f1": "box_f1"}
        names |= {"precision": "box_precision", "recall": "box_recall", "least_score": "box_least_score"}
        return {name: getattr(self, field) for field, name in names.items()}


def match(found: Sequence[Found], truth: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Match the boxes of photos to their garments [G, 4]: scores [D], and whether each box is right [D, T].

    Boxes are x1 y1 x2 y2 in any unit. They come back photo by photo in the order given.
    """
    score = torch.cat([torch.empty(0), *(f.score.float() for f in found)])
    right = np.zeros((len(score), len(THRESHOLDS)), bool)
    if len(score) and any(map(len, truth)):
        for index, matched in _matches(found, truth):
            right[index] = matched
    return score, torch.from_numpy(right)


def _matches(
    found: Sequence[Found], truth: Sequence[Tensor]
) -> list[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    """Return pycocotools' answer for each photo: numbers of its boxes, and whether each is right at each threshold."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with _silenced():
        annotated, predicted = COCO(), COCO()
        images = [{"id": i + 1} for i in range(len(truth))]
        category = [{"id": 1, "name": "garment"}]
        garments = [(i + 1, box) for i, boxes in enumerate(truth) for box in boxes.double().numpy()]
        annotated.dataset = {
            "images": images,
            "categories": category,
            "annotations": [
                {
                    "id": i + 1,
                    "image_id": photo,
                    "category_id": 1,
                    "iscrowd": 0,
                    "area": 1.0,
                    "bbox": _corner_and_sides(box),
                }
                for i, (photo, box) in enumerate(garments)
            ],
        }
        boxes = [
            (photo + 1, box, score)
            for photo, f in enumerate(found)
            for box, score in zip(f.boxes.double().numpy(), f.score.tolist(), strict=True)
        ]
        predicted.dataset = {
            "images": images,
            "categories": category,
            "annotations": [
                {
                    "id": i + 1,
                    "image_id": photo,
                    "category_id": 1,
                    "score": score,
                    "area": 1.0,
                    "bbox": _corner_and_sides(box),
                }
                for i, (photo, box, score) in enumerate(boxes)
            ],
        }
        annotated.createIndex()
        predicted.createIndex()
        evaluation = COCOeval(annotated, predicted, "bbox")
        evaluation.params.iouThrs = np.array(THRESHOLDS)
        evaluation.params.maxDets = [max(map(len, (f.score for f in found)))]
        evaluation.params.areaRng = [[0, 1e5**2]]
        evaluation.params.areaRngLbl = ["all"]
        evaluation.evaluate()
    return [
        (np.array(photo["dtIds"], np.int64) - 1, photo["dtMatches"].T > 0)
        for photo in evaluation.evalImgs
        if photo is not None and len(photo["dtIds"])
    ]


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Let pycocotools not print its progress. Ray Train's workers have a ``print`` of their own, not to sys.stdout."""
    from pycocotools import coco, cocoeval

    for module in (coco, cocoeval):
        module.print = lambda *_, **__: None
    try:
        yield
    finally:
        for module in (coco, cocoeval):
            del module.print


def box_scores(given: Tensor, right: Tensor, garments: Tensor) -> BoxScores | None:
    """Return the scores from sums over photos: boxes [N] and right ones [T, N] by score, and garments, a scalar.

    None without garments.
    """
    count = float(garments)
    if not count > 0:
        return None
    kept = given.flip(0).cumsum(0)  # boxes of at least each bin's score, best first
    true = right.flip(1).cumsum(1)
    precision = torch.where(kept > 0, true / kept.clamp(min=1), 0.0)
    recall = true / count
    # What a lower score does better in both is what counts.
    envelope = precision.flip(1).cummax(1).values.flip(1)
    at = torch.searchsorted(recall, RECALLS.expand(len(recall), -1).contiguous())
    padded = torch.cat([envelope, envelope.new_zeros(len(envelope), 1)], dim=1)
    ap = padded.gather(1, at).mean(dim=1)
    f1 = 2 * true[0] / (kept + count)
    best = int(f1.argmax())
    there = kept.nonzero()[:, 0]
    drawn = there[torch.linspace(0, len(there) - 1, min(len(there), POINTS)).round().long()]
    return BoxScores(
        ap=float(ap.mean()),
        ap50=float(ap[0]),
        ap75=float(ap[5]),
        ar=float(recall[:, -1].mean()),
        least_score=(BINS - 1 - best) / BINS,
        f1=float(f1[best]),
        precision=float(precision[0, best]),
        recall=float(recall[0, best]),
        garments=int(count),
        by_overlap=ap.tolist(),
        curve=torch.stack([recall[0], precision[0], centres().flip(0)], dim=1)[drawn].tolist(),
    )


def _corner_and_sides(box: NDArray[np.float64]) -> list[float]:
    x1, y1, x2, y2 = box.tolist()
    return [x1, y1, x2 - x1, y2 - y1]
