"""What a run logs: all of it is stored, also when the server was away, and a model comes back as it was.

The store is a real SQLite file; a server that is away is a port at which nobody listens.
"""

import dataclasses
import json
import logging
import subprocess
import sys
import threading
import time
from pathlib import Path

import matplotlib.figure
import mlflow
import PIL.Image
import pytest
from mlflow import MlflowClient

from glefld import tracking
from glefld.models import checkpoint
from glefld.tracking import Registration, RunHandle, RunLog, to_its_end
from glefld.tracking.outbox import Outbox
from tests import dots

NOBODY = "http://127.0.0.1:1"


@pytest.fixture
def handle(tmp_path: Path, empty_store: Path) -> RunHandle:
    """A new run in a store of its own."""
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    experiment = client.create_experiment("test", artifact_location=str(tmp_path / "mlartifacts"))
    return RunHandle(uri, experiment, client.create_run(experiment).info.run_id)


@pytest.fixture
def away(handle: RunHandle, monkeypatch: pytest.MonkeyPatch) -> RunHandle:
    """The same run on a server that is away, and none of the test's time spent waiting for it."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("glefld.tracking.log.END_SECONDS", 1.0)
    return dataclasses.replace(handle, tracking_uri=NOBODY)


def history(handle: RunHandle, key: str) -> list[tuple[int, float]]:
    metrics = MlflowClient(handle.tracking_uri).get_metric_history(handle.run_id, key)
    return sorted((m.step, m.value) for m in metrics)


def artifact(handle: RunHandle, file: str) -> str:
    path = mlflow.artifacts.download_artifacts(
        run_id=handle.run_id, artifact_path=file, tracking_uri=handle.tracking_uri
    )
    return Path(path).read_text()


def test_nothing_is_lost(handle: RunHandle) -> None:
    """Every value of 2,500 steps is stored once flush says so, repeats included."""
    log = RunLog(handle)
    for step in range(2500):
        log.log({"loss": step / 7, "learning_rate": 1e-4}, step)
    log.log({"loss": -1.0}, 2499)
    assert log.flush(60)
    steps = [*((step, step / 7) for step in range(2499)), (2499, -1.0), (2499, 2499 / 7)]
    assert history(handle, "loss") == steps


def test_artifacts(handle: RunHandle) -> None:
    """Text, JSON, picture and chart each land where they were named."""
    with to_its_end(handle) as log:
        log.log_text("a table", "evaluation/table.txt")
        log.log_dict({"ne": 0.5}, "results.json")
        log.log_image(PIL.Image.new("RGB", (4, 3), "red"), "pictures/sheet.png")
        log.log_figure(matplotlib.figure.Figure(), "pictures/ne.png")
    assert artifact(handle, "evaluation/table.txt") == "a table"
    assert json.loads(artifact(handle, "results.json")) == {"ne": 0.5}
    client = MlflowClient(handle.tracking_uri)
    assert {a.path for a in client.list_artifacts(handle.run_id, "pictures")} == {
        "pictures/sheet.png",
        "pictures/ne.png",
    }
    assert client.get_run(handle.run_id).info.status == "FINISHED"


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_the_run_ends_as_its_block_does(handle: RunHandle, error: type[BaseException], status: str) -> None:
    with pytest.raises(error), to_its_end(handle):
        raise error
    assert MlflowClient(handle.tracking_uri).get_run(handle.run_id).info.status == status


def test_a_server_that_is_away_costs_no_time_and_nothing_logged(
    handle: RunHandle,
    away: RunHandle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Metrics, artifacts and the model wait beside the checkpoints, told in one warning; then they are sent."""
    run = str(tmp_path / "run")
    url = dots.write_checkpoint(f"{run}/checkpoints/00000001")
    waited = 0.0
    with to_its_end(away, run) as log:
        for step in range(1500):
            log.log({"loss": float(step)}, step)
            if step % 100 == 0:
                start = time.monotonic()
                assert not log.flush()
                waited += time.monotonic() - start
        assert waited < 5 * tracking.FLUSH_SECONDS, "fifteen epochs' ends, of which the first waits"
        log.log_text("a table", "val/table.txt")
        log.log_model(url, name="gle", step=1, metrics={"best_ne": 0.5})
    (warning,) = [
        r for r in caplog.records if r.levelno == logging.WARNING and r.name == "glefld.tracking.log"
    ]
    assert "1500 values and 3 other things are not in MLflow" in warning.getMessage()
    assert "\n" not in warning.getMessage()
    assert (tmp_path / "run" / "unsent.jsonl").exists()
    assert history(handle, "loss") == []

    monkeypatch.setattr("glefld.tracking.log.END_SECONDS", 60.0)
    with to_its_end(handle, run) as log:
        log.log({"loss": -1.0}, 1500)
    assert history(handle, "loss") == [*((step, float(step)) for step in range(1500)), (1500, -1.0)]
    assert artifact(handle, "val/table.txt") == "a table"
    (model,) = MlflowClient(handle.tracking_uri).search_logged_models([handle.experiment_id])
    assert (model.name, model.metrics[0].value) == ("gle", 0.5)
    assert not list((tmp_path / "run").glob("unsent*"))
    # Whoever resumes a finished run logs its model once more.
    with to_its_end(handle, run) as log:
        log.log_model(url, name="gle", step=1, metrics={"best_ne": 0.5})
    assert len(MlflowClient(handle.tracking_uri).search_logged_models([handle.experiment_id])) == 1


