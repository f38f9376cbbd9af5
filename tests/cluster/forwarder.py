"""A port of a host that leads to one of this machine's servers, as if the host itself ran it."""

import contextlib
import ctypes
import os
import select
import socket
import socketserver
import threading
from typing import Any

CLONE_NEWNET = 0x40000000


def listen_in(namespace: str, address: tuple[str, int]) -> socket.socket:
    """A socket that listens in a network namespace; it stays there, whoever accepts."""
    made: list[socket.socket] = []
    failed: list[OSError] = []

    def enter_and_listen() -> None:
        # Only this thread enters the namespace, and it ends there.
        with open(f"/run/netns/{namespace}") as there:
            if ctypes.CDLL(None, use_errno=True).setns(there.fileno(), CLONE_NEWNET):
                failed.append(OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno())))
                return
        made.append(socket.create_server(address, backlog=128))

    thread = threading.Thread(target=enter_and_listen)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]


class Forwarder(socketserver.ThreadingTCPServer):
    """Passes each connection on to ``target``, byte by byte."""

    daemon_threads = True

    def __init__(self, namespace: str, address: tuple[str, int], target: tuple[str, int]) -> None:
        super().__init__(address, _Connection, bind_and_activate=False)
        self.socket.close()
        self.socket = listen_in(namespace, address)
        self.target = target
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class _Connection(socketserver.BaseRequestHandler):
    server: Any

    def handle(self) -> None:
        # A host that is killed or cut off leaves half connections: nothing is lost with them.
        with contextlib.suppress(OSError), socket.create_connection(self.server.target) as other:
            peers = {self.request: other, other: self.request}
            while peers:
                for readable in select.select(list(peers), [], [])[0]:
                    if data := readable.recv(1 << 16):
                        peers[readable].sendall(data)
                    else:
                        peers.pop(readable).shutdown(socket.SHUT_WR)
