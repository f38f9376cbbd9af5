"""Nothing is offered to other machines unless a cluster is named."""

import ipaddress

import psutil
import pytest
import ray


@pytest.mark.usefixtures("ray_cluster")
def test_ray_on_this_machine_listens_on_loopback_only() -> None:
    """Every port of every process that a job starts: Ray's servers, its dashboard, a worker."""
    worker = ray.get(ray.remote(lambda: psutil.Process().pid).remote())
    listening: dict[int, list[str]] = {}
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                listening.setdefault(process.pid, []).append(connection.laddr.ip)
    assert worker in listening
    assert len(listening) >= 4, "the driver, the control store, the node's manager and a worker"
    for address in {address for found in listening.values() for address in found}:
        ip = ipaddress.ip_address(address)
        assert (getattr(ip, "ipv4_mapped", None) or ip).is_loopback, listening
