"""The charts of an evaluation's page: narrow ones, so that two are beside each other, and one fills a phone.

Letters in shapes: N rows, T classes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from glefld.scoring.analysis import SizeGroup, share_within
from glefld.scoring.boxes import THRESHOLDS, BoxScores
from glefld.scoring.tables import short_name

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

WIDTH = 5.4
HEIGHT = 3.6
BLUE, GREY, ORANGE = "#2b6cb0", "#8a8f98", "#c05621"
#: The curve of errors ends here, in box sides: what lies beyond is simply wrong.
FARTHEST = 0.3


def chart(
    draw: Callable[["matplotlib.axes.Axes"], object], height: float = HEIGHT
) -> "matplotlib.figure.Figure":
    """Return a figure of a page's size with one pair of axes that ``draw`` fills."""
    import matplotlib.figure  # here, as most jobs draw nothing

    figure = matplotlib.figure.Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    draw(axes)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def intervals(
    values: Mapping[str, float | None],
    ends: Mapping[str, tuple[float, float]],
    baseline: Mapping[str, float | None],
    baseline_name: str,
    label: str,
) -> "matplotlib.figure.Figure":
    """Return a bar by name with its interval, and a mark where the baseline is. Those without a value are left out."""
    names = [name for name, value in values.items() if value is not None]

    def draw(axes: "matplotlib.axes.Axes") -> None:
        places = np.arange(len(names))
        measured = np.array([values[name] for name in names], float)
        axes.barh(places, measured, 0.62, color="#a9c6e8")
        low, high = np.array([ends.get(name, (np.nan, np.nan)) for name in names], float).reshape(-1, 2).T
        off = [measured - low, high - measured]
        axes.errorbar(measured, places, xerr=np.maximum(off, 0), fmt="none", ecolor=BLUE, capsize=3)
        for place, value in zip(places, measured, strict=True):
            axes.annotate(
                _short(value), (0, place), (4, 0), textcoords="offset points", va="center", fontsize=9
            )
        marks = np.array([np.nan if baseline.get(name) is None else baseline[name] for name in names], float)
        if not np.isnan(marks).all():
            axes.vlines(marks, places - 0.4, places + 0.4, color=ORANGE, lw=2, label=baseline_name)
            axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0)
        axes.set_yticks(places, [*map(short_name, names)])
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.set_xlabel(label)

    return chart(draw, 1 + 0.32 * len(names))


def cumulative(curves: Mapping[str, NDArray[np.floating]]) -> "matplotlib.figure.Figure":
    """Return the share of errors [N] within each distance: a curve by name, from blue to others."""

    def draw(axes: "matplotlib.axes.Axes") -> None:
        at = np.linspace(0, FARTHEST, 301)
        for (name, error), colour in zip(curves.items(), (BLUE, ORANGE, GREY), strict=False):
            axes.plot(at, share_within(error, at), color=colour, label=name)
        axes.axvline(0.1, color=GREY, lw=1, ls=":")
        axes.set(xlim=(0, FARTHEST), ylim=(0, 1), xlabel="distance, in box sides", ylabel="share within it")
        axes.grid(color="#dddddd", lw=0.6)
        axes.legend(frameon=False, loc="lower right")

    return chart(draw)


def groups(found: Sequence[SizeGroup], label: str, value: str, digits: int) -> "matplotlib.figure.Figure":
    """Return the mean of each group with its interval; digits: of the numbers that tell the groups apart."""

    def draw(axes: "matplotlib.axes.Axes") -> None:
        places = np.arange(len(found))
        mean = np.array([group.mean for group in found])
        low, high = np.array([group.interval for group in found]).T
        axes.errorbar(
            places,
            mean,
            [np.maximum(mean - low, 0), np.maximum(high - mean, 0)],
            fmt="o-",
            color=BLUE,
            capsize=3,
        )
        axes.set_xticks(places, [f"{g.low:.{digits}f}–{g.high:.{digits}f}" for g in found], fontsize=8)
        axes.set(xlabel=label, ylabel=value)
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", color="#dddddd", lw=0.6)

    return chart(draw)


def matrix(names: Sequence[str], counts: NDArray[np.int64]) -> "matplotlib.figure.Figure":
    """Return counts [T, T], true by told, coloured by their share of the true ones."""

    def draw(axes: "matplotlib.axes.Axes") -> None:
        total = counts.sum(axis=1, keepdims=True)
        share = np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (i, j), count in np.ndenumerate(counts):
            if count or i == j:
                axes.text(
                    j,
                    i,
                    f"{count:,}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if share[i, j] > 0.6 else "black",
                )
        axes.set_xticks(range(len(names)), names, rotation=0 if len(names) <= 4 else 45, fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set(xlabel="told", ylabel="annotated")

    return chart(draw, max(2.2, min(8.0, 1.2 + 0.4 * len(names))))


def precision_recall(scores: BoxScores) -> "matplotlib.figure.Figure":
    """Return precision over recall at IoU .5, and where the least score is."""

    def draw(axes: "matplotlib.axes.Axes") -> None:
        recall, precision, _ = np.array(scores.curve).T
        axes.plot(recall, precision, color=BLUE)
        axes.plot(scores.recall, scores.precision, "o", color=ORANGE)
        axes.annotate(
            f"score {scores.least_score:.2f} or more",
            (scores.recall, scores.precision),
            (-8, -12),
            textcoords="offset points",
            ha="right",
            fontsize=9,
        )
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
        axes.grid(color="#dddddd", lw=0.6)

    return chart(draw)


def by_overlap(scores: BoxScores) -> "matplotlib.figure.Figure":
    """Return AP by the overlap that a box must have to be right."""

    def draw(axes: "matplotlib.axes.Axes") -> None:
        axes.plot(THRESHOLDS, scores.by_overlap, "o-", color=BLUE)
        axes.set(ylim=(0, 1.02), xlabel="least overlap (IoU) of a right box", ylabel="average precision")
        axes.grid(color="#dddddd", lw=0.6)

    return chart(draw)


def _short(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")
