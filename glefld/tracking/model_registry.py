"""Models in MLflow: store a checkpoint's folder as a model of a run, register it, and fetch it as a checkpoint again.

The folder is stored as it is, with MLflow's files beside it (``glefld.tracking.pyfunc``), without a pickle and without
code. Its digest is a parameter of the model, which MLflow lets nobody change, and what is fetched is compared with it.
"""

import dataclasses
import json
import time
from pathlib import Path

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, Metric
from mlflow.exceptions import MlflowException

from glefld import storage
from glefld.errors import UserError
from glefld.models import checkpoint
from glefld.redaction import redacted
from glefld.temporary import temporary_folder
from glefld.tracking.mlflow_private import MLFLOW_MODEL_VERSIONS, validate_registration
from glefld.tracking.notes import NOTE, name_note
from glefld.tracking.run import DataKey, RunHandle, connect, unusable, words
from glefld.tracking.server import missing_file

FORMS = "models:/NAME@ALIAS, models:/NAME/VERSION, models:/m-ID, runs:/ID or runs:/ID/MODEL"
#: The model's parameter that holds ``checkpoint.digest`` of what was logged.
DIGEST = "checkpoint_sha256"


@dataclasses.dataclass(frozen=True)
class Registration:
    """The name to register a model under, and an alias to point at it. UserError if MLflow does not allow them."""

    name: str
    alias: str | None = None

    def __post_init__(self) -> None:
        # Checked here so that a wrong name is reported before the training and not after it.
        try:
            validate_registration(self.name, self.alias)
        except MlflowException as error:
            raise UserError(f"the model cannot be registered under this name: {error.message}") from error


def find_model(handle: RunHandle, name: str, step: int, digest: str) -> str | None:
    """Id of the run's model of that name, step and digest; None if no earlier process has stored it.

    A model that was logged before digests were kept counts as one of any digest.
    """
    models = _models(connect(handle.tracking_uri), handle.run_id, step)
    fitting = (m.model_id for m in models if m.name == name and m.params.get(DIGEST, digest) == digest)
    return next(fitting, None)


def find_by_digest(tracking_uri: str, digest: str) -> str | None:
    """Id of the newest model of any run whose checkpoint has that digest; None if there is none.

    ConnectionError if MLflow does not answer.
    """
    client = connect(tracking_uri)
    try:
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        found = client.search_logged_models(experiments, f"params.{DIGEST} = '{digest}'", max_results=1)
    except (MlflowException, requests.RequestException) as error:
        raise unusable(tracking_uri, error) from error
    return found[0].model_id if found else None


def create_model(handle: RunHandle, name: str, digest: str, note: str = "") -> str:
    """Create an empty model of the run for a checkpoint of that digest, and return its id.

    ``store_model`` completes it. note: its description.
    """
    client = connect(handle.tracking_uri)
    params, tags = {DIGEST: digest}, {NOTE: note} if note else None
    return client.create_logged_model(
        handle.experiment_id, name, handle.run_id, params=params, tags=tags
    ).model_id


def store_model(
    handle: RunHandle,
    model_id: str,
    folder: Path,
    *,
    step: int,
    metrics: dict[str, float],
    data: DataKey | None = None,
) -> None:
    """Store a folder's files and scores, those of ``data``, as a model of the run. Safe to repeat."""
    client = connect(handle.tracking_uri)
    client.log_model_artifacts(model_id, str(folder))
    client.finalize_logged_model(model_id, "READY")
    if model_id not in [model.model_id for model in _models(client, handle.run_id)]:
        client.log_outputs(handle.run_id, [LoggedModelOutput(model_id, step)])  # MLflow refuses a repetition
    now = int(time.time() * 1000)
    scores = [
        Metric(key, value, now, step, model_id, *(data or (None, None)), handle.run_id)
        for key, value in metrics.items()
    ]
    client.log_batch(handle.run_id, scores)


def register(handle: RunHandle, model_id: str, registration: Registration, note: str = "") -> None:
    """Make the model the newest version of the name and point the alias at it. Safe to repeat.

    note: the version's description. A name without a description gets one.
    """
    client = connect(handle.tracking_uri)
    try:
        client.create_registered_model(registration.name, description=name_note())
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        if not client.get_registered_model(registration.name).description:
            client.update_registered_model(registration.name, description=name_note())
    versions = client.search_model_versions(f"name = '{registration.name}' and run_id = '{handle.run_id}'")
    # The artifacts' location, not a models:/ URI, which some stores would look up in the process's default store.
    model = client.get_logged_model(model_id)
    source = model.artifact_location
    version = next((found for found in versions if found.source == source), None)
    if version is None:
        version = client.create_model_version(
            registration.name, source, handle.run_id, description=note or None, model_id=model_id
        )
    # By this tag the model's own page knows its versions.
    named = {"name": registration.name, "version": version.version}
    known = json.loads(model.tags.get(MLFLOW_MODEL_VERSIONS, "[]"))
    if named not in known:
        client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: json.dumps([*known, named])})
    if registration.alias is not None:
        client.set_registered_model_alias(registration.name, registration.alias, version.version)


