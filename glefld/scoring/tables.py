"""Tables of scores for the terminal, next to the published figures."""

import io
from collections.abc import Mapping

import rich.box
import rich.console
import rich.table

from glefld.schema import RENDERED
from glefld.scoring.baselines import Baselines
from glefld.scoring.boxes import BoxScores
from glefld.scoring.evaluation import EndToEnd
from glefld.scoring.metrics import RECALL_AT, TOP, Report
from glefld.scoring.oks import OksScores
from glefld.scoring.published import LABELS, POSE, note, published

#: With more landmarks than fit a terminal, only the average is printed.
MOST_COLUMNS = 16
OKS_NOTE = "with ground truth boxes and categories: not comparable to entries that detect garments"


def score_tables(
    dataset: str, report: Report, baseline: Baselines | None = None, detected: EndToEnd | None = None
) -> rich.console.Group:
    """Return the tables of what was scored: NE, labels or both, or a detector's boxes."""
    if report.boxes is not None:
        return rich.console.Group(box_table(dataset, report.boxes))
    labels = _label_columns(report)
    tables = [ne_table(dataset, report, baseline, detected)] if report.ne is not None or not labels else []
    return rich.console.Group(*tables, *([label_table(dataset, report, baseline)] if labels else []))


def ne_table(
    dataset: str, report: Report, baseline: Baselines | None = None, detected: EndToEnd | None = None
) -> rich.table.Table:
    """Return the table of NE by landmark: published systems, mean-position baselines and this run. Fits 80 columns.

    detected: this run in detected boxes, of the garments that were found.
    """
    names = tuple(report.ne_by_landmark)
    columns = names if len(names) <= MOST_COLUMNS else ()
    result = _table(f"normalised error on {dataset}, {report.rows:,} garments (lower is better)")
    for name in columns:
        result.add_column(short_name(name).replace(" ", "\n", 1), justify="right")
    result.add_column("average", justify="right", style="bold")

    systems = published(dataset, names)
    if systems or dataset.endswith(RENDERED):
        result.caption = note(dataset)
    if systems:
        result.add_row("published", style="italic")
    for system in systems:
        by_landmark = dict(zip(names, system.by_landmark, strict=True))
        cells = [cell(by_landmark[name]) for name in columns]
        result.add_row(f"  {system.system}", *cells, cell(system.average), style="dim")
    result.add_row("measured here", style="italic")
    measured = {"  this run": report}
    if baseline is not None:
        means = {"  mean position": baseline.mean_position, "  mean by type": baseline.mean_position_by_type}
        measured = means | measured
    if detected is not None:
        measured["  detected"] = detected.report
        found = f"{detected.report.rows:,} of {detected.garments:,} garments (recall {detected.recall:.3f})"
        told = f"detected: this run in the boxes of a detector, which finds {found}"
        result.caption = "\n".join(filter(None, (str(result.caption or ""), told)))
    for label, scores in measured.items():
        cells = [cell(scores.ne_by_landmark[name]) for name in columns]
        result.add_row(label, *cells, cell(scores.ne), style="bold" if scores is report else "")
    result.add_row("  visible", *[f"{report.counted[name]}" for name in columns], "", style="dim")
    return result


def box_table(dataset: str, scores: BoxScores) -> rich.table.Table:
    """Return the table of a detector's scores."""
    result = _table(f"boxes on {dataset}, {scores.garments:,} garments (higher is better)")
    columns = {"AP": scores.ap, "AP50": scores.ap50, "AP75": scores.ap75, "AR": scores.ar}
    columns |= {"F1": scores.f1, "precision": scores.precision, "recall": scores.recall}
    for name in columns:
        result.add_column(name, justify="right")
    result.add_row("this run", *map(cell, columns.values()), style="bold")
    result.caption = (
        f"F1, precision and recall: of boxes with a score of {scores.least_score:.3f} or more, at IoU .5"
    )
    return result


