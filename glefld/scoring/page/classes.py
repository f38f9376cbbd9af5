"""The sections of classes and attributes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from glefld import pages
from glefld.scoring import analysis
from glefld.scoring.examples import Example
from glefld.scoring.metrics import RECALL_AT, TOP
from glefld.scoring.page import charts
from glefld.scoring.page.parts import LISTED, WORST, Scored, percent, picture
from glefld.scoring.rows import ClassRows
from glefld.scoring.tables import cell

#: Classes that a matrix can show.
MOST_CLASSES = 20


def numbers(scored: Scored) -> list[pages.Part]:
    """Return a classifier's key numbers."""
    report, frequent = scored.report, scored.baseline.most_frequent
    scores = {f"top-{k} accuracy": [r.accuracy[f"top{k}"] for r in (report, frequent)] for k in TOP}
    scores |= {
        f"attributes' recall at {k}": [r.recall[f"at{k}"]["mean"] for r in (report, frequent)]
        for k in RECALL_AT
    }
    found = [
        pages.Number(name, percent(value), f"the most frequent: {percent(constant or 0)}")
        for name, (value, constant) in scores.items()
        if value is not None
    ]
    return [pages.Numbers(found)] if found else []


def sections(scored: Scored, drawn: Sequence[Example]) -> list[pages.Section]:
    """Return the sections of classes and attributes, if any were scored."""
    report, frequent = scored.report, scored.baseline.most_frequent
    found = []
    if report.accuracy["top1"] is not None:
        rows: list[list[pages.Cell]] = [
            [f"top {k}", cell(report.accuracy[f"top{k}"]), cell(frequent.accuracy[f"top{k}"])] for k in TOP
        ]
        parts: list[pages.Part] = [
            pages.Table(
                [f"accuracy of the {report.label.replace('_', ' ')}", "this run", "most frequent"], rows
            )
        ]
        if isinstance(scored.rows, ClassRows):
            parts += _classes(scored, scored.rows, drawn)
        found.append(pages.Section("Classes", parts))
    names = [name for name, value in report.recall["at3"].items() if value is not None]
    if names:
        table = pages.Table(
            [
                "recall of attributes",
                *(f"at {k}" for k in RECALL_AT),
                *(f"most frequent, at {k}" for k in RECALL_AT),
            ],
            [
                [
                    name,
                    *(
                        cell(scores.recall[f"at{k}"][name])
                        for scores in (report, frequent)
                        for k in RECALL_AT
                    ),
                ]
                for name in names
            ],
        )
        found.append(pages.Section("Attributes", [table]))
    return found


def _classes(scored: Scored, rows: ClassRows, drawn: Sequence[Example]) -> list[pages.Part]:
    names = scored.labels.classes(scored.report.label)
    confused = analysis.confusion(rows.true, rows.told, len(names))
    parts: list[pages.Part] = []
    if len(names) <= MOST_CLASSES:
        parts.append(pages.Chart(charts.matrix(names, confused), coloured=True))
    others = confused * (1 - np.eye(len(names), dtype=np.int64))
    most = [
        divmod(int(place), len(names)) for place in np.argsort(-others, axis=None, kind="stable")[:LISTED]
    ]
    table: list[list[pages.Cell]] = [
        [names[true], names[told], int(others[true, told]), int(confused[true].sum())]
        for true, told in most
        if others[true, told]
    ]
    if table:
        parts.append(pages.Fold("Most confused", [pages.Table(["annotated", "told", "rows", "of"], table)]))
    pictures = [
        picture(
            example,
            f"{names[rows.true[i]]} taken for {names[rows.told[i]]}, {percent(float(rows.probability[i]))}",
        )
        for i, example in zip(analysis.worst(surely_wrong(rows), WORST), drawn, strict=True)
    ]
    if pictures:
        parts += [pages.Text("Wrong with the highest probability:"), pages.Pictures(pictures)]
    return parts


def surely_wrong(rows: ClassRows) -> NDArray[np.float64]:
    """Return the probability of each wrong answer, NaN for the others."""
    wrong = (rows.true >= 0) & (rows.true != rows.told)
    return np.where(wrong, rows.probability, np.nan)
