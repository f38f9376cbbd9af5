"""The benchmark as a user runs it: what it writes, and mistakes in one line."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from jobs.benchmark import Options, metrics, run
from tests.ingested import write_dataset
from tests.mistakes import NO_SERVER, everything, one_line, write_wrong_files
from tests.pipelines.benchmark.bench import TINY, measured, write_material


def test_the_result_is_printed_written_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one process, on a given data set. Nothing is left in the folder of what was made."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    made = write_material(tmp_path)
    work, output = tmp_path / "elsewhere", tmp_path / "output"
    options = Options(
        **TINY,
        stages=("read", "step"),
        source=made.source,
        data=made.data,
        work=str(work),
        output=str(output),
        experiment="speed",
    )
    stages = measured(options)
    assert set(stages) == {"read", "step"}
    assert stages["step"]["of_peer"]
    assert Image.open(output / "benchmark.png").width > 500
    assert "step" in (output / "benchmark.txt").read_text()
    assert not list(work.iterdir())
    printed = capsys.readouterr().out
    assert "measuring step" in printed
    assert "MLflow " in printed


def test_logged_figures_end_with_their_unit_and_ratios_have_none() -> None:
    stages = {
        "step": {
            "unit": "images/s",
            "ours": 50.0,
            "ceiling": 100.0,
            "peer": None,
            "of_ceiling": 0.5,
            "of_peer": None,
        },
        "ingest": {
            "unit": "s",
            "ours": 3.0,
            "ceiling": None,
            "peer": None,
            "of_ceiling": None,
            "of_peer": None,
        },
    }
    assert metrics(stages) == {
        "step/ours_images_per_s": 50.0,
        "step/ceiling_images_per_s": 100.0,
        "step/of_ceiling": 0.5,
        "ingest/ours_s": 3.0,
    }


@pytest.mark.slow
def test_on_a_cluster_jobs_use_it_and_stages_are_its_tasks(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    made = write_material(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    options = Options(
        **TINY | {"repeats": 1, "peers": False, "cpus": 1},
        stages=("read", "ingest"),
        data=made.data,
        source=made.source,
        work=made.work,
        output=str(tmp_path / "output"),
    )
    stages = measured(options)
    assert set(stages) == {"read", "ingest"}
    assert all(stage["of_ceiling"] for stage in stages.values())
    assert not list(Path(made.work).iterdir())


WRONG = {
    "no stage": ({"stages": ()}, "--stages names no stage"),
    "no repetition": ({"repeats": 0}, "--repeats must be at least 1"),
    "no time": ({"seconds": 0.0}, "--seconds must be at least 0.01"),
    "no rows to plan": ({"plan_rows": ()}, "--plan-rows needs at least one number of rows"),
    "plans of nothing": ({"plan_rows": (0,)}, "--plan-rows must be at least 1"),
    "one size": ({"grow": (4,)}, "--grow needs at least two factors"),
    "sizes that fall": ({"grow": (4, 1)}, "--grow needs at least two factors in rising order"),
    "no such system": ({"model": "glee"}, "--model glee cannot be measured: choose one of fpn"),
    "a classifier": ({"model": "resnet"}, "--model resnet cannot be measured"),
    "a layout that is not rendered": ({"dataset": "deepfashion2"}, "--dataset deepfashion2 needs --source"),
    "no such data set": ({"data": "/nowhere"}, "/nowhere is not a finished data set"),
    "too many CPUs": ({"cpus": 100_000}, "--cpus 100000: this machine has"),
    "no GPU": ({"device": "gpu"}, "--device gpu: this machine has no GPU"),
    "no such checkpoint": ({"checkpoint": "/nowhere"}, "--checkpoint: "),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_option_is_one_line(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    changes, message = WRONG[case]
    assert message in one_line(lambda: run(Options(**changes)), capsys)


def test_wrong_places_are_one_line_and_nothing_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_wrong_files(tmp_path)
    write_dataset(tmp_path / "data", {"train": 8})
    before = everything(tmp_path)
    for changes, message in (
        ({"data": "photos"}, "is not a finished data set"),
        ({"data": "data"}, "has no rows in its split val"),
        ({"output": "notes.txt"}, "--output"),
        ({"work": "notes.txt"}, "--work"),
    ):
        places = {name: str(tmp_path / place) for name, place in changes.items()}
        assert message in one_line(lambda places=places: run(Options(**places)), capsys)
    assert everything(tmp_path) == before


def test_a_server_that_is_down_is_told_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NO_SERVER)
    assert "MLFLOW_TRACKING_URI" in one_line(lambda: run(Options(stages=("start",))), capsys)
    assert "MLFLOW_TRACKING_URI" in one_line(
        lambda: run(Options(stages=("step",), experiment="speed")), capsys
    )


def test_a_cluster_needs_a_shared_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert "--work: a cluster needs a folder" in one_line(lambda: run(Options(stages=("step",))), capsys)
