"""DeepFashion2's landmark score: COCO's average precision over object keypoint similarity (OKS), by pycocotools.

OKS of a garment: exp(-d^2 / (2 (2 sigma)^2 area)), averaged over its labelled landmarks; d is the distance in photo
pixels, sigma the landmark's. A prediction is right at a threshold that its OKS reaches; AP is the mean precision over
recalls, thresholds (.50 to .95 by .05) and categories.

Ours is AP with true boxes and categories: a garment's landmarks are predicted in its annotated box, and its category
says which landmarks count. The challenge's entries had to detect garments first, so its figures are not comparable.
A prediction's confidence is the mean height of its heatmaps' peaks.

Two things are read in two ways, and both are scored. *Area*: COCO's is the mask's, while the data set's own converter
(``deepfashion2_to_coco.py``, from which the challenge's files were made) writes the box's, which is more lenient.
*Landmarks*: the data set's benchmark lists visible ones alone, and visible and occluded ones.

N garments, J landmarks of the largest category.
"""

import contextlib
import dataclasses
import io
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from glefld.datasets.deepfashion2_landmarks import DEEPFASHION2, SIGMAS
from glefld.schema import LandmarkSet, Visibility

MOST = max(len(garment.landmarks) for garment in DEEPFASHION2.garment_types)  # J


class Found(NamedTuple):
    """What a model says of N garments, each in the slots of its own category; NaN after its category's last."""

    points: NDArray[np.float64]  # [N, J, 2] photo pixels
    score: NDArray[np.float64]  # [N]


class Annotated(NamedTuple):
    """What is known of N garments, slots as in ``Found``."""

    photo: NDArray[np.int64]  # [N] which photo: equal numbers are one
    category: NDArray[np.int64]  # [N] the landmark set's garment type
    points: NDArray[np.float64]  # [N, J, 2] photo pixels, NaN where there is none
    visibility: NDArray[np.int64]  # [N, J] codes of schema.Visibility, ABSENT after the category's last
    box: NDArray[np.float64]  # [N, 4] x1 y1 x2 y2
    area: NDArray[np.float64]  # [N] pixels of the mask, of the box where there is no mask

    @classmethod
    def from_arrow(cls, table: pa.Table) -> Self:
        """Of stored samples of ``DEEPFASHION2`` (the columns of ``COLUMNS``), moved from crop to photo."""

        def numbers(name: str, *shape: int) -> NDArray[np.float64]:
            flat = table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            return flat.astype(np.float64).reshape(len(table), *shape)

        k = len(DEEPFASHION2)
        category = np.array(table["garment_type"].to_pylist(), np.int64)
        box = numbers("box", 4)
        box_area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
        masks = [np.nan if area is None else area for area in table["area"].to_pylist()]
        own = own_slots(category)
        points = numbers("landmarks", k, 2) + numbers("crop_box", 4)[:, None, :2]
        visibility = np.take_along_axis(numbers("visibility", k), own.clip(0), axis=1).astype(np.int64)
        photos = table["source_uri"].combine_chunks().dictionary_encode()
        return cls(
            photo=photos.indices.to_numpy().astype(np.int64),
            category=category,
            points=take_own(points, own),
            visibility=np.where(own >= 0, visibility, Visibility.ABSENT),
            box=box,
            area=np.where(np.isnan(masks), box_area, masks),
        )


COLUMNS = ["source_uri", "garment_type", "box", "crop_box", "area", "landmarks", "visibility"]


@dataclasses.dataclass(frozen=True)
class AveragePrecision:
    """AP of one reading of area and landmarks; None where there is no garment to score."""

    ap: float | None  # mean over OKS .50, .55 ... .95
    ap50: float | None
    ap75: float | None
    oks: float | None  # mean similarity
    by_category: dict[str, float | None]


@dataclasses.dataclass(frozen=True)
class OksScores:
    """Visible and occluded landmarks over the mask's area, and the challenge's readings, over the box's."""

    mask_area: AveragePrecision
    box_area: AveragePrecision
    box_area_visible: AveragePrecision

    def to_json(self) -> dict[str, Any]:
        """``mask_area``'s own fields, and the other readings by their names."""
        others = {name: dataclasses.asdict(getattr(self, name)) for name in ("box_area", "box_area_visible")}
        return dataclasses.asdict(self.mask_area) | others

    def numbers(self) -> dict[str, float]:
        """All that were counted, flat, by names such as ``oks_ap`` and ``oks_ap/trousers``."""
        flat: dict[str, float | None] = {}
        for reading, prefix in ((self.mask_area, "oks"), (self.box_area, "oks_box_area")):
            flat |= {f"{prefix}_{name}": getattr(reading, name) for name in ("ap", "ap50", "ap75")}
        flat["oks_mean"] = self.mask_area.oks
        flat["oks_box_area_visible_ap"] = self.box_area_visible.ap
        flat |= {f"oks_ap/{name}": value for name, value in self.mask_area.by_category.items()}
        return {name: value for name, value in flat.items() if value is not None}


def own_slots(category: NDArray[np.int64]) -> NDArray[np.int64]:
    """[N, J]: which of the 294 each slot of a garment of these categories [N] is; -1 after its last."""
    table = np.full((len(DEEPFASHION2.garment_types) + 1, MOST), -1)
    for garment in DEEPFASHION2.garment_types:
        table[garment.code, : len(garment.landmarks)] = garment.landmarks
    return table[category]


