"""Annotations that are probably wrong, worst first: what ``shapes`` and ``answers`` find, in words.

Letters in shapes: n garments of a type, m the most landmarks that a garment type has.
"""

from typing import Literal, NamedTuple

import numpy as np

from glefld.inspection import shapes
from glefld.inspection.answers import Answers, doubts
from glefld.inspection.rows import Rows
from glefld.schema import VIEWS, GarmentType, LandmarkSet

#: By how much a garment's distance from its type's shape shrinks if a pair's sides are exchanged.
LEAST_GAIN = 10.0
#: How much further a landmark is from where the garment's others say than in 95 of 100 garments.
LEAST_OUTLIER = 3.0
USUAL = 0.95
#: ``Doubts.sides`` and ``Doubts.place`` from which a model's doubts are told.
LEAST_SIDES = 0.1
LEAST_SCORE = 0.85

Kind = Literal["sides", "place", "view", "sides_model", "place_model"]


class Suspect(NamedTuple):
    """One annotation that is probably wrong."""

    place: int
    """Of the row in ``Rows``."""
    kind: Kind
    what: str
    score: float
    """How sure it is, to sort those of one kind."""


class Suspects(NamedTuple):
    """All of a data set, and what was found on the way."""

    found: dict[Kind, list[Suspect]]
    back: np.ndarray
    """[rows] int8: 1 if left and right are as in most of its type, -1 if they are exchanged, as in back views, 0 if the
    type has no shape or no pairs."""

    def garments(self, *kinds: Kind) -> int:
        """Return how many garments are suspects of these kinds."""
        return len({suspect.place for kind in kinds for suspect in self.found[kind]})


def find(rows: Rows, landmark_set: LandmarkSet, places: np.ndarray, answers: Answers | None) -> Suspects:
    """Find the suspects among the rows. answers: a model's, for the rows at ``places``."""
    found: dict[Kind, list[Suspect]] = {
        "sides": [],
        "place": [],
        "view": [],
        "sides_model": [],
        "place_model": [],
    }
    way = np.zeros(len(rows), np.int8)
    for slot, type_ in enumerate(landmark_set.garment_types):
        sides = shapes.pairs(type_.landmarks, landmark_set.mirror)
        names = [landmark_set.landmarks[i] for i in type_.landmarks]
        where, points = rows.of_type(slot, len(names))
        shape = shapes.fit_shape(points, sides)
        if shape is not None:
            fit = shapes.compare(points, shape, sides)
            way[where] = np.where(fit.back, -1, 1) if sides else 0
            _by_shape(found, where, fit, names, sides)
        if answers is not None:
            _by_answer(found, rows, slot, type_, places, answers, names, sides)
    front, back = VIEWS.index("front"), VIEWS.index("back")
    for view, wrong in ((front, -1), (back, 1)):
        for place in np.flatnonzero((rows.view == view) & (way == wrong)):
            seen = "a back" if wrong < 0 else "a front"
            found["view"].append(Suspect(int(place), "view", f"{VIEWS[view]}, with the sides of {seen}", 0.0))
    return Suspects(
        {kind: sorted(some, key=lambda s: (-s.score, s.place)) for kind, some in found.items()}, way
    )


def _by_shape(
    found: dict[Kind, list[Suspect]],
    where: np.ndarray,
    fit: shapes.Fit,
    names: list[str],
    sides: list[tuple[int, int]],
) -> None:
    exchanged = fit.exchanged > LEAST_GAIN
    for i in np.flatnonzero(exchanged.any(axis=1)):
        pairs = [
            f"{names[a]} and {names[b]}" for (a, b), wrong in zip(sides, exchanged[i], strict=True) if wrong
        ]
        what = f"{', '.join(pairs)}: the other way round than the rest"
        found["sides"].append(Suspect(int(where[i]), "sides", what, float(fit.exchanged[i].max())))
    there = np.where(fit.outlier > 0, fit.outlier, np.nan)
    known = ~np.isnan(there).all(axis=0)
    usual = np.full(len(names), np.inf)
    usual[known] = np.nanquantile(there[:, known], USUAL, axis=0)
    ratio = fit.outlier / usual
    for i in np.flatnonzero((ratio > LEAST_OUTLIER).any(axis=1) & ~exchanged.any(axis=1)):
        worst = int(ratio[i].argmax())
        found["place"].append(Suspect(int(where[i]), "place", names[worst], float(ratio[i, worst])))


def _by_answer(
    found: dict[Kind, list[Suspect]],
    rows: Rows,
    slot: int,
    type_: GarmentType,
    places: np.ndarray,
    answers: Answers,
    names: list[str],
    sides: list[tuple[int, int]],
) -> None:
    here = np.flatnonzero(rows.slot[places] == slot)
    where = places[here]
    own = list(type_.landmarks)
    box = rows.box[where].astype(np.float64)
    answered = (answers.points[here][:, own] - box[:, None, :2]) / (box[:, None, 2:] - box[:, None, :2])
    doubt = doubts(rows.points[where, : len(own)], answered, answers.score[here][:, own], sides)
    for i in np.flatnonzero(doubt.sides > LEAST_SIDES):
        what = (
            f"{doubt.pairs[i]} of {len(sides)} pairs are nearer to the answer with left and right exchanged"
        )
        found["sides_model"].append(Suspect(int(where[i]), "sides_model", what, float(doubt.sides[i])))
    for i in np.flatnonzero((doubt.place > LEAST_SCORE).any(axis=1)):
        worst = int(doubt.place[i].argmax())
        found["place_model"].append(
            Suspect(int(where[i]), "place_model", names[worst], float(doubt.place[i, worst]))
        )
