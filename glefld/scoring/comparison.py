"""Systems trained alike, side by side: what each cost and scored, and which differences can be told from chance."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.figure
import rich.box
import rich.table

from glefld.scoring.cost import Cost
from glefld.scoring.evaluation import EVAL_BATCH
from glefld.scoring.metrics import Baselines, Report
from glefld.scoring.published import note, published
from glefld.scoring.tables import MOST_COLUMNS, cell, short_name

#: Scores beside NE, each a column where a system has it.
BESIDE = {
    "oks_ap": "AP over\nOKS",
    "accuracy_top3": "category\ntop-3",
    "recall_at3/all": "attri-\nbutes at 3",
}
#: So many seeds are needed before a difference is called one.
SEEDS = 3


@dataclasses.dataclass(frozen=True)
class Result:
    """One system trained with one seed."""

    system: str
    seed: int
    error: float  # what it was chosen by: NE, or what its accuracy lacks
    ne: float | None
    ne_by_landmark: dict[str, float | None]
    numbers: dict[str, float]  # all scores, ``Report.numbers``
    checkpoint: str
    run_id: str

    @classmethod
    def of(cls, report: Report, **facts: Any) -> "Result":
        assert report.error is not None, "training has chosen a checkpoint by its error"
        return cls(
            error=report.error,
            ne=report.ne,
            ne_by_landmark=report.ne_by_landmark,
            numbers=report.numbers(),
            **facts,
        )


@dataclasses.dataclass(frozen=True)
class Row:
    """One system over its seeds."""

    system: str
    results: tuple[Result, ...]
    cost: Cost

    @property
    def ne(self) -> float:
        """The mean over seeds."""
        return statistics.fmean(self._values())

    @property
    def span(self) -> tuple[float, float]:
        """The least and the largest of the seeds."""
        return min(self._values()), max(self._values())

    def landmark(self, name: str) -> float | None:
        """The mean over seeds of a landmark's NE; None where it was never visible."""
        values = [v for r in self.results if (v := r.ne_by_landmark[name]) is not None]
        return statistics.fmean(values) if values else None

    def score(self, name: str) -> float | None:
        """The mean over seeds of one of ``Report.numbers``; None where the system has no such score."""
        values = [r.numbers[name] for r in self.results if name in r.numbers]
        return statistics.fmean(values) if values else None

    def differs(self, other: "Row") -> bool:
        """Whether the nearest seeds of the two are further apart than either's own spread, with ``SEEDS`` of each.

        Two equal systems with three normal seeds each are then called different 0.7 times in 100, and one of twelve
        equal ones worse than the best of them in 15 tables of 100.
        """
        if min(len(self.results), len(other.results)) < SEEDS:
            return False
        gap = max(self.span[0] - other.span[1], other.span[0] - self.span[1])
        return gap > max(high - low for low, high in (self.span, other.span))

    def _values(self) -> list[float]:
        return [r.ne for r in self.results if r.ne is not None]


def rows(results: Sequence[Result], costs: Mapping[str, Cost]) -> list[Row]:
    """The landmark systems in the order they are first met; classifiers have no NE and stand elsewhere."""
    names = dict.fromkeys(r.system for r in results if r.ne is not None)
    return [Row(name, tuple(r for r in results if r.system == name), costs[name]) for name in names]


def verdict(row: Row, best: Row) -> str:
    """How a row stands to the best one, in a word or two."""
    if row is best:
        return "lowest"
    if row.differs(best):
        return "worse"
    return "not told apart"


