"""The tables of scores: ours beside the published ones, none of which was measured here.

Each figure is a paper's, on the real benchmark's test split: it compares with a run only if that was evaluated on the
same photos.
"""

import dataclasses
import io
from collections.abc import Mapping, Sequence

import rich.box
import rich.console
import rich.table

from glefld.metrics import RECALL_AT, TOP, Baselines, Report
from glefld.schema import FASHION8

#: More columns than this no terminal shows: then only the average is printed.
MOST_COLUMNS = 16


@dataclasses.dataclass(frozen=True)
class Published:
    """One system's NE: the average, and by landmark in FASHION8's order (None where the paper has none)."""

    system: str
    source: str
    average: float
    by_landmark: tuple[float | None, ...] = (None,) * len(FASHION8)


@dataclasses.dataclass(frozen=True)
class PublishedLabels:
    """One system's labels: by column, the share of the true ones among the k likeliest, for each k that it gives."""

    system: str
    source: str
    found: dict[int, dict[str, float]]


_FASHIONNET = "Liu et al., DeepFashion, CVPR 2016"
_DFA = "Liu et al., Fashion Landmark Detection in the Wild, ECCV 2016"
_DLAN = "Yan et al., Unconstrained Fashion Landmark Detection, ACM MM 2017"
_BCRNN = "Wang et al., Attentive Fashion Grammar Network, CVPR 2018"
_LIU_LU = "Liu & Lu, Deep Fashion Analysis, ECCV Workshops 2018"
_GLE = "Lee et al., A Global-Local Embedding Module, 2019"
_SANL = "Li et al., Spatial-Aware Non-Local Attention, 2019; as later papers cite it"

FLD = (
    Published(
        "FashionNet", _FASHIONNET, 0.0859, (0.0781, 0.0803, 0.0975, 0.0923, 0.0874, 0.0821, 0.0802, 0.0893)
    ),
    Published("DFA", _DFA, 0.0680, (0.0480, 0.0480, 0.0910, 0.0890, None, None, 0.0710, 0.0720)),
    Published("DLAN", _DLAN, 0.0672, (0.0531, 0.0547, 0.0705, 0.0735, 0.0752, 0.0748, 0.0693, 0.0675)),
    Published("BCRNN", _BCRNN, 0.0583, (0.0463, 0.0471, 0.0627, 0.0614, 0.0635, 0.0692, 0.0635, 0.0527)),
    Published("GLE", _GLE, 0.0568, (0.0386, 0.0391, 0.0675, 0.0672, 0.0576, 0.0605, 0.0615, 0.0621)),
    Published("SANL (second hand)", _SANL, 0.0396),
)
DEEPFASHION = (
    Published(
        "FashionNet", _FASHIONNET, 0.0872, (0.0854, 0.0902, 0.0973, 0.0935, 0.0854, 0.0845, 0.0812, 0.0823)
    ),
    Published("DFA", _DFA, 0.0660, (0.0628, 0.0637, 0.0658, 0.0621, 0.0726, 0.0702, 0.0658, 0.0663)),
    Published("DLAN", _DLAN, 0.0643, (0.0570, 0.0611, 0.0672, 0.0647, 0.0703, 0.0694, 0.0624, 0.0627)),
    Published("BCRNN", _BCRNN, 0.0484, (0.0415, 0.0404, 0.0496, 0.0449, 0.0502, 0.0523, 0.0537, 0.0551)),
    Published("Liu & Lu", _LIU_LU, 0.0474, (0.0332, 0.0346, 0.0487, 0.0519, 0.0422, 0.0429, 0.0620, 0.0639)),
    Published("GLE", _GLE, 0.0393, (0.0312, 0.0324, 0.0427, 0.0434, 0.0361, 0.0373, 0.0442, 0.0475)),
    Published("SANL (second hand)", _SANL, 0.0299),
)
_COARSE = ("category", "texture", "fabric", "shape", "part", "style", "all")
#: By data set, top-k accuracy of the category and recall of the attributes at k.
LABELS = {
    "deepfashion": (
        PublishedLabels(
            "Liu & Lu",
            _LIU_LU,
            {
                3: dict(zip(_COARSE, (0.9116, 0.5617, 0.4320, 0.5828, 0.4697, 0.6882, 0.5469), strict=True)),
                5: dict(zip(_COARSE, (0.9612, 0.6583, 0.5352, 0.6780, 0.5742, 0.7413, 0.6374), strict=True)),
            },
        ),
    )
}
#: By data set, PCK@0.2, AUC and EPE of HRNet-w48-UDP as mmpose gives them: a model a garment type, 256 x 192 pixels,
#: ImageNet weights, 210 epochs.
POSE: dict[str, dict[str, tuple[float, float, float]]] = {
    "fld": {"upper": (0.961, 0.609, 15.1), "lower": (0.978, 0.761, 8.9), "full": (0.983, 0.673, 11.7)}
}
_BY_DATASET = {"fld": FLD, "deepfashion": DEEPFASHION, "deepfashion-fine": DEEPFASHION}


def published(dataset: str, landmarks: Sequence[str]) -> tuple[Published, ...]:
    """The systems published for a data set; none where its landmarks are not the benchmarks' eight."""
    return _BY_DATASET.get(dataset, ()) if tuple(landmarks) == FASHION8.landmarks else ()


