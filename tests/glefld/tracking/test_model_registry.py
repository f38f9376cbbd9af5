"""Models in a real MLflow store: what is fetched is what was stored, and a wrong name is one clear error."""

import dataclasses
import json
import shutil
import sqlite3
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import safetensors.torch
import torch
from fsspec.implementations.memory import MemoryFileSystem
from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException

from glefld import Landmarks, storage, tracking
from glefld.errors import UserError
from glefld.models import checkpoint
from glefld.tracking import DataKey, Registration, RunHandle, logged_run, model_registry
from tests import dots


def test_every_form_of_a_models_uri_fetches_the_stored_checkpoint(handle: RunHandle, tmp_path: Path) -> None:
    url = dots.write_checkpoint(str(tmp_path / "checkpoint"))
    with logged_run(handle) as log:
        for step in (1, 2):
            named = Registration("fld-gle", "champion")
            log.log_model(url, name="gle", step=step, metrics={"val_ne": 0.09}, registration=named)
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


def test_storing_and_registering_a_model_can_be_repeated(handle: RunHandle, tmp_path: Path) -> None:
    """An attempt whose answer was lost is repeated: there is one model, and one version of it."""
    dots.write_checkpoint(str(tmp_path / "checkpoint"))
    model_id = model_registry.create_model(handle, "gle", "digest")
    for _ in range(2):
        model_registry.store_model(
            handle, model_id, tmp_path / "checkpoint", step=1, metrics={"val_ne": 0.09}
        )
        model_registry.register(handle, model_id, Registration("fld-gle", "champion"))
    assert model_registry.find_model(handle, "gle", 1, "digest") == model_id
    assert model_registry.find_model(handle, "gle", 1, "another digest") is None
    client = MlflowClient(handle.tracking_uri)
    assert [v.version for v in client.search_model_versions("name = 'fld-gle'")] == [1]
    assert len(client.get_run(handle.run_id).outputs.model_outputs) == 1


def test_a_name_that_was_there_before_is_described_unless_someone_has(
    handle: RunHandle, tmp_path: Path
) -> None:
    dots.write_checkpoint(str(tmp_path / "checkpoint"))
    client = MlflowClient(handle.tracking_uri)
    model_id = model_registry.create_model(handle, "gle", "digest")
    model_registry.store_model(handle, model_id, tmp_path / "checkpoint", step=1, metrics={})
    described = {"bare": None, "theirs": "words of theirs"}
    for name, words in described.items():
        client.create_registered_model(name, description=words)
        model_registry.register(handle, model_id, Registration(name))
        found = client.get_registered_model(name).description or ""
        assert found == words if words is not None else "normalised error" in found


def test_a_models_page_has_its_words_scores_and_data(handle: RunHandle, tmp_path: Path) -> None:
    """Of the training and of an evaluation, which finds the model by its checkpoint."""
    url = dots.write_checkpoint(str(tmp_path / "checkpoint"))
    val, test = DataKey("fld", "0123"), DataKey("fld (rendered)", "4567")
    with logged_run(handle) as log:
        named = Registration("fld-gle")
        log.log_model(
            url, name="gle", step=1, metrics={"val_ne": 0.09}, data=val, note="about it", registration=named
        )
    client = MlflowClient(handle.tracking_uri)
    assert tracking.find_by_digest(handle.tracking_uri, "another") is None
    model_id = tracking.find_by_digest(handle.tracking_uri, checkpoint.digest(url))
    assert model_id is not None
    other = dataclasses.replace(handle, run_id=client.create_run(handle.experiment_id).info.run_id)
    with logged_run(other) as log:
        log.log_scores({"test_ne": 0.1}, tracking.Scored(model_id, test))
    model = client.get_logged_model(model_id)
    assert model.tags["mlflow.note.content"] == "about it"
    assert {(m.key, m.value, m.dataset_name, m.dataset_digest, m.run_id) for m in model.metrics or ()} == {
        ("val_ne", 0.09, *val, handle.run_id),
        ("test_ne", 0.1, *test, other.run_id),
    }
    (version,) = client.search_model_versions("name = 'fld-gle'")
    assert version.description == "about it"
    versions = json.loads(model.tags["mlflow.modelVersions"])
    assert versions == [{"name": "fld-gle", "version": version.version}]
    assert "normalised error" in (client.get_registered_model("fld-gle").description or "")


