"""What all tests share: one Ray cluster for the whole run, and the real photos where there are any."""

import os
from collections.abc import Iterator
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


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photos beside the repository; the test is skipped where there is none."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no real photos: ../shared/data is absent")
    return SHARED_DATA


@pytest.fixture(scope="session")
def detector(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A data set of ``boxed`` photos, and the run of a small detector that was trained on it."""
    from tests import boxed

    root = tmp_path_factory.mktemp("detector")
    data = boxed.write_dataset(root / "data", {"train": 64, "val": 24})
    boxed.train_detector(data, str(root / "run"))
    return data, str(root / "run")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new MLflow SQLite file, to be copied: making one runs all of MLflow's migrations, some ten seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path
