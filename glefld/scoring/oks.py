"""COCO's average precision (AP) over object keypoint similarity (OKS), by pycocotools: DeepFashion2's landmark score.

The OKS of a garment is exp(-d^2 / (2 (2 sigma)^2 area)), averaged over its labelled landmarks, with d the distance in
photo pixels and sigma the landmark's constant. A prediction is correct at a threshold if its OKS reaches it. AP is the
mean precision over recalls, thresholds (.50 to .95 in steps of .05) and categories. The benchmark is by Ge et al.,
"DeepFashion2", CVPR 2019 (https://arxiv.org/abs/1901.07973). Categories are the garment types. Landmark sets of one's
own have sigmas too; without garment types all their garments are of one category.

Here ground truth boxes and categories are given: landmarks are predicted in the annotated box, and the category selects
the landmarks that count. Entries of the challenge had to detect garments first, so their scores are not comparable.
The confidence of a prediction is the mean of its landmarks' scores.

Two definitions are ambiguous, and both readings are scored. *Area*: COCO uses the mask's. The data set's converter
``deepfashion2_to_coco.py``, which made the challenge's files, writes the box's, which is more lenient. *Landmarks*: the
benchmark reports scores over visible landmarks, and over visible and occluded ones.

Letters in shapes: N garments, K landmarks of the set, J landmarks of the largest category.
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
from glefld.schema import GarmentType, LandmarkSet, Visibility

#: The name of the one category of a set without garment types.
ANY = "all landmarks"


class Found(NamedTuple):
    """Predictions for N garments, in the slots of each garment's category; NaN after the category's last slot."""

    points: NDArray[np.float64]  # [N, J, 2] photo pixels
    score: NDArray[np.float64]  # [N]


class Annotated(NamedTuple):
    """Ground truth of N garments, in the same slots as ``Found``."""

    photo: NDArray[np.int64]  # [N] number of the photo
    category: NDArray[np.int64]  # [N] code of the garment type, -1 if unknown
    points: NDArray[np.float64]  # [N, J, 2] photo pixels, NaN where missing
    visibility: NDArray[np.int64]  # [N, J] codes of schema.Visibility, ABSENT after the last slot
    box: NDArray[np.float64]  # [N, 4] x1 y1 x2 y2
    area: NDArray[np.float64]  # [N] of the mask in photo pixels, or of the box without a mask

    @classmethod
    def from_arrow(cls, table: pa.Table, landmark_set: LandmarkSet) -> Self:
        """Convert stored samples with the columns ``COLUMNS``, moving points from crop to photo."""

        def numbers(name: str, *shape: int) -> NDArray[np.float64]:
            flat = table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            return flat.astype(np.float64).reshape(len(table), *shape)

        k = len(landmark_set)
        types = table["garment_type"].to_pylist()
        category = np.array([-1 if code is None else code for code in types], np.int64)
        box = numbers("box", 4)
        box_area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
        masks = [np.nan if area is None else area for area in table["area"].to_pylist()]
        own = own_slots(category, landmark_set)
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
    """AP for one reading of area and landmarks; None if there is no garment to score."""

    ap: float | None  # mean over OKS thresholds .50, .55 ... .95
    ap50: float | None
    ap75: float | None
    oks: float | None  # mean OKS over garments
    by_category: dict[str, float | None]


@dataclasses.dataclass(frozen=True)
class OksScores:
    """AP with the mask's area, and with the box's area as in the challenge, over all or only visible landmarks."""

    mask_area: AveragePrecision
    box_area: AveragePrecision
    box_area_visible: AveragePrecision

    def to_json(self) -> dict[str, Any]:
        """Return the fields of ``mask_area``, and the other readings under their names."""
        others = {name: dataclasses.asdict(getattr(self, name)) for name in ("box_area", "box_area_visible")}
        return dataclasses.asdict(self.mask_area) | others

    def numbers(self) -> dict[str, float]:
        """Return all counted scores as a flat dict, with names like ``oks_ap`` and ``oks_ap/trousers``."""
        flat: dict[str, float | None] = {}
        for reading, prefix in ((self.mask_area, "oks"), (self.box_area, "oks_box_area")):
            flat |= {f"{prefix}_{name}": getattr(reading, name) for name in ("ap", "ap50", "ap75")}
        flat["oks_mean"] = self.mask_area.oks
        flat["oks_box_area_visible_ap"] = self.box_area_visible.ap
        flat |= {f"oks_ap/{name}": value for name, value in self.mask_area.by_category.items()}
        return {name: value for name, value in flat.items() if value is not None}


def categories(landmark_set: LandmarkSet) -> tuple[GarmentType, ...]:
    """Return the garment types of a set; without any, one of all landmarks and of the code -1."""
    return landmark_set.garment_types or (GarmentType(-1, ANY, tuple(range(len(landmark_set)))),)


def sigmas(landmark_set: LandmarkSet) -> tuple[float, ...]:
    """Return the sigma of each landmark, [K]; empty where none are known."""
    return landmark_set.sigmas or (SIGMAS if landmark_set == DEEPFASHION2 else ())


def own_slots(category: NDArray[np.int64], landmark_set: LandmarkSet) -> NDArray[np.int64]:
    """Return which of the K landmarks each slot of these categories [N] is: [N, J], -1 after the last slot."""
    types = categories(landmark_set)
    table = np.full((max(g.code for g in types) + 2, max(len(g.landmarks) for g in types)), -1)
    for garment in types:
        table[garment.code, : len(garment.landmarks)] = garment.landmarks
    return table[category]


def take_own(values: NDArray[np.float64], own: NDArray[np.int64]) -> NDArray[np.float64]:
    """Select ``own_slots`` [N, J] from values [N, K, ...]: [N, J, ...], NaN after the last slot."""
    shape = (*own.shape, *[1] * (values.ndim - 2))
    taken = np.take_along_axis(values, own.clip(0).reshape(shape), axis=1)
    return np.where((own >= 0).reshape(shape), taken, np.nan)


def oks(
    found: Found,
    truth: Annotated,
    area: NDArray[np.float64],
    labelled: NDArray[np.bool_],
    landmark_set: LandmarkSet,
) -> NDArray[np.float64]:
    """Return the OKS of each garment's prediction, [N]; NaN if none of its landmarks is labelled [N, J].

    area [N] is in square photo pixels.
    """
    known = sigmas(landmark_set)
    sigma = take_own(np.broadcast_to(known, (len(area), len(known))), own_slots(truth.category, landmark_set))
    square = np.square(found.points - truth.points).sum(axis=-1)
    similarity = np.exp(-square / (2 * np.square(2 * sigma) * area[:, None]))
    count = labelled.sum(axis=1)
    total = np.where(labelled, similarity, 0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def score(found: Found, truth: Annotated, landmark_set: LandmarkSet) -> OksScores:
    """Return AP in all readings, for one prediction per garment."""
    visible = truth.visibility == Visibility.VISIBLE
    labelled = visible | (truth.visibility == Visibility.OCCLUDED)
    box = (truth.box[:, 2] - truth.box[:, 0]) * (truth.box[:, 3] - truth.box[:, 1])
    return OksScores(
        mask_area=average_precision(found, truth, truth.area, labelled, landmark_set),
        box_area=average_precision(found, truth, box, labelled, landmark_set),
        box_area_visible=average_precision(found, truth, box, visible, landmark_set),
    )


def average_precision(
    found: Found,
    truth: Annotated,
    area: NDArray[np.float64],
    labelled: NDArray[np.bool_],
    landmark_set: LandmarkSet,
) -> AveragePrecision:
    """Return pycocotools' AP over the labelled landmarks [N, J], computed category by category.

    COCO averages over categories as well, so scoring each category with only its own landmarks gives the same result
    as all 294 at once, and takes a tenth of the memory.
    """
    precision = {}
    types = categories(landmark_set)
    for garment in types:
        rows = np.flatnonzero(truth.category == garment.code)
        if len(rows):
            own = np.array(sigmas(landmark_set))[list(garment.landmarks)]
            precision[garment.name] = _precision(own, rows, found, truth, area, labelled)
    # [categories, thresholds]; pycocotools returns -1 for a category without labelled garments.
    scored = np.array([p for p in precision.values() if (p >= 0).all()]).reshape(-1, 10)

    def mean(values: NDArray[np.float64]) -> float | None:
        return float(values.mean()) if values.size else None

    similarity = oks(found, truth, area, labelled, landmark_set)
    return AveragePrecision(
        ap=mean(scored),
        ap50=mean(scored[:, 0]),
        ap75=mean(scored[:, 5]),
        oks=mean(similarity[~np.isnan(similarity)]),
        by_category={
            garment.name: mean(precision[garment.name])
            if (precision.get(garment.name, np.array([-1.0])) >= 0).all()
            else None
            for garment in types
        },
    )


def _precision(
    sigma: NDArray[np.float64],
    rows: NDArray[np.int64],
    found: Found,
    truth: Annotated,
    area: NDArray[np.float64],
    labelled: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Return one category's precision, averaged over recalls, at each OKS threshold: [10], -1 without labels.

    sigma: of each of the category's landmarks.
    """
    n = len(sigma)
    annotations, results = [], []
    for number, row in enumerate(rows.tolist(), 1):
        counted = labelled[row, :n]
        garment = {"image_id": int(truth.photo[row]), "category_id": 1}
        x1, y1, x2, y2 = truth.box[row].tolist()
        annotations.append(
            {
                **garment,
                "id": number,  # 1-based, since pycocotools uses 0 for unmatched
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
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        coco = COCO()
        coco.dataset = {
            "info": {},  # required by older releases
            "images": [{"id": photo} for photo in np.unique(truth.photo[rows]).tolist()],
            "categories": [{"id": 1}],
            "annotations": annotations,
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "keypoints")
        evaluation.params.kpt_oks_sigmas = sigma
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][:, :, 0, 0, 0].mean(axis=1)


def _keypoints(points: NDArray[np.float64], counted: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return keypoints [3n]: x, y, 2 for each counted point of [n, 2], and 0, 0, 0 for the others."""
    return np.where(counted[:, None], np.column_stack([points, np.full(len(points), 2.0)]), 0).ravel()


def applies(landmark_set: LandmarkSet) -> bool:
    """Return whether the score is defined: it needs the landmarks' sigmas."""
    return bool(sigmas(landmark_set))
