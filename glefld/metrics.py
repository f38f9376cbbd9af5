"""The scores: counters that add up across batches and ranks, their report, and the mean-position baselines.

B rows, K landmarks, T garment types of the landmark set, V views. Points and boxes are in the original
photo's pixels; sums are float64, so that any split of the rows over batches and ranks gives the same report.

NE of a landmark: sqrt((dx / box width)^2 + (dy / box height)^2), averaged over the rows in which it is
visible; the average NE is the plain mean over the landmarks that are visible anywhere (what the released
codes of GLE and of Liu & Lu compute). PCK, AUC and EPE count occluded landmarks too, as mmpose defines them.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from glefld.schema import VIEWS, LandmarkSet, Visibility

PCK_THRESHOLD = 0.2  # of the box's longer side
AUC_PIXELS = 30.0
AUC_STEPS = 20


class Truth(NamedTuple):
    """What is annotated of B garments, in photo pixels."""

    points: Tensor  # [B, K, 2] float64, NaN where there is none
    visibility: Tensor  # [B, K] int64, codes of schema.Visibility
    box: Tensor  # [B, 4] float64, x1 y1 x2 y2
    garment_type: Tensor  # [B] int64, code of the landmark set's type, -1 unknown
    view: Tensor  # [B] int64, index into schema.VIEWS, -1 unknown

    @classmethod
    def from_arrow(cls, table: pa.Table, landmark_set: LandmarkSet) -> Self:
        """Of stored samples (schema.sample_schema, the images are not needed), moved from crop to photo."""

        def numbers(name: str, *shape: int) -> Tensor:
            flat = table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            return torch.tensor(flat.astype(np.float64)).view(table.num_rows, *shape)

        k = len(landmark_set)
        views = {name: i for i, name in enumerate(VIEWS)}
        return cls(
            points=numbers("landmarks", k, 2) + numbers("crop_box", 4)[:, None, :2],
            visibility=numbers("visibility", k).long(),
            box=numbers("box", 4),
            garment_type=torch.tensor(
                [-1 if t is None else t for t in table["garment_type"].to_pylist()]
            ).long(),
            view=torch.tensor([views.get(v, -1) for v in table["view"].to_pylist()]).long(),
        )


@dataclasses.dataclass(frozen=True)
class Report:
    """The scores of one evaluation. None where not one landmark was counted."""

    rows: int
    ne: float | None  # mean over the landmarks that are visible anywhere
    ne_by_landmark: dict[str, float | None]
    ne_by_type: dict[str, float | None]  # the average NE over the rows of one garment type
    ne_by_view: dict[str, float | None]
    ne_occluded: float | None  # the average NE over occluded landmarks instead of visible ones
    counted: dict[str, int]  # visible, by landmark
    pck: float | None
    auc: float | None
    epe: float | None  # pixels
    left_right_confusion: (
        float | None
    )  # share of visible, mirror-paired landmarks found nearer to their partner


class _Sums:
    """Named float64 sums that add up."""

    sums: dict[str, Tensor]

    def vector(self) -> Tensor:
        """[N] float64, all sums in one piece: what an all-reduce adds up."""
        return torch.cat([s.flatten() for s in self.sums.values()])

    def load_vector(self, vector: Tensor) -> None:
        """Replace the sums with those of a ``vector()`` of the same landmark set."""
        pieces = vector.split([s.numel() for s in self.sums.values()])
        for total, piece in zip(self.sums.values(), pieces, strict=True):
            total.copy_(piece.view_as(total))

    def __iadd__(self, other: Self) -> Self:
        for name, total in self.sums.items():
            total.add_(other.sums[name])
        return self


class Counters(_Sums):
    """What the scores of a landmark set are made of, counted on the CPU."""

    def __init__(self, landmark_set: LandmarkSet) -> None:
        self.landmark_set = landmark_set
        k = len(landmark_set)
        self._codes = torch.tensor([t.code for t in landmark_set.garment_types]).long()
        self._mirror = torch.tensor(landmark_set.mirror)
        # One more type and view than there are: the unknown.
        groups = (len(landmark_set.garment_types) + 1, len(VIEWS) + 1)
        shapes = {
            "rows": (1,),
            "ne": (*groups, k),
            "visible": (*groups, k),
            "occluded_ne": (k,),
            "occluded": (k,),
            "scored": (k,),
            "pck": (k,),
            "auc": (k,),
            "epe": (k,),
            "paired": (k,),
            "confused": (k,),
        }
        self.sums = {name: torch.zeros(s, dtype=torch.float64) for name, s in shapes.items()}

    def update(
        self,
        predicted: Tensor,
        truth: Tensor,
        visibility: Tensor,
        box: Tensor,
        garment_type: Tensor,
        view: Tensor,
    ) -> None:
        """Count B rows.

        predicted, truth: [B, K, 2] photo pixels. visibility: [B, K] codes. box: [B, 4]. garment_type: [B],
        a type's code, any other is unknown. view: [B], an index into schema.VIEWS or -1.
        """
        predicted, truth, box = predicted.double(), truth.double(), box.double()
        size = box[:, 2:] - box[:, :2]
        visible = visibility == Visibility.VISIBLE
        occluded = visibility == Visibility.OCCLUDED
        scored = visible | occluded

        offset = predicted - truth
        distance = offset.norm(dim=-1)
        ne = (offset / size[:, None]).norm(dim=-1)
        thresholds = torch.arange(AUC_STEPS, dtype=torch.float64) / AUC_STEPS
        under_curve = (distance[..., None] / AUC_PIXELS < thresholds).double().mean(dim=-1)
        within = distance / size.amax(dim=-1, keepdim=True) < PCK_THRESHOLD

        partner = truth[:, self._mirror]
        has_partner = self._mirror != torch.arange(len(self._mirror))
        paired = visible & scored[:, self._mirror] & has_partner
        nearer_to_partner = (predicted - partner).norm(dim=-1) < distance

        # where() rather than a product: what is not counted may be NaN.
        zero = ne.new_zeros(())
        group = _type_slot(garment_type, self._codes) * (len(VIEWS) + 1) + torch.where(
            view >= 0, view, len(VIEWS)
        )
        self.sums["rows"] += len(predicted)
        self.sums["ne"].flatten(0, 1).index_add_(0, group, torch.where(visible, ne, zero))
        self.sums["visible"].flatten(0, 1).index_add_(0, group, visible.double())
        self.sums["occluded_ne"] += torch.where(occluded, ne, zero).sum(dim=0)
        self.sums["occluded"] += occluded.sum(dim=0)
        self.sums["scored"] += scored.sum(dim=0)
        self.sums["pck"] += (within & scored).sum(dim=0)
        self.sums["auc"] += torch.where(scored, under_curve, zero).sum(dim=0)
        self.sums["epe"] += torch.where(scored, distance, zero).sum(dim=0)
        self.sums["paired"] += paired.sum(dim=0)
        self.sums["confused"] += (nearer_to_partner & paired).sum(dim=0)

    def report(self) -> Report:
        """The scores of all rows counted so far; ValueError if a prediction was not a number."""
        s = self.sums
        if not self.vector().isfinite().all():
            raise ValueError(
                "predicted or annotated landmarks are not finite: training has diverged (lower the learning "
                "rate), or the data set was not written by ingest"
            )
        ne, visible = s["ne"].sum(dim=(0, 1)), s["visible"].sum(dim=(0, 1))
        names = self.landmark_set.landmarks
        return Report(
            rows=int(s["rows"]),
            ne=_mean_over_landmarks(ne, visible),
            ne_by_landmark={n: _ratio(ne[i], visible[i]) for i, n in enumerate(names)},
            ne_by_type={
                t.name: _mean_over_landmarks(s["ne"][i].sum(dim=0), s["visible"][i].sum(dim=0))
                for i, t in enumerate(self.landmark_set.garment_types)
            },
            ne_by_view={
                view: _mean_over_landmarks(s["ne"][:, i].sum(dim=0), s["visible"][:, i].sum(dim=0))
                for i, view in enumerate(VIEWS)
            },
            ne_occluded=_mean_over_landmarks(s["occluded_ne"], s["occluded"]),
            counted={n: int(visible[i]) for i, n in enumerate(names)},
            pck=_mean_over_landmarks(s["pck"], s["scored"]),
            auc=_mean_over_landmarks(s["auc"], s["scored"]),
            epe=_ratio(s["epe"].sum(), s["scored"].sum()),
            left_right_confusion=_ratio(s["confused"].sum(), s["paired"].sum()),
        )


def _type_slot(garment_type: Tensor, codes: Tensor) -> Tensor:
    """[B] type codes -> [B] places among the T codes [T]; T for an unknown type."""
    known = garment_type[:, None] == codes
    return torch.cat([known, ~known.any(dim=1, keepdim=True)], dim=1).int().argmax(dim=1)


def _ratio(total: Tensor, count: Tensor) -> float | None:
    return float(total / count) if count > 0 else None


def _mean_over_landmarks(total: Tensor, count: Tensor) -> float | None:
    """[K] sums and counts: the plain mean of the landmarks' means, of those that were counted at all."""
    any_ = count > 0
    return float((total[any_] / count[any_]).mean()) if any_.any() else None


