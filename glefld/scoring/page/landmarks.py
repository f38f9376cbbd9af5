"""The page of a landmark model."""

from collections.abc import Mapping, Sequence

import numpy as np

from glefld import pages
from glefld.data.truth import SEEN
from glefld.models.calibration import RIGHT_WITHIN
from glefld.schema import RENDERED, VIEWS
from glefld.scoring import analysis, draw
from glefld.scoring.evaluation import EndToEnd
from glefld.scoring.examples import Example
from glefld.scoring.metrics import Report
from glefld.scoring.page import charts, findings
from glefld.scoring.page.parts import (
    BY_LANDMARK,
    DETECTED,
    FAR,
    LISTED,
    SCORES,
    SIDES,
    SIZE,
    TYPES,
    WORST,
    WORST_GARMENTS,
    Scored,
    percent,
    picture,
)
from glefld.scoring.published import note, published
from glefld.scoring.rows import LandmarkRows
from glefld.scoring.tables import MOST_COLUMNS, OKS_NOTE, cell, short_name

#: Distances of the table, in box sides.
DISTANCES = (0.02, 0.05, 0.1, 0.2)


def sections(
    scored: Scored, rows: LandmarkRows, drawn: Sequence[Example], ids: Mapping[int, str]
) -> tuple[list[pages.Part], list[pages.Section]]:
    """Return what stands above the sections of a landmark model's page, and these."""
    report, landmark_set = scored.report, scored.labels.landmark_set
    if report.ne is None:
        return [
            pages.Text("No landmark of this split is annotated as visible: there is nothing to score.")
        ], []
    types = [t.name for t in landmark_set.garment_types]
    views = analysis.by_group(rows.view, rows.by_garment(rows.error), VIEWS)
    points = findings.of_landmarks(scored, rows, views)
    parts: list[pages.Part] = [_key_numbers(scored, rows), pages.Points(points)]
    found = [
        _beside_others(scored),
        _by_landmark(scored, rows, views),
        _how_far(rows),
        _worst(rows, types, drawn),
        _sides(report, rows, ids),
        _size(rows),
    ]
    if report.confidence is not None:
        found.append(_scores(scored))
    if (answered := _visibility_and_type(report, rows, types)) is not None:
        found.append(answered)
    if scored.detected is not None:
        found.append(_detected(report, scored.detected))
    if report.oks is not None:
        found.append(_oks(report))
    return parts, found


def _key_numbers(scored: Scored, rows: LandmarkRows) -> pages.Numbers:
    report, baseline = scored.report, scored.baseline
    assert report.ne is not None
    share, (low, high) = analysis.within(rows, RIGHT_WITHIN)
    numbers = [
        pages.Number("normalised error (NE)", cell(report.ne), _interval(report.ne_intervals.get("average"))),
        pages.Number(
            f"landmarks within {cell_short(RIGHT_WITHIN)} of the box",
            percent(share),
            f"95\N{NO-BREAK SPACE}%: {100 * low:.1f} to {100 * high:.1f}\N{NO-BREAK SPACE}%",
        ),
        pages.Number(
            "NE of a constant answer",
            cell(baseline.mean_position_by_type.ne),
            "each type's mean position" + _ratio(report.ne, baseline.mean_position_by_type.ne),
        ),
    ]
    systems = published(scored.title, tuple(report.ne_by_landmark))
    if systems:
        best = min(systems, key=lambda system: system.average)
        numbers.append(
            pages.Number("best published NE", cell(best.average), f"{best.system}; other photos, see below")
        )
    garments = rows.by_garment(rows.error)
    numbers.append(pages.Number("NE of the median garment", cell(float(np.nanmedian(garments)))))
    if report.left_right_confusion is not None:
        numbers.append(
            pages.Number(
                "nearer to the other side",
                percent(report.left_right_confusion),
                "of left and right landmarks",
            )
        )
    if report.confidence is not None:
        numbers.append(
            pages.Number("calibration error", cell(report.confidence.calibration_error), "of the scores")
        )
    if scored.detected is not None:
        numbers.append(
            pages.Number(
                "NE in detected boxes",
                cell(scored.detected.report.ne),
                f"{percent(scored.detected.recall)} of the garments are found",
            )
        )
    return pages.Numbers(numbers)


