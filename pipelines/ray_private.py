"""All uses of Ray's private names in this project, each because Ray has no public equivalent.

Tests fail if a Ray release removes one of them.
"""

import logging
import os

import ray._private.ray_constants
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution import context

#: Loggers that report each step of a submission, or a missing token. ``jobs.submit`` prints its own messages instead.
SUBMISSION_LOGGERS = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
    "ray._private.authentication.http_token_authentication",
)
#: Loggers of Ray Data's progress bars and of its messages about each execution.
DATA_PROGRESS_LOGGER = "ray.data._internal.progress"
DATA_EXECUTION_LOGGER = "ray.data._internal.execution.streaming_executor"


def listen_on_loopback() -> None:
    """Make a local Ray listen on the loopback address only, which is Ray's default on macOS and Windows.

    Ray reads the environment variable on import, so the constant is set too; child processes inherit the variable.
    """
    os.environ.setdefault(ray._private.ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, "0")
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = False


def choose_gcs_port(port: int) -> None:
    """Make a local Ray's GCS, whose address is the cluster's, listen on this port: ``ray.init`` takes none."""
    os.environ[ray._private.ray_constants.GCS_PORT_ENVIRONMENT_VARIABLE] = str(port)


def is_start_timeout(error: BaseException) -> bool:
    """Return whether Ray Train gave up because the cluster had no room for its workers."""
    return isinstance(error, WorkerGroupStartupTimeoutError)


def silence_train_reports() -> None:
    """Suppress the line that Ray Train logs for every report of every worker."""
    context.logger.setLevel(logging.WARNING)
