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
from urllib.parse import urlsplit

import psutil
import pytest
from mlflow import MlflowClient

from tests.cluster.forwarder import Forwarder
from tests.cluster.object_store import ObjectStore
from tests.cluster.servers import wait_until

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
STORE_PORT = 7480  # of the object store on the head's address


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
    port: str = ""  # its end on the bridge
    process: subprocess.Popen[bytes] | None = None  # of Ray
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

    def run(self, words: Sequence[str], output: Path | None = None, **more: str) -> subprocess.Popen[bytes]:
        """Start a command here, in a process group of its own; what it prints goes to a file, else to the log."""
        place = ["ip", "netns", "exec", self.namespace] if self.namespace else []
        with (output or self.log).open("ab") as log:
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

    def wait_for_ray(self, ready: Callable[[], object]) -> None:
        """Return once the started node is up; a failed test with its log if it ends instead."""

        def up() -> bool:
            assert self.process is not None
            if self.process.poll() is not None:
                pytest.fail(f"Ray ended on {self.address}:\n{self.log.read_text(errors='replace')[-5000:]}")
            return bool(ready())

        wait_until(up, f"Ray on {self.address}")

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


class Network:
    """Hosts on one bridge, which is in a namespace of its own too. Nothing outside reaches them, nor they anything."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        self.name = f"glefld-{uuid.uuid4().hex[:6]}"
        self.hosts: list[Host] = []
        _ip("netns", "add", self.name)
        self._on_bridge("link", "add", "bridge", "type", "bridge")
        self._on_bridge("link", "set", "bridge", "up")

    def add_host(self, **more: str) -> Host:
        number = len(self.hosts) + 1
        namespace = f"{self.name}-{number}"
        address = f"10.77.0.{number}"
        _ip("netns", "add", namespace)
        host = Host(
            address, self.folder / f"host-{number}", {**self.environment, **more}, namespace, f"port{number}"
        )
        self.hosts.append(host)
        # A disk of its own that a test can fill.
        mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(host.temporary)]
        subprocess.run(mount, check=True, capture_output=True)
        peer = ("peer", "name", host.port, "netns", self.name)
        _ip("link", "add", "eth0", "netns", namespace, "type", "veth", *peer)
        self._on_bridge("link", "set", host.port, "master", "bridge", "up")
        for words in (("addr", "add", f"{address}/24", "dev", "eth0"), ("link", "set", "eth0", "up")):
            _ip("-n", namespace, *words)
        _ip("-n", namespace, "link", "set", "lo", "up")
        return host

    def cut(self, host: Host) -> None:
        """Every packet to and from the host is dropped at the bridge; no process there is told."""
        self._on_bridge("link", "set", host.port, "nomaster")

    def join(self, host: Host) -> None:
        self._on_bridge("link", "set", host.port, "master", "bridge")

    def reaches(self, host: Host, other: Host, port: int) -> bool:
        """Whether a host gets an answer from another one's port."""
        script = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)"
        words = [sys.executable, "-S", "-c", script, other.address, str(port)]
        return host.call(words).returncode == 0

    def remove(self) -> None:
        for host in self.hosts:
            host.kill()
            subprocess.run(["umount", "--lazy", str(host.temporary)], check=True)
            _ip("netns", "del", host.namespace)
        _ip("netns", "del", self.name)

    def _on_bridge(self, *words: str) -> None:
        _ip("-n", self.name, *words)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def require_namespaces() -> None:
    """Skip, and say why, where network namespaces cannot be made."""
    if shutil.which("ip") is None:
        pytest.skip("no ip: `make test-cluster` installs the system package iproute2 by apt")
    name = f"glefld-{uuid.uuid4().hex[:6]}"
    made = subprocess.run(["ip", "netns", "add", name], check=False, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"network namespaces cannot be made here: {made.stderr.strip()}")
    _ip("netns", "del", name)


