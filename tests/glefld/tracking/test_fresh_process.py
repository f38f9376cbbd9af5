"""What ``glefld.tracking`` changes in a process, and that a run's handle is all that a new one needs to log to it."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

import glefld
from glefld.tracking.run import ENVIRONMENT, LOG_LEVELS

#: Other packages' own imports come first: what they change is not this program's doing.
FRESH = """
import json, logging, os, sys

import botocore, fsspec, mlflow, s3fs, torch, torchvision

def state():
    loggers = {name: logging.getLogger(name) for name in logging.Logger.manager.loggerDict}
    levels = {name: logger.level for name, logger in loggers.items() if logger.level}
    return {"environ": dict(os.environ), "levels": {"": logging.getLogger().level, **levels}}

logging.getLogger("urllib3.connectionpool").setLevel(logging.DEBUG)
before = state()
import glefld.tracking
imported = state()
log = glefld.tracking.RunLog(glefld.tracking.RunHandle(*sys.argv[1:]))
log.log({"loss": 2.5}, 3)
assert log.flush(60)
print(json.dumps({"before": before, "imported": imported, "connected": state()}))
"""


@dataclasses.dataclass(frozen=True)
class Fresh:
    """Environment and log levels at three moments, and what the process left behind."""

    before: dict[str, Any]
    imported: dict[str, Any]
    connected: dict[str, Any]
    logged: dict[str, float]
    stderr: str


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Fresh:
    """A new process that imports the package and logs to a run; the user has set one variable and one log level."""
    folder = tmp_path_factory.mktemp("fresh")
    shutil.copy(empty_store, folder / "mlflow.db")
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.create_experiment("test")
    run_id = client.create_run(experiment).info.run_id
    unset = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    root = str(Path(glefld.__file__).parents[1])
    own = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "7", "PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, "-c", FRESH, client.tracking_uri, experiment, run_id],
        env=unset | own,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    states = json.loads(done.stdout)
    logged = client.get_run(run_id).data.metrics
    return Fresh(states["before"], states["imported"], states["connected"], logged, done.stderr)


def test_importing_the_package_changes_no_environment_and_no_log_level(fresh: Fresh) -> None:
    assert fresh.imported == fresh.before


def test_connecting_sets_defaults_and_leaves_the_users_own_values(fresh: Fresh) -> None:
    """The user's are a request's timeout and one logger's level."""
    environ, levels = fresh.connected["environ"], fresh.connected["levels"]
    assert {name: environ[name] for name in ENVIRONMENT} == ENVIRONMENT | {"MLFLOW_HTTP_REQUEST_TIMEOUT": "7"}
    assert {name: levels[name] for name in LOG_LEVELS} == LOG_LEVELS | {"urllib3.connectionpool": 10}


def test_a_handle_is_enough_to_log_from_another_process(fresh: Fresh) -> None:
    assert fresh.logged == {"loss": 2.5}
    assert "INFO" not in fresh.stderr
