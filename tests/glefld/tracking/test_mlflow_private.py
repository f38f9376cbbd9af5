"""Each of MLflow's names that are not public is there and behaves as this program needs it."""

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from glefld.tracking import RunHandle, mlflow_private


@pytest.mark.parametrize("alias", [None, "champion", "best-1_a", "version1"])
def test_a_valid_name_and_alias_are_accepted_as_the_registry_accepts_them(
    alias: str | None, handle: RunHandle
) -> None:
    mlflow_private.validate_registration("fld gle-2.1", alias)
    client = MlflowClient(handle.tracking_uri)
    client.create_registered_model("fld gle-2.1")
    if alias is not None:
        client.create_model_version("fld gle-2.1", "source", handle.run_id)
        client.set_registered_model_alias("fld gle-2.1", alias, "1")


@pytest.mark.parametrize(
    ("name", "alias"),
    [("", None), ("a/b", None), ("a:b", None), ("gle", ""), ("gle", "a b"), ("gle", "latest"), ("gle", "v1")],
)
def test_a_name_or_alias_that_the_registry_refuses_is_refused(name: str, alias: str | None) -> None:
    with pytest.raises(MlflowException):
        mlflow_private.validate_registration(name, alias)


def test_a_runs_tags_name_who_started_it() -> None:
    tags = mlflow_private.resolve_tags()
    assert {"mlflow.user", "mlflow.source.name"} <= tags.keys()
    assert all(isinstance(value, str) for value in tags.values())


def test_the_versions_tag_is_the_one_that_the_models_page_reads() -> None:
    assert mlflow_private.MLFLOW_MODEL_VERSIONS == "mlflow.modelVersions"


def test_the_parents_tag_is_the_one_that_mlflow_nests_runs_by() -> None:
    assert mlflow_private.MLFLOW_PARENT_RUN_ID == "mlflow.parentRunId"
