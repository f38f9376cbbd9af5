"""Scores: counters that add up over batches and ranks, and their report.

Points and boxes are in pixels of the original photo. Sums are float64, so that the report does not depend on how rows
are divided over batches and ranks.

NE (normalised error) of a landmark is sqrt((dx / box width)^2 + (dy / box height)^2), averaged over the rows where it
is visible. The average NE is the plain mean over the landmarks that are visible in at least one row, as computed by the
released code of GLE and of Liu & Lu. PCK, AUC and EPE also count occluded landmarks, as defined by mmpose.

Attribute recall at k, from Liu & Lu, "Deep Fashion Analysis with Feature Map Upsampling and Landmark-driven Attention",
ECCV Workshops 2018 (https://doi.org/10.1007/978-3-030-11015-4_4): the true attributes of a type that are among the
type's k highest positive logits, divided by all
true attributes of the type. ``mean`` is the plain mean over the types that have any, which is what the paper prints
for all types together. (Its released code looks among the k highest of all 1,000 attributes instead.)

Letters in shapes: B rows, K landmarks, T garment types of the landmark set, V views.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from glefld.data.truth import SEEN, Truth, type_slot, visibility_class
from glefld.errors import UserError
from glefld.models.calibration import RIGHT_WITHIN, Calibration, fit
from glefld.models.system import Found
from glefld.schema import VIEWS, ClassLabel, Labels, Visibility
from glefld.scoring import bootstrap
from glefld.scoring.boxes import THRESHOLDS, BoxScores, box_scores, match
from glefld.scoring.confidence import BINS, Confidence, bins, centres, confidence

if TYPE_CHECKING:
    from glefld.scoring.oks import OksScores

PCK_THRESHOLD = 0.2  # relative to the longer side of the box
AUC_PIXELS = 30.0
AUC_STEPS = 20
TOP = (1, 3, 5)
RECALL_AT = (3, 5)
#: What to tell a user whose training gives no numbers any more.
DIVERGED = "training has diverged: train a new run with a lower --learning-rate, or with --precision fp32"


@dataclasses.dataclass(frozen=True)
class Report:
    """The scores of one evaluation; None where nothing was counted."""

    rows: int
    ne: float | None  # mean over the landmarks that are visible in at least one row
    ne_by_landmark: dict[str, float | None]
    ne_by_type: dict[str, float | None]  # average NE over the rows of one garment type
    ne_by_view: dict[str, float | None]
    ne_intervals: dict[
        str, tuple[float, float]
    ]  # 95 % of "average" and of each garment type, where they were asked for
    ne_landmark_intervals: dict[str, tuple[float, float]]  # 95 % of each landmark, likewise
    ne_occluded: float | None  # average NE over occluded instead of visible landmarks
    counted: dict[str, int]  # number of rows where each landmark is visible
    pck: float | None
    auc: float | None
    epe_px: float | None
    left_right_confusion: (
        float | None
    )  # share of visible, mirror-paired landmarks predicted nearer to their partner
    confidence: Confidence | None  # of the scores, as probabilities to be within 0.1 of the box
    visibility_f1: dict[
        str, float | None
    ]  # of "visible", "occluded", "absent" slots that are there, and their "mean"
    visibility_confusion: dict[str, dict[str, int]]  # slots by what is annotated and by what is told
    garment_type_accuracy: float | None  # of landmark systems that tell the type, where it is annotated
    label: ClassLabel  # what ``accuracy`` refers to
    accuracy: dict[str, float | None]  # classification accuracy: "top1", "top3", "top5"
    recall: dict[str, dict[str, float | None]]  # attribute recall "at3" and "at5", by type and their "mean"
    attributes_by_type: dict[str, int]  # attributes per type; recall at k >= this number is always 1
    boxes: BoxScores | None = None  # of a detector
    oks: "OksScores | None" = None  # if defined; it is not a sum over rows, so counters leave it None

    @property
    def error(self) -> float | None:
        """What selects the best checkpoint, the lower the better.

        NE, or of a detector 1 - AP, or of a classifier 1 - top-1 accuracy, else 1 - recall at 3.
        """
        if self.ne is not None:
            return self.ne
        if self.boxes is not None:
            return 1 - self.boxes.ap
        for score in (self.accuracy["top1"], self.recall["at3"]["mean"]):
            if score is not None:
                return 1 - score
        return None

    def numbers(self) -> dict[str, float]:
        """Return all counted scores as a flat dict, with names like ``ne``, ``ne/left_collar``, ``recall_at3/mean``."""
        flat: dict[str, float | None] = {
            name: getattr(self, name)
            for name in (
                "ne",
                "ne_occluded",
                "pck",
                "auc",
                "epe_px",
                "left_right_confusion",
                "garment_type_accuracy",
            )
        }
        if self.confidence is not None:
            flat |= {name: getattr(self.confidence, name) for name in ("calibration_error", "sparsification")}
        named = {"ne": self.ne_by_landmark, "ne_type": self.ne_by_type, "ne_view": self.ne_by_view}
        named |= {f"recall_{at}": by_type for at, by_type in self.recall.items()}
        flat |= {f"visibility_f1/{name}": value for name, value in self.visibility_f1.items()}
        flat |= {f"accuracy_{top}": value for top, value in self.accuracy.items()}
        flat |= {f"{kind}/{name}": value for kind, values in named.items() for name, value in values.items()}
        flat |= self.boxes.numbers() if self.boxes else {}
        flat |= self.oks.numbers() if self.oks else {}
        return {name: value for name, value in flat.items() if value is not None}


class Sums:
    """Named float64 sums that can be added and all-reduced."""

    sums: dict[str, Tensor]

    def vector(self) -> Tensor:
        """Return all sums as one vector, [N] float64, for an all-reduce."""
        return torch.cat([s.flatten() for s in self.sums.values()])

    def load_vector(self, vector: Tensor) -> None:
        """Replace the sums by those of a ``vector()`` of the same labels."""
        pieces = vector.split([s.numel() for s in self.sums.values()])
        for total, piece in zip(self.sums.values(), pieces, strict=True):
            total.copy_(piece.view_as(total))

    def __iadd__(self, other: Self) -> Self:
        for name, total in self.sums.items():
            total.add_(other.sums[name])
        return self


class Counters(Sums):
    """The sums from which the scores of a data set's labels are computed, on the CPU."""

    def __init__(
        self, labels: Labels, label: ClassLabel = "category", replicates: int = 0, detects: bool = False
    ) -> None:
        """label: what the classes given to ``add_classes`` are. replicates: of the bootstrap of NE (``bootstrap``).

        detects: whether boxes are counted.
        """
        self.labels = labels
        self.label = label
        landmark_set = labels.landmark_set
        k = len(landmark_set)
        self._attribute_type = torch.tensor([a.type - 1 for a in labels.attributes]).long()
        types = max((a.type for a in labels.attributes), default=0)
        names = (*labels.attribute_types, *(f"type {i + 1}" for i in range(types)))[:types]
        self._attribute_types = names
        self._codes = torch.tensor([t.code for t in landmark_set.garment_types]).long()
        self._mirror = torch.tensor(landmark_set.mirror).long()
        # One more type and view for unknown ones.
        groups = (len(landmark_set.garment_types) + 1, len(VIEWS) + 1)
        shapes = {
            "rows": (1,),
            "ne": (*groups, k),
            "visible": (*groups, k),
            "resampled_ne": (replicates, groups[0], k),
            "resampled_visible": (replicates, groups[0], k),
            "occluded_ne": (k,),
            "occluded": (k,),
            "scored": (k,),
            "pck": (k,),
            "auc": (k,),
            "epe": (k,),
            "paired": (k,),
            "confused": (k,),
            "given": (BINS,),
            "right": (BINS,),
            "error": (BINS,),
            "seen": (len(SEEN), len(SEEN)),
            "typed": (1,),
            "right_type": (1,),
            "classified": (1,),
            "not_finite": (1,),
            "top": (len(TOP),),
            "true_attributes": (types,),
            "recalled": (len(RECALL_AT), types),
            "garments": (1,),
            "boxes_given": (BINS if detects else 0,),
            "boxes_right": (len(THRESHOLDS), BINS if detects else 0),
        }
        self.sums = {name: torch.zeros(s, dtype=torch.float64) for name, s in shapes.items()}

    def add_rows(self, rows: int) -> None:
        """Count evaluated rows, with or without labels."""
        self.sums["rows"] += rows

    def add_landmarks(self, predicted: Tensor, truth: Truth, score: Tensor | None = None) -> None:
        """Score the landmarks of B rows: predicted [B, K, 2] in photo pixels, annotated or not, and score [B, K]."""
        predicted, points, box = predicted.double(), truth.points.double(), truth.box.double()
        size = box[:, 2:] - box[:, :2]
        visible = truth.visibility == Visibility.VISIBLE
        occluded = truth.visibility == Visibility.OCCLUDED
        scored = visible | occluded

        offset = predicted - points
        distance = offset.norm(dim=-1)
        ne = (offset / size[:, None]).norm(dim=-1)
        thresholds = torch.arange(AUC_STEPS, dtype=torch.float64) / AUC_STEPS
        under_curve = (distance[..., None] / AUC_PIXELS < thresholds).double().mean(dim=-1)
        within = distance / size.amax(dim=-1, keepdim=True) < PCK_THRESHOLD

        partner = points[:, self._mirror]
        has_partner = self._mirror != torch.arange(len(self._mirror))
        paired = visible & scored[:, self._mirror] & has_partner
        nearer_to_partner = (predicted - partner).norm(dim=-1) < distance

        # Also where nothing is annotated: a network that gives NaN anywhere has diverged.
        self.sums["not_finite"] += (~predicted.isfinite()).any(dim=-1).sum()
        # where() rather than a product, since annotations that do not count may be NaN.
        zero = ne.new_zeros(())
        view = torch.where(truth.view >= 0, truth.view, len(VIEWS))
        type_ = type_slot(truth.garment_type, self._codes)
        group = type_ * (len(VIEWS) + 1) + view
        self.sums["ne"].flatten(0, 1).index_add_(0, group, torch.where(visible, ne, zero))
        self.sums["visible"].flatten(0, 1).index_add_(0, group, visible.double())
        if replicates := len(self.sums["resampled_ne"]):
            often = bootstrap.weights(points, box, replicates)  # [B, R]
            for name, value in (
                ("resampled_ne", torch.where(visible, ne, zero)),
                ("resampled_visible", visible.double()),
            ):
                self.sums[name].index_add_(1, type_, torch.einsum("br,bk->rbk", often, value))
        self.sums["occluded_ne"] += torch.where(occluded, ne, zero).sum(dim=0)
        self.sums["occluded"] += occluded.sum(dim=0)
        self.sums["scored"] += scored.sum(dim=0)
        self.sums["pck"] += (within & scored).sum(dim=0)
        self.sums["auc"] += torch.where(scored, under_curve, zero).sum(dim=0)
        self.sums["epe"] += torch.where(scored, distance, zero).sum(dim=0)
        self.sums["paired"] += paired.sum(dim=0)
        self.sums["confused"] += (nearer_to_partner & paired).sum(dim=0)

        if score is not None:
            told, wrong = bins(score[visible]), ne[visible]
            for name, value in (
                ("given", torch.ones_like(wrong)),
                ("right", wrong <= RIGHT_WITHIN),
                ("error", wrong),
            ):
                self.sums[name].index_add_(0, told, value.double())

    def calibrate(self) -> Calibration:
        """Fit a calibration to the scores counted so far, and count them as if it had been applied before.

        The scores are those of landmarks, or of a detector's boxes, which are right at an IoU of .5.
        """
        names: tuple[str, ...] = ("given", "right", "error")
        found = fit(centres(), self.sums["given"], self.sums["right"])
        if len(self.sums["boxes_given"]):
            names = ("boxes_given", "boxes_right")
            found = fit(centres(), self.sums["boxes_given"], self.sums["boxes_right"][0])
        moved = bins(found(centres()))
        for name in names:
            self.sums[name] = torch.zeros_like(self.sums[name]).index_add_(-1, moved, self.sums[name])
        return found

    def add_boxes(self, output: Tensor, found: Sequence[Found], garments: Sequence[Tensor]) -> None:
        """Score the boxes of photos, each once. output: what they were decoded from. garments: of each photo [G, 4]."""
        self.sums["not_finite"] += (~output.isfinite()).any(dim=-1).sum().cpu()
        score, right = match(found, garments)
        told = bins(score)
        self.sums["garments"] += sum(map(len, garments))
        self.sums["boxes_given"].index_add_(0, told, torch.ones(len(told), dtype=torch.float64))
        self.sums["boxes_right"].index_add_(1, told, right.T.double())

    def add_visibility(self, logits: Tensor, truth: Truth) -> None:
        """Score the visibility of B rows' landmarks: logits [B, K, 3] of ``SEEN``."""
        answer, target = logits.argmax(dim=-1), visibility_class(truth.visibility)
        self.sums["not_finite"] += (~logits.isfinite()).sum()
        self.sums["seen"].view(-1).index_add_(
            0, (target * len(SEEN) + answer).flatten(), torch.ones(answer.numel(), dtype=torch.float64)
        )

    def add_garment_types(self, logits: Tensor, target: Tensor) -> None:
        """Score the garment types that a landmark system tells of B rows: logits [B, T], target [B], -1 if unknown."""
        self.sums["not_finite"] += (~logits.isfinite()).sum()
        self.sums["typed"] += (target >= 0).sum()
        self.sums["right_type"] += (logits.argmax(dim=1) == target).sum()

    def add_classes(self, logits: Tensor, target: Tensor) -> None:
        """Score the classes of B rows: logits [B, C], target [B] with -1 if unknown."""
        known = target >= 0
        # Ranks as torch.topk gives them, except that ties count against: the true class ranks last among equals.
        own = logits.gather(1, target.clamp(min=0)[:, None])
        rank = (logits >= own).sum(dim=1) - 1
        self.sums["not_finite"] += (~logits.isfinite()).sum()
        self.sums["classified"] += known.sum()
        self.sums["top"] += torch.stack([((rank < k) & known).sum() for k in TOP])

    def add_attributes(self, logits: Tensor, target: Tensor) -> None:
        """Score the attributes of B rows: positive logits [B, A], target [B, A] of 1, 0, or NaN if unknown."""
        self.sums["not_finite"] += (~logits.isfinite()).sum()
        for type_ in range(len(self._attribute_types)):
            own = self._attribute_type == type_
            row, attribute = (target[:, own] == 1).nonzero(as_tuple=True)
            found = logits[:, own][row]
            # As for classes, ties count against.
            rank = (found >= found.gather(1, attribute[:, None])).sum(dim=1) - 1
            self.sums["true_attributes"][type_] += len(row)
            for i, k in enumerate(RECALL_AT):
                self.sums["recalled"][i, type_] += (rank < k).sum()

    def report(self) -> Report:
        """Return the scores of all rows counted so far; UserError if a prediction or a landmark is not finite."""
        s = self.sums
        if s["not_finite"] > 0:
            raise UserError(f"{int(s['not_finite']):,} predictions are not finite: {DIVERGED}")
        if not self.vector().isfinite().all():
            raise UserError("annotated landmarks are not finite: ingest the data set again")
        ne, visible = s["ne"].sum(dim=(0, 1)), s["visible"].sum(dim=(0, 1))
        resampled_ne, resampled_visible = s["resampled_ne"], s["resampled_visible"]
        landmark_set = self.labels.landmark_set
        names = landmark_set.landmarks
        true, types = s["true_attributes"], self._attribute_types
        return Report(
            rows=int(s["rows"]),
            ne=_plain_mean(ne, visible),
            ne_by_landmark={n: _ratio(ne[i], visible[i]) for i, n in enumerate(names)},
            ne_by_type={
                t.name: _plain_mean(s["ne"][i].sum(dim=0), s["visible"][i].sum(dim=0))
                for i, t in enumerate(landmark_set.garment_types)
            },
            ne_by_view={
                view: _plain_mean(s["ne"][:, i].sum(dim=0), s["visible"][:, i].sum(dim=0))
                for i, view in enumerate(VIEWS)
            },
            ne_intervals=_intervals(
                {"average": (resampled_ne.sum(dim=1), resampled_visible.sum(dim=1))}
                | {
                    t.name: (resampled_ne[:, i], resampled_visible[:, i])
                    for i, t in enumerate(landmark_set.garment_types)
                }
            ),
            ne_landmark_intervals=_intervals(
                {
                    name: (resampled_ne[:, :, i].sum(dim=1), resampled_visible[:, :, i].sum(dim=1))
                    for i, name in enumerate(names)
                }
            ),
            ne_occluded=_plain_mean(s["occluded_ne"], s["occluded"]),
            counted={n: int(visible[i]) for i, n in enumerate(names)},
            pck=_plain_mean(s["pck"], s["scored"]),
            auc=_plain_mean(s["auc"], s["scored"]),
            epe_px=_ratio(s["epe"].sum(), s["scored"].sum()),
            left_right_confusion=_ratio(s["confused"].sum(), s["paired"].sum()),
            confidence=confidence(s["given"], s["right"], s["error"]),
            visibility_f1=_f1(s["seen"]),
            visibility_confusion={
                name: dict(zip(SEEN, row, strict=True))
                for name, row in zip(SEEN, s["seen"].long().tolist(), strict=True)
            },
            garment_type_accuracy=_ratio(s["right_type"][0], s["typed"][0]),
            label=self.label,
            accuracy={f"top{k}": _ratio(s["top"][i], s["classified"][0]) for i, k in enumerate(TOP)},
            recall={
                f"at{k}": {name: _ratio(found[t], true[t]) for t, name in enumerate(types)}
                | {"mean": _plain_mean(found, true)}
                for k, found in zip(RECALL_AT, s["recalled"], strict=True)
            },
            attributes_by_type={n: int((self._attribute_type == t).sum()) for t, n in enumerate(types)},
            boxes=box_scores(s["boxes_given"], s["boxes_right"], s["garments"]),
        )


