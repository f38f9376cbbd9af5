"""The table and the chart say what the JSON says."""

from typing import Any

from glefld.scoring.tables import as_text
from pipelines.benchmark import report
from pipelines.benchmark.options import Resources
from pipelines.benchmark.run import machine
from pipelines.benchmark.timing import Measurement
from pipelines.benchmark.whole_jobs import grown
from tests.pipelines.benchmark.test_whole_jobs import run_of


def result() -> dict[str, Any]:
    stages = {
        "step": Measurement(
            "images/s", "higher", [40, 50, 60], [100, 100, 100], "peak", [25, 25, 25], "plain"
        ),
        "start": Measurement("s", "lower", [20.0], also={"exit, s": [5.0]}),
    }
    return {
        "stages": {name: measurement.to_json() for name, measurement in stages.items()},
        "ceilings": {
            "matrix product, fp32": {"median": 150, "min": 140, "max": 160, "repeats": 3, "unit": "GFLOP/s"}
        },
        "growth": {"ingest": grown((1, 4), {100: [run_of(11, 1000)], 400: [run_of(14, 1500)]})},
        "machine": machine(Resources(2, False)),
    }


def test_the_table_shows_figures_ratios_and_growth() -> None:
    lines = [" ".join(line.split()) for line in as_text(report.tables(result())).splitlines()]
    assert "step 50.0 40.0 to 60.0 100 .50 25.0 2.00 images/s" in lines
    assert "exit 5.00 5.00 to 5.00 s" in lines
    assert "matrix product, fp32 150 140 to 160 GFLOP/s" in lines
    assert any("time a row: flat within 10 %; peak memory: NOT flat within 10 %" in line for line in lines)


def test_the_chart_has_a_point_for_each_ratio() -> None:
    axes = report.chart(result()).axes[0]
    assert [label.get_text().split("\n")[0] for label in axes.get_yticklabels()] == ["step"]
    assert sorted(text.get_text() for text in axes.texts) == [".50", "2.00"]


def test_a_result_without_stages_has_a_chart_too() -> None:
    assert report.chart(result() | {"stages": {}}).axes


def test_the_machine_is_named_with_its_versions() -> None:
    found = machine(Resources(2, False))
    assert found["processor"]
    assert found["cpus"] == 2
    assert found["gpu"] is None
    assert found["versions"]["torch"]
