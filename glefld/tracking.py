"""MLflow, in one place: the driver opens a run, rank 0 of the worker group logs to it, the driver ends it.

A ``RunHandle`` is what travels between them. Only ``MlflowClient`` is used, never MLflow's global active run,
which ends as FINISHED whenever its process does.
"""

import contextlib
import dataclasses
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

# Read when mlflow is imported: nothing is sent home unless the user asks for it.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    Metric,
    Param,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.async_logging.run_operations import RunOperations
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from glefld import storage
from glefld.schema import Manifest

if TYPE_CHECKING:
    import matplotlib.figure
    import PIL.Image

logger = logging.getLogger(__name__)

# Creating a database is not news.
for _noisy in ("mlflow.store.db.utils", "mlflow.tracking.fluent", "alembic"):
    logging.getLogger(_noisy).setLevel(logging.WARNING)

# MLflow's own limits.
METRICS_A_BATCH = 1000
PARAMS_A_BATCH = 100
PARAM_LENGTH = 6000
DIGEST_LENGTH = 36

SEND_SECONDS = 2.0

#: Names the commit to code that is no clone: what was submitted to a cluster.
COMMIT = "GLEFLD_GIT_COMMIT"


@dataclasses.dataclass(frozen=True)
class RunHandle:
    """Names a run, on any machine that reaches the tracking store."""

    tracking_uri: str
    experiment_id: str
    run_id: str


def tracking_uri(root: str, on_cluster: bool) -> str:
    """MLFLOW_TRACKING_URI, else a SQLite file in the root.

    ValueError where that file could not be shared: on a cluster, or with a root on object storage.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    if on_cluster or not storage.is_local(root):
        where = "on a cluster" if on_cluster else f"with the root {root}"
        raise ValueError(
            f"{where} MLflow's runs cannot be kept in a local SQLite file: set MLFLOW_TRACKING_URI to a "
            "tracking server (http://host:5000)"
        )
    return f"sqlite:///{storage.filesystem(storage.absolute(root))[1]}/mlflow.db"


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
    URL. ValueError or ConnectionError, in one line, where the store does not answer or the run is not there.
    """
    try:
        client = MlflowClient(uri)
    except MlflowException as error:
        raise ValueError(f"MLFLOW_TRACKING_URI={_redacted(uri)} cannot be used: {error}") from error
    if resume is not None:
        try:
            run = client.get_run(resume)
        except MlflowException as error:
            raise ValueError(
                f"MLflow at {_redacted(uri)} has no run {resume} to go on in: {error}"
            ) from error
        client.update_run(resume, status="RUNNING")
    else:
        experiment_id = _experiment(client, uri, experiment or f"glefld-{manifest.dataset}")
        tags = _redacted(resolve_tags()) | ({MLFLOW_PARENT_RUN_ID: parent.run_id} if parent else {})
        run = client.create_run(experiment_id, run_name=name, tags=tags)
        client.log_inputs(run.info.run_id, [_dataset_input(manifest, data)])
    run_id = run.info.run_id

    params = {
        key: value[:PARAM_LENGTH] for key, value in _flat(_redacted(dataclasses.asdict(options))).items()
    }
    new = [Param(key, value) for key, value in params.items() if key not in run.data.params]
    for first in range(0, len(new), PARAMS_A_BATCH):
        client.log_batch(run_id, params=new[first : first + PARAMS_A_BATCH])
    tags = {"dataset": manifest.dataset, "dataset_hash": manifest.content_hash, "git_commit": git_commit()}
    # A param can never be changed in MLflow: what a resumed run does differently stands in its tags.
    known = run.data.params
    tags |= {f"resumed.{key}": value for key, value in params.items() if known.get(key, value) != value}
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    client.log_dict(run_id, _redacted(dataclasses.asdict(options)), "options.json")
    client.log_dict(run_id, _redacted(manifest.to_json()), "manifest.json")
    return RunHandle(uri, run.info.experiment_id, run_id)


