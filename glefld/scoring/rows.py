"""What each row of a split contributes to the scores: a few small numbers, from which an evaluation's page follows.

They are the same for any number of workers, whose parts are joined in the order of their rows. A garment of eight
visible landmarks needs 128 bytes, so a split of a hundred thousand needs 13 MB.

Letters in shapes: N rows, M visible landmarks of all of them together, K landmarks, P photos, G garments of all of them
together, b rows of a batch.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glefld.data.loader import Batch
from glefld.data.truth import Truth
from glefld.models.system import Found, Model
from glefld.schema import Labels, Visibility
from glefld.scoring.evaluation import Answer, pair


@dataclasses.dataclass(frozen=True)
class LandmarkRows:
    """The errors of garments and, garment by garment, of their visible landmarks. NE's unit is the box's sides."""

    sides: NDArray[np.float32]
    """[N, 2] width and height of the box, in photo pixels."""
    garment_type: NDArray[np.int16]
    """[N] index into the landmark set's types, -1 if unknown."""
    view: NDArray[np.int16]
    """[N] index into ``schema.VIEWS``, -1 if unknown."""
    told_type: NDArray[np.int16]
    """[N] the type that the model tells, -1 if it tells none."""
    visible: NDArray[np.int16]
    """[N] how many landmarks are visible."""
    landmark: NDArray[np.int16]
    """[M] which landmark it is."""
    offset: NDArray[np.float32]
    """[M, 2] from its place to the predicted one, in box sides."""
    exchanged: NDArray[np.float32]
    """[M] distance from its place to what is predicted for its mirror partner, in box sides."""

    @property
    def error(self) -> NDArray[np.float64]:
        """NE of each landmark, [M]."""
        return np.hypot(*self.offset.astype(np.float64).T)

    @property
    def owner(self) -> NDArray[np.int64]:
        """The number of each landmark's garment, [M]."""
        return np.repeat(np.arange(len(self.visible)), self.visible)

    def by_garment(self, value: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the mean of values of landmarks [M] over each garment's, [N]; NaN for one with none visible."""
        total = np.bincount(self.owner, value, len(self.visible))
        return np.divide(total, self.visible, out=np.full(len(total), np.nan), where=self.visible > 0)


@dataclasses.dataclass(frozen=True)
class BoxRows:
    """What a detector finds in each photo with its least score, and of each garment, photo by photo."""

    row: NDArray[np.int64]
    """[P] the photo's first row."""
    garments: NDArray[np.int16]
    """[P] how many are annotated."""
    boxes: NDArray[np.int16]
    """[P] how many were found."""
    surest: NDArray[np.float32]
    """[P] the best score of a box that is no garment's, 0 without any."""
    overlap: NDArray[np.float32]
    """[G] with the box that it is matched to one to one, as intersection over union; 0 if there is none (``pair``)."""
    size: NDArray[np.float32]
    """[G] the longer side of its box, as a part of the photo's longer side."""

    @property
    def owner(self) -> NDArray[np.int64]:
        """The number of each garment's photo, [G]."""
        return np.repeat(np.arange(len(self.garments)), self.garments)

    @property
    def missed(self) -> NDArray[np.int64]:
        """The number of garments of each photo that were not found, [P]."""
        return np.bincount(self.owner, self.overlap == 0, len(self.garments)).astype(np.int64)

    @property
    def wrong(self) -> NDArray[np.int64]:
        """The number of boxes of each photo that are no garment's, [P]."""
        return self.boxes - (self.garments - self.missed)


@dataclasses.dataclass(frozen=True)
class ClassRows:
    """The class of each row and the one that a classifier tells."""

    true: NDArray[np.int16]
    """[N] index into the classes, -1 if unknown."""
    told: NDArray[np.int16]
    """[N]"""
    probability: NDArray[np.float32]
    """[N] of the class that was told, by the softmax."""


Rows = LandmarkRows | BoxRows | ClassRows


def join(parts: Sequence[Rows]) -> Rows | None:
    """Join parts of one kind, in their order; None if there are none."""
    if not parts:
        return None
    names = [field.name for field in dataclasses.fields(parts[0])]
    assert all(type(part) is type(parts[0]) for part in parts)
    return type(parts[0])(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in names})


def rows_of(model: Model, batch: Batch, answer: Answer, labels: Labels, first: int) -> Rows | None:
    """Return what a batch's rows contribute; None of a system without landmarks, boxes or classes to score.

    labels: those that are scored. first: the number of the batch's first row.
    """
    if answer.found is not None:
        assert model.least_score is not None
        return _box_rows(batch, answer.found, model.least_score, first)
    if answer.points is not None:
        told = answer.output.garment_type
        return landmark_rows(
            answer.points, batch.truth, labels, told.float().cpu() if told is not None else None
        )
    if answer.output.classes is not None and labels.classes(model.label):
        probability, told = answer.output.classes.float().cpu().softmax(dim=1).max(dim=1)
        true = batch.truth.label(model.label, model.labels)
        return ClassRows(_small(true), _small(told), probability.numpy())
    return None


def landmark_rows(
    predicted: Tensor, truth: Truth, labels: Labels, type_logits: Tensor | None = None
) -> LandmarkRows:
    """Return the errors of b garments: predicted [b, K, 2] in photo pixels, logits [b, T] of the garment type."""
    box = truth.box.double()
    sides = box[:, 2:] - box[:, :2]
    visible = truth.visibility == Visibility.VISIBLE
    offset = (predicted.double() - truth.points.double()) / sides[:, None]
    mirror = list(labels.landmark_set.mirror)
    exchanged = ((predicted[:, mirror].double() - truth.points.double()) / sides[:, None]).norm(dim=-1)
    _, landmark = visible.nonzero(as_tuple=True)
    return LandmarkRows(
        sides=sides.float().numpy(),
        garment_type=_small(truth.label("garment_type", labels)),
        view=_small(truth.view),
        told_type=_small(torch.full((len(box),), -1) if type_logits is None else type_logits.argmax(dim=1)),
        visible=_small(visible.sum(dim=1)),
        landmark=_small(landmark),
        offset=offset[visible].float().numpy(),
        exchanged=exchanged[visible].float().numpy(),
    )


def _box_rows(batch: Batch, found: list[Found], least_score: float, first: int) -> BoxRows:
    from torchvision.ops import box_iou  # torchvision is slow to import

    assert batch.garments is not None
    rows, garments, boxes, surest = [], [], [], []
    overlaps, sizes = [torch.empty(0)], [torch.empty(0)]
    for i, photo in enumerate(found):
        if not batch.garments.first[i]:
            continue
        true, (kept, score) = batch.garments.in_photo[i], photo.best(least_score)
        matched = pair(kept, true)
        rows.append(first + i)
        garments.append(len(true))
        boxes.append(len(kept))
        surest.append(max((float(s) for box, s in enumerate(score) if box not in matched), default=0.0))
        between = box_iou(kept, true)
        overlaps.append(
            torch.tensor([float(between[box, g]) if box >= 0 else 0.0 for g, box in enumerate(matched)])
        )
        sizes.append((true[:, 2:] - true[:, :2]).amax(dim=1).float() / max(batch.garments.sides[i]))
    return BoxRows(
        row=np.array(rows, np.int64),
        garments=np.array(garments, np.int16),
        boxes=np.array(boxes, np.int16),
        surest=np.array(surest, np.float32),
        overlap=torch.cat(overlaps).numpy(),
        size=torch.cat(sizes).numpy(),
    )


def _small(values: Tensor) -> NDArray[np.int16]:
    return values.numpy().astype(np.int16)
