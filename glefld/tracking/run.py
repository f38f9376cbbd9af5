"""MLflow runs: the driver opens one, rank 0 of the workers logs to it (``glefld.tracking.log``), the driver ends it.

A ``RunHandle`` is passed between them. Only ``MlflowClient`` is used, never MLflow's global active run, which is
marked FINISHED whenever its process ends.
"""

import contextlib
import dataclasses
import json
import logging
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

import requests
from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelInput,
    Param,
    Run,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.telemetry import set_telemetry_client

from glefld import storage
from glefld.errors import UserError
from glefld.redaction import redacted, why
from glefld.schema import Manifest
from glefld.tracking import notes
from glefld.tracking.mlflow_private import MLFLOW_PARENT_RUN_ID, resolve_tags

logger = logging.getLogger(__name__)

# MLflow's own limits.
PARAMS_A_BATCH = 100
PARAM_LENGTH = 6000
DIGEST_LENGTH = 12  # of 36 that MLflow takes: its pages show them whole

#: Set by ``connect`` where the user has set nothing.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
LOG_LEVELS = {
    # Creating a database is not worth a log line each.
    "mlflow.store.db.utils": logging.WARNING,
    "mlflow.tracking.fluent": logging.WARNING,
    # One warning per failed attempt; RunLog reports once what was not sent.
    "urllib3.connectionpool": logging.ERROR,
}
#: Fields of a job's options that the command line, and so a parameter, calls by another name.
TYPED = {"system": "model", "config": "model", "recipe": "", "run": "output"}
#: Environment variable with the commit, for code that runs outside a git clone, as on a cluster.
COMMIT = "GLEFLD_GIT_COMMIT"


@dataclasses.dataclass(frozen=True)
class RunHandle:
    """Identifies a run, on any machine that can reach the tracking store."""

    tracking_uri: str
    experiment_id: str
    run_id: str


class DataKey(NamedTuple):
    """A data set as MLflow knows it."""

    name: str
    digest: str

    @classmethod
    def of(cls, manifest: Manifest) -> "DataKey":
        """Rendered photos have a name of their own."""
        return cls(manifest.title, manifest.content_hash[:DIGEST_LENGTH])


