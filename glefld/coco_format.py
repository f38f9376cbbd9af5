"""COCO keypoints as this project writes them: categories, annotations and what ``info`` says besides.

A garment type is a category with the landmarks that it has, and a last one, ``garment``, is for garments of unknown
type. Coordinates are continuous, as ``info`` says, so that ``datasets.coco`` reads them back as they were.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

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
