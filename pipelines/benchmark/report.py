"""The benchmark's table and chart, both made from its JSON."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import rich.box
import rich.console
import rich.table

if TYPE_CHECKING:
    import matplotlib.figure


def tables(result: Mapping[str, Any]) -> rich.console.Group:
    """Return the tables: the machine's ceilings, the stages, growth."""
    parts: list[rich.console.RenderableType] = [_title(result["machine"])]
    if result["ceilings"]:
        parts.append(_ceilings(result["ceilings"]))
    if result["stages"]:
        parts.append(_stages(result["stages"]))
    parts += [_growth(job, grown) for job, grown in result["growth"].items()]
    return rich.console.Group(*parts)


def _title(machine: Mapping[str, Any]) -> str:
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    return f"{machine['processor']}, {machine['cpus']} CPUs ({', '.join(machine['instructions'])}){gpu}"


def _table(title: str, *columns: str) -> rich.table.Table:
    table = rich.table.Table(title=title, box=rich.box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=not number)
    return table


def _ceilings(ceilings: Mapping[str, Any]) -> rich.table.Table:
    table = _table("this machine's ceilings", "what", "median", "min to max", "unit")
    for name, value in ceilings.items():
        table.add_row(name, number(value["median"]), _span(value), value["unit"])
    return table


def _stages(stages: Mapping[str, Any]) -> rich.table.Table:
    table = _table(
        "stages: medians; of = how fast relative to it, 1 is as fast",
        *("stage", "ours", "min to max", "ceiling", "of", "peer", "of", "unit"),
    )
    for name, value in stages.items():
        table.add_row(
            name,
            number(value["ours"]),
            _span(value["spread"]["ours"]),
            number(value["ceiling"]),
            ratio(value["of_ceiling"]),
            number(value["peer"]),
            ratio(value["of_peer"]),
            value["unit"],
            style="bold",
        )
        for also, figures in value["also"].items():
            what, _, unit = also.rpartition(", ")
            table.add_row(f"  {what}", number(figures["median"]), _span(figures), "", "", "", "", unit)
    compared = {value["ceiling_is"] for value in stages.values()} - {""}
    table.caption = None if not compared else "the JSON says what each ceiling and peer is"
    return table


def _growth(job: str, grown: Mapping[str, Any]) -> rich.table.Table:
    table = _table(
        f"glefld {job}: growth",
        "rows",
        "s",
        "min to max",
        "rows/s more",
        "driver, MiB",
        "all, MiB",
        "ms a row",
        "KiB a row",
    )
    for size in grown["sizes"]:
        table.add_row(
            f"{size['rows']:,}",
            number(size["seconds"]),
            _span({"min": size["seconds_min"], "max": size["seconds_max"]}),
            number(size["rows_per_second"]),
            number(size["driver_mib"]),
            number(size["mib"]),
            number(1000 * size["seconds_a_row"]),
            number(size["kib_a_row"]),
        )
    words = {True: "flat within 10 %", False: "NOT flat within 10 %"}
    table.caption = f"time a row: {words[grown['time_flat']]}; peak memory: {words[grown['memory_flat']]}"
    return table


def number(value: float | None) -> str:
    """Format a figure with three digits or all of its whole ones: ``0.123``, ``12.3``, ``1,234``; ``-`` for None."""
    if value is None:
        return "-"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}"


def ratio(value: float | None) -> str:
    """Format a ratio: ``.82``, ``1.05``; ``-`` for None."""
    return "-" if value is None else f"{value:.2f}".removeprefix("0")


def _span(value: Mapping[str, float]) -> str:
    return f"{number(value['min'])} to {number(value['max'])}"


def chart(result: Mapping[str, Any]) -> "matplotlib.figure.Figure":
    """Return a chart of how fast each stage is relative to its ceiling and to its peer, with the ratios' spread."""
    import matplotlib.figure  # slow to import, and measuring takes minutes before it is needed

    shown = {
        name: value
        for name, value in result["stages"].items()
        if value["of_ceiling"] is not None or value["of_peer"] is not None
    }
    figure = matplotlib.figure.Figure(
        figsize=(8, 1.7 + 0.45 * max(1, len(shown))), dpi=130, layout="constrained"
    )
    axes = figure.subplots()
    labelled = set()
    for place, value in enumerate(shown.values()):
        for key, label, colour, shift in (
            ("of_ceiling", "of this machine's ceiling", "#1f5a96", -0.16),
            ("of_peer", "of what a user would write", "#d1742b", 0.16),
        ):
            if (middle := value[key]) is None:
                continue
            span = value["spread"][key]
            axes.errorbar(
                middle,
                place + shift,
                xerr=[[middle - span["min"]], [span["max"] - middle]],
                fmt="o",
                color=colour,
                capsize=3,
                label=None if key in labelled else label,
            )
            labelled.add(key)
            axes.annotate(
                ratio(middle),
                (span["max"], place + shift),
                (7, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=colour,
                bbox={"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none"},
            )
    labels = [f"{name}\n{number(value['ours'])} {value['unit']}" for name, value in shown.items()]
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.axvline(1, color="#444444", lw=1)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    ticks = [
        tick for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10) if low / 1.5 <= tick <= high * 1.5
    ]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_xlim(low / 1.2, max(high, 1.2) * 1.4)
    axes.set_xlabel("relative speed, median and span (1 is as fast, right is faster)")
    axes.set_title(_title(result["machine"]), fontsize=9)
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if labelled:
        figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure
