"""A detector's page."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from glefld import pages
from glefld.scoring import analysis
from glefld.scoring.examples import Example
from glefld.scoring.page import charts, findings
from glefld.scoring.page.parts import CURVES, SIZE, WORST, WORST_PHOTOS, Scored, percent, picture
from glefld.scoring.rows import BoxRows
from glefld.scoring.tables import cell


def sections(
    scored: Scored, rows: BoxRows, drawn: Sequence[Example]
) -> tuple[list[pages.Part], list[pages.Section]]:
    """Return what stands above the sections of a detector's page, and these."""
    scores = scored.report.boxes
    if scores is None:
        return [pages.Text("No garment of this split is annotated: there is nothing to score.")], []
    numbers = [
        pages.Number("average precision (AP)", cell(scores.ap), "mean over IoU .50 to .95"),
        pages.Number("AP50", cell(scores.ap50)),
        pages.Number("AP75", cell(scores.ap75)),
        pages.Number("recall", percent(scores.recall), f"with a score of {scores.least_score:.2f} or more"),
        pages.Number("precision", percent(scores.precision), "with the same score"),
        pages.Number("AR", cell(scores.ar), "found at all, mean over IoU"),
    ]
    found = [
        pages.Section(
            CURVES,
            [
                pages.Chart(
                    charts.precision_recall(scores),
                    f"At an overlap (IoU) of .5; the dot has the best F1, {cell(scores.f1)}.",
                ),
                pages.Chart(
                    charts.by_overlap(scores), "How tight the boxes are: COCO's AP is this curve's mean."
                ),
            ],
        ),
        _worst(rows, drawn),
        pages.Section(
            SIZE,
            [
                pages.Chart(
                    charts.groups(
                        analysis.by_size(rows.size.astype(np.float64), (rows.overlap > 0).astype(np.float64)),
                        "longer side of the box, as a part of the photo's",
                        "share of the garments that is found",
                        2,
                    ),
                    "Groups of about as many garments each, with 95\N{NO-BREAK SPACE}% intervals; found is with the "
                    "model's least score and an overlap of .5.",
                )
            ],
        ),
    ]
    return [pages.Numbers(numbers), pages.Points(findings.of_boxes(scores, rows))], found


def worst_photos(rows: BoxRows) -> NDArray[np.int64]:
    """Return the numbers of the photos with most mistakes; of as many those that it was surest of, then loose ones."""
    tightness = np.bincount(rows.owner, rows.overlap, len(rows.row)) / np.maximum(rows.garments, 1)
    return analysis.worst(rows.missed + rows.wrong + rows.surest / 2 + (1 - tightness) / 8, WORST)


def _worst(rows: BoxRows, drawn: Sequence[Example]) -> pages.Section:
    pictures = []
    for photo, example in zip(worst_photos(rows), drawn, strict=True):
        missed, wrong = int(rows.missed[photo]), int(rows.wrong[photo])
        words = [f"{missed} missed"] if missed else []
        words += [pages.count(wrong, "wrong box")] if wrong else []
        pictures.append(picture(example, ", ".join(words) or "loose"))
    text = (
        "White boxes are annotated, yellow ones found, with their scores. A wrong box may well be a garment: many "
        "data sets annotate one a photo."
    )
    return pages.Section(WORST_PHOTOS, [pages.Text(text), pages.Pictures(pictures)])