def _intervals(resampled: dict[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[float, float]]:
    """Return the bootstrap's intervals of scores, from sums and counts by replicate: [R, N] or, of one ratio, [R]."""
    found = {
        name: [value for pair in zip(*both, strict=True) if (value := _plain_mean(*pair)) is not None]
        for name, both in resampled.items()
    }
    return {name: bootstrap.interval(values) for name, values in found.items() if values}


def _f1(seen: Tensor) -> dict[str, float | None]:
    """Return F1 of each class of [T, T] counts, true by answered, and the mean of those that are there."""
    both = seen.diagonal()
    there = seen.sum(dim=1)
    f1 = {
        name: _ratio(2 * both[i], there[i] + seen[:, i].sum()) if there[i] > 0 else None
        for i, name in enumerate(SEEN)
    }
    # Without any answers there is no score, rather than one of 0.
    found = [value for value in f1.values() if value is not None]
    return f1 | {"mean": sum(found) / len(found) if found else None}


def _ratio(total: Tensor, count: Tensor) -> float | None:
    return float(total / count) if count > 0 else None


def _plain_mean(total: Tensor, count: Tensor) -> float | None:
    """Return the plain mean of the ratios of sums and counts, [N] or one, over those with a count; None without any."""
    any_ = count > 0
    return float((total[any_] / count[any_]).mean()) if any_.any() else None
