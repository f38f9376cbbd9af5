"""Ray's private names. Everything else in this project uses its public ones; ``tests`` fail when one of these goes.

Each is here because Ray has no public way to do the same.
"""

import logging
import os

import ray._private.ray_constants
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution import context

#: Loggers that tell of each step of a submission, and of a missing token, which our own lines do.
SUBMISSION_LOGGERS = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
    "ray._private.authentication.http_token_authentication",
)
#: Loggers of Ray Data's progress bars, and of the lines about each graph that it runs.
DATA_PROGRESS_LOGGER = "ray.data._internal.progress"
DATA_EXECUTION_LOGGER = "ray.data._internal.execution.streaming_executor"


def listen_on_loopback() -> None:
    """Let Ray on one machine use the loopback address, its own default on macOS and Windows.

    Ray reads the variable at its import; processes that it starts inherit it.
    """
    os.environ.setdefault(ray._private.ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, "0")
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = False


def is_start_timeout(error: BaseException) -> bool:
    """Whether Ray Train gave up because the cluster had no room for its workers."""
    return isinstance(error, WorkerGroupStartupTimeoutError)


def silence_train_reports() -> None:
    """Drop the line that Ray Train logs for each report of each worker."""
    context.logger.setLevel(logging.WARNING)
