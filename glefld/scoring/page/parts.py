"""What the pages of all kinds of models share: what they are made of, titles, numbers as text, pictures."""

import dataclasses
from collections.abc import Mapping

from glefld import pages
from glefld.schema import Labels
from glefld.scoring.baselines import Baselines
from glefld.scoring.evaluation import EndToEnd
from glefld.scoring.examples import Example
from glefld.scoring.metrics import Report
from glefld.scoring.rows import Rows

#: Pictures of the worst rows; they are predicted in one batch.
WORST = 24
#: Rows of long tables: ids, pairs of classes.
LISTED = 200
#: Longer side of a picture, in pixels; the page shows it smaller, for dense screens.
PICTURE = 400
#: Titles of the sections that findings point to.
BY_LANDMARK = "Landmarks and types"
FAR = "How far off"
WORST_GARMENTS = "Worst garments"
SIDES = "Left and right"
SIZE = "Size"
SCORES = "Scores"
TYPES = "Visibility and type"
DETECTED = "Detected boxes"
CURVES = "Precision and recall"
WORST_PHOTOS = "Worst photos"


@dataclasses.dataclass(frozen=True)
class Scored:
    """All that the page shows of an evaluation."""

    title: str
    """The data set's."""
    split: str
    labels: Labels
    """Those that were scored."""
    report: Report
    baseline: Baselines
    rows: Rows | None
    detected: EndToEnd | None
    facts: Mapping[str, str]
    """What was scored, and how."""


def percent(share: float) -> str:
    """Return a share as text: ``31 %``, ``0.4 %``."""
    value = 100 * share
    if 0 < value < 0.05:
        return "below 0.1\N{NO-BREAK SPACE}%"
    return (
        f"{value:.0f}\N{NO-BREAK SPACE}%" if value >= 10 or not value else f"{value:.1f}\N{NO-BREAK SPACE}%"
    )


def picture(example: Example, caption: str) -> pages.Picture:
    """Return an example as a picture of the page."""
    small = example.picture.copy()
    small.thumbnail((PICTURE, PICTURE))
    return pages.Picture(small, caption, example.sample_id)
