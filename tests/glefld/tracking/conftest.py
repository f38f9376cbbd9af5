"""A run in a store of its own, and the same run on a server that is away."""

import dataclasses
from pathlib import Path

import pytest
from mlflow import MlflowClient

from glefld.tracking import RunHandle

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
    """The same run on a server that is away, with short waits for it."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("glefld.tracking.log.END_SECONDS", 0.3)
    monkeypatch.setattr("glefld.tracking.log.FLUSH_SECONDS", 0.5)
    return dataclasses.replace(handle, tracking_uri=NOBODY)
