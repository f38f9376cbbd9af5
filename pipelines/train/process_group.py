"""The training workers' process group, which listens on the address that Ray knows a node by.

Left alone, torch's store listens on every interface and asks nobody who they are, and gloo takes the interface that
the host's name leads to, which on many hosts is loopback. NCCL chooses among a host's cards itself, but for loopback.
"""

import dataclasses
import datetime
import ipaddress
import os
import socket
from typing import Any

import psutil
import ray
import torch.distributed as dist
from ray.train.backend import Backend
from ray.train.torch import TorchConfig

_store: dist.TCPStore | None = None  # of the first worker's process, for as long as that lives


@dataclasses.dataclass
class NodeAddressConfig(TorchConfig):
    """gloo or, with GPUs, NCCL; ``GLOO_SOCKET_IFNAME`` and ``NCCL_SOCKET_IFNAME`` win if they are set."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _NodeAddressBackend


class _NodeAddressBackend(TorchConfig().backend_cls):  # type: ignore[misc]  # its end is Ray's own
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        size = len(worker_group)
        gpu = worker_group.get_resources_per_worker().get("GPU", 0) > 0
        address = worker_group.execute_single(0, _serve)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank, _join, address, rank, size, "nccl" if gpu else "gloo", backend_config.timeout_s
                )
                for rank in range(size)
            ]
        )


def _serve() -> tuple[str, int]:
    """Start the store in this process; its address."""
    global _store
    host = ray.util.get_node_ip_address()
    listener = socket.create_server((host, 0), family=_family(host))
    port = listener.getsockname()[1]
    _store = dist.TCPStore(
        host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )
    return host, port


def _join(address: tuple[str, int], rank: int, size: int, backend: str, timeout_s: float) -> None:
    host = ray.util.get_node_ip_address()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", interface(host))
    if ipaddress.ip_address(host).is_loopback:
        os.environ.setdefault("NCCL_SOCKET_IFNAME", interface(host))  # NCCL's own choice is any other one
    store = dist.TCPStore(*address, is_master=False, wait_for_workers=False)
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=size, timeout=datetime.timedelta(seconds=timeout_s)
    )


def interface(address: str) -> str:
    """The name of this host's network interface that has an address."""
    found = [
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(a.family == _family(address) and a.address.partition("%")[0] == address for a in addresses)
    ]
    assert found, (address, psutil.net_if_addrs())
    return found[0]


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
