"""COCO keypoints as this project writes them: categories, annotations and what ``info`` says besides.

A garment type is a category with the landmarks that it has, and a last one, ``garment``, is for garments of unknown
type. Coordinates are continuous, as ``info`` says, so that ``datasets.coco`` reads them back as they were.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from glefld.errors import BadInput
from glefld.prediction import Prediction
from glefld.schema import GarmentType, LandmarkSet, Visibility

#: Keys of ``info`` in files of our own, and the values of the last one.
LANDMARKS, PAIRS, COORDINATES = "glefld_landmarks", "glefld_mirror_pairs", "glefld_coordinates"
CONTINUOUS, PIXELS = "continuous", "pixels"
#: COCO's v of each code of ``Visibility``. Cut off and absent landmarks have no place, so they are not labelled.
CODES = {Visibility.VISIBLE: 2, Visibility.OCCLUDED: 1, Visibility.CUT_OFF: 0, Visibility.ABSENT: 0}
#: The category of garments whose type is not known.
UNTYPED = "garment"
#: Digits that are kept of pixels and scores.
DIGITS = 4


def info(description: str, landmark_set: LandmarkSet) -> dict[str, Any]:
    """Return ``info``, with the landmarks' order and mirror pairs, which categories do not tell."""
    names = landmark_set.landmarks
    return {
        "description": description,
        LANDMARKS: list(names),
        PAIRS: [[names[i], names[m]] for i, m in enumerate(landmark_set.mirror) if i < m],
        COORDINATES: CONTINUOUS,
    }


def types(landmark_set: LandmarkSet) -> list[GarmentType]:
    """Return the garment types, and last the one for garments of unknown type, which have all landmarks."""
    known = landmark_set.garment_types
    untyped = 1 + max((garment.code for garment in known), default=0)
    return [*known, GarmentType(untyped, UNTYPED, tuple(range(len(landmark_set))))]


def categories(landmark_set: LandmarkSet, untyped: bool) -> list[dict[str, Any]]:
    """Return the categories. untyped: also that of garments of unknown type, which is there if it is the only one."""
    found = types(landmark_set)
    return [
        {
            "id": garment.code,
            "name": garment.name,
            "supercategory": "clothes",
            "keypoints": [landmark_set.landmarks[i] for i in garment.landmarks],
            "skeleton": [],
            **(
                {"sigmas": [landmark_set.sigmas[i] for i in garment.landmarks]} if landmark_set.sigmas else {}
            ),
        }
        for garment in (found if untyped or len(found) == 1 else found[:-1])
    ]


def annotation(
    garment: GarmentType,
    box: Sequence[float],
    points: np.ndarray,
    visibility: np.ndarray,
    area: float | None = None,
) -> dict[str, Any]:
    """Return an annotation, but for its own number and its image's.

    garment: one of ``types``. box: x1 y1 x2 y2. points: [K, 2]. visibility: [K] codes. area: by default the box's.
    """
    slots = list(garment.landmarks)
    v = np.array([CODES[Visibility(code)] for code in visibility[slots].tolist()], int)
    placed = np.where((v > 0)[:, None], points[slots].astype(np.float64), 0.0)
    keypoints: list[float] = []
    for (x, y), flag in zip(placed.tolist(), v.tolist(), strict=True):
        keypoints += [round(x, DIGITS), round(y, DIGITS), flag]
    x1, y1, x2, y2 = map(float, box)
    return {
        "category_id": garment.code,
        "iscrowd": 0,
        "bbox": [round(value, DIGITS) for value in (x1, y1, x2 - x1, y2 - y1)],
        "area": round((x2 - x1) * (y2 - y1) if area is None else area, DIGITS),
        "num_keypoints": int((v > 0).sum()),
        "keypoints": keypoints,
    }


class Answered(Protocol):
    """A photo and what a model says of it, as ``glefld.landmarks.Result``."""

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> tuple[int, int] | None: ...
    @property
    def garments(self) -> Sequence[Prediction]: ...
    @property
    def errors(self) -> Sequence[BadInput]: ...


def to_coco(results: Iterable[Answered], landmark_set: LandmarkSet) -> dict[str, Any]:
    """Return the garments of photos as COCO keypoints, which pycocotools loads as it does ground truth.

    Each garment type is a category with the landmarks that it has; of models that do not tell the type, and only then,
    there is a category ``garment`` with all of them. v is 2 for visible landmarks, 1 for occluded and 0 for absent
    ones, which are at (0, 0). Besides COCO's fields, an annotation has a ``score``, the mean of its landmarks',
    ``keypoint_scores``, and the ``box_score`` of a detected box. Coordinates are continuous, not pixels' numbers.
    ``info`` lists the errors, with their photos; one that cannot be read is no image.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    errors: list[dict[str, str]] = []
    for result in results:
        errors += [{"photo": result.name, "error": str(error)} for error in result.errors]
        if result.size is None:
            continue
        width, height = result.size
        images.append({"id": len(images) + 1, "file_name": result.name, "width": width, "height": height})
        for garment in result.garments:
            numbers = {"id": len(annotations) + 1, "image_id": len(images)}
            annotations.append(numbers | _predicted(garment, landmark_set))
    last = types(landmark_set)[-1].code
    untyped = any(found["category_id"] == last for found in annotations)
    return {
        "info": info("predictions of glefld", landmark_set) | {"errors": errors},
        "images": images,
        "annotations": annotations,
        "categories": categories(landmark_set, untyped),
    }


def _predicted(garment: Prediction, landmark_set: LandmarkSet) -> dict[str, Any]:
    *known, untyped = types(landmark_set)
    own = next((type_ for type_ in known if type_.name == garment.garment_type), untyped)
    seen = garment.visibility if garment.visibility is not None else np.zeros(len(landmark_set), np.int8)
    visibility = np.where(np.isnan(garment.score), Visibility.ABSENT, seen)
    found = annotation(own, garment.box, garment.landmarks, visibility)
    here = np.array(found["keypoints"][2::3]) > 0
    score = garment.score[list(own.landmarks)]
    return {
        **found,
        "score": round(float(score[here].mean()), DIGITS) if here.any() else 0.0,
        "keypoint_scores": [round(value, DIGITS) for value in np.where(here, score, 0).tolist()],
        **({"box_score": round(garment.box_score, DIGITS)} if garment.box_score is not None else {}),
    }
