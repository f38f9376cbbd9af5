"""All uses of Ray's private names in this project, each because Ray has no public equivalent.

Tests fail if a Ray release removes one of them.
"""

import contextlib
import json
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import ray._private.log
import ray._private.node
import ray._private.ray_constants
import ray._private.ray_logging
import ray._private.state
import ray._private.utils
import ray._private.worker
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

#: The logger of a local Ray's token, which says each time that there is one.
TOKEN_LOGGER = logging.getLogger("ray._private.authentication.authentication_token_setup")
#: Environment variable: the least severe messages that Ray's C++ part logs.
BACKEND_LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"
#: Matches the line that says so.
_LOG_LEVEL_SET = re.compile(rb"\[\d{4}-[^]]*\] logging\.cc:\d+: Set ray log level")
#: Where Ray Train keeps what decides the number of its workers.
_SCALING_POLICIES = "ray.train.v2._internal.execution.scaling_policy"
#: Name by which a driver registers what prints the lines of its workers' logs.
_PRINT_LOGS = "ray_print_logs"
#: Matches a line by the part of Ray's C++ code that is in each worker, and one of Ray Train's on a busy machine: what
#: cleans up after the controller asked in vain whether it lives, and goes on.
_NOISE = re.compile(
    r"\[\d{4}-[\d-]+ [\d:,.]+ [IWE] \d+ \d+\] (\(\S+\) )?core_worker\w*\.cc:\d+: "
    r"|Failed to query Ray Train Controller actor state\. .*Continuing to monitor\.$"
)


def listen_on_loopback() -> None:
    """Make a local Ray listen on the loopback address only, which is Ray's default on macOS and Windows.

    Ray reads the environment variable on import, so the constant is set too; child processes inherit the variable.
    """
    os.environ.setdefault(ray._private.ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, "0")
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = False


def choose_gcs_port(port: int) -> None:
    """Make a local Ray's GCS, whose address is the cluster's, listen on this port: ``ray.init`` takes none."""
    os.environ[ray._private.ray_constants.GCS_PORT_ENVIRONMENT_VARIABLE] = str(port)


class _LocalNode(ray._private.node.Node):
    """The processes of a Ray on one machine."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """End all processes again if one of them does not come up: Ray would leave the others until this one ends."""
        try:
            super().__init__(*arguments, **named)
        except BaseException:
            self.kill_all_processes(check_alive=False, wait=True)
            raise

    def start_monitor(self) -> None:
        """Start no autoscaler: one machine has nothing to scale.

        Its process takes a second of CPU to start, and Ray's shutdown waits a second for it in vain.
        """


@contextlib.contextmanager
def local_node() -> Iterator[None]:
    """Let ``ray.init`` start a ``_LocalNode``."""
    node = ray._private.node.Node
    ray._private.node.Node = _LocalNode
    try:
        yield
    finally:
        ray._private.node.Node = node


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


def quiet_train_controller() -> None:
    """Keep off the driver's terminal that a request for machines went unanswered, which its sender repeats.

    On a busy machine that comes and goes. A cluster without room is told by the autoscaler, and by Ray Train.
    """
    # Not by its level, which is lost when Ray Train configures its loggers.
    sender = logging.getLogger(f"{_SCALING_POLICIES}.autoscaling_coordinator_client")
    sender.addFilter(lambda record: record.levelno >= logging.ERROR)


def quiet_train_worker() -> None:
    """Keep off the driver's terminal the line on each report of a training worker, and the traceback of what failed.

    Ray Train shows all that any library tells, so Azure's client is kept from telling each request.
    Of all workers that lose a neighbour, each would show one, which Ray's log files have too. The failure is told in
    one line each, and if it ends the training, the driver shows the traceback.
    """
    from ray.train.v2._internal import util
    from ray.train.v2._internal.execution import context

    context.logger.setLevel(logging.WARNING)
    logging.getLogger("azure").setLevel(logging.WARNING)
    for handler in logging.getLogger("ray.train").handlers:
        if isinstance(handler, ray._private.log.PlainRayHandler):
            handler.addFilter(lambda record: record.name != util.logger.name)


@contextlib.contextmanager
def quiet_driver() -> Iterator[None]:
    """Let ``ray.init`` start a driver whose C++ part prints no errors of its own.

    They are about Ray's internals, such as arguments of actors that may be restarted. What befalls a job comes as an
    exception or by the raylet. Ray's processes on this machine start before and keep their logs.
    """
    connect = ray._private.worker.connect

    def quietly(*arguments: Any, **named: Any) -> Any:
        before = os.environ.get(BACKEND_LOG_LEVEL)
        os.environ.setdefault(BACKEND_LOG_LEVEL, "fatal")
        try:
            with _without_lines(_LOG_LEVEL_SET):
                return connect(*arguments, **named)
        finally:
            if before is None:
                del os.environ[BACKEND_LOG_LEVEL]

    ray._private.worker.connect = quietly
    TOKEN_LOGGER.addFilter(_is_worth_telling)
    try:
        yield
    finally:
        ray._private.worker.connect = connect
        TOKEN_LOGGER.removeFilter(_is_worth_telling)


@contextlib.contextmanager
def _without_lines(noise: re.Pattern[bytes]) -> Iterator[None]:
    """Hold back what this process writes to stderr, also from C++, and pass on all lines but those that match."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            if told := b"".join(line for line in held if not noise.match(line)):
                os.write(2, told)


def _is_worth_telling(record: logging.LogRecord) -> bool:
    """Whether it says more than that all is as it should be, with a token."""
    return not record.getMessage().startswith("Token authentication is enabled")


def is_noise(line: str) -> bool:
    """Return whether a line of a worker's log is of Ray's own code and about its internals alone."""
    return _NOISE.match(line) is not None


@contextlib.contextmanager
def worker_lines(take: Callable[[str], bool]) -> Iterator[None]:
    """Pass each line of the workers' logs to ``take``, and show only those that it does not take (False)."""
    undo = take_worker_lines(take)
    try:
        yield
    finally:
        undo()


def take_worker_lines(take: Callable[[str], bool]) -> Callable[[], None]:
    """Like ``worker_lines``, until the returned function is called, or until Ray is shut down."""
    dispatcher = ray._private.ray_logging.global_worker_stdstream_dispatcher
    show = dict(dispatcher.handlers).get(_PRINT_LOGS)
    if show is None:  # the user wants none: RAY_LOG_TO_DRIVER=0
        return lambda: None

    def handle(data: dict[str, Any]) -> None:
        lines = [line for line in data["lines"] if not take(line)]
        if lines:
            show({**data, "lines": lines})

    def replace(before: Any, after: Any) -> None:
        if dict(dispatcher.handlers).get(_PRINT_LOGS) is before:
            dispatcher.remove_handler(_PRINT_LOGS)
            dispatcher.add_handler(_PRINT_LOGS, after)

    replace(show, handle)
    return lambda: replace(handle, show)


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
