"""What an evaluation says in words: where the error lies, how sure that is, and what to do about it.

A sentence stands on the page only if its numbers are clear: a difference that an interval could explain is not told.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from glefld.models.calibration import RIGHT_WITHIN
from glefld.pages import Point, count
from glefld.scoring.analysis import Mean, SizeGroup, bias, by_size, confusion, exchanged_sides, share_of_worst
from glefld.scoring.boxes import BoxScores
from glefld.scoring.confidence import Confidence
from glefld.scoring.metrics import Report
from glefld.scoring.page.parts import (
    BY_LANDMARK,
    CURVES,
    DETECTED,
    SCORES,
    SIDES,
    SIZE,
    TYPES,
    WORST_GARMENTS,
    WORST_PHOTOS,
    Scored,
    percent,
)
from glefld.scoring.rows import BoxRows, LandmarkRows
from glefld.scoring.tables import cell

#: A model that has more than this part of the mean position's error has learned little.
HARDLY_BETTER = 0.8
#: The worst part of the garments whose share of the error is told.
TAIL = 0.1
#: With more than this they are what is wrong. Of errors that are exponentially distributed the worst tenth has .33.
HEAVY_TAIL = 0.36
#: A calibration error from which scores mislead.
MISLEADING = 0.05
#: A mean offset is told if it is this part of its landmark's error, and so many box sides.
BIASED, LEAST_BIAS = 0.35, 0.01
#: The hardest of several is told if it has this times the error of the easiest. Of eight equal ones, two intervals
#: are apart by chance in one evaluation of ten.
HARDER = 1.25
#: Names in a sentence.
MOST_NAMES = 5
#: Below so many garments a landmark's score says little, and so does a split's.
FEW = 100
#: Of fewer garments a mean is not compared: the bootstrap's interval of one or two has hardly any width.
LEAST = 20


def of_landmarks(scored: Scored, rows: LandmarkRows, views: Mapping[str, Mean]) -> list[Point]:
    """Return the findings of a landmark model. views: NE of the garments by view."""
    report, detected = scored.report, scored.detected
    assert report.ne is not None
    garments = rows.by_garment(rows.error)
    number = int((~np.isnan(garments)).sum())
    result = []
    constant = scored.baseline.mean_position_by_type.ne
    if number >= LEAST and constant is not None and report.ne > HARDLY_BETTER * constant:
        how = "worse" if report.ne > constant else "hardly better"
        result.append(
            Point(
                f"It is {how} than a constant answer ({cell(report.ne)}; each type's mean position "
                f"{cell(constant)}): train longer, or look whether boxes and annotations of this split fit the model's."
            )
        )
    result += _tail(garments) if number >= FEW else _too_few(number)
    sides = exchanged_sides(rows)
    if len(sides.garments):
        one = len(sides.garments) == 1
        result.append(
            Point(
                f"{count(len(sides.garments), 'garment')} ({percent(len(sides.garments) / len(garments))}) would be "
                f"less than half as wrong with left and right exchanged, and {'has' if one else 'have'} "
                f"{percent(sides.error)} of the error. Either the model takes backs for fronts, or the annotation "
                "does: look at them, and correct annotations that are wrong.",
                SIDES,
            )
        )
    if number >= FEW:
        result += extremes(report.ne_by_landmark, report.ne_landmark_intervals, report.counted, "landmark")
        result += extremes(report.ne_by_type, report.ne_intervals, _of_types(report, rows), "garment type")
        result += extremes(
            {name: group.mean for name, group in views.items()},
            {name: group.interval for name, group in views.items()},
            {name: group.garments for name, group in views.items()},
            "view",
        )
        result += _offsets(report, bias(rows, len(report.ne_by_landmark)))
        result += _sizes(by_size(rows.sides.max(axis=1), garments))
        if report.confidence is not None:
            result += _scores(report.confidence, scored.split)
    result += _types(report, rows)
    few = [name for name, counted in report.counted.items() if 0 < counted < FEW]
    if few and number >= FEW:
        result.append(
            Point(
                f"Fewer than {FEW} garments show {listed(few)}: do not compare models by "
                f"{'that landmark' if len(few) == 1 else 'these landmarks'}.",
                BY_LANDMARK,
            )
        )
    if detected is not None and detected.report.ne is not None:
        lost = 1 - detected.recall
        result.append(
            Point(
                f"In a detector's boxes NE is {cell(detected.report.ne)}, in the annotated ones {cell(report.ne)}, and "
                f"{percent(lost)} of the garments are not found at all: "
                + (
                    "the detector loses more than the landmarks do."
                    if lost > RIGHT_WITHIN
                    else "most garments keep their landmarks."
                ),
                DETECTED,
            )
        )
    return result


def of_boxes(scores: BoxScores, rows: BoxRows) -> list[Point]:
    """Return the findings of a detector."""
    missed, wrong = int(rows.missed.sum()), int(rows.wrong.sum())
    photos = len(rows.row)
    clean = int(((rows.missed == 0) & (rows.wrong == 0)).sum())
    result = [
        Point(
            f"{percent(clean / photos)} of the photos ({photos:,}) are answered without a mistake at the score that "
            f"the training has chosen; {count(missed, 'garment')} ({percent(missed / max(scores.garments, 1))}) "
            f"{'is' if missed == 1 else 'are'} missed, and {count(wrong, 'box')} "
            f"{'is' if wrong == 1 else 'are'} no annotated garment's.",
            CURVES,
        )
    ]
    if wrong > missed:
        result.append(
            Point(
                "Look whether the boxes that count as wrong are garments that nobody annotated: then the precision "
                "says more about the annotations than about the detector.",
                WORST_PHOTOS,
            )
        )
    if scores.ap75 < 0.7 * scores.ap50:
        result.append(
            Point(
                f"Garments are found, but their boxes are loose: AP {cell(scores.ap50)} at an overlap of .5 and "
                f"{cell(scores.ap75)} at .75. A larger input or more epochs tighten boxes.",
                CURVES,
            )
        )
    found = by_size(rows.size.astype(np.float64), (rows.overlap > 0).astype(np.float64))
    if len(rows.size) < FEW:
        result += _too_few(len(rows.size))
    elif len(found) > 1:
        low, high = min(found, key=lambda g: g.mean), max(found, key=lambda g: g.mean)
        if low.interval[1] < high.interval[0]:
            result.append(
                Point(
                    f"Of garments that fill {low.low:.2f} to {low.high:.2f} of the photo's longer side "
                    f"{percent(low.mean)} are found, of those that fill {high.low:.2f} to {high.high:.2f} "
                    f"{percent(high.mean)}.",
                    SIZE,
                )
            )
    return result


def listed(names: list[str]) -> str:
    """Return names as a list in words, the first ones of many."""
    names = [name.replace("_", " ") for name in names]
    if len(names) > MOST_NAMES:
        names = [*names[: MOST_NAMES - 1], f"{len(names) - MOST_NAMES + 1} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _too_few(number: int) -> list[Point]:
    """Tell that so many garments, fewer than ``FEW``, are no basis for what else would be told."""
    return [
        Point(
            f"This split has only {count(number, 'garment')} to score. Fewer than {FEW} do not tell where the error "
            "lies."
        )
    ]


def _tail(garments: NDArray[np.floating]) -> list[Point]:
    """Tell whether a few garments have much of the error. garments: [N] errors, NaN where nothing is visible."""
    tail, median = share_of_worst(garments, TAIL), float(np.nanmedian(garments))
    return [
        Point(
            f"The worst tenth of the garments holds {percent(tail)} of the error; half of the garments are off by "
            f"{cell(median)} or less. A few wrong answers, rather than general vagueness, are what is left to win: "
            "look at them first."
            if tail > HEAVY_TAIL
            else f"The error is spread: the worst tenth of the garments holds {percent(tail)} of it, and half of the "
            f"garments are off by {cell(median)} or less. More data, a larger input or a larger backbone help here, "
            "not single mistakes.",
            WORST_GARMENTS,
        )
    ]


def _of_types(report: Report, rows: LandmarkRows) -> dict[str, int]:
    """Return how many garments of each type show a landmark."""
    shown = rows.garment_type[(rows.garment_type >= 0) & (rows.visible > 0)]
    return dict(
        zip(report.ne_by_type, np.bincount(shown, minlength=len(report.ne_by_type)).tolist(), strict=True)
    )


def extremes(
    values: Mapping[str, float | None],
    intervals: Mapping[str, tuple[float, float]],
    garments: Mapping[str, int],
    what: str,
) -> list[Point]:
    """Tell the worst and the best of those with enough garments, if their intervals are far enough apart to matter."""
    known = {
        name: value
        for name, value in values.items()
        if value is not None and name in intervals and garments[name] >= LEAST
    }
    if len(known) < 2:
        return []
    worst, best = max(known, key=lambda name: known[name]), min(known, key=lambda name: known[name])
    if intervals[worst][0] <= intervals[best][1] or known[worst] < HARDER * known[best]:
        return []
    (a, b), (c, d) = intervals[worst], intervals[best]
    return [
        Point(
            f"The hardest {what} is {listed([worst])}, off by {cell(known[worst])} ({cell(a)} to {cell(b)}); the "
            f"easiest is {listed([best])}, off by {cell(known[best])} ({cell(c)} to {cell(d)}).",
            BY_LANDMARK,
        )
    ]


def _offsets(report: Report, offsets: NDArray[np.float64]) -> list[Point]:
    """Tell the landmarks that are predicted off to the same side again and again."""
    told = []
    for (name, error), (x, y) in zip(report.ne_by_landmark.items(), offsets, strict=True):
        size = math.hypot(x, y)
        if error is None or report.counted[name] < FEW or not size >= max(LEAST_BIAS, BIASED * error):
            continue
        told.append(f"{name.replace('_', ' ')} {towards(x, y)}")
    if not told:
        return []
    return [
        Point(
            f"Always off to the same side: {listed(told)}, on average. That is a habit of the model or of the "
            "annotations, such as another reading of where the landmark is, and no noise.",
            BY_LANDMARK,
        )
    ]


def towards(x: float, y: float) -> str:
    """Return a mean offset in words, in box sides."""
    parts = [
        f"{cell(abs(value))} {name}"
        for value, name in ((x, "right" if x > 0 else "left"), (y, "down" if y > 0 else "up"))
        if abs(value) >= 0.5 * max(abs(x), abs(y))
    ]
    return " and ".join(parts)


def _sizes(groups: list[SizeGroup]) -> list[Point]:
    if len(groups) < 2:
        return []
    small, large = groups[0], groups[-1]
    if small.interval[0] > large.interval[1]:
        return [
            Point(
                f"Small garments are harder: {cell(small.mean)} where the box has at most {small.high:.0f} pixels, "
                f"{cell(large.mean)} from {large.low:.0f} on. Larger photos would help more than a larger model.",
                SIZE,
            )
        ]
    if large.interval[0] > small.interval[1]:
        return [
            Point(
                f"Large garments are harder: {cell(large.mean)} from {large.low:.0f} pixels on, {cell(small.mean)} "
                f"where the box has at most {small.high:.0f}. Pixels are not what is missing: look at what large "
                "boxes show.",
                SIZE,
            )
        ]
    return []


def _scores(found: Confidence, split: str) -> list[Point]:
    share, relative = np.array(found.sparsified).T
    kept = float(np.interp(0.8, share, relative))
    useful = f"Leaving out the fifth of the landmarks with the lowest scores leaves {percent(kept)} of the mean error"
    told, right, number = np.array(found.reliability).T
    over = float(((told - right) * number).sum() / number.sum())
    if found.calibration_error < MISLEADING:
        return [
            Point(
                f"Scores are honest: their calibration error is {cell(found.calibration_error)}"
                + (", a little low on this split, to which they were fitted" if split == "val" else "")
                + f". {useful}.",
                SCORES,
            )
        ]
    tendency = "more" if over > 0 else "less"
    return [
        Point(
            f"Scores mislead here (calibration error {cell(found.calibration_error)}): they promise {tendency} than "
            f"they hold. A training fits them to its val split, so that split should look like these photos. {useful}.",
            SCORES,
        )
    ]


def _types(report: Report, rows: LandmarkRows) -> list[Point]:
    if report.garment_type_accuracy is None:
        return []
    names = list(report.ne_by_type)
    confused = confusion(rows.garment_type, rows.told_type, len(names))
    others = confused * (1 - np.eye(len(confused), dtype=np.int64))
    if not others.any():
        return []
    true, told = np.unravel_index(int(others.argmax()), others.shape)
    return [
        Point(
            f"The garment type is right for {percent(report.garment_type_accuracy)}; most often {names[true]} is "
            f"taken for {names[told]} ({others[true, told]:,} of {confused[true].sum():,}). A wrong type takes away "
            "landmarks that are there.",
            TYPES,
        )
    ]
