"""What all tests share: one Ray cluster for the whole run, and the real photos where there are any."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from jobs.cli import start_ray

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray with logical CPUs to spare: on two cores, training workers would leave Ray Data none."""
    start_ray(num_cpus=4, dashboard=True)  # Ray Train asks its state API
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photos beside the repository; the test is skipped where there is none."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no real photos: ../shared/data is absent")
    return SHARED_DATA