def table(dataset: str, split: str, compared: Sequence[Row], baseline: Baselines) -> rich.table.Table:
    """NE by landmark, cost and verdict of each system, beside the mean positions and the published figures."""
    first = compared[0].results[0]
    names = tuple(first.ne_by_landmark)
    columns = names if len(names) <= MOST_COLUMNS else ()
    seeds = max(len(row.results) for row in compared)
    result = rich.table.Table(
        title=f"normalised error on {dataset}, {split} (lower is better), {seeds} seed{'s' if seeds > 1 else ''}",
        caption=f"worse: by more than the spread of either's seeds, of {SEEDS} or more. Parameters and multiply-adds "
        "with what guides a system; images a second: forward, by the hardware's best precision, "
        f"batches of {EVAL_BATCH}",
        box=rich.box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    result.add_column("system", no_wrap=True)
    for name in columns:
        result.add_column(short_name(name).replace(" ", "\n", 1), justify="right")
    result.add_column("average", justify="right", style="bold")
    result.add_column("seeds'\nspan", justify="right")
    beside = [name for name in BESIDE if any(row.score(name) is not None for row in compared)]
    for name in beside:
        result.add_column(BESIDE[name], justify="right")
    for head in ("M para-\nmeters", "G multi-\nply-adds", "images\na second"):
        result.add_column(head, justify="right")
    result.add_column("beside\nthe lowest")
    result.add_row("measured here", style="italic")
    for label, scores in (
        ("mean position", baseline.mean_position),
        ("mean by type", baseline.mean_position_by_type),
    ):
        result.add_row(f"  {label}", *[cell(scores.ne_by_landmark[n]) for n in columns], cell(scores.ne))
    best = min(compared, key=lambda row: row.ne)
    for row in compared:
        span = "-".join(cell(v) for v in row.span) if len(row.results) > 1 else "-"
        result.add_row(
            f"  {row.system}",
            *[cell(row.landmark(n)) for n in columns],
            cell(row.ne),
            span,
            *[cell(row.score(name)) for name in beside],
            f"{row.cost.parameters / 1e6:.2f}",
            f"{row.cost.multiply_adds / 1e9:.2f}",
            f"{row.cost.images_per_second:.0f}",
            verdict(row, best),
        )
    systems = published(dataset, names)
    if systems:
        result.add_section()
        result.add_row("published", style="italic")
        result.caption = f"{result.caption}\n{note(dataset)}"
    for system in systems:
        cells = [cell(v) for v in system.by_landmark] if columns else []
        result.add_row(f"  {system.system}", *cells, cell(system.average), style="dim")
    return result


def chart(dataset: str, split: str, compared: Sequence[Row], baseline: Baselines) -> matplotlib.figure.Figure:
    """Each system's mean NE and the span of its seeds, with the published averages beneath."""
    systems = published(dataset, tuple(compared[0].results[0].ne_by_landmark))
    figure = matplotlib.figure.Figure(
        figsize=(8, 1.6 + 0.3 * (len(compared) + len(systems))), dpi=130, layout="constrained"
    )
    axes = figure.subplots()
    ordered = sorted(compared, key=lambda row: row.ne)
    labels = []
    for place, row in enumerate(ordered):
        low, high = row.span
        axes.errorbar(
            row.ne, place, xerr=[[row.ne - low], [high - row.ne]], fmt="o", color="#1f5a96", capsize=3
        )
        axes.annotate(
            f"{row.ne:.4f}", (high, place), (8, 0), textcoords="offset points", va="center", fontsize=8
        )
        labels.append(row.system)
    for place, system in enumerate(systems, len(ordered)):
        axes.plot(system.average, place, "o", color="white", markeredgecolor="#999999")
        axes.annotate(
            f"{system.average:.4f}", (system.average, place), (8, 0), textcoords="offset points", va="center",
            fontsize=8, color="#777777",
        )  # fmt: skip
        labels.append(f"{system.system} (published)")
    if systems:
        axes.axhline(len(ordered) - 0.5, color="#cccccc", lw=1)
    for scores, words, style in (
        (baseline.mean_position, "mean position", ":"),
        (baseline.mean_position_by_type, "mean by type", "--"),
    ):
        if scores.ne is not None:
            axes.axvline(scores.ne, ls=style, color="#444444", lw=1, label=words)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("normalised error, mean and span of the seeds (lower is better)")
    axes.set_title(f"{dataset}, {split}: systems trained alike", fontsize=10)
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        loc="lower right",
        fontsize=8,
        frameon=False,
        title=note(dataset) if systems else None,
        title_fontsize=6,
    )
    return figure
