"""Where a model's answers contradict annotations."""

import numpy as np
import pytest

from glefld.inspection.answers import doubts

SIDES = [(0, 1), (2, 3)]
PLACES = np.array([[0.2, 0.2], [0.8, 0.2], [0.3, 0.8], [0.7, 0.8]])


def test_exchanged_pairs_and_far_places_are_told_apart() -> None:
    answer = np.stack([PLACES] * 5)
    annotated = answer + 0.01
    annotated[1] = annotated[1][[1, 0, 3, 2]]
    annotated[2] = annotated[2][[1, 0, 2, 3]]
    annotated[3, 2, 1] -= 0.4
    annotated[4, 0] = np.nan  # one of a pair is missing
    score = np.full((5, 4), 0.5)
    score[:, 2] = 0.9
    found = doubts(annotated, answer, score, SIDES)
    assert found.pairs.tolist() == [0, 2, 1, 0, 0]
    assert (found.sides > 0).tolist() == [False, True, True, False, False]
    assert found.place[3].tolist() == [0, 0, 0.9, 0]
    across = (
        np.hypot(0.61, 0.01) + np.hypot(0.59, 0.01) - 2 * np.hypot(0.01, 0.01)
    )  # less the first pair, put right
    assert found.sides[2] == pytest.approx(0.5 * across)
    assert not found.place[[0, 1, 2, 4]].any()


def test_a_small_garment_turned_sideways_is_no_mistake() -> None:
    """Sides that are near each other are exchanged by an error of the model that is no larger than usual."""
    near = np.array([[[0.48, 0.2], [0.52, 0.2], [0.48, 0.8], [0.52, 0.8]]])
    found = doubts(near[:, [1, 0, 3, 2]], near, np.ones((1, 4)), SIDES)
    assert not found.pairs.any()


def test_what_the_model_did_not_answer_is_no_doubt() -> None:
    found = doubts(PLACES[None], np.full((1, 4, 2), np.nan), np.zeros((1, 4)), SIDES)
    assert not found.sides.any()
    assert not found.place.any()
