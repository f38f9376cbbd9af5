"""Nothing is offered to other machines unless a cluster is named."""

import ipaddress
import shutil
from collections import defaultdict
from pathlib import Path

import psutil
import pytest
import ray

from jobs import train
from tests.ingested import write_dataset
from tests.meanwhile import meanwhile


def listening() -> dict[str, set[str]]:
    """By address, what listens there of this process and all that it has started."""
    found = defaultdict(set)
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found[connection.laddr.ip].add(" ".join(process.cmdline())[:60])
        except psutil.NoSuchProcess:
            continue
    return found


def is_loopback(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


@pytest.mark.usefixtures("ray_cluster")
def test_ray_on_this_machine_listens_on_loopback_only() -> None:
    """Every port of every process that a job starts: Ray's servers, its dashboard, a worker."""
    ray.get(ray.remote(lambda: None).remote())
    found = listening()
    assert all(is_loopback(address) for address in found), found
    assert len({process for processes in found.values() for process in processes}) >= 4, found


@pytest.mark.usefixtures("ray_cluster")
def test_training_on_this_machine_listens_on_loopback_only(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store that the workers meet at, and gloo, while two of them train."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    write_dataset(tmp_path / "data" / "fld", {"train": 45, "val": 23})
    found: defaultdict[str, set[str]] = defaultdict(set)

    def look() -> None:
        for address, processes in listening().items():
            found[address] |= processes

    line = (
        f"--dataset fld --root {tmp_path} --model local --input-size 32 --epochs 2 --batch-size 8 "
        "--precision fp32 --num-workers 2 --cpus-per-worker 1"
    )
    with meanwhile(look, pause=0.2):
        train.run(train.parse(line.split()))
    assert any("RayTrainWorker" in process for processes in found.values() for process in processes), found
    assert all(is_loopback(address) for address in found), found
