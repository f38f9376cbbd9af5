"""The page of an evaluation: how good a checkpoint is, where it is bad, and what to do next."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from glefld import pages
from glefld.scoring import analysis
from glefld.scoring.examples import Example
from glefld.scoring.page import boxes, classes, landmarks
from glefld.scoring.page.parts import LISTED, WORST, Scored
from glefld.scoring.rows import BoxRows, ClassRows, LandmarkRows, Rows


def worst_rows(rows: Rows | None) -> NDArray[np.int64]:
    """Return the numbers of the split's rows to be drawn, the worst first."""
    match rows:
        case LandmarkRows():
            return analysis.worst(rows.by_garment(rows.error), WORST)
        case BoxRows():
            return rows.row[boxes.worst_photos(rows)]
        case ClassRows():
            return analysis.worst(classes.surely_wrong(rows), WORST)
        case None:
            return np.empty(0, np.int64)


def listed_rows(rows: Rows | None) -> NDArray[np.int64]:
    """Return the numbers of the rows whose ids the page lists besides the drawn ones."""
    if isinstance(rows, LandmarkRows):
        return analysis.exchanged_sides(rows).garments[:LISTED]
    return np.empty(0, np.int64)


def page(scored: Scored, drawn: Sequence[Example], ids: Mapping[int, str]) -> pages.Page:
    """Return the page. drawn: the examples of ``worst_rows``. ids: of ``listed_rows``."""
    match scored.rows:
        case LandmarkRows():
            parts, sections = landmarks.sections(scored, scored.rows, drawn, ids)
        case BoxRows():
            parts, sections = boxes.sections(scored, scored.rows, drawn)
        case ClassRows() | None:
            parts, sections = classes.numbers(scored), []
    sections += classes.sections(scored, drawn)
    facts = pages.Section("What was scored", [pages.Facts(scored.facts)])
    title = f"{scored.facts['system']} on {scored.title}, {scored.split}"
    return pages.Page(
        title,
        f"{pages.count(scored.report.rows, 'row')}, {scored.facts['checkpoint']}",
        parts,
        [*sections, facts],
    )
