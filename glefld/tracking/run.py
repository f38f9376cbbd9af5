"""MLflow runs: the driver opens one, rank 0 of the worker group logs to it (``glefld.runlog``), the driver ends it.

A ``RunHandle`` is what travels between them. Only ``MlflowClient`` is used, never MLflow's global active run,
which ends as FINISHED whenever its process does.
"""

import contextlib
import dataclasses
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import requests
from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    Param,
    Run,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.telemetry import set_telemetry_client

from glefld import storage
from glefld.errors import UserError
from glefld.schema import Manifest
from glefld.storage import redacted
from glefld.tracking.mlflow_private import MLFLOW_PARENT_RUN_ID, resolve_tags

logger = logging.getLogger(__name__)

# MLflow's own limits.
PARAMS_A_BATCH = 100
PARAM_LENGTH = 6000
DIGEST_LENGTH = 36

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
#: Names the commit to code that is no clone: what was submitted to a cluster.
COMMIT = "GLEFLD_GIT_COMMIT"


@dataclasses.dataclass(frozen=True)
class RunHandle:
    """Names a run, on any machine that reaches the tracking store."""

    tracking_uri: str
    experiment_id: str
    run_id: str


def connect(uri: str) -> MlflowClient:
    """A client of the tracking store, with this program's defaults where the user has set none.

    No telemetry; a request gives up after some fifteen seconds where nothing listens. What a run logs is tried again
    beyond that, and MLflow's own seven retries of two minutes each would not notice for long that a server is back.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    set_telemetry_client()  # reads the environment anew
    # Creating a database is not news, and that a server did not answer is told once, in the end.
    for chatty in ("mlflow.store.db.utils", "mlflow.tracking.fluent", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    return MlflowClient(uri)


def tracking_uri(root: str, on_cluster: bool) -> str:
    """MLFLOW_TRACKING_URI, else a SQLite file in the root.

    UserError where that file could not be shared: on a cluster, or with a root on object storage.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    if on_cluster or not storage.is_local(root):
        where = "on a cluster" if on_cluster else f"with the root {root}"
        raise UserError(
            f"{where} MLflow's runs cannot be kept in a local SQLite file: set MLFLOW_TRACKING_URI to a "
            "tracking server (http://host:5000)"
        )
    return f"sqlite:///{storage.local_path(storage.absolute(root))}/mlflow.db"


def start_run(
    uri: str,
    *,
    options: Any,
    manifest: Manifest,
    data: str,
    name: str | None = None,
    experiment: str | None = None,
    resume: str | None = None,
    parent: RunHandle | None = None,
) -> RunHandle:
    """Open a run, or go on in the run whose id is ``resume``, and log what it was started with.

    A run with a ``parent`` is shown beneath it.

    options: the job's dataclass, logged field by field and whole as ``options.json``. data: the data set's
    URL. UserError or ConnectionError, in one line, where the store does not answer or the run is not there.
    """
    try:
        client = connect(uri)
    except MlflowException as error:
        raise UserError(
            f"MLFLOW_TRACKING_URI={redacted(uri)} cannot be used: {redacted(str(error))}"
        ) from error
    try:
        return _open_run(client, uri, options, manifest, data, name, experiment, resume, parent)
    except (MlflowException, requests.RequestException) as error:
        raise unusable(uri, error) from error


def _open_run(
    client: MlflowClient,
    uri: str,
    options: Any,
    manifest: Manifest,
    data: str,
    name: str | None,
    experiment: str | None,
    resume: str | None,
    parent: RunHandle | None,
) -> RunHandle:
    if resume is not None:
        try:
            run = client.get_run(resume)
        except MlflowException as error:
            if error.get_http_status_code() not in (400, 404):
                raise
            raise UserError(
                f"MLflow at {redacted(uri)} has no run {resume} to go on in: {redacted(str(error))}"
            ) from error
        client.update_run(resume, status="RUNNING")
    else:
        experiment_id = _experiment(client, uri, experiment or f"glefld-{manifest.dataset}")
        tags = redacted(resolve_tags()) | ({MLFLOW_PARENT_RUN_ID: parent.run_id} if parent else {})
        run = client.create_run(experiment_id, run_name=name, tags=tags)
    try:
        if resume is None:
            client.log_inputs(run.info.run_id, [_dataset_input(manifest, data)])
        _describe(client, run, options, manifest)
    except BaseException:
        # The caller has no handle to end it by.
        with contextlib.suppress(Exception):
            client.set_terminated(run.info.run_id, "FAILED")
        raise
    return RunHandle(uri, run.info.experiment_id, run.info.run_id)