def connect(uri: str) -> MlflowClient:
    """A client of the tracking store. Sets this program's ENVIRONMENT and LOG_LEVELS where the user has set nothing.

    Telemetry is off, and a request fails after about fifteen seconds if nothing listens. ``RunLog`` retries beyond
    that; MLflow's own seven retries of two minutes each would notice only late that a server is back.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    set_telemetry_client()  # reads the environment again
    for name, level in LOG_LEVELS.items():
        if logging.getLogger(name).level == logging.NOTSET:
            logging.getLogger(name).setLevel(level)
    return MlflowClient(uri)


def first_connection(uri: str) -> None:
    """Connect to the store, which takes a second, and ten for a SQLite file that is still to be made."""
    _sqlite_folder(uri)
    connect(uri).search_experiments(max_results=1)


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
    split: str = "training",
    model_id: str | None = None,
) -> RunHandle:
    """Open a new run, or reopen the one whose id is ``resume``, and log what it was started with.

    options: the job's dataclass, logged by the names that its options have on the command line, with _ for -, and as a
    whole in ``options.json``. data: the data set's URL. parent: the run that MLflow shows this one under. split: what
    of the data is used. model_id: of the model in MLflow that the run is about.

    UserError if there is no run to resume or the experiment is deleted, ConnectionError if the store does not answer.
    """
    try:
        client = connect(uri)
    except MlflowException as error:
        raise UserError(f"MLFLOW_TRACKING_URI={redacted(uri)} cannot be used{words(uri, error)}") from error
    try:
        run = _open_run(client, uri, manifest, name, experiment, resume, parent)
        try:
            if resume is None:
                models = [LoggedModelInput(model_id)] if model_id is not None else None
                client.log_inputs(run.info.run_id, [_dataset_input(manifest, data, split)], models)
            _describe(client, run, options, manifest, data)
        except BaseException:
            # The caller gets no handle to end the run with.
            with contextlib.suppress(Exception):
                client.set_terminated(run.info.run_id, "FAILED")
            raise
    except (MlflowException, requests.RequestException) as error:
        raise unusable(uri, error) from error
    return RunHandle(uri, run.info.experiment_id, run.info.run_id)


def _open_run(
    client: MlflowClient,
    uri: str,
    manifest: Manifest,
    name: str | None,
    experiment: str | None,
    resume: str | None,
    parent: RunHandle | None,
) -> Run:
    if resume is not None:
        try:
            run = client.get_run(resume)
        except MlflowException as error:
            if error.get_http_status_code() not in (400, 404):
                raise
            raise UserError(
                f"MLflow at {redacted(uri)} has no run {resume} to resume{words(uri, error)}"
            ) from error
        client.update_run(resume, status="RUNNING")
        return run
    experiment_id = _experiment(client, uri, experiment or f"glefld-{manifest.dataset}", manifest.dataset)
    tags = redacted(resolve_tags()) | ({MLFLOW_PARENT_RUN_ID: parent.run_id} if parent else {})
    return client.create_run(experiment_id, run_name=name, tags=tags)


def _describe(client: MlflowClient, run: Run, options: Any, manifest: Manifest, data: str) -> None:
    """Log options, command, data set and commit as the run's parameters, tags and artifacts."""
    run_id = run.info.run_id

    params = {
        key: value[:PARAM_LENGTH] for key, value in _flat(redacted(dataclasses.asdict(options))).items()
    }
    new = [Param(key, value) for key, value in params.items() if key not in run.data.params]
    for first in range(0, len(new), PARAMS_A_BATCH):
        client.log_batch(run_id, params=new[first : first + PARAMS_A_BATCH])
    tags = {
        "dataset": manifest.dataset,
        "dataset_hash": manifest.content_hash,
        "rendered": str(manifest.rendered).lower(),
        "git_commit": git_commit(),
    }
    if notes.NOTE not in run.data.tags:  # of a resumed run it may be the user's
        tags[notes.NOTE] = notes.run_note(command(), manifest, data)[:PARAM_LENGTH]
    # MLflow's parameters cannot be changed, so a resumed run's new options become tags.
    known = run.data.params
    tags |= {f"resumed.{key}": value for key, value in params.items() if known.get(key, value) != value}
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    client.log_dict(run_id, redacted(dataclasses.asdict(options)), "options.json")
    client.log_dict(run_id, redacted(manifest.to_json()), "manifest.json")


