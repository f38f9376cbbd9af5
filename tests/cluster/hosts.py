"""Ray nodes that tests start, kill and cut off: one on loopback, or several, each in a network namespace of its own.

A namespace has its own addresses, its own /tmp/ray and its own folder for temporary files, as a host would; only the
file system is shared. The namespaces' addresses exist nowhere else.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
START_SECONDS = 90.0


def wait_until(ready: Callable[[], object], what: str, seconds: float = START_SECONDS) -> float:
    """How many seconds it took; a failed test if it takes longer than given."""
    start = time.monotonic()
    while not ready():
        if time.monotonic() - start > seconds:
            pytest.fail(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.05)
    return time.monotonic() - start


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without what would name a cluster, a tracking server or a store."""
    foreign = ("RAY_", "MLFLOW_", "AWS_", "GLEFLD_", "NCCL_", "GLOO_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    path = f"{BIN}{os.pathsep}{kept['PATH']}"  # jobs run the `python` that stands first
    return {**kept, "PATH": path, "MLFLOW_DISABLE_TELEMETRY": "true", **more}


@dataclasses.dataclass
class Host:
    """Where processes run: ``namespace`` or, if it is empty, this machine itself. ``folder`` is the host's own disk."""

    address: str
    folder: Path
    environment: dict[str, str]
    namespace: str = ""
    process: subprocess.Popen[bytes] | None = None
    started: list[subprocess.Popen[bytes]] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        (self.folder / "ray").mkdir(parents=True)
        self.temporary.mkdir()

    @property
    def temporary(self) -> Path:
        """TMPDIR of all that runs here."""
        return self.folder / "tmp"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    def run(self, words: Sequence[str], **more: str) -> subprocess.Popen[bytes]:
        """Start a command here, in a process group of its own; its output goes to the log."""
        place = ["ip", "netns", "exec", self.namespace] if self.namespace else []
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [*place, *words],
                cwd=REPOSITORY,
                env={**self.environment, "TMPDIR": str(self.temporary), **more},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def start_ray(self, *options: str) -> None:
        """A node with its own /tmp/ray; returns at once."""
        words = [str(BIN / "ray"), "start", "--block", f"--node-ip-address={self.address}", *options]
        if self.namespace:
            # The namespace's processes have a mount table of their own, which ends with them.
            bind = 'mount --bind "$0" /tmp/ray && exec "$@"'
            words = ["sh", "-c", bind, str(self.folder / "ray"), *words]
        self.process = self.run([*words, "--object-store-memory=150000000"], RAY_TMPDIR="/tmp")

    def processes(self) -> list[psutil.Process]:
        """All that runs here."""
        if self.namespace:
            listed = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, check=True)
            found = [int(pid) for pid in listed.stdout.split()]
        else:
            found = [p.pid for p in self.started if p.poll() is None]
        processes = []
        for pid in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                processes.append(psutil.Process(pid))
                if not self.namespace:
                    processes += psutil.Process(pid).children(recursive=True)
        return processes

    def find(self, *words: str) -> list[psutil.Process]:
        """The processes here whose command line holds all the words; Ray's workers tell there what they do."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                line = " ".join(process.cmdline())
                if all(word in line for word in words):
                    found.append(process)
        return found

    def kill(self) -> list[int]:
        """SIGKILL for all that runs here, as if the power had failed; what was killed."""
        killed = []
        while running := [p for p in self.processes() if p.status() != psutil.STATUS_ZOMBIE]:
            for process in running:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
                    killed.append(process.pid)
            time.sleep(0.05)
            for child in self.started:
                child.poll()
        self.process = None
        return killed

    def call(
        self, words: Sequence[str], seconds: float = 300, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command here to its end, its output apart from the log."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            place = ["ip", "netns", "exec", self.namespace] if self.namespace else []
            environment = {**self.environment, "TMPDIR": str(self.temporary), **more}
            done = subprocess.run(
                [*place, *words],
                check=False,
                cwd=REPOSITORY,
                env=environment,
                stdout=out,
                stderr=err,
                timeout=seconds,
            )
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(words, done.returncode, out.read(), err.read())


GET = """
import os, sys, urllib.request
token = open(os.environ["RAY_AUTH_TOKEN_PATH"]).read()
request = urllib.request.Request(sys.argv[1], headers={"Authorization": f"Bearer {token}"})
print(urllib.request.urlopen(request, timeout=5).read().decode())
"""


def alive(host: Host, dashboard: str) -> set[str]:
    """The addresses of the cluster's living nodes, as the dashboard tells a host; none while it does not answer."""
    answer = host.call([sys.executable, "-S", "-c", GET, f"{dashboard}/api/v0/nodes"])
    if answer.returncode:
        return set()
    rows = json.loads(answer.stdout)["data"]["result"]["result"]
    return {row["node_ip"] for row in rows if row["state"] == "ALIVE"}


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """Sockets lie below it, whose paths may have 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="glefld-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def secured(folder: Path, **more: str) -> dict[str, str]:
    """The environment of a cluster with token authentication, and of who may use it."""
    token = folder / "token"
    token.write_text(uuid.uuid4().hex * 2)
    token.chmod(0o600)
    return clean_environment(
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN_PATH=str(token),
        RAY_USAGE_STATS_ENABLED="0",
        RAY_worker_niceness="0",
        **more,
    )