@dataclasses.dataclass(frozen=True)
class Logged:
    """A model in MLflow, the folder for copies of models, and the checkpoint that was logged."""

    handle: RunHandle
    folder: str
    checkpoint: Path

    @property
    def model(self) -> LoggedModel:
        client = MlflowClient(self.handle.tracking_uri)
        (found,) = client.search_logged_models([self.handle.experiment_id])
        return found

    @property
    def files(self) -> Path:
        """MLflow's own."""
        return Path(self.model.artifact_location)

    @property
    def copy(self) -> Path:
        return Path(self.folder, self.model.model_id)

    def log(self) -> None:
        with logged_run(self.handle) as log:
            named = Registration("fld-gle", "champion")
            log.log_model(str(self.checkpoint), name="gle", step=1, metrics={}, registration=named)

    def fetch(self) -> str:
        return tracking.fetch("models:/fld-gle@champion", self.handle.tracking_uri, self.folder)


@pytest.fixture
def logged(handle: RunHandle, tmp_path: Path) -> Logged:
    dots.write_checkpoint(str(tmp_path / "checkpoint"))
    found = Logged(handle, str(tmp_path / "models"), tmp_path / "checkpoint")
    found.log()
    return found


@pytest.fixture
def logged_without_digest(logged: Logged) -> Logged:
    """As an earlier version logged it."""
    with sqlite3.connect(logged.handle.tracking_uri.removeprefix("sqlite:///")) as store:
        store.execute("DELETE FROM logged_model_params")
    assert logged.model.params == {}
    return logged


def zero_weights(folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    zeroed = {name: torch.zeros_like(value) for name, value in weights.items()}
    safetensors.torch.save_file(zeroed, folder / "model.safetensors")


def edit_card(folder: Path) -> None:
    card = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**card, "input_size": 32}))


def take_another(folder: Path) -> None:
    """All files of another, whole checkpoint."""
    model, card = checkpoint.load(str(folder))
    shutil.rmtree(folder)
    checkpoint.save(str(folder), model, dataclasses.replace(card, step=card.step + 1))


def lose_the_card(folder: Path) -> None:
    (folder / "model.json").unlink()


CHANGES: list[Callable[[Path], None]] = [zero_weights, edit_card, take_another, lose_the_card]


def complete(folder: Path) -> None:
    """Write complete.json anew, so that nothing within the folder shows the change."""
    names = [path.name for path in folder.iterdir() if path.name != "complete.json"]
    files = {name: storage.digest((folder / name).read_bytes()) for name in names}
    storage.write_json(str(folder / "complete.json"), files)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["logged", "logged_without_digest"])
def test_a_changed_copy_is_refused_at_each_use(
    kind: str, change: Callable[[Path], None], request: pytest.FixtureRequest
) -> None:
    """Until it is deleted: then the model is copied again. It is the same for models from before digests were kept."""
    logged: Logged = request.getfixturevalue(kind)
    assert logged.fetch() == str(logged.copy)
    change(logged.copy)
    complete(logged.copy)
    for _ in range(2):
        with pytest.raises(UserError, match=r"is not the model that MLflow has as models:/fld-gle@champion"):
            logged.fetch()
    shutil.rmtree(logged.copy)
    assert checkpoint.digest(logged.fetch()) == checkpoint.digest(str(logged.checkpoint))


@pytest.mark.parametrize("change", CHANGES)
def test_mlflows_own_files_are_not_taken_if_they_changed(
    change: Callable[[Path], None], logged: Logged
) -> None:
    """Nothing is copied. What the message advises mends it: the resumed run logs its model again."""
    change(logged.files)
    complete(logged.files)
    with pytest.raises(UserError, match="are not those that were logged"):
        logged.fetch()
    assert not Path(logged.folder).exists()
    logged.log()
    assert checkpoint.digest(logged.fetch()) == checkpoint.digest(str(logged.checkpoint))