def _describe(client: MlflowClient, run: Run, options: Any, manifest: Manifest) -> None:
    """Options and data of a run, into its parameters, tags and artifacts."""
    run_id = run.info.run_id

    params = {
        key: value[:PARAM_LENGTH] for key, value in _flat(redacted(dataclasses.asdict(options))).items()
    }
    new = [Param(key, value) for key, value in params.items() if key not in run.data.params]
    for first in range(0, len(new), PARAMS_A_BATCH):
        client.log_batch(run_id, params=new[first : first + PARAMS_A_BATCH])
    tags = {"dataset": manifest.dataset, "dataset_hash": manifest.content_hash, "git_commit": git_commit()}
    # A param can never be changed in MLflow: what a resumed run does differently stands in its tags.
    known = run.data.params
    tags |= {f"resumed.{key}": value for key, value in params.items() if known.get(key, value) != value}
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    client.log_dict(run_id, redacted(dataclasses.asdict(options)), "options.json")
    client.log_dict(run_id, redacted(manifest.to_json()), "manifest.json")


def finish(handle: RunHandle, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
    """End the run; ``start_run(resume=...)`` opens it again."""
    connect(handle.tracking_uri).set_terminated(handle.run_id, status)


def where(handle: RunHandle) -> str:
    """How a person opens the run: a link and, for a store without a server, the command that serves it."""
    # Without the workflow type the page opens in MLflow's mode for language models, which hides the metrics.
    page = f"/#/experiments/{handle.experiment_id}/runs/{handle.run_id}?workflowType=machine_learning"
    if handle.tracking_uri.startswith("http"):
        return str(redacted(handle.tracking_uri)).rstrip("/") + page
    # The one beside this Python: that of another environment may not read this store.
    server = Path(sys.executable).parent / "mlflow"
    serve = f"{server} server --backend-store-uri {redacted(handle.tracking_uri)} --port 5000"
    return f"{serve}\n           http://127.0.0.1:5000{page}"


def unusable(uri: str, error: Exception) -> ConnectionError:
    """MLflow's error as a user's, without secrets."""
    return ConnectionError(f"MLflow at {redacted(uri)} cannot be used: {redacted(str(error))}")


def _experiment(client: MlflowClient, uri: str, name: str) -> str:
    """The id of the experiment, made if it is not there; artifacts lie beside a SQLite file."""
    artifacts = None
    if uri.startswith("sqlite:///"):
        folder = Path(uri.removeprefix("sqlite:///")).absolute().parent
        folder.mkdir(parents=True, exist_ok=True)
        artifacts = str(folder / "mlartifacts")
    try:
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return client.create_experiment(name, artifact_location=artifacts)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                experiment = client.get_experiment_by_name(name)  # another job was faster
    except MlflowException as error:
        raise unusable(uri, error) from error
    if experiment.lifecycle_stage != "active":
        raise UserError(f"the MLflow experiment {name!r} is deleted: restore it, or choose another name")
    return experiment.experiment_id


def _dataset_input(manifest: Manifest, data: str) -> DatasetInput:
    dataset = Dataset(
        name=manifest.dataset,
        digest=manifest.content_hash[:DIGEST_LENGTH],
        source_type="local" if storage.is_local(data) else data.split("://")[0],
        source=json.dumps({"uri": redacted(data)}),
        profile=json.dumps({"rows": manifest.splits, "rejects": manifest.rejects}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested options with dotted names, as text."""
    flat: dict[str, str] = {}
    for key, item in value.items():
        if isinstance(item, dict) and item:
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(item)
    return flat


def git_commit() -> str:
    """The commit of this clone, ``-dirty`` with changes on top of it, or what COMMIT says; else ``unknown``."""
    if commit := os.environ.get(COMMIT):
        return commit
    root = Path(__file__).parents[2]
    # A .git further up would be another project's.
    if (root / ".git").exists():
        describe = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        try:
            return subprocess.run(describe, check=True, capture_output=True, text=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError) as error:
            logger.warning("git did not name the commit (%s); it is logged as unknown", error)
            return "unknown"
    logger.warning("this code is not a git clone: the commit is logged as unknown")
    return "unknown"