class MeanPosition(_Sums):
    """The mean place in the box of each visible landmark, over all rows and by garment type.

    Predicting it is the baseline that a model has to beat: it has never looked at a picture.
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
        slot = _type_slot(truth.garment_type, self._codes)
        self.sums["place"].index_add_(0, slot, torch.where(visible[..., None], place, place.new_zeros(())))
        self.sums["visible"].index_add_(0, slot, visible.double())

    def predict(self, box: Tensor, garment_type: Tensor, *, by_type: bool) -> Tensor:
        """[B, K, 2] photo pixels for boxes [B, 4] and type codes [B].

        By type, where that type has shown the landmark, else over all rows; the box's middle for one
        never seen.
        """
        place, visible = self.sums["place"], self.sums["visible"]
        # 0 / 0 is NaN: nothing seen.
        overall = (place.sum(dim=0) / visible.sum(dim=0)[:, None]).nan_to_num(0.5)
        mean = overall.expand(len(box), -1, -1)
        if by_type:
            own = (place / visible[..., None])[_type_slot(garment_type, self._codes)]
            mean = torch.where(own.isnan(), mean, own)
        size = box[:, 2:] - box[:, :2]
        return box[:, None, :2] + mean * size[:, None]


@dataclasses.dataclass(frozen=True)
class Baselines:
    """What the mean positions of the train split score on the evaluated one."""

    mean_position: Report
    mean_position_by_type: Report


def baselines(train: Iterable[Truth], evaluated: Iterable[Truth], landmark_set: LandmarkSet) -> Baselines:
    """Fit the mean positions on one split, score them on another; both are read once, piece by piece."""
    means = MeanPosition(landmark_set)
    for truth in train:
        means.update(truth)
    overall, by_type = Counters(landmark_set), Counters(landmark_set)
    for truth in evaluated:
        overall.update(means.predict(truth.box, truth.garment_type, by_type=False), *truth)
        by_type.update(means.predict(truth.box, truth.garment_type, by_type=True), *truth)
    return Baselines(overall.report(), by_type.report())


def evaluation_json(
    report: Report, *, dataset: str, split: str, checkpoint: str, baseline: Baselines | None
) -> dict[str, Any]:
    """What ``jobs.evaluate`` writes; None (JSON null) where nothing was counted or there is no baseline."""
    return {
        "dataset": dataset,
        "split": split,
        "rows": report.rows,
        "checkpoint": checkpoint,
        "ne": {
            "average": report.ne,
            "by_landmark": report.ne_by_landmark,
            "by_type": report.ne_by_type,
            "by_view": report.ne_by_view,
        },
        "counted": report.counted,
        "ne_occluded": report.ne_occluded,
        "pck": report.pck,
        "auc": report.auc,
        "epe": report.epe,
        "left_right_confusion": report.left_right_confusion,
        "baseline": {
            "mean_position": baseline.mean_position.ne if baseline else None,
            "mean_position_by_type": baseline.mean_position_by_type.ne if baseline else None,
        },
    }