def note(dataset: str) -> str:
    """What must stand beside published figures wherever they are shown."""
    if dataset == "deepfashion-fine":
        # Its lists annotate a part of DeepFashion's photos anew: these figures are the nearest there are.
        return (
            "published: the papers' figures on DeepFashion's coarse lists (other photos and splits), not ours"
        )
    return "published: the papers' figures on the benchmark's test split, not ours"


def score_tables(dataset: str, report: Report, baseline: Baselines | None = None) -> rich.console.Group:
    """The table of NE, of labels, or both: of what was scored."""
    labels = _label_columns(report)
    tables = [ne_table(dataset, report, baseline)] if report.ne is not None or not labels else []
    return rich.console.Group(*tables, *([label_table(dataset, report, baseline)] if labels else []))


def ne_table(dataset: str, report: Report, baseline: Baselines | None = None) -> rich.table.Table:
    """NE by landmark in 80 columns: the published systems, then the mean-position baselines and this run."""
    names = tuple(report.ne_by_landmark)
    columns = names if len(names) <= MOST_COLUMNS else ()
    result = _table(f"normalised error on {dataset}, {report.rows:,} garments (lower is better)")
    for name in columns:
        result.add_column(short_name(name).replace(" ", "\n", 1), justify="right")
    result.add_column("average", justify="right", style="bold")

    systems = published(dataset, names)
    if systems:
        result.caption = note(dataset)
        result.add_row("published", style="italic")
    for system in systems:
        by_landmark = dict(zip(names, system.by_landmark, strict=True))
        cells = [_cell(by_landmark[name]) for name in columns]
        result.add_row(f"  {system.system}", *cells, _cell(system.average), style="dim")
    result.add_row("measured here", style="italic")
    measured = {"  this run": report}
    if baseline is not None:
        means = {"  mean position": baseline.mean_position, "  mean by type": baseline.mean_position_by_type}
        measured = means | measured
    for label, scores in measured.items():
        cells = [_cell(scores.ne_by_landmark[name]) for name in columns]
        result.add_row(label, *cells, _cell(scores.ne), style="bold" if scores is report else "")
    result.add_row("  visible", *[f"{report.counted[name]}" for name in columns], "", style="dim")
    return result


def label_table(dataset: str, report: Report, baseline: Baselines | None = None) -> rich.table.Table:
    """Top-k accuracy of the class and recall of the attributes at k in 80 columns, in the same order."""
    columns = _label_columns(report)
    kinds = ["accuracy"] * (report.label in columns) + ["recall"] * ("all" in columns)
    result = _table(f"top-k {' and '.join(kinds)} on {dataset}, {report.rows:,} rows (higher is better)")
    result.add_column("k", justify="right")
    for name in columns:
        result.add_column(name.replace("_", " "), justify="right")

    def add(system: str, found: Mapping[int, Mapping[str, float | None]], style: str) -> None:
        name = f"  {system}"
        for k, by_column in found.items():
            cells = [by_column.get(column) for column in columns]
            if any(value is not None for value in cells):
                result.add_row(name, str(k), *map(_cell, cells), style=style)
                name = ""

    systems = [s for s in LABELS.get(dataset, ()) if any(s.found[k].keys() & columns for k in s.found)]
    notes = [note(dataset)] if systems else []
    if always := [
        n for n, size in report.attributes_by_type.items() if size <= max(RECALL_AT) and n in columns
    ]:
        notes.append(f"always found at {max(RECALL_AT)}, being no more: {', '.join(always)}")
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
    # No narrower than its title, which would be folded.
    result = rich.table.Table(
        title=title, box=rich.box.SIMPLE_HEAD, padding=0, show_edge=False, min_width=len(title)
    )
    result.add_column("system", no_wrap=True)
    return result


def _found(report: Report) -> dict[int, dict[str, float | None]]:
    """By k and column: the accuracy under its label's name, recall under its attribute type's and ``all``."""
    return {k: {report.label: report.accuracy.get(f"top{k}")} | report.recall.get(f"at{k}", {}) for k in TOP}


def _label_columns(report: Report) -> list[str]:
    """The columns of labels that were scored."""
    found = _found(report)
    names = dict.fromkeys(name for by_column in found.values() for name in by_column)
    return [name for name in names if any(found[k].get(name) is not None for k in TOP)]


def pose_lines(dataset: str) -> list[str]:
    """The published PCK, AUC and EPE for a data set, a line a garment type; none where there are none."""
    return [
        f"{'published, HRNet ' + name:24s} pck {pck:.3f} auc {auc:.3f} epe {epe:.1f} (not ours; a model for this type)"
        for name, (pck, auc, epe) in POSE.get(dataset, {}).items()
    ]


def as_text(result: rich.console.RenderableType, width: int = 120) -> str:
    """A table, or several, as plain text of this width."""
    console = rich.console.Console(file=io.StringIO(), width=width, record=True)
    console.print(result)
    return console.export_text()


def short_name(landmark: str) -> str:
    """``left_waistline`` -> ``L waist``."""
    short = landmark.replace("left_", "L ").replace("right_", "R ").replace("_", " ")
    return short.replace("waistline", "waist")


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}".removeprefix("0")