def finish(handle: RunHandle, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
    """End the run; ``start_run(resume=...)`` opens it again."""
    MlflowClient(handle.tracking_uri).set_terminated(handle.run_id, status)


@contextlib.contextmanager
def to_its_end(handle: RunHandle) -> Iterator[None]:
    """The run ends with the block: FINISHED, FAILED by an error, KILLED by Ctrl-C."""
    try:
        yield
    except BaseException as error:
        finish(handle, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    finish(handle, "FINISHED")


def where(handle: RunHandle) -> str:
    """How a person opens the run: a link and, for a store without a server, the command that serves it."""
    # Without the workflow type the page opens in MLflow's mode for language models, which hides the metrics.
    page = f"/#/experiments/{handle.experiment_id}/runs/{handle.run_id}?workflowType=machine_learning"
    if handle.tracking_uri.startswith("http"):
        return str(_redacted(handle.tracking_uri)).rstrip("/") + page
    # The one beside this Python: that of another environment may not read this store.
    server = Path(sys.executable).parent / "mlflow"
    serve = f"{server} server --backend-store-uri {_redacted(handle.tracking_uri)} --port 5000"
    return f"{serve}\n           http://127.0.0.1:5000{page}"


class RunLog:
    """Rank 0's side of a run. ``log`` never waits for the store; ``flush`` does and raises what failed."""

    def __init__(self, handle: RunHandle) -> None:
        self.client = MlflowClient(handle.tracking_uri)
        self.run_id = handle.run_id
        self._collected: list[Metric] = []
        self._sent: list[RunOperations] = []
        self._last_sent = time.monotonic()

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log values of a step. A step logged again, after a restart, stands beside its first values."""
        now = int(time.time() * 1000)
        if len(self._collected) + len(metrics) > METRICS_A_BATCH:
            self._send()
        self._collected += [Metric(key, value, now, step) for key, value in metrics.items()]
        # One request a step would cost a small model's step several per cent.
        if time.monotonic() - self._last_sent > SEND_SECONDS:
            self._send()

    def _send(self) -> None:
        if self._collected:
            self._sent.append(self.client.log_batch(self.run_id, self._collected, synchronous=False))
        self._collected, self._last_sent = [], time.monotonic()

    def flush(self) -> None:
        """Return when all that was logged is stored; MlflowException if some of it could not be."""
        self._send()
        sent, self._sent = self._sent, []
        for operation in sent:
            operation.wait()

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Store a local file under the run's artifacts."""
        self.client.log_artifact(self.run_id, os.fspath(path), folder)

    def log_text(self, text: str, file: str) -> None:
        self.client.log_text(self.run_id, text, file)

    def log_figure(self, figure: "matplotlib.figure.Figure", file: str) -> None:
        self.client.log_figure(self.run_id, figure, file)

    def log_image(self, image: "PIL.Image.Image", file: str) -> None:
        self.client.log_image(self.run_id, image, file)


def log_model(
    handle: RunHandle, folder: str | Path, *, name: str, step: int, metrics: dict[str, float] | None = None
) -> str:
    """Store a checkpoint's folder as the run's logged model; its URI, ``models:/m-...``.

    No pickle and no generated wrapper: downloading the URI, or ``models:/<name>@<alias>`` once it is
    registered, gives the folder back as it was.
    """
    client = MlflowClient(handle.tracking_uri)
    model = client.create_logged_model(handle.experiment_id, name, handle.run_id)
    client.log_model_artifacts(model.model_id, os.fspath(folder))
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(handle.run_id, [LoggedModelOutput(model.model_id, step)])
    now = int(time.time() * 1000)
    client.log_batch(
        handle.run_id,
        [
            Metric(key, value, now, step, model_id=model.model_id, run_id=handle.run_id)
            for key, value in (metrics or {}).items()
        ],
    )
    return model.model_uri


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
        raise ConnectionError(f"MLflow at {_redacted(uri)} cannot be used: {error}") from error
    if experiment.lifecycle_stage != "active":
        raise ValueError(f"the MLflow experiment {name!r} is deleted: restore it, or choose another name")
    return experiment.experiment_id


def _dataset_input(manifest: Manifest, data: str) -> DatasetInput:
    dataset = Dataset(
        name=manifest.dataset,
        digest=manifest.content_hash[:DIGEST_LENGTH],
        source_type="local" if storage.is_local(data) else data.split("://")[0],
        source=json.dumps({"uri": _redacted(data)}),
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


def _redacted(value: Any) -> Any:
    """The same value without what URLs carry of user, password and signed query."""
    if isinstance(value, dict):
        return {key: _redacted(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(item) for item in value]
    if isinstance(value, str):
        return re.sub(r"(://[^\s?]*)\?\S+", r"\1?...", re.sub(r"(://)[^\s/@]+@", r"\1", value))
    return value


def git_commit() -> str:
    """The commit of this clone, ``-dirty`` with changes on top of it, or what COMMIT says; else ``unknown``."""
    if commit := os.environ.get(COMMIT):
        return commit
    root = Path(__file__).parents[1]
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
