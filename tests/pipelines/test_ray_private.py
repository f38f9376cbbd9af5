"""Each private name of Ray's that we use is still there and still does what we use it for."""

import importlib
import json
import logging
import os
import subprocess
import sys

import psutil
import pytest
import ray
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray._raylet import GCS_AUTOSCALER_CLUSTER_CONFIG_KEY, GCS_AUTOSCALER_STATE_NAMESPACE
from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig
from ray.dashboard.modules.job.common import JOB_ID_METADATA_KEY
from ray.experimental import internal_kv
from ray.train.torch import TorchTrainer
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


def test_reports_of_workers_are_silenced() -> None:
    before = context.logger.level
    try:
        ray_private.silence_train_reports()
        assert not context.logger.isEnabledFor(logging.INFO)
    finally:
        context.logger.setLevel(before)


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