def test_without_a_folder_what_is_lost_is_an_error(away: RunHandle) -> None:
    """An evaluation has no run to keep it in."""
    with pytest.raises(ConnectionError, match="1 values and 1 other things"), to_its_end(away) as log:
        log.log({"ne": 0.5}, 0)


def test_what_mlflow_refuses_is_kept_and_holds_nothing_up(
    handle: RunHandle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A value that the store will never take is told in the end; what came after it is stored."""
    with to_its_end(handle, str(tmp_path / "run")) as log:
        log.log({"a key that MLflow refuses: #": 1.0}, 0)
        assert not log.flush(60)
        log.log({"loss": 2.0}, 0)
    assert history(handle, "loss") == [(0, 2.0)]
    assert "1 values and 0 other things are not in MLflow" in caplog.text
    (kept,) = (tmp_path / "run" / "unsent.jsonl").read_text().splitlines()
    assert "refuses" in json.loads(kept)["error"]


def test_a_frozen_server_is_waited_for_once() -> None:
    """A receiver that does not answer at all is taken for away after a while, and for back when it answers."""
    thaw = threading.Event()
    received = []

    def send(item: dict[str, int]) -> None:
        assert thaw.wait(60)
        received.append(item)

    outbox = Outbox(send, refused=lambda error: False)
    outbox.put({"n": 0})
    assert not outbox.stuck(0.2)
    assert not outbox.wait(0.3)
    assert outbox.stuck(0.2)
    outbox.put({"n": 1})
    assert outbox.stuck(0.2)
    thaw.set()
    assert outbox.wait(60)
    assert not outbox.stuck(0)
    assert received == [{"n": 0}, {"n": 1}]


def test_the_end_waits_for_a_slow_server_and_gives_up_a_silent_one() -> None:
    """What counts is how long nothing was taken, not how much there is to take."""
    silent = threading.Event()

    def send(item: dict[str, int]) -> None:
        if item["n"] == 8:
            assert silent.wait(60)
        time.sleep(0.1)

    outbox = Outbox(send, refused=lambda error: False)
    for n in range(8):
        outbox.put({"n": n})
    assert outbox.drain(0.5), "eight times a tenth of a second"
    outbox.put({"n": 8})
    assert not outbox.drain(0.5)
    assert outbox.left() == [{"n": 8}]
    silent.set()
    assert outbox.drain(60)


def test_a_model_comes_back_as_its_checkpoint(handle: RunHandle, tmp_path: Path) -> None:
    """By id, run, name and version, or alias: the model that is fetched is the checkpoint that was stored."""
    url = dots.write_checkpoint(str(tmp_path / "checkpoint"))
    with to_its_end(handle) as log:
        for step in (1, 2):
            named = Registration("fld-gle", "champion")
            log.log_model(url, name="gle", step=step, metrics={"best_ne": 0.09}, registration=named)
    client = MlflowClient(handle.tracking_uri)
    first, second = client.get_run(handle.run_id).outputs.model_outputs
    assert {first.step, second.step} == {1, 2}
    assert client.get_registered_model("fld-gle").aliases == {"champion": 2}
    files = {
        name: (tmp_path / "checkpoint" / name).read_bytes() for name in ("model.safetensors", "model.json")
    }
    forms = (
        f"models:/{first.model_id}",
        f"runs:/{handle.run_id}",
        f"runs:/{handle.run_id}/gle",
        "models:/fld-gle/1",
        "models:/fld-gle@champion",
    )
    for uri in forms:
        fetched = tracking.fetch(uri, handle.tracking_uri, str(tmp_path / "models"))
        assert {name: Path(fetched, name).read_bytes() for name in files} == files
        checkpoint.load(fetched)
    assert len(list((tmp_path / "models").iterdir())) == 2


def test_what_is_stored_twice_is_there_once(handle: RunHandle, tmp_path: Path) -> None:
    """An attempt whose answer was lost is made again: one version of the registered model, one value a step."""
    dots.write_checkpoint(str(tmp_path / "checkpoint"))
    model_id = tracking.create_model(handle, "gle")
    for _ in range(2):
        tracking.store_model(handle, model_id, tmp_path / "checkpoint", step=1, metrics={"best_ne": 0.09})
        tracking.register(handle, model_id, Registration("fld-gle", "champion"))
    client = MlflowClient(handle.tracking_uri)
    assert [v.version for v in client.search_model_versions("name = 'fld-gle'")] == [1]
    assert len(client.get_run(handle.run_id).outputs.model_outputs) == 1


UNKNOWN = {
    "models:/nothing@champion": "has no models:/nothing@champion",
    "models:/nothing/3": "has no models:/nothing/3",
    "models:/nothing/Production": "give models:/NAME@ALIAS",
    "models:/m-0123": "has no models:/m-0123",
    "runs:/0123": "has no runs:/0123",
    "runs:/{run}/gle": "the run has no such model",
}


@pytest.mark.parametrize("uri", UNKNOWN)
def test_unknown_models_are_one_clear_error(uri: str, handle: RunHandle, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=UNKNOWN[uri]):
        tracking.fetch(uri.format(run=handle.run_id), handle.tracking_uri, str(tmp_path))


def test_a_model_that_is_no_checkpoint_is_refused(handle: RunHandle, tmp_path: Path) -> None:
    """Of another program's model nothing is copied."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model.pkl").write_bytes(b"")
    model_id = tracking.create_model(handle, "other")
    tracking.store_model(handle, model_id, tmp_path / "folder", step=1, metrics={})
    with pytest.raises(ValueError, match=r"no complete\.json"):
        tracking.fetch(f"models:/{model_id}", handle.tracking_uri, str(tmp_path / "models"))
    assert not (tmp_path / "models").exists()


def test_a_registry_that_is_away_is_one_clear_error(away: RunHandle, tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match="cannot be used"):
        tracking.fetch("models:/fld-gle@champion", away.tracking_uri, str(tmp_path))


@pytest.mark.parametrize(("name", "alias"), [("a/b", None), ("", None), ("gle", "latest"), ("gle", "v1")])
def test_names_that_mlflow_would_refuse_are_told_at_once(name: str, alias: str | None) -> None:
    with pytest.raises(ValueError, match="cannot be registered so"):
        Registration(name, alias)


def test_workers_log_to_the_run_in_another_process(handle: RunHandle) -> None:
    """The handle is enough for a worker's process, whose values are stored when it ends."""
    code = (
        "from glefld.tracking import RunHandle; from glefld.runlog import RunLog; "
        f"log = RunLog({handle!r}); log.log({{'loss': 2.5}}, 3); assert log.flush(60)"
    )
    root = Path(tracking.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "INFO" not in done.stderr
    assert MlflowClient(handle.tracking_uri).get_run(handle.run_id).data.metrics == {"loss": 2.5}