def fetch(uri: str, tracking_uri: str, folder: str) -> str:
    """Copy the checkpoint that a models:/ or runs:/ URI names to a folder below ``folder``, and return its URL.

    Workers then need only the shared storage and no access to MLflow. A model is copied once. Each time, an alias is
    looked up, and the copy is compared with the digest that MLflow keeps; for a model that was logged without one, with
    MLflow's own files.

    UserError if there is no such model, it is not a checkpoint or its files have changed; ConnectionError if MLflow
    does not answer.
    """
    if (file := missing_file(tracking_uri)) is not None:
        raise UserError(f"there is no {uri}: MLflow's store {file} does not exist")
    try:
        client = connect(tracking_uri)
        model = client.get_logged_model(_model_id(client, uri))
        url = storage.join(folder, model.model_id)
        digest = model.params.get(DIGEST)
        copied = storage.exists(storage.join(url, "complete.json"))
        if not copied or digest is None:
            with temporary_folder() as local:
                source = mlflow.artifacts.download_artifacts(
                    model.artifact_location, dst_path=local, tracking_uri=tracking_uri
                )
                digest = _checked(Path(source), uri, digest)
                if not copied:
                    _copy(Path(source), url, uri)
    except MlflowException as error:
        if error.get_http_status_code() in (400, 404):
            told = f"there is no {uri} in MLflow at {redacted(tracking_uri)}{words(tracking_uri, error)}"
            raise UserError(told) from error
        raise unusable(tracking_uri, error) from error
    if _digest(url) != digest:
        raise UserError(
            f"{url} is not the model that MLflow has as {uri}: its weights or card were changed after they were "
            "copied. Delete this folder, and the next job copies the model again; then find out who may write there"
        )
    return url


def _checked(local: Path, uri: str, digest: str | None) -> str:
    """Return the digest of what MLflow has sent. UserError if it is no checkpoint or not the one that was logged."""
    if not (local / "complete.json").exists():
        raise UserError(f"{uri} is not a checkpoint of this program: it has no complete.json")
    found = _digest(str(local))
    if found is None or digest not in (None, found):
        raise UserError(
            f"the files that MLflow has of {uri} are not those that were logged: their digest is not the model's "
            f"parameter {DIGEST}. Continue its training with --resume, which stores them again, or use another model"
        )
    return found


def _digest(url: str) -> str | None:
    """The digest of a folder; None if it has not all files of a checkpoint."""
    try:
        return checkpoint.digest(url)
    except FileNotFoundError:
        return None


def _copy(local: Path, url: str, uri: str) -> None:
    """Copy the checkpoint's own files, not MLflow's beside them."""
    try:
        # complete.json last: it marks the copy as whole.
        for name in (*checkpoint.EXPORTED, "complete.json"):
            storage.put_verified(local / name, storage.join(url, name))
    except PermissionError as error:
        raise UserError(
            f"{uri} is not copied to {url} yet, and this job may not write there ({error}): name the run's folder "
            "instead, or register the model with glefld train --register, which makes the copy"
        ) from error


def _model_id(client: MlflowClient, uri: str) -> str:
    kind, _, rest = uri.partition(":/")
    if kind == "runs":
        run_id, _, name = rest.partition("/")
        models = _models(client, run_id)
        fitting = [model.model_id for model in models if name in ("", model.name)]
        if not fitting:
            has = ", ".join(sorted({model.name for model in models})) or "none"
            raise UserError(f"{uri}: the run has no such model. Its models: {has}")
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
    # A version records where its files are, but not always the id of the model they belong to.
    for model in _models(client, version.run_id) if version.run_id else ():
        if version.source in (model.artifact_location, model.model_uri):
            return model.model_id
    raise UserError(f"{uri} was not stored by this program: only its own models can be used")


def _models(client: MlflowClient, run_id: str, step: int | None = None) -> list[LoggedModel]:
    """A run's models by ascending step: those of one step, or all."""
    outputs = client.get_run(run_id).outputs
    found = sorted(outputs.model_outputs if outputs is not None else [], key=lambda output: output.step)
    return [client.get_logged_model(output.model_id) for output in found if step in (None, output.step)]
