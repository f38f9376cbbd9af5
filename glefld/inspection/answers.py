"""What a checkpoint answers for the garments of a data set, and where that contradicts their annotations.

Letters in shapes: n garments, m the most landmarks that a garment type has.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from glefld.errors import UserError
from glefld.models import checkpoint
from glefld.predict import Predictor, require_landmarks
from glefld.prediction import Crop, Prediction, prepare
from glefld.schema import LandmarkSet

#: The columns that ``crops`` needs.
COLUMNS = ["image", "box", "crop_box"]
#: Pairs that are nearer to the answer than this, in box sides a landmark, are not compared.
NEAR = 0.1
#: A landmark that is further from the answer, in box sides, is not where the model sees it.
FAR = 0.15
#: Left and right contradict the answer if exchanging them leaves less than this part of the distance.
LEFT = 0.5


class Answers(NamedTuple):
    """Answers for n garments."""

    points: np.ndarray  # [n, K, 2] float32, photo pixels, NaN where the model sees none or has no answer
    score: np.ndarray  # [n, K] float32, probability that the landmark is within .1 of the box from here


class Doubts(NamedTuple):
    """How n annotations contradict a model's answers. 0 where they do not."""

    sides: np.ndarray
    """[n]: by how much a pair is nearer to the answer with left and right exchanged, in box sides, times the lower of
    the answer's two scores: the sum over such pairs."""
    pairs: np.ndarray
    """[n] int: how many pairs are."""
    place: np.ndarray
    """[n, m]: the answer's score where the landmark is far from it; 0 for those of exchanged pairs."""


def open_model(url: str, landmark_set: LandmarkSet, threads: int) -> Predictor:
    """Open a checkpoint; UserError if its landmarks are not those of the data set."""
    card = checkpoint.read_card(url)
    require_landmarks(url, card)
    if card.labels.landmark_set != landmark_set:
        raise UserError(
            f"{url} was trained for the landmarks {card.labels.landmark_set.name!r}, and the data set has "
            f"{landmark_set.name!r}: give a checkpoint that was trained on such data"
        )
    gpu = torch.cuda.is_available()
    return Predictor(url, torch.device("cuda" if gpu else "cpu"), threads=threads)


def crops(table: pa.Table, size: int) -> Iterator[Crop]:
    """Yield the inputs of a table's rows."""
    for row in table.select(COLUMNS).to_pylist():
        yield prepare(row["image"], size, row["box"], row["crop_box"][:2], damaged="answer")


def collect(answers: list[Any], k: int) -> Answers:
    """Return predictions of K landmarks as arrays. What is bad has no answer."""
    points = np.full((len(answers), k, 2), np.nan, np.float32)
    score = np.zeros((len(answers), k), np.float32)
    for i, answer in enumerate(answers):
        if isinstance(answer, Prediction):
            points[i], score[i] = answer.landmarks, np.nan_to_num(answer.score)
    return Answers(points, score)


def doubts(points: np.ndarray, found: np.ndarray, score: np.ndarray, sides: list[tuple[int, int]]) -> Doubts:
    """Compare annotated places [n, m, 2] with answers [n, m, 2] of such scores [n, m], all within the box.

    sides: the mirror pairs, as positions among the m.
    """
    n = len(points)
    off = np.nan_to_num(np.linalg.norm(points - found, axis=2))
    exchanged, gain, number = np.zeros(off.shape, bool), np.zeros(n), np.zeros(n, int)
    for a, b in sides:
        straight = off[:, a] + off[:, b]
        turned = np.linalg.norm(points[:, a] - found[:, b], axis=1) + np.linalg.norm(
            points[:, b] - found[:, a], axis=1
        )
        # NaN compares as False: a pair is exchanged only if all of it is there.
        is_exchanged = (turned < LEFT * straight) & (straight > 2 * NEAR)
        exchanged[is_exchanged, a] = exchanged[is_exchanged, b] = True
        gain += np.where(is_exchanged, (straight - turned) * np.minimum(score[:, a], score[:, b]), 0)
        number += is_exchanged
    return Doubts(gain, number, np.where(exchanged | (off <= FAR), 0, score))