@dataclasses.dataclass
class Team:
    """A Ray cluster: a head without CPUs, two hosts with one each, a user's laptop.

    On the head's address there are an object store, which ``root`` is on, and a tracking server, whose files are in
    ``folder``.
    """

    network: Network
    head: Host
    workers: list[Host]
    laptop: Host
    root: str
    folder: Path

    @property
    def dashboard(self) -> str:
        return f"http://{self.head.address}:8265"

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.folder}/mlflow.db")

    def alive(self) -> set[str]:
        """The addresses of the cluster's living nodes."""
        return alive(self.laptop, self.dashboard)

    def start_worker(self, host: Host) -> None:
        host.start_ray(f"--address={self.head.address}:6379", "--num-cpus=1")

    def wait_for(self, *hosts: Host) -> None:
        """Return when just these hosts are the cluster's living nodes."""
        wanted = {self.head.address, *(host.address for host in hosts)}
        wait_until(lambda: self.alive() == wanted, f"the nodes {sorted(wanted)}")

    def restore(self) -> None:
        """All hosts up and in the cluster, whatever an earlier test left."""
        for host in self.workers:
            self.network.join(host)
            if host.process is None or host.process.poll() is not None:
                host.kill()
                self.start_worker(host)
        self.wait_for(*self.workers)

    def submit(self, line: str) -> "Submission":
        words = [sys.executable, "-m", "jobs.submit", *line.split(), "--address", self.dashboard]
        log = self.laptop.folder / f"submitted-{uuid.uuid4().hex[:6]}"
        process = self.laptop.run(
            words,
            log,
            GLEFLD_ROOT=self.root,
            MLFLOW_TRACKING_URI=f"http://{self.head.address}:5000",
        )
        return Submission(process, log)


@dataclasses.dataclass
class Submission:
    """A submitted job as the user sees it."""

    process: subprocess.Popen[bytes]
    log: Path
    since: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def printed(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, seconds: float = 240) -> int:
        """The exit status; a failed test, with what was printed, if the job hangs."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {seconds:.0f} s:\n{self.printed[-5000:]}")

    def until(
        self, ready: Callable[[], object], what: str, seconds: float = 240, pause: float = 0.25
    ) -> None:
        """Wait for something that happens while the job runs. Most of it asks the object store: hence the pause."""

        def now() -> bool:
            assert self.process.poll() is None, f"the job ended before {what}:\n{self.printed[-5000:]}"
            return bool(ready())

        try:
            wait_until(now, what, seconds, pause)
        except pytest.fail.Exception:
            print(self.printed[-5000:])
            raise


@contextlib.contextmanager
def make_team(files: Path, empty_store: Path, store: ObjectStore) -> Iterator[Team]:
    """``files`` is a folder of the test's; everything of the hosts' own goes with them."""
    require_namespaces()
    shutil.copy(empty_store, files / "mlflow.db")
    Path("/tmp/ray").mkdir(exist_ok=True)  # what each host's own is mounted on
    with short_folder() as folder:
        environment = secured(
            folder,
            **store.keys.environment(f"http://10.77.0.1:{STORE_PORT}"),
            # A lost host is noticed within some ten seconds; less would give up hosts that only are short of CPU.
            RAY_health_check_initial_delay_ms="0",
            RAY_health_check_period_ms="2000",
            RAY_health_check_timeout_ms="5000",
            RAY_health_check_failure_threshold="3",
            RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="15",
            # Ray Train takes an epoch's report when it looks at its workers: every 2 s, that would be what one takes.
            RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.25",
        )
        network = Network(folder, environment)
        with contextlib.ExitStack() as left:
            left.callback(network.remove)
            head, first, second, laptop = (network.add_host() for _ in range(4))
            gateway = urlsplit(store.direct)
            assert gateway.hostname is not None
            assert gateway.port is not None
            forwarder = Forwarder(
                head.namespace, (head.address, STORE_PORT), (gateway.hostname, gateway.port)
            )
            left.callback(forwarder.stop)
            team = Team(network, head, [first, second], laptop, f"{store.bucket()}/glefld", files)
            head.start_ray("--head", "--port=6379", "--num-cpus=0", f"--dashboard-host={head.address}")
            server = (
                f"server --host {head.address} --port 5000 --workers 1 --allowed-hosts {head.address}:5000"
            )
            stores = (
                f"--backend-store-uri sqlite:///{files}/mlflow.db --artifacts-destination {files}/artifacts"
            )
            head.run(
                [str(BIN / "mlflow"), *server.split(), *stores.split()],
                MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
            )
            head.wait_for_ray(team.alive)
            team.restore()
            wait_until(lambda: network.reaches(laptop, head, 5000), "the tracking server is up")
            yield team
