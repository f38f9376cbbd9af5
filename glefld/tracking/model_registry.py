"""Models in MLflow: a checkpoint's folder as a run's logged model, its name in the registry, and the way back.

No pickle and no generated wrapper: what is stored is the folder, and what is fetched is a checkpoint again.
"""

import dataclasses
import tempfile
import time
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, Metric
from mlflow.exceptions import MlflowException

from glefld import storage
from glefld.errors import UserError
from glefld.storage import redacted
from glefld.tracking.mlflow_private import validate_registration
from glefld.tracking.run import RunHandle, connect, unusable

FORMS = "models:/NAME@ALIAS, models:/NAME/VERSION, models:/m-ID, runs:/ID or runs:/ID/MODEL"


@dataclasses.dataclass(frozen=True)
class Registration:
    """A name in the registry, and the alias that from then on means this model. UserError if MLflow has no such."""

    name: str
    alias: str | None = None

    def __post_init__(self) -> None:
        # Told before a training, and not after it.
        try:
            validate_registration(self.name, self.alias)
        except MlflowException as error:
            raise UserError(f"the model cannot be registered so: {error.message}") from error


def find_model(handle: RunHandle, name: str, step: int) -> str | None:
    """The run's model of that name and step, if an earlier process has stored it."""
    models = _models(connect(handle.tracking_uri), handle.run_id, step)
    return next((model.model_id for model in models if model.name == name), None)


def create_model(handle: RunHandle, name: str) -> str:
    """Begin a logged model of the run; its id. ``store_model`` makes it ready."""
    client = connect(handle.tracking_uri)
    return client.create_logged_model(handle.experiment_id, name, handle.run_id).model_id


def store_model(
    handle: RunHandle, model_id: str, folder: Path, *, step: int, metrics: dict[str, float]
) -> None:
    """Store a folder's files as the begun model. Done twice, it is as if done once."""
    client = connect(handle.tracking_uri)
    client.log_model_artifacts(model_id, str(folder))
    client.finalize_logged_model(model_id, "READY")
    if model_id not in [model.model_id for model in _models(client, handle.run_id)]:
        client.log_outputs(handle.run_id, [LoggedModelOutput(model_id, step)])  # twice is an error
    now = int(time.time() * 1000)
    scores = [
        Metric(key, value, now, step, model_id=model_id, run_id=handle.run_id)
        for key, value in metrics.items()
    ]
    client.log_batch(handle.run_id, scores)


def register(handle: RunHandle, model_id: str, registration: Registration) -> None:
    """Make the model the newest version of a name, and let the alias mean it. Done twice, it is as if done once."""
    client = connect(handle.tracking_uri)
    try:
        client.create_registered_model(registration.name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = client.search_model_versions(f"name = '{registration.name}' and run_id = '{handle.run_id}'")
    # Its place and not its URI, which some stores look up in the process's default store.
    source = client.get_logged_model(model_id).artifact_location
    version = next((found for found in versions if found.source == source), None)
    if version is None:
        version = client.create_model_version(registration.name, source, handle.run_id, model_id=model_id)
    if registration.alias is not None:
        client.set_registered_model_alias(registration.name, registration.alias, version.version)


def fetch(uri: str, tracking_uri: str, folder: str) -> str:
    """The checkpoint that a models:/ or runs:/ URI names, copied once below ``folder``; its URL.

    So that workers need only the storage that they share, and no access to MLflow. What an alias means is looked up
    each time. UserError for a model that is not there or is no checkpoint, ConnectionError if MLflow does not answer.
    """
    try:
        client = connect(tracking_uri)
        model_id = _model_id(client, uri)
        url = storage.join(folder, model_id)
        if not storage.exists(storage.join(url, "complete.json")):
            with tempfile.TemporaryDirectory() as local:
                source = client.get_logged_model(model_id).artifact_location
                found = mlflow.artifacts.download_artifacts(source, dst_path=local, tracking_uri=tracking_uri)
                _copy(Path(found), url, uri)
    except MlflowException as error:
        if error.get_http_status_code() in (400, 404):
            words = f"MLflow at {redacted(tracking_uri)} has no {uri}: {redacted(str(error))}"
            raise UserError(words) from error
        raise unusable(tracking_uri, error) from error
    return url


def _copy(local: Path, url: str, uri: str) -> None:
    files = [path for path in local.iterdir() if path.is_file()]
    if "complete.json" not in {path.name for path in files}:
        raise UserError(f"{uri} is not a checkpoint of this program: it has no complete.json")
    for path in sorted(files, key=lambda path: path.name == "complete.json"):
        storage.put_verified(path, storage.join(url, path.name))


def _model_id(client: MlflowClient, uri: str) -> str:
    kind, _, rest = uri.partition(":/")
    if kind == "runs":
        run_id, _, name = rest.partition("/")
        models = _models(client, run_id)
        fitting = [model.model_id for model in models if name in ("", model.name)]
        if not fitting:
            has = ", ".join(sorted({model.name for model in models})) or "none"
            raise UserError(f"{uri}: the run has no such model (it has: {has})")
        return fitting[-1]
    name, at, alias = rest.rpartition("@")
    if at:
        version = client.get_model_version_by_alias(name, alias)
    elif "/" in rest:
        name, _, number = rest.partition("/")
        if not number.isdecimal():
            raise UserError(f"{uri} does not name a model: give {FORMS}")
        version = client.get_model_version(name, number)
    else:
        return client.get_logged_model(rest).model_id
    # A version keeps where its files are, and not always the id of the model that they are.
    for model in _models(client, version.run_id) if version.run_id else ():
        if version.source in (model.artifact_location, model.model_uri):
            return model.model_id
    raise UserError(f"{uri} is not a model that this program has logged")


def _models(client: MlflowClient, run_id: str, step: int | None = None) -> list[LoggedModel]:
    """A run's models, those of a step or all, the one of the last step last."""
    outputs = client.get_run(run_id).outputs
    found = sorted(outputs.model_outputs if outputs is not None else [], key=lambda output: output.step)
    return [client.get_logged_model(output.model_id) for output in found if step in (None, output.step)]
