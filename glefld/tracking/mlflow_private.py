"""MLflow's names that are not public. The rest of the package uses public ones; a test checks each of these."""

from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS, MLFLOW_PARENT_RUN_ID
from mlflow.utils.validation import (
    _validate_model_alias_name,
    _validate_model_alias_name_reserved,
    _validate_model_name,
)

__all__ = ["MLFLOW_MODEL_VERSIONS", "MLFLOW_PARENT_RUN_ID", "resolve_tags", "validate_registration"]


def validate_registration(name: str, alias: str | None) -> None:
    """MlflowException if the model registry would refuse the name or the alias.

    The public API checks them only when it registers a model, which is after the training.
    """
    _validate_model_name(name)
    if alias is not None:
        _validate_model_alias_name(alias)
        _validate_model_alias_name_reserved(alias)