def label_table(dataset: str, report: Report, baseline: Baselines | None = None) -> rich.table.Table:
    """Return the table of top-k accuracy and attribute recall at k, in the same order of rows. Fits 80 columns."""
    columns = _label_columns(report)
    kinds = ["accuracy"] * (report.label in columns) + ["recall"] * ("mean" in columns)
    result = _table(f"top-k {' and '.join(kinds)} on {dataset}, {report.rows:,} rows (higher is better)")
    result.add_column("k", justify="right")
    for name in columns:
        result.add_column(name.replace("_", " "), justify="right")

    def add(system: str, found: Mapping[int, Mapping[str, float | None]], style: str) -> None:
        name = f"  {system}"
        for k, by_column in found.items():
            cells = [by_column.get(column) for column in columns]
            if any(value is not None for value in cells):
                result.add_row(name, str(k), *map(cell, cells), style=style)
                name = ""

    systems = [s for s in LABELS.get(dataset, ()) if any(s.found[k].keys() & columns for k in s.found)]
    notes = [note(dataset)] if systems or dataset.endswith(RENDERED) else []
    if systems and "mean" in columns:
        notes.append("mean: the plain mean of the types, which the paper calls all")
    if always := [
        n for n, size in report.attributes_by_type.items() if size <= max(RECALL_AT) and n in columns
    ]:
        notes.append(f"always 1 at {max(RECALL_AT)} (no more attributes than that): {', '.join(always)}")
    result.caption = "\n".join(notes) or None
    if systems:
        result.add_row("published", style="italic")
    for system in systems:
        add(system.system, system.found, "dim")
    result.add_row("measured here", style="italic")
    if baseline is not None:
        add("most frequent", _found(baseline.most_frequent), "")
    add("this run", _found(report), "bold")
    return result


def _table(title: str) -> rich.table.Table:
    # At least as wide as the title, which would be wrapped otherwise.
    result = rich.table.Table(
        title=title, box=rich.box.SIMPLE_HEAD, padding=0, show_edge=False, min_width=len(title)
    )
    result.add_column("system", no_wrap=True)
    return result


def _found(report: Report) -> dict[int, dict[str, float | None]]:
    """Return scores by k and column: accuracy under the label's name, recall under the attribute types and ``mean``."""
    return {k: {report.label: report.accuracy.get(f"top{k}")} | report.recall.get(f"at{k}", {}) for k in TOP}


def _label_columns(report: Report) -> list[str]:
    """Return the columns of the labels that were scored."""
    found = _found(report)
    names = dict.fromkeys(name for by_column in found.values() for name in by_column)
    return [name for name in names if any(found[k].get(name) is not None for k in TOP)]


def pose_lines(dataset: str) -> list[str]:
    """Return the published PCK, AUC and EPE of a data set, one line per garment type; empty if there are none."""
    return [
        f"{'published, HRNet ' + name:24s} pck {pck:.3f} auc {auc:.3f} epe {epe:.1f} (not ours; one model per type)"
        for name, (pck, auc, epe) in POSE.get(dataset, {}).items()
    ]


def oks_table(scores: OksScores) -> rich.table.Table:
    """Return the table of AP by category, in each reading of area and landmarks."""
    readings = {"mask area": scores.mask_area, "box area": scores.box_area}
    readings |= {"box area, visible only": scores.box_area_visible}
    result = rich.table.Table(
        title="AP over OKS (higher is better)",
        caption=OKS_NOTE,
        box=rich.box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    result.add_column("category", no_wrap=True)
    for name in readings:
        result.add_column(name, justify="right")
    for name in scores.mask_area.by_category:
        result.add_row(name, *(cell(r.by_category[name]) for r in readings.values()))
    for label, field in (
        ("all, AP", "ap"),
        ("all, AP at .50", "ap50"),
        ("all, AP at .75", "ap75"),
        ("mean OKS", "oks"),
    ):
        result.add_row(label, *(cell(getattr(r, field)) for r in readings.values()), style="bold")
    return result


def as_text(result: rich.console.RenderableType, width: int = 120) -> str:
    """Render one or several tables as plain text of this width."""
    console = rich.console.Console(file=io.StringIO(), width=width, record=True)
    console.print(result)
    return console.export_text()


def short_name(landmark: str) -> str:
    """Abbreviate a landmark's name: ``left_waistline`` -> ``L waist``."""
    short = landmark.replace("left_", "L ").replace("right_", "R ").replace("_", " ")
    return short.replace("waistline", "waist")


def cell(value: float | None) -> str:
    """Format a score for a table cell: ``.0123``, or ``-`` for None."""
    return "-" if value is None else f"{value:.4f}".removeprefix("0")
