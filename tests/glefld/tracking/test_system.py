"""The load of a machine, in a real store."""

import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from glefld.tracking import RunHandle, RunLog, system_metrics, unsent

CPU = "system/worker-1/cpu_utilization_percentage"


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")


def test_load_is_logged_while_the_block_runs(handle: RunHandle) -> None:
    """With units in the names, and no more after the block."""
    client = MlflowClient(handle.tracking_uri)
    with system_metrics(RunLog(handle), "worker-1"):
        while len(client.get_metric_history(handle.run_id, CPU)) < 3:
            time.sleep(0.05)
    found = client.get_metric_history(handle.run_id, CPU)
    assert [value.step for value in found] == list(range(len(found)))
    assert "system/worker-1/system_memory_usage_megabytes" in client.get_run(handle.run_id).data.metrics
    time.sleep(0.2)
    assert client.get_metric_history(handle.run_id, CPU) == found


def test_load_is_kept_while_the_server_is_away(away: RunHandle, tmp_path: Path) -> None:
    """MLflow's own monitor would end."""
    log = RunLog(away, str(tmp_path))
    with system_metrics(log):
        while not (tmp_path / "unsent.jsonl").exists() or len(unsent.read(str(tmp_path)) or ()) < 3:
            log.flush(0)
