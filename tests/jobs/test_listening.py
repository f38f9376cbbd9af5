"""Ray offers nothing to other machines unless a cluster is named. Of training, test_train.py says the same."""

import pytest
import ray

from tests.ports import is_loopback, listening


@pytest.mark.usefixtures("ray_cluster")
def test_ray_on_this_machine_listens_on_loopback_only() -> None:
    """Every port of every process that a job starts: Ray's servers, its dashboard, a worker."""
    ray.get(ray.remote(lambda: None).remote())
    found = listening()
    assert all(is_loopback(address) for address in found), found
    assert len({process for processes in found.values() for process in processes}) >= 4, found