def test_the_digest_in_mlflow_stays(logged: Logged) -> None:
    """Who may write models may not change it, and a shell can compute it."""
    command = "sha256sum model.safetensors model.json | sha256sum"
    printed = subprocess.check_output(command, shell=True, cwd=logged.checkpoint, text=True)
    digest = printed.split()[0]
    assert logged.model.params == {model_registry.DIGEST: digest}
    client = MlflowClient(logged.handle.tracking_uri)
    with pytest.raises(MlflowException):
        client.log_model_params(logged.model.model_id, {model_registry.DIGEST: "another"})
    assert logged.model.params == {model_registry.DIGEST: digest}


class ReadOnly(MemoryFileSystem):
    """The memory's files, for those who may read and not write."""

    protocol = "readonly"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("readonly://"))

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
        raise PermissionError("Access Denied")


def test_who_may_not_write_finds_the_copy_that_another_has_made(logged: Logged) -> None:
    """Before, that is one clear error; after, it is compared as any other."""
    fsspec.register_implementation("readonly", ReadOnly, clobber=True)
    writer = dataclasses.replace(logged, folder=f"memory://{uuid.uuid4().hex}/models")
    reader = dataclasses.replace(writer, folder=writer.folder.replace("memory:", "readonly:"))
    with pytest.raises(UserError, match=r"not copied .* may not write there .* glefld train --register"):
        reader.fetch()
    copy = writer.fetch()
    assert checkpoint.digest(reader.fetch()) == checkpoint.digest(str(logged.checkpoint))
    storage.write_bytes(storage.join(copy, "model.safetensors"), b"zeroes")
    with pytest.raises(UserError, match="is not the model that MLflow has"):
        reader.fetch()


UNKNOWN = {
    "models:/nothing@champion": "there is no models:/nothing@champion in MLflow at",
    "models:/nothing/3": "there is no models:/nothing/3 in",
    "models:/nothing/Production": "give models:/NAME@ALIAS",
    "models:/m-0123": "there is no models:/m-0123 in",
    "runs:/0123": "there is no runs:/0123 in",
    "runs:/{run}/gle": "the run has no such model",
}


@pytest.mark.parametrize("uri", UNKNOWN)
def test_unknown_models_are_one_clear_error(uri: str, handle: RunHandle, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=UNKNOWN[uri]):
        tracking.fetch(uri.format(run=handle.run_id), handle.tracking_uri, str(tmp_path))


def test_a_model_that_is_not_a_checkpoint_is_not_copied(handle: RunHandle, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model.pkl").write_bytes(b"")
    model_id = model_registry.create_model(handle, "other", "digest")
    model_registry.store_model(handle, model_id, tmp_path / "folder", step=1, metrics={})
    with pytest.raises(UserError, match=r"no complete\.json"):
        tracking.fetch(f"models:/{model_id}", handle.tracking_uri, str(tmp_path / "models"))
    assert not (tmp_path / "models").exists()


def test_a_server_that_is_away_is_one_clear_error(away: RunHandle, tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match="cannot be used"):
        tracking.fetch("models:/fld-gle@champion", away.tracking_uri, str(tmp_path))


@pytest.mark.parametrize(("name", "alias"), [("a/b", None), ("", None), ("gle", "latest"), ("gle", "v1")])
def test_a_name_that_mlflow_would_refuse_is_an_error_before_the_training(
    name: str, alias: str | None
) -> None:
    with pytest.raises(UserError, match="cannot be registered under this name"):
        Registration(name, alias)


def test_the_python_api_loads_a_registered_model(logged: Logged, monkeypatch: pytest.MonkeyPatch) -> None:
    """By any name that MLflow has for it, copied below the root; a wrong one is one clear error."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", logged.handle.tracking_uri)
    root = str(Path(logged.folder).parent)
    for name in ("models:/fld-gle@champion", f"runs:/{logged.handle.run_id}"):
        model = Landmarks.load(name, root=root, device="cpu")
        assert model.checkpoint == str(logged.copy)
        assert model.names == dots.DOTS.landmarks
    with pytest.raises(UserError, match="there is no models:/fld-gle@nobody in MLflow"):
        Landmarks.load("models:/fld-gle@nobody", root=root)
