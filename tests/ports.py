"""Who can reach the processes that a test has started."""

import ipaddress
from collections import defaultdict

import psutil


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
