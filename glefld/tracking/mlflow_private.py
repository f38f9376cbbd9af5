"""MLflow's private names. The rest of the package uses its public ones; a test fails when one of these goes."""

from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from mlflow.utils.validation import (
    _validate_model_alias_name,
    _validate_model_alias_name_reserved,
    _validate_model_name,
)

__all__ = ["MLFLOW_PARENT_RUN_ID", "resolve_tags", "validate_registration"]


def validate_registration(name: str, alias: str | None) -> None:
    """MlflowException for a name or alias that the model registry would refuse.

    The public API checks them only when a model is registered, which is after the training.
    """
    _validate_model_name(name)
    if alias is not None:
        _validate_model_alias_name(alias)
        _validate_model_alias_name_reserved(alias)
