"""Real servers as child processes of the tests: free ports, logs in files, and an end for each."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil
import pytest

from tests.meanwhile import meanwhile

START_SECONDS = 180.0  # on a busy machine


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def require_root() -> None:
    """Skip, and say why, where servers cannot be started as users of their own."""
    if os.geteuid() != 0:
        pytest.skip("the servers are started by root only: run `make test-cluster` as root")


def require_programs(package: str, *programs: str) -> None:
    """Skip, and say what to install, unless all programs of a system package are there."""
    absent = [program for program in programs if shutil.which(program) is None]
    if absent:
        pytest.skip(
            f"no {', '.join(absent)}: `make test-cluster` installs the system package {package} by apt"
        )


def answers(port: int) -> bool:
    """Whether something listens on the port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(
    ready: Callable[[], object], what: str, seconds: float = START_SECONDS, pause: float = 0.05
) -> float:
    """How many seconds it took; a failed test if it takes longer than given."""
    start = time.monotonic()
    while not ready():
        if time.monotonic() - start > seconds:
            pytest.fail(f"{what}: not within {seconds:.0f} s")
        time.sleep(pause)
    return time.monotonic() - start


@contextlib.contextmanager
def command_lines() -> Iterator[set[str]]:
    """What the list of this machine's processes shows meanwhile, looked at every 50 ms."""
    seen: set[str] = set()

    def look() -> None:
        for process in psutil.process_iter(["cmdline"]):
            seen.add(" ".join(process.info["cmdline"] or ()))

    with meanwhile(look):
        yield seen


class Server:
    """A process group that is started, stopped, frozen and killed; its output goes to a file."""

    def __init__(
        self, command: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.command, self.log = [str(part) for part in command], log
        self.environment = {**os.environ, **(environment or {})}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, ready: Callable[[], bool], seconds: float = START_SECONDS) -> None:
        """Return once ``ready`` says so; RuntimeError with the log's end if the process ends before."""
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )
        process = self.process

        def up() -> bool:
            if process.poll() is not None:
                end = self.log.read_text(errors="replace")[-3000:]
                raise RuntimeError(f"{self.command[0]} ended with status {process.returncode}: {end}")
            return ready()

        wait_until(up, self.command[0], seconds)

    def send(self, number: signal.Signals) -> None:
        """To the whole group: SIGSTOP and SIGCONT freeze and thaw it."""
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            self.send(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            self.send(signal.SIGKILL)  # what is left of its group
        self.process.wait()
        self.process = None