def _beside_others(scored: Scored) -> pages.Section:
    report, baseline = scored.report, scored.baseline
    names = list(report.ne_by_landmark)
    columns = names if len(names) <= MOST_COLUMNS else []
    systems = published(scored.title, tuple(names))
    measured = {
        "mean position": baseline.mean_position,
        "mean position by type": baseline.mean_position_by_type,
        "this run": report,
    }
    if scored.detected is not None:
        measured["this run, detected boxes"] = scored.detected.report
    rows: list[list[pages.Cell]] = [
        [label, cell(scores.ne), *[cell(scores.ne_by_landmark[name]) for name in columns]]
        for label, scores in reversed(measured.items())
    ]
    for system in sorted(systems, key=lambda s: s.average):
        found = dict(zip(names, system.by_landmark, strict=True))
        rows.append(
            [f"{system.system} (published)", cell(system.average), *[cell(found[n]) for n in columns]]
        )
    parts: list[pages.Part] = [
        pages.Table(["NE, lower is better", "average", *map(short_name, columns)], rows)
    ]
    if systems or scored.title.endswith(RENDERED):
        words = note(scored.title)
        parts.insert(0, pages.Text(f"{words[0].upper()}{words[1:]}."))
    sources = {system.system: system.source for system in systems}
    if sources:
        parts.append(pages.Fold("Sources of the published figures", [pages.Facts(sources)]))
    return pages.Section("Beside others", parts)


def _by_landmark(scored: Scored, rows: LandmarkRows, views: Mapping[str, analysis.Mean]) -> pages.Section:
    report, constant = scored.report, scored.baseline.mean_position_by_type
    names, types = list(report.ne_by_landmark), list(report.ne_by_type)
    few = len(names) <= MOST_COLUMNS
    shown = names if few else _worst_names(report.ne_by_landmark, MOST_COLUMNS)
    landmark = charts.intervals(
        {name: report.ne_by_landmark[name] for name in shown},
        report.ne_landmark_intervals,
        constant.ne_by_landmark,
        "mean position by type",
        "NE by landmark" if few else f"NE of the {MOST_COLUMNS} hardest landmarks",
    )
    parts: list[pages.Part] = [
        pages.Chart(
            landmark, "Bars: this run, with 95\N{NO-BREAK SPACE}% intervals of a bootstrap over garments."
        )
    ]
    if len(types) > 1 and any(value is not None for value in report.ne_by_type.values()):
        by_type = charts.intervals(
            report.ne_by_type,
            report.ne_intervals,
            constant.ne_by_type,
            "mean position by type",
            "NE by garment type",
        )
        parts.append(pages.Chart(by_type))
    offsets = analysis.bias(rows, len(names))
    both = analysis.by_landmark_and_type(rows, len(names), len(types))
    head = ["landmark", "visible", "NE", "95 %", "constant", "mean dx", "mean dy"]
    crossed = len(types) > 1 and few
    table = pages.Table(
        [*head, *(types if crossed else [])],
        [
            [
                name.replace("_", " "),
                report.counted[name],
                cell(report.ne_by_landmark[name]),
                _ends(report.ne_landmark_intervals.get(name)),
                cell(constant.ne_by_landmark[name]),
                *map(_signed, offsets[i]),
                *([_number(value) for value in both[i]] if crossed else []),
            ]
            for i, name in enumerate(names)
        ],
    )
    words = pages.Text(
        "By landmark: how many are visible, NE with its interval, NE of a constant answer (the type's mean position), "
        "and the mean offset in box sides, to the picture's right and down: what is left of the error if noise is "
        "averaged away." + (" The last columns are NE by type." if crossed else "")
    )
    if views:
        by_view = charts.intervals(
            {name: group.mean for name, group in views.items()},
            {name: group.interval for name, group in views.items()},
            {},
            "",
            "mean NE of the garments by view",
        )
        numbers = ", ".join(pages.count(group.garments, name) for name, group in views.items())
        parts.append(pages.Chart(by_view, f"{numbers}."))
    parts += [words, table] if few else [pages.Fold("All landmarks", [words, table])]
    return pages.Section(BY_LANDMARK, parts)


