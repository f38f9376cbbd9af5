"""Who can reach the processes that a test has started."""

import contextlib
import ipaddress
import os
from collections import defaultdict

import psutil


def listening() -> dict[str, set[str]]:
    """By address, what listens there of this process and all that it has started."""
    found = defaultdict(set)
    ours = {process.pid: process for process in psutil.Process().children(recursive=True)}
    ours[os.getpid()] = psutil.Process()
    for connection in psutil.net_connections("inet"):
        if connection.status == psutil.CONN_LISTEN and connection.pid in ours:
            with contextlib.suppress(psutil.NoSuchProcess):
                found[connection.laddr.ip].add(" ".join(ours[connection.pid].cmdline())[:60])
    return found


def is_loopback(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback
