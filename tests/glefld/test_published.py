"""The published tables as data, and that they are never taken for ours."""

import io

import pytest
import rich.console

from glefld.metrics import Baselines, Counters, Report
from glefld.published import DEEPFASHION, FLD, Published, published, table
from glefld.schema import FASHION8, Labels, LandmarkSet


def report(landmark_set: LandmarkSet = FASHION8, ne: float = 0.0123) -> Report:
    """What a run reports whose every landmark has this NE."""
    counters = Counters(Labels(landmark_set))
    counters.sums["visible"] += 1
    counters.sums["ne"] += ne
    counters.sums["rows"] += 7
    return counters.report()


def text(*args) -> str:
    console = rich.console.Console(width=80, record=True, file=io.StringIO())
    console.print(table(*args))
    return console.export_text()


@pytest.mark.parametrize("system", [*FLD, *DEEPFASHION], ids=lambda s: s.system)
def test_averages_agree_with_their_landmarks(system: Published):
    """A mistyped digit shows: each printed average is near its landmarks' mean, DFA's on FLD alone is not."""
    values = [v for v in system.by_landmark if v is not None]
    if values:
        slack = 0.002 if len(values) < len(FASHION8) else 0.0003
        assert system.average == pytest.approx(sum(values) / len(values), abs=slack)


def test_table_tells_published_from_measured():
    """Papers' rows stand under "published", ours and the baselines under "measured here", in 80 columns."""
    printed = text("deepfashion", report(), Baselines(report(ne=0.177), report(ne=0.149)))
    above, ours = printed.split("measured here")
    assert "published" in above
    for system in DEEPFASHION:
        line = next(x for x in above.splitlines() if x.startswith(f"  {system.system} "))
        figures = (*system.by_landmark, system.average)
        assert line.removeprefix(f"  {system.system}").split() == [
            "-" if v is None else f"{v:.4f}"[1:] for v in figures
        ]
        assert system.system not in ours
    assert next(x for x in ours.splitlines() if "mean by type" in x).count(".1490") == 9
    assert next(x for x in ours.splitlines() if "this run" in x).count(".0123") == 9
    assert "papers' own figures" in ours


def test_table_of_landmarks_that_nobody_published():
    """A user's own landmarks get no published rows; too many for a terminal leave the average."""
    own = LandmarkSet("own", ("tip", "heel"), (0, 1), ())
    printed = text("fld", report(own))
    assert "published" not in printed
    assert "heel" in printed
    many = LandmarkSet("many", tuple(f"point_{i}" for i in range(294)), tuple(range(294)), ())
    assert published("fld", many.landmarks) == ()
    printed = text("fld", report(many))
    assert "point" not in printed
    assert ".0123" in printed


def test_nothing_counted_is_a_dash():
    printed = text("fld", Counters(Labels(FASHION8)).report())
    (ours,) = [line for line in printed.splitlines() if "this run" in line]
    assert ours.split().count("-") == 9