def _how_far(rows: LandmarkRows) -> pages.Section:
    curves = {"landmarks": rows.error, "garments (mean of their landmarks)": rows.by_garment(rows.error)}
    at = np.array(DISTANCES)
    table = pages.Table(
        ["share within", *(cell_short(distance) for distance in DISTANCES)],
        [[name, *(percent(s) for s in analysis.share_within(error, at))] for name, error in curves.items()],
        "Distances are in box sides.",
    )
    caption = "Of a curve that rises late all answers are vague; of one that rises early and ends low some are wrong."
    return pages.Section(FAR, [pages.Chart(charts.cumulative(curves), caption), table])


def _worst(rows: LandmarkRows, types: Sequence[str], drawn: Sequence[Example]) -> pages.Section:
    error, exchanged = rows.by_garment(rows.error), rows.by_garment(rows.exchanged)
    pictures = []
    for number, example in zip(analysis.worst(error, WORST), drawn, strict=True):
        words = [f"NE {cell(error[number])}"]
        if exchanged[number] < analysis.EXCHANGED * error[number]:
            words.append(f"{cell(exchanged[number])} with left and right exchanged")
        true, told = rows.garment_type[number], rows.told_type[number]
        if min(true, told) >= 0 and true != told:
            words.append(f"{types[true]} taken for {types[told]}")
        pictures.append(picture(example, "; ".join(words)))
    text = (
        "Rings are the annotation, discs the prediction, and a line joins the two. Left is yellow, right is red, as "
        "the garment has them: in a back view left is on the left. Broken rings are annotated as occluded."
    )
    return pages.Section(WORST_GARMENTS, [pages.Text(text), pages.Pictures(pictures)])


def _sides(report: Report, rows: LandmarkRows, ids: Mapping[int, str]) -> pages.Section:
    if report.left_right_confusion is None:
        return pages.Section(SIDES, [pages.Text("No landmark has a mirror partner.")])
    sides = analysis.exchanged_sides(rows)
    number, it = len(sides.garments), "it" if len(sides.garments) == 1 else "them"
    parts: list[pages.Part] = [
        pages.Text(
            f"{percent(report.left_right_confusion)} of the landmarks that have a partner are predicted nearer to it "
            f"than to their own place. {pages.count(number, 'garment')} of {len(rows.visible):,} would be less than "
            "half as wrong with all sides exchanged."
        )
    ]
    if number:
        error, exchanged = rows.by_garment(rows.error), rows.by_garment(rows.exchanged)
        listed: list[list[pages.Cell]] = [
            [ids[int(i)], cell(error[i]), cell(exchanged[i])] for i in sides.garments[:LISTED]
        ]
        more = f", the first {LISTED} of them" if number > LISTED else ""
        parts.append(
            pages.Text(
                f"{'It has' if number == 1 else 'They have'} {percent(sides.error)} of the error: without {it} a "
                f"garment's mean NE is {cell(sides.ne_without)}, with {it} {cell(float(np.nanmean(error)))}. Whether "
                "model or annotation is wrong, only a look tells: a front that is annotated like a back is the "
                "annotation's mistake, and teaches the next model the same."
            )
        )
        table = pages.Table(["sample id", "NE", "NE with sides exchanged"], listed)
        parts.append(pages.Fold(f"These garments{more}", [table]))
    return pages.Section(SIDES, parts)


def _size(rows: LandmarkRows) -> pages.Section:
    groups = analysis.by_size(rows.sides.max(axis=1), rows.by_garment(rows.error))
    figure = charts.groups(groups, "longer side of the box, pixels", "NE of a garment", 0)
    caption = "Groups of about as many garments each, by the size of their box, with 95\N{NO-BREAK SPACE}% intervals."
    return pages.Section(SIZE, [pages.Chart(figure, caption)])


def _scores(scored: Scored) -> pages.Section:
    found = scored.report.confidence
    assert found is not None
    text = (
        "A score is the probability that the landmark, if it is visible, is within .1 of the box. First chart: are "
        "that many right? Second: are the answers with the best scores the best ones?"
    )
    return pages.Section(
        SCORES,
        [
            pages.Text(text),
            pages.Chart(charts.chart(lambda axes: draw.reliability(axes, found))),
            pages.Chart(charts.chart(lambda axes: draw.sparsification(axes, found))),
        ],
    )


def _visibility_and_type(report: Report, rows: LandmarkRows, types: Sequence[str]) -> pages.Section | None:
    parts: list[pages.Part] = []
    if report.visibility_f1["mean"] is not None:
        scores = ", ".join(
            f"{n} {cell(value)}" for n, value in report.visibility_f1.items() if value is not None
        )
        seen = np.array([list(told.values()) for told in report.visibility_confusion.values()])
        parts.append(
            pages.Chart(charts.matrix(SEEN, seen), f"Visibility of landmarks, F1: {scores}.", coloured=True)
        )
    confused = analysis.confusion(rows.garment_type, rows.told_type, len(types))
    if confused.sum() and len(types) > 1:
        caption = f"Garment types: right for {percent(report.garment_type_accuracy or 0.0)}."
        parts.append(pages.Chart(charts.matrix(types, confused), caption, coloured=True))
    return pages.Section(TYPES, parts) if parts else None


def _detected(report: Report, detected: EndToEnd) -> pages.Section:
    found = detected.report
    rows: list[list[pages.Cell]] = [
        [name.replace("_", " "), cell(report.ne_by_landmark[name]), cell(found.ne_by_landmark[name]), number]
        for name, number in found.counted.items()
    ]
    rows.insert(0, ["average", cell(report.ne), cell(found.ne), found.rows])
    text = (
        f"The detector finds {found.rows:,} of {detected.garments:,} garments ({percent(detected.recall)}), at an "
        "overlap of .5 or more with the annotated box. NE is in the annotated box's sides in both columns; garments "
        "that are not found have no NE."
    )
    table = pages.Table(["NE", "annotated boxes", "detected boxes", "found"], rows)
    return pages.Section(DETECTED, [pages.Text(text), table])


def _oks(report: Report) -> pages.Section:
    assert report.oks is not None
    readings = {
        "mask area": report.oks.mask_area,
        "box area": report.oks.box_area,
        "box area, visible only": report.oks.box_area_visible,
    }
    rows: list[list[pages.Cell]] = [
        [label, *(cell(getattr(reading, field)) for reading in readings.values())]
        for label, field in (("AP", "ap"), ("AP at .50", "ap50"), ("AP at .75", "ap75"), ("mean OKS", "oks"))
    ]
    by_category: list[list[pages.Cell]] = [
        [name, *(cell(reading.by_category[name]) for reading in readings.values())]
        for name in report.oks.mask_area.by_category
    ]
    return pages.Section(
        "AP over OKS",
        [
            pages.Table(["", *readings], rows, OKS_NOTE),
            pages.Fold("By category", [pages.Table(["category", *readings], by_category)]),
        ],
    )


def _worst_names(values: Mapping[str, float | None], number: int) -> list[str]:
    known = {name: value for name, value in values.items() if value is not None}
    return sorted(known, key=lambda name: -known[name])[:number]


def _signed(value: float) -> str | None:
    return None if np.isnan(value) else f"{value:+.4f}".replace("0.", ".", 1).replace("-", "−")


def _number(value: float) -> str | None:
    return None if np.isnan(value) else cell(float(value))


def _interval(ends: tuple[float, float] | None) -> str:
    return f"95\N{NO-BREAK SPACE}%: {_ends(ends)}" if ends is not None else ""


def _ends(ends: tuple[float, float] | None) -> str | None:
    return f"{cell(ends[0])} to {cell(ends[1])}" if ends is not None else None


def _ratio(value: float, constant: float | None) -> str:
    return f"; this run has {percent(value / constant)} of it" if constant else ""


def cell_short(value: float) -> str:
    """Return a distance as text: ``.1``, ``.05``."""
    return f"{value:g}".removeprefix("0")
