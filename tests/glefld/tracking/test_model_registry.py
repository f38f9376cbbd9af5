"""Models in a real MLflow store: what is fetched is what was stored, and a wrong name is one clear error."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from glefld import tracking
from glefld.errors import UserError
from glefld.models import checkpoint
from glefld.tracking import Registration, RunHandle, logged_run, model_registry
from tests import dots


def test_every_form_of_a_models_uri_fetches_the_stored_checkpoint(handle: RunHandle, tmp_path: Path) -> None:
    url = dots.write_checkpoint(str(tmp_path / "checkpoint"))
    with logged_run(handle) as log:
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


def test_storing_and_registering_a_model_can_be_repeated(handle: RunHandle, tmp_path: Path) -> None:
    """An attempt whose answer was lost is repeated: there is one model, and one version of it."""
    dots.write_checkpoint(str(tmp_path / "checkpoint"))
    model_id = model_registry.create_model(handle, "gle")
    for _ in range(2):
        model_registry.store_model(
            handle, model_id, tmp_path / "checkpoint", step=1, metrics={"best_ne": 0.09}
        )
        model_registry.register(handle, model_id, Registration("fld-gle", "champion"))
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
    with pytest.raises(UserError, match=UNKNOWN[uri]):
        tracking.fetch(uri.format(run=handle.run_id), handle.tracking_uri, str(tmp_path))


def test_a_model_that_is_not_a_checkpoint_is_not_copied(handle: RunHandle, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model.pkl").write_bytes(b"")
    model_id = model_registry.create_model(handle, "other")
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
