"""The benchmark of whole jobs, each started as a user starts it."""

import json
from pathlib import Path

import pytest

from jobs.benchmark import Options, run
from pipelines.benchmark import whole_jobs
from tests.pipelines.benchmark.bench import TINY, measured, write_material


@pytest.mark.slow
def test_whole_jobs_of_data(tmp_path: Path) -> None:
    """Photos are rendered and ingested; then whole jobs run on them."""
    options = Options(**TINY | {"rows": 40, "repeats": 1}, stages=("ingest", "infer"), output=str(tmp_path))
    stages = measured(options)
    assert set(stages) == {"ingest", "infer", "infer/ready"}
    for stage in stages.values():
        assert stage["ours"]
        assert stage["of_ceiling"]
    assert stages["ingest"]["of_peer"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_whole_jobs_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_jobs, "IMPORTED", ("train",))  # of four jobs, each by a new process
    made = write_material(tmp_path)
    options = Options(
        **TINY | {"repeats": 1},
        stages=("epoch", "evaluate", "start"),
        data=made.data,
        source=made.source,
        output=str(tmp_path / "output"),
    )
    stages = measured(options)
    assert set(stages) == {"epoch", "evaluate", "start"}
    also = stages["start"]["also"]
    assert isinstance(also, dict)
    assert {"import jobs.train, s", "last epoch to exit, s"} <= set(also)
    assert 0 < also["last epoch to exit, s"]["median"] < also["whole job, s"]["median"]


@pytest.mark.slow
def test_growth(tmp_path: Path) -> None:
    made = write_material(tmp_path)
    options = Options(
        **TINY | {"repeats": 1, "rows": 20},
        stages=(),
        grow=(1, 2),
        data=made.data,
        output=str(tmp_path / "output"),
    )
    run(options)
    growth = json.loads((tmp_path / "output" / "benchmark.json").read_text())["growth"]
    assert {job: [size["rows"] for size in grown["sizes"]] for job, grown in growth.items()} == {
        "ingest": [20, 40],
        "infer": [20, 40],
    }
