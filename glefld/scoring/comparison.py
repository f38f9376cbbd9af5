"""Comparing systems trained on the same data: scores, cost, and which differences exceed the spread over seeds."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import rich.box
import rich.table

from glefld.scoring.baselines import Baselines
from glefld.scoring.cost import Cost
from glefld.scoring.evaluation import EVAL_BATCH
from glefld.scoring.metrics import Report
from glefld.scoring.published import note, published
from glefld.scoring.tables import MOST_COLUMNS, cell, short_name

if TYPE_CHECKING:
    import matplotlib.figure

#: Scores other than NE. Each gets a column if a system has it.
BESIDE = {
    "oks_ap": "AP over\nOKS",
    "accuracy_top3": "category\ntop-3",
    "recall_at3/mean": "attri-\nbutes at 3",
}
#: Seeds needed per system before a difference counts.
SEEDS = 3


@dataclasses.dataclass(frozen=True)
class Result:
    """One system trained with one seed."""

    system: str
    seed: int
    error: float  # what the best checkpoint was selected by: NE, or 1 - accuracy
    ne: float | None
    ne_by_landmark: dict[str, float | None]
    numbers: dict[str, float]  # all scores, ``Report.numbers``
    checkpoint: str
    run_id: str

    @classmethod
    def of(cls, report: Report, **facts: Any) -> "Result":
        """Build a result from a report and the remaining fields."""
        assert report.error is not None, "training selects checkpoints by the error"
        return cls(
            error=report.error,
            ne=report.ne,
            ne_by_landmark=report.ne_by_landmark,
            numbers=report.numbers(),
            **facts,
        )


@dataclasses.dataclass(frozen=True)
class SystemScores:
    """One system with the results of all its seeds."""

    system: str
    results: tuple[Result, ...]
    cost: Cost

    @property
    def ne(self) -> float:
        """Mean NE over seeds."""
        return statistics.fmean(self._values())

    @property
    def span(self) -> tuple[float, float]:
        """Lowest and highest NE over seeds."""
        return min(self._values()), max(self._values())

    def landmark(self, name: str) -> float | None:
        """Return the mean over seeds of a landmark's NE; None if it was never visible."""
        values = [v for r in self.results if (v := r.ne_by_landmark[name]) is not None]
        return statistics.fmean(values) if values else None

    def score(self, name: str) -> float | None:
        """Return the mean over seeds of one of ``Report.numbers``; None if the system does not have it."""
        values = [r.numbers[name] for r in self.results if name in r.numbers]
        return statistics.fmean(values) if values else None

    def differs(self, other: "SystemScores") -> bool:
        """Return whether the gap between the two systems' closest seeds exceeds the spread of either one.

        Always False with fewer than ``SEEDS`` seeds each. For two equal systems with three normally distributed seeds
        each, the false positive rate is 0.7 %. Of twelve equal systems, at least one is called worse than the best in
        15 % of tables.
        """
        if min(len(self.results), len(other.results)) < SEEDS:
            return False
        gap = max(self.span[0] - other.span[1], other.span[0] - self.span[1])
        return gap > max(high - low for low, high in (self.span, other.span))

    def _values(self) -> list[float]:
        return [r.ne for r in self.results if r.ne is not None]


def rows(results: Sequence[Result], costs: Mapping[str, Cost]) -> list[SystemScores]:
    """Group results by system, in order of first appearance. Classifiers are left out, since they have no NE."""
    names = dict.fromkeys(r.system for r in results if r.ne is not None)
    return [SystemScores(name, tuple(r for r in results if r.system == name), costs[name]) for name in names]


def verdict(row: SystemScores, best: SystemScores) -> str:
    """Return how a row compares to the best one, in a few words."""
    if row is best:
        return "lowest"
    if row.differs(best):
        return "worse"
    return "no clear difference"


def table(
    dataset: str, split: str, compared: Sequence[SystemScores], baseline: Baselines
) -> rich.table.Table:
    """Return a table of each system's NE by landmark, cost and verdict, with the baselines and published figures."""
    first = compared[0].results[0]
    names = tuple(first.ne_by_landmark)
    columns = names if len(names) <= MOST_COLUMNS else ()
    seeds = max(len(row.results) for row in compared)
    result = rich.table.Table(
        title=f"normalised error on {dataset}, {split} (lower is better), {seeds} seed{'s' if seeds > 1 else ''}",
        caption=f"worse: by more than the spread over either's seeds, with at least {SEEDS} seeds. Parameters and "
        "multiply-adds include a system's guide. Images per second: forward pass in the hardware's best precision, "
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
    for head in ("M para-\nmeters", "G multi-\nply-adds", "images\nper second"):
        result.add_column(head, justify="right")
    result.add_column("against\nthe lowest")
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


def chart(
    dataset: str, split: str, compared: Sequence[SystemScores], baseline: Baselines
) -> "matplotlib.figure.Figure":
    """Return a chart of each system's mean NE and its span over seeds, with the published averages below."""
    import matplotlib.figure  # here, as comparing trains for hours before it draws

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
    axes.set_title(f"{dataset}, {split}: systems compared", fontsize=10)
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
