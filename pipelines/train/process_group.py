"""The training workers' process group, bound to the address by which Ray knows each node.

By default torch's store listens on all interfaces, without authentication, and gloo uses the interface that the host
name resolves to, which on many hosts is loopback. NCCL picks an interface itself, but never loopback.

Ray Train's controller imports this module too, and workers wait for it: so PyTorch is imported by what runs in workers.
"""

import dataclasses
import datetime
import ipaddress
import logging
import os
import socket
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import psutil
import ray
from ray.train.backend import Backend, BackendConfig

from pipelines import ray_private

if TYPE_CHECKING:
    from torch.distributed import TCPStore

#: How long a group that is no longer needed may take to end, which it does not if a member hangs.
LEAVE_SECONDS = 30

logger = logging.getLogger(__name__)

_store: "TCPStore | None" = None  # keeps the server of rank 0 alive as long as its process


@dataclasses.dataclass
class NodeAddressConfig(BackendConfig):
    """Use NCCL with GPUs, else gloo. ``GLOO_SOCKET_IFNAME`` and ``NCCL_SOCKET_IFNAME`` take precedence if set."""

    backend: str | None = None
    """The one of the two that ``TorchTrainer`` has chosen."""
    timeout_s: int = 1800
    """Seconds for an operation of the group."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _NodeAddressBackend

    @property
    def train_func_context(self) -> type[AbstractContextManager[Any]]:
        """Ray's own, which sets a worker's GPU."""
        from ray.train.torch import TorchConfig

        return TorchConfig().train_func_context


class _NodeAddressBackend(Backend):
    def on_start(self, worker_group: Any, backend_config: NodeAddressConfig) -> None:
        size = len(worker_group)
        worker_group.execute(ray_private.set_rank_variables)
        address = worker_group.execute_single(0, _serve)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank, _join, address, rank, size, backend_config.backend, backend_config.timeout_s
                )
                for rank in range(size)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: NodeAddressConfig) -> None:
        left = worker_group.execute_async(ray_private.leave_process_group, len(worker_group) > 1)
        try:
            ray.get(left, timeout=LEAVE_SECONDS)
        except ray.exceptions.GetTimeoutError:
            logger.warning("the workers' process group did not end within %d s", LEAVE_SECONDS)
        except ray.exceptions.RayActorError:
            pass  # a worker that died has left the group too; TellFailures tells of it


def _serve() -> tuple[str, int]:
    """Start the store in this process, and return its host and port."""
    import torch.distributed as dist

    global _store
    host = ray.util.get_node_ip_address()
    listener = socket.create_server((host, 0), family=_family(host))
    port = listener.getsockname()[1]
    _store = dist.TCPStore(
        host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )
    return host, port


def _join(address: tuple[str, int], rank: int, size: int, backend: str, timeout_s: float) -> None:
    import torch.distributed as dist

    host = ray.util.get_node_ip_address()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", interface(host))
    if ipaddress.ip_address(host).is_loopback:
        os.environ.setdefault("NCCL_SOCKET_IFNAME", interface(host))  # NCCL never picks loopback itself
    store = dist.TCPStore(*address, is_master=False, wait_for_workers=False)
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=size, timeout=datetime.timedelta(seconds=timeout_s)
    )


def interface(address: str) -> str:
    """Return the name of this host's network interface with the given IP address."""
    found = [
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(a.family == _family(address) and a.address.partition("%")[0] == address for a in addresses)
    ]
    assert found, (address, psutil.net_if_addrs())
    return found[0]


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
