"""Comparisons: what is called a difference, and that the table shows all that was measured."""

import numpy as np
import pytest

from glefld.schema import FASHION8, Labels
from glefld.scoring.baselines import Baselines
from glefld.scoring.comparison import SEEDS, Result, SystemScores, chart, rows, table, verdict
from glefld.scoring.cost import Cost
from glefld.scoring.metrics import Counters
from glefld.scoring.tables import as_text

SEED = 20261122


def result(system: str, ne: float | None, seed: int = 0) -> Result:
    return Result(
        system=system,
        seed=seed,
        error=ne if ne is not None else 0.5,
        ne=ne,
        ne_by_landmark=dict.fromkeys(FASHION8.landmarks, ne),
        numbers={},
        checkpoint="there",
        run_id="r",
    )


COST = Cost(parameters=1_500_000, multiply_adds=250_000_000, images_per_second=123.4)


def row(*values: float) -> SystemScores:
    return SystemScores("system", tuple(result("system", ne, seed) for seed, ne in enumerate(values)), COST)


DIFFERENCES = {
    "one seed tells nothing": ((0.1,), (0.2,), False),
    "two seeds tell nothing": ((0.1, 0.11), (0.2, 0.21), False),
    "three further apart than either's spread do": ((0.1, 0.11, 0.12), (0.15, 0.15, 0.17), True),
    "the other way round": ((0.15, 0.15, 0.17), (0.1, 0.11, 0.12), True),
    "three that are only no overlap do not": ((0.1, 0.11, 0.12), (0.13, 0.14, 0.15), False),
    "a gap within one's spread does not": ((0.1, 0.1, 0.1), (0.12, 0.14, 0.16), False),
    "three that overlap do not": ((0.1, 0.11, 0.14), (0.13, 0.14, 0.15), False),
    "equal ones do not": ((0.1, 0.1, 0.1), (0.1, 0.1, 0.1), False),
    "three against two do not": ((0.1, 0.11, 0.12), (0.2, 0.2), False),
}


@pytest.mark.parametrize("case", DIFFERENCES)
def test_a_difference_is_one_beyond_the_span_of_three_seeds(case: str) -> None:
    a, b, differs = DIFFERENCES[case]
    assert row(*a).differs(row(*b)) is differs
    assert row(*b).differs(row(*a)) is differs


@pytest.mark.parametrize(("systems", "share", "within"), [(2, 0.0074, 0.003), (12, 0.146, 0.01)])
def test_how_often_equal_systems_are_called_different(systems: int, share: float, within: float) -> None:
    """The rates in docs/training.md, by simulation: all systems' seeds come from one normal distribution."""
    tables = 10_000
    values = np.random.default_rng(SEED).normal(0.1, 0.01, (tables, systems, SEEDS))
    wrong = 0
    for drawn in values:
        compared = [row(*seeds) for seeds in drawn]
        best = min(compared, key=lambda r: r.ne)
        wrong += any(verdict(other, best) == "worse" for other in compared)
    assert wrong / tables == pytest.approx(share, abs=within), f"seed {SEED}"


def test_rows_gather_the_seeds_and_leave_classifiers_out() -> None:
    results = [result("a", 0.2), result("classifier", None), result("b", 0.1), result("a", 0.4, 1)]
    found = rows(results, dict.fromkeys(("a", "b", "classifier"), COST))
    assert [(r.system, len(r.results)) for r in found] == [("a", 2), ("b", 1)]
    assert found[0].ne == pytest.approx(0.3)
    assert found[0].span == (0.2, 0.4)
    assert verdict(found[1], found[1]) == "lowest"
    assert verdict(found[0], found[1]) == "no clear difference"


def test_the_table_and_chart_show_every_system_and_the_published_ones() -> None:
    """Each system's mean, cost and verdict; the mean position; the papers' figures, marked as not ours."""
    results = [result("gle:modules=0", ne, s) for s, ne in enumerate((0.1, 0.11, 0.12))]
    results += [result("sanl", ne, s) for s, ne in enumerate((0.2, 0.21, 0.22))]
    compared = rows(results, dict.fromkeys(("gle:modules=0", "sanl"), COST))
    nothing = Counters(Labels(FASHION8)).report()
    words = as_text(table("fld", "val", compared, Baselines(nothing, nothing, nothing)), width=160)
    for expected in (
        "gle:modules=0",
        ".1100",
        ".1000-.1200",
        "1.50",
        "0.25",
        "123",
        "lowest",
        "worse",
        "mean position",
    ):
        assert expected in words, expected
    assert "not ours" in words
    assert "FashionNet" in words
    figure = chart("fld", "val", compared, Baselines(nothing, nothing, nothing))
    (axes,) = figure.axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[:2] == ["gle:modules=0", "sanl"]
    assert "GLE (published)" in labels