def finish(handle: RunHandle, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
    """End the run; ``start_run(resume=...)`` reopens it."""
    connect(handle.tracking_uri).set_terminated(handle.run_id, status)


class Logged(NamedTuple):
    """One value of a metric. ``time`` is when it was logged, in seconds since 1970, by the clock of who logged it."""

    step: int
    time: float
    value: float


def history(uri: str, run_id: str, metric: str) -> list[Logged]:
    """Return all values of a run's metric, by step and then by time. ConnectionError if the store does not answer."""
    try:
        found = connect(uri).get_metric_history(run_id, metric)
    except (MlflowException, requests.RequestException) as error:
        raise unusable(uri, error) from error
    return sorted(Logged(value.step, value.timestamp / 1000, value.value) for value in found)


def where(handle: RunHandle) -> str:
    """How to open the run in a browser: its link, after the command that serves a store without a server."""
    # By default the page opens in MLflow's mode for language models, which hides the metrics.
    page = f"/#/experiments/{handle.experiment_id}/runs/{handle.run_id}?workflowType=machine_learning"
    if handle.tracking_uri.startswith("http"):
        return str(redacted(handle.tracking_uri)).rstrip("/") + page
    # The one of this environment: another version of MLflow may not be able to read this store.
    server = Path(sys.executable).parent / "mlflow"
    serve = f"{server} server --backend-store-uri {redacted(handle.tracking_uri)} --port 5000 --workers 1"
    return f"{serve}\n           http://127.0.0.1:5000{page}"


def unusable(uri: str, error: Exception) -> ConnectionError:
    """MLflow's error as one line for the user, without credentials."""
    return ConnectionError(f"MLflow at {redacted(uri)} cannot be used{words(uri, error)}")


def words(uri: str, error: Exception) -> str:
    """MLflow's words in parentheses; of an error with a URI that holds a secret, only the status that was answered."""
    status = re.search(r"\berror code (\d{3})\b", str(error))
    return why(uri, redacted(str(error))) or (f" (HTTP status {status[1]})" if status else "")


def _experiment(client: MlflowClient, uri: str, name: str, dataset: str) -> str:
    """The experiment's id. A missing one is created; with a SQLite file its artifacts lie beside that file.

    It gets its description also if someone has created it without one.
    """
    folder = _sqlite_folder(uri)
    artifacts = str(folder / "mlartifacts") if folder is not None else None
    try:
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            try:
                described = {notes.NOTE: notes.experiment_note(dataset)}
                return client.create_experiment(name, artifact_location=artifacts, tags=described)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                experiment = client.get_experiment_by_name(name)  # another job has just created it
        if experiment.lifecycle_stage != "active":
            raise UserError(f"the MLflow experiment {name!r} is deleted: restore it, or choose another name")
        if notes.NOTE not in experiment.tags:  # else it is what someone wrote there, or has emptied
            client.set_experiment_tag(experiment.experiment_id, notes.NOTE, notes.experiment_note(dataset))
    except MlflowException as error:
        raise unusable(uri, error) from error
    return experiment.experiment_id


def _sqlite_folder(uri: str) -> Path | None:
    """Make the folder of a SQLite file and return it; None for another store."""
    if not uri.startswith("sqlite:///"):
        return None
    folder = Path(uri.removeprefix("sqlite:///")).absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _dataset_input(manifest: Manifest, data: str, split: str) -> DatasetInput:
    name, digest = DataKey.of(manifest)
    dataset = Dataset(
        name=name,
        digest=digest,
        source_type="local" if storage.is_local(data) else data.split("://")[0],
        source=json.dumps({"uri": redacted(data)}),
        profile=json.dumps({"rows": manifest.splits, "rejects": manifest.rejects}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", split)])


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested options as text, by the dotted names that the command line has for them."""
    flat: dict[str, str] = {}
    for key, item in value.items():
        name = f"{prefix}{TYPED.get(key, key)}" if not prefix else f"{prefix}{key}"
        if isinstance(item, dict) and (item or not name):
            flat |= _flat(item, f"{name}." if name else "")
        else:
            flat[name] = str(item)
    return flat


def command() -> str:
    """The command line that started this process, without secrets."""
    program = Path(sys.argv[0]).name
    main = getattr(sys.modules["__main__"], "__spec__", None)
    if program != "glefld" and main is not None:
        program = f"python -m {main.name.removesuffix('.__main__')}"
    return " ".join([program, *(shlex.quote(redacted(argument)) for argument in sys.argv[1:])])


def git_commit() -> str:
    """COMMIT if it is set, else this clone's commit, with ``-dirty`` if it has changes; ``unknown`` without a clone."""
    if commit := os.environ.get(COMMIT):
        return commit
    root = Path(__file__).parents[2]
    # A .git further up would belong to another project.
    if (root / ".git").exists():
        describe = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        try:
            return subprocess.run(describe, check=True, capture_output=True, text=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError) as error:
            logger.warning("git could not name the commit, which is logged as unknown: %s", error)
            return "unknown"
    logger.warning("this code is not a git clone: the commit is logged as unknown")
    return "unknown"
