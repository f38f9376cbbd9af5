"""Each private name of Ray's that we use is still there and still does what we use it for."""

import importlib
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import ray
from ray._private.log import PlainRayHandler
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray._raylet import GCS_AUTOSCALER_CLUSTER_CONFIG_KEY, GCS_AUTOSCALER_STATE_NAMESPACE
from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig
from ray.dashboard.modules.job.common import JOB_ID_METADATA_KEY
from ray.experimental import internal_kv
from ray.train.torch import TorchTrainer
from ray.train.v2._internal import util
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution import context

from jobs.cli import use_gpu
from pipelines import ray_private

LOGGERS = (
    *ray_private.SUBMISSION_LOGGERS,
    ray_private.DATA_PROGRESS_LOGGER,
    ray_private.DATA_EXECUTION_LOGGER,
)


@pytest.mark.parametrize("name", LOGGERS)
def test_a_silenced_logger_is_still_a_module_of_rays(name: str) -> None:
    importlib.import_module(name)


def test_ray_on_one_machine_takes_the_loopback_address() -> None:
    code = (
        "import ray; from pipelines.ray_private import listen_on_loopback; listen_on_loopback(); "
        "print(ray.util.get_node_ip_address())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=".")
    assert done.stdout.split()[-1] == "127.0.0.1"


@pytest.mark.usefixtures("ray_cluster")
def test_ray_listens_on_the_port_that_was_chosen() -> None:
    """Workers are told the cluster's address before it has started."""
    told = ray.get(ray.remote(lambda: os.environ["RAY_ADDRESS"]).remote())
    assert told == ray.get_runtime_context().gcs_address


def test_a_trainer_has_a_callback_for_datasets_that_is_left_out() -> None:
    trainer = TorchTrainer(lambda: None)
    before = [type(callback) for callback in trainer._create_default_callbacks()]
    left = [type(callback) for callback in ray_private.without_datasets(trainer)._create_default_callbacks()]
    assert DatasetsCallback in before
    assert left == [kind for kind in before if kind is not DatasetsCallback]


@pytest.mark.usefixtures("ray_cluster")
def test_auto_takes_the_gpus_that_an_autoscaler_may_add(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cluster that scales from zero has none at first. One line says what was chosen."""
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    assert not use_gpu("auto", 0)
    assert capsys.readouterr().out.startswith("device     CPU: ")
    group = NodeGroupConfig(name="gpus", max_count=2, resources={"CPU": 8, "GPU": 4})
    place = (GCS_AUTOSCALER_CLUSTER_CONFIG_KEY, GCS_AUTOSCALER_STATE_NAMESPACE)
    key, namespace = (text.encode() for text in place)
    internal_kv._internal_kv_put(
        key, ClusterConfig(node_group_configs=[group]).SerializeToString(), namespace=namespace
    )
    try:
        assert ray_private.declared_gpus() == 8
        assert use_gpu("auto", 0)
        assert not use_gpu("cpu", 0)
        assert capsys.readouterr().out.startswith("device     GPU: ")
    finally:
        internal_kv._internal_kv_del(key, namespace=namespace)


@pytest.mark.usefixtures("ray_cluster")
def test_a_local_ray_has_no_autoscaler() -> None:
    """But the other processes of its head."""
    commands = [" ".join(child.cmdline()) for child in psutil.Process().children()]
    assert any("gcs_server" in command for command in commands)
    assert not any("monitor.py" in command and "log_monitor" not in command for command in commands)


def test_a_group_that_found_no_room_is_told_from_other_failures() -> None:
    assert ray_private.is_start_timeout(WorkerGroupStartupTimeoutError(2))
    assert not ray_private.is_start_timeout(RuntimeError())


def test_cpus_are_counted() -> None:
    assert 1 <= ray_private.cpus() <= (os.cpu_count() or 1)


def test_a_submitted_job_knows_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """From what Ray's supervisor sets in its environment."""
    monkeypatch.delenv(RAY_JOB_CONFIG_JSON_ENV_VAR, raising=False)
    assert ray_private.submitted_job() is None
    metadata = {JOB_ID_METADATA_KEY: "raysubmit_x"}
    monkeypatch.setenv(RAY_JOB_CONFIG_JSON_ENV_VAR, json.dumps({"runtime_env": {}, "metadata": metadata}))
    assert ray_private.submitted_job() == "raysubmit_x"


def test_tracebacks_and_reports_of_training_workers_are_kept_off_the_terminal() -> None:
    """But not what else Ray Train says there."""
    before = context.logger.level
    handler = PlainRayHandler()
    logger = logging.getLogger("ray.train")
    logger.addHandler(handler)
    try:
        ray_private.quiet_train_worker()
        names = (util.logger.name, "ray.train.v2._internal.execution.preemption")
        records = [logging.LogRecord(name, logging.ERROR, "", 0, "text", (), None) for name in names]
        assert [bool(handler.filter(record)) for record in records] == [False, True]
        assert not context.logger.isEnabledFor(logging.INFO)
    finally:
        context.logger.setLevel(before)
        logger.removeHandler(handler)


@pytest.mark.usefixtures("ray_cluster")
def test_lines_of_workers_are_taken_or_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Those that are not taken, as Ray shows them; and all again afterwards."""
    taken: list[str] = []

    def take(line: str) -> bool:
        if line.startswith("ours"):
            taken.append(line)
        return line.startswith("ours")

    def shown(wanted: str) -> str:
        seen, until = "", time.monotonic() + 30
        while wanted not in seen and time.monotonic() < until:
            time.sleep(0.05)
            seen += "".join(capsys.readouterr())
        return seen

    say = ray.remote(lambda *lines: [print(line, flush=True) for line in lines])
    with ray_private.worker_lines(take):
        ray.get(say.remote("ours, first", "theirs, first", "ours, second"))
        printed = shown("theirs, first")
        until = time.monotonic() + 30
        while len(taken) < 2 and time.monotonic() < until:
            time.sleep(0.05)
    assert "theirs, first" in printed
    assert "ours" not in printed
    assert taken == ["ours, first", "ours, second"]
    ray.get(say.remote("ours, third"))
    assert "ours, third" in shown("ours, third")


@pytest.mark.parametrize(
    ("line", "noise"),
    [
        (
            "[2026-11-28 18:37:49,562 E 26119 26119] core_worker.cc:2465: Actor with class name: 'MapWorker'",
            True,
        ),
        ("[2026-11-28 18:37:49,562 W 26119 26119] (python) core_worker_process.cc:2: no metrics agent", True),
        (
            "[2026-11-28 18:37:49,562 E 26119 26119] (raylet) node_manager.cc:3: 2 workers killed: memory",
            False,
        ),
        ("core_worker.cc:2465: said by a program", False),
        (
            "Failed to query Ray Train Controller actor state. State API may be temporarily unavailable. "
            "Continuing to monitor.",
            True,
        ),
        ("Workers (tasks / actors) killed due to memory pressure (OOM)", False),
    ],
)
def test_only_what_rays_own_code_says_of_itself_is_noise(line: str, noise: bool) -> None:
    assert ray_private.is_noise(line) is noise


def test_a_driver_says_nothing_of_rays_inside(tmp_path: Path) -> None:
    """Of its token, of having started and of an actor that may be restarted. What a worker says is passed on.

    So is, in one line, that Ray's first start failed: its shared memory's folder was there only at the second. By then
    its other processes were up, and none of them is left.
    """
    code = """
import os, sys, time
import psutil
import ray
from jobs.cli import start_ray
from pipelines import ray_private

choose, folder, ports = ray_private.choose_gcs_port, sys.argv[1], []

def choose_and_make(port):
    if ports:
        os.mkdir(folder)
    ports.append(port)
    choose(port)

ray_private.choose_gcs_port = choose_and_make
start_ray(num_cpus=1, _plasma_directory=folder)
servers = [child for child in psutil.Process().children() if "gcs_server" in child.name()]
print("told", len(servers), file=sys.stderr)

@ray.remote(max_restarts=1, max_task_retries=1)
class Restarted:
    def __init__(self, value):
        pass
    def pid(self):
        return os.getpid()

actor = Restarted.remote(ray.put(bytes(1000)))
ray.get(actor.pid.remote())
ray.get(ray.remote(lambda: print("shown", flush=True)).remote())
time.sleep(2)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, folder := str(tmp_path / "memory")],
        cwd=Path(__file__).parents[2],
        env={
            name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_AUTH_MODE")
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    why = f"The plasma directory file {folder} does not exist or is not a directory"
    assert done.stderr == f"Ray did not start ({why}): trying once more\ntold 1\n"
    (line,) = done.stdout.splitlines()
    assert line.endswith(" shown")
    assert "\x1b" not in line


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, {"GOMP_SPINCOUNT": "1000"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
    ],
)
def test_how_threads_wait_is_the_users_to_decide(
    given: dict[str, str], told: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert ray_private.waiting_threads() == told
