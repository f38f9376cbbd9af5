"""Baselines that ignore the picture: the train split's mean positions and most frequent labels.

Points and boxes are in pixels of the original photo. Letters in shapes: B rows, K landmarks.
"""

import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor

from glefld.data.truth import Truth, type_slot
from glefld.schema import ClassLabel, Labels, LandmarkSet, Visibility
from glefld.scoring.metrics import Counters, Report, Sums


class MeanPosition(Sums):
    """Each landmark's mean position within the box, over the rows where it is visible, in total and by garment type.

    Predicting it is the baseline that a model has to beat.
    """

    def __init__(self, landmark_set: LandmarkSet) -> None:
        k, types = len(landmark_set), landmark_set.garment_types
        self._codes = torch.tensor([t.code for t in types]).long()
        self.sums = {
            "place": torch.zeros(len(types) + 1, k, 2, dtype=torch.float64),
            "visible": torch.zeros(len(types) + 1, k, dtype=torch.float64),
        }

    def update(self, truth: Truth) -> None:
        """Count B rows of the train split."""
        points, box = truth.points.double(), truth.box.double()
        size = box[:, 2:] - box[:, :2]
        place = (points - box[:, None, :2]) / size[:, None]
        visible = truth.visibility == Visibility.VISIBLE
        slot = type_slot(truth.garment_type, self._codes)
        self.sums["place"].index_add_(0, slot, torch.where(visible[..., None], place, place.new_zeros(())))
        self.sums["visible"].index_add_(0, slot, visible.double())

    def predict(self, box: Tensor, garment_type: Tensor, *, by_type: bool) -> Tensor:
        """Return predictions [B, K, 2] in photo pixels for boxes [B, 4] and type codes [B].

        ``by_type`` uses the mean of the garment type, or of all rows if the type never showed the landmark. A landmark
        that was never visible is predicted at the centre of the box.
        """
        place, visible = self.sums["place"], self.sums["visible"]
        # 0 / 0 gives NaN: never visible.
        overall = (place.sum(dim=0) / visible.sum(dim=0)[:, None]).nan_to_num(0.5)
        mean = overall.expand(len(box), -1, -1)
        if by_type:
            own = (place / visible[..., None])[type_slot(garment_type, self._codes)]
            mean = torch.where(own.isnan(), mean, own)
        size = box[:, 2:] - box[:, :2]
        return box[:, None, :2] + mean * size[:, None]


class MostFrequent(Sums):
    """The number of rows with each class and attribute: the counterpart of the mean position for labels.

    The baseline predicts the most frequent classes, and the most frequent attributes of each type, for every row.
    """

    def __init__(self, labels: Labels, label: ClassLabel) -> None:
        self._labels, self._label = labels, label
        self.sums = {
            "classes": torch.zeros(len(labels.classes(label)), dtype=torch.float64),
            "attributes": torch.zeros(len(labels.attributes), dtype=torch.float64),
        }

    def update(self, truth: Truth) -> None:
        """Count B rows of the train split."""
        target, classes = truth.label(self._label, self._labels), self.sums["classes"]
        if len(classes):
            classes += torch.bincount(target[target >= 0], minlength=len(classes))
        self.sums["attributes"] += (truth.attributes == 1).sum(dim=0)

    def score(self, counters: Counters, truth: Truth) -> None:
        """Add the baseline's scores for B rows to ``counters``."""
        # Use ranks as logits, so that there are no ties: among equally frequent ones, the first is predicted.
        classes, attributes = (
            -count.argsort(descending=True, stable=True).argsort().expand(len(truth.box), -1)
            for count in self.sums.values()
        )
        counters.add_rows(len(truth.box))
        if classes.shape[1]:
            counters.add_classes(classes, truth.label(self._label, self._labels))
        counters.add_attributes(attributes, truth.attributes)


@dataclasses.dataclass(frozen=True)
class Baselines:
    """Scores on the evaluated split of the train split's mean positions and most frequent labels."""

    mean_position: Report
    mean_position_by_type: Report
    most_frequent: Report


def fit_and_score(
    train: Iterable[Truth], evaluated: Iterable[Truth], labels: Labels, label: ClassLabel
) -> Baselines:
    """Fit the baselines on one split and score them on another; both are streamed once."""
    means, frequent = MeanPosition(labels.landmark_set), MostFrequent(labels, label)
    for truth in train:
        means.update(truth)
        frequent.update(truth)
    overall, by_type, labelled = Counters(labels), Counters(labels), Counters(labels, label)
    for truth in evaluated:
        frequent.score(labelled, truth)
        for counters, split_by_type in ((overall, False), (by_type, True)):
            counters.add_rows(len(truth.box))
            predicted = means.predict(truth.box, truth.garment_type, by_type=split_by_type)
            counters.add_landmarks(predicted, truth)
    return Baselines(overall.report(), by_type.report(), labelled.report())
