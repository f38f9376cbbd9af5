"""All uses of Ray's private names in this project, each because Ray has no public equivalent.

Tests fail if a Ray release removes one of them.
"""

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import ray._private.node
import ray._private.ray_constants
import ray._private.state
import ray._private.utils
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

#: Loggers that report each step of a submission, or a missing token. ``jobs.submit`` prints its own messages instead.
SUBMISSION_LOGGERS = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
    "ray._private.authentication.http_token_authentication",
)
#: How long PyTorch's idle threads spin before they sleep: GNU OpenMP's variable and value, and the standard's variable.
SPINNING, SPINS, WAIT_POLICY = "GOMP_SPINCOUNT", "1000", "OMP_WAIT_POLICY"
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


@contextlib.contextmanager
def without_autoscaler() -> Iterator[None]:
    """Start no autoscaler with a local Ray: one machine has nothing to scale.

    Its process takes a second of CPU to start, and Ray's shutdown waits a second for it in vain.
    """
    start = ray._private.node.Node.start_monitor
    ray._private.node.Node.start_monitor = lambda node: None
    try:
        yield
    finally:
        ray._private.node.Node.start_monitor = start


def waiting_threads() -> dict[str, str]:
    """Return the environment in which PyTorch's idle threads soon sleep, unless the user has decided how they wait.

    A step's threads wait for the slowest of them hundreds of times. If they spin for long, as by default, they keep
    other processes off the cores, and with them that thread; if they sleep at once, waking them takes a tenth of the
    step. OpenMP reads this when its library is loaded, so only a new process can be given it.
    """
    given = {name: os.environ[name] for name in (SPINNING, WAIT_POLICY) if name in os.environ}
    return given or {SPINNING: SPINS}


def one_machine() -> dict[str, str]:
    """Return the environment of a Ray on one machine, unless the user has decided.

    No cloud takes that machine back, so Ray Train need not start a process that would be told of it.
    """
    name = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
    return {name: os.environ.get(name, "0")}


def is_start_timeout(error: BaseException) -> bool:
    """Return whether Ray Train gave up because the cluster had no room for its workers."""
    # Ray Train is slow to import.
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    return isinstance(error, WorkerGroupStartupTimeoutError)


def without_datasets(trainer: "TorchTrainer") -> "TorchTrainer":
    """Return the trainer, made to start no process for shards of Ray Data's: the workers read their rows themselves.

    That process takes two seconds of CPU at each start of a worker group.
    """
    from ray.train.v2._internal.callbacks import DatasetsCallback

    create = trainer._create_default_callbacks
    trainer._create_default_callbacks = lambda: [c for c in create() if not isinstance(c, DatasetsCallback)]
    return trainer


def set_rank_variables() -> None:
    """Set LOCAL_RANK, RANK, WORLD_SIZE and the others of torchrun in a training worker, as Ray's own backend does."""
    from ray.train.torch import config

    config._set_torch_distributed_env_vars()


def leave_process_group(destroy: bool) -> None:
    """End a training worker's process group, if there is one to ``destroy``, and free its GPUs, as Ray's own does."""
    from ray.train.torch import config

    config._shutdown_torch(destroy_process_group=destroy)


def silence_train_reports() -> None:
    """Suppress the line that Ray Train logs for every report of every worker."""
    from ray.train.v2._internal.execution import context

    context.logger.setLevel(logging.WARNING)


def declared_gpus() -> int:
    """Return how many GPUs the cluster's autoscaler may add machines for, at most; 0 if there is none that says so."""
    declared = ray._private.state.state.get_max_resources_from_cluster_config()
    return int((declared or {}).get("GPU", 0))


def cpus() -> int:
    """Return the number of CPUs that a Ray started on this machine would have: a container's, if it is limited."""
    return int(ray._private.utils.get_num_cpus(override_docker_cpu_warning=True))


def submitted_job() -> str | None:
    """Return the id of the Ray job that this process was submitted as, or None."""
    config = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR) or "{}")
    return (config.get("metadata") or {}).get("job_submission_id")
