"""What all tests share: one Ray cluster for the whole run, and the real photos where there are any."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

# Tensors here are small. Two threads that share them gain nothing, and beside another program they wait for each other:
# fourteen times the time was measured.
torch.set_num_threads(1)
#: What is beside the repository on some machines: real photos, published tables, schemas.
SHARED = Path(__file__).parents[2] / "shared"
SHARED_DATA = SHARED / "data"


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray with logical CPUs to spare: on two cores, training workers would leave Ray Data none."""
    import ray

    from jobs.cli import start_ray  # here: tests/gpu runs where there is no Ray, and no MLflow

    # Ray's own niceness of 15 starves its workers beside anything else. It spells the name so.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    # Ray Train takes an epoch's report, and sees the end, when it looks at its workers: half as often for users.
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.25"
    start_ray(num_cpus=4, dashboard=True)  # Ray Train asks its state API
    yield
    ray.shutdown()


@pytest.fixture
def ingest_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ingest in the test's own process, where it is not Ray's tasks that are tested: these take a second to start."""
    from tests.in_process import shards_here

    monkeypatch.setattr("pipelines.ingest.run.run_tasks", shards_here)


@pytest.fixture
def evaluate_here(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluate in the test's own process, task after task, where it is not Ray's that are tested: each new worker of
    Ray's imports PyTorch. Give each task one CPU: it sets this process's number of threads."""
    from tests.in_process import task_here

    monkeypatch.setattr("pipelines.evaluate._task", lambda function, tasks: task_here(function))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photos beside the repository; the test is skipped where there is none."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no real photos: ../shared/data is absent")
    return SHARED_DATA


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that ``make`` fills, once for all processes that share the tests (pytest-xdist): others wait for it."""
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / f"shared-{name}"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (made := folder.with_suffix(".made")).exists():
            shutil.rmtree(folder, ignore_errors=True)  # of one that failed
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


@pytest.fixture(scope="session")
def detector(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A data set of ``boxed`` photos, and the run of a small detector that was trained on it."""
    from tests import boxed

    def make(folder: Path) -> None:
        data = boxed.write_dataset(folder / "data", {"train": 64, "val": 24})
        boxed.train_detector(data, str(folder / "run"))

    root = made_once(tmp_path_factory, "detector", make)
    return str(root / "data"), str(root / "run")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new MLflow SQLite file, to be copied: making one runs all of MLflow's migrations, some ten seconds."""
    from mlflow import MlflowClient

    def make(folder: Path) -> None:
        MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()

    return made_once(tmp_path_factory, "mlflow", make) / "mlflow.db"