def take_own(values: NDArray[np.float64], own: NDArray[np.int64]) -> NDArray[np.float64]:
    """[N, 294, ...] and ``own_slots`` [N, J] to [N, J, ...], NaN after a category's last."""
    shape = (*own.shape, *[1] * (values.ndim - 2))
    taken = np.take_along_axis(values, own.clip(0).reshape(shape), axis=1)
    return np.where((own >= 0).reshape(shape), taken, np.nan)


def oks(
    found: Found, truth: Annotated, area: NDArray[np.float64], labelled: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """[N]: the similarity of each garment's own prediction; NaN where none of its landmarks is labelled [N, J]."""
    sigma = take_own(np.broadcast_to(SIGMAS, (len(area), len(SIGMAS))), own_slots(truth.category))
    square = np.square(found.points - truth.points).sum(axis=-1)
    similarity = np.exp(-square / (2 * np.square(2 * sigma) * area[:, None]))
    count = labelled.sum(axis=1)
    total = np.where(labelled, similarity, 0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def score(found: Found, truth: Annotated) -> OksScores:
    """AP of one prediction for each garment, in each of the readings."""
    visible = truth.visibility == Visibility.VISIBLE
    labelled = visible | (truth.visibility == Visibility.OCCLUDED)
    box = (truth.box[:, 2] - truth.box[:, 0]) * (truth.box[:, 3] - truth.box[:, 1])
    return OksScores(
        mask_area=average_precision(found, truth, truth.area, labelled),
        box_area=average_precision(found, truth, box, labelled),
        box_area_visible=average_precision(found, truth, box, visible),
    )


def average_precision(
    found: Found, truth: Annotated, area: NDArray[np.float64], labelled: NDArray[np.bool_]
) -> AveragePrecision:
    """pycocotools' AP of these predictions, category by category, of the landmarks that are labelled [N, J].

    COCO's mean is over categories too, so scoring each by itself, with its own landmarks instead of all 294 (of
    which the others would be unlabelled), gives the same and takes a tenth of the memory.
    """
    precision = {}
    for garment in DEEPFASHION2.garment_types:
        rows = np.flatnonzero(truth.category == garment.code)
        if len(rows):
            precision[garment.name] = _precision(garment.landmarks, rows, found, truth, area, labelled)
    # [categories, thresholds]; -1 is pycocotools' word for a category without a labelled garment.
    scored = np.array([p for p in precision.values() if (p >= 0).all()]).reshape(-1, 10)

    def mean(values: NDArray[np.float64]) -> float | None:
        return float(values.mean()) if values.size else None

    similarity = oks(found, truth, area, labelled)
    return AveragePrecision(
        ap=mean(scored),
        ap50=mean(scored[:, 0]),
        ap75=mean(scored[:, 5]),
        oks=mean(similarity[~np.isnan(similarity)]),
        by_category={
            garment.name: mean(precision[garment.name])
            if (precision.get(garment.name, np.array([-1.0])) >= 0).all()
            else None
            for garment in DEEPFASHION2.garment_types
        },
    )


def _precision(
    slots: tuple[int, ...],
    rows: NDArray[np.int64],
    found: Found,
    truth: Annotated,
    area: NDArray[np.float64],
    labelled: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """[10]: one category's precision, averaged over recalls, at each OKS threshold; -1 without labelled garments."""
    n = len(slots)
    annotations, results = [], []
    for number, row in enumerate(rows.tolist(), 1):
        counted = labelled[row, :n]
        garment = {"image_id": int(truth.photo[row]), "category_id": 1}
        x1, y1, x2, y2 = truth.box[row].tolist()
        annotations.append(
            {
                **garment,
                "id": number,  # from 1: pycocotools takes 0 for unmatched
                "iscrowd": 0,
                "num_keypoints": int(counted.sum()),
                "keypoints": _keypoints(truth.points[row, :n], counted),
                "area": float(area[row]),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
            }
        )
        every = np.ones(n, bool)
        results.append(
            {
                **garment,
                "keypoints": _keypoints(found.points[row, :n], every),
                "score": float(found.score[row]),
            }
        )
    with contextlib.redirect_stdout(io.StringIO()):  # it tells of its progress
        coco = COCO()
        coco.dataset = {
            "info": {},  # which older releases ask for
            "images": [{"id": photo} for photo in np.unique(truth.photo[rows]).tolist()],
            "categories": [{"id": 1}],
            "annotations": annotations,
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "keypoints")
        evaluation.params.kpt_oks_sigmas = np.array(SIGMAS)[list(slots)]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][:, :, 0, 0, 0].mean(axis=1)


def _keypoints(points: NDArray[np.float64], counted: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[3n]: x, y and 2 for each counted point [n, 2], 0 0 0 for any other."""
    return np.where(counted[:, None], np.column_stack([points, np.full(len(points), 2.0)]), 0).ravel()


def applies(landmark_set: LandmarkSet) -> bool:
    """Whether the score is defined: for DeepFashion2's landmarks, whose sigmas are known."""
    return landmark_set == DEEPFASHION2
