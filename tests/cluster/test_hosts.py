"""Ingest and training on three hosts: undisturbed, and as a host, a process, the network, memory or a disk fails.

Each is survived or ends with a clear error, and nothing of the result is lost or wrong. Every test proves that its
fault took place, and prints what it cost in time.
"""

import contextlib
import dataclasses
import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from glefld import storage
from glefld.data.dataset import open_dataset
from glefld.schema import Manifest
from jobs import ingest
from tests.cluster.hosts import Host, Submission, Team, make_team
from tests.cluster.object_store import ObjectStore, upload
from tests.cluster.runs import (
    EPOCHS,
    LEARNING,
    ROWS,
    STEPS,
    TWO_WORKERS,
    epochs_kept,
    final_ne,
    history,
    ne_without_ray,
    only_run,
    times_logged,
)
from tests.cluster.servers import wait_until
from tests.in_process import shards_here
from tests.ingested import write_dataset
from tests.raw_layouts import photos, rows, write_fld

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
JOB_SECONDS = 400.0  # after which a job counts as hanging
#: What Ray calls a worker that writes a shard.
INGESTING = ("ray::", "Map(_write)")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, empty_store: Path, store: ObjectStore) -> Iterator[Team]:
    with make_team(tmp_path_factory.mktemp("team"), empty_store, store) as team:
        upload(write_dataset(team.folder / "fld", ROWS), f"{team.root}/data/fld")
        yield team


@pytest.fixture
def team(shared: Team) -> Team:
    """All hosts up again, whatever the test before has done to them."""
    shared.restore()
    return shared


@pytest.fixture(scope="module")
def expected_ne(shared: Team) -> float:
    """What the training ends at where nothing disturbs it: one machine, no Ray."""
    return ne_without_ray(shared.folder)


@pytest.fixture(scope="session")
def tell(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """A line in the log of the test run, whether the tests pass or not."""
    capture = request.config.pluginmanager.get_plugin("capturemanager")
    assert capture is not None

    def say(line: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n  {line}", flush=True)

    return say


def train(team: Team, name: str, more: str = "") -> Submission:
    return team.submit(f"train --dataset fld --epochs {EPOCHS} {LEARNING} {TWO_WORKERS} --name {name} {more}")


def worker_of(host: Host) -> list[psutil.Process]:
    return host.find("ray::", "RayTrainWorker")


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def check_steps(team: Team, name: str, epochs: int) -> None:
    """One MLflow run, finished, with every step and every epoch."""
    run = only_run(team.client, name)
    assert run.info.status == "FINISHED"
    assert set(history(team.client, run, "val_ne")) == {STEPS * n for n in range(1, epochs + 1)}
    assert set(history(team.client, run, "loss")) == set(range(epochs * STEPS))


def test_two_hosts_train_what_one_machine_trains(
    team: Team, expected_ne: float, tell: Callable[[str], None]
) -> None:
    """DDP over the hosts' network: each host has one worker, the run has every step, and the NE is the very same."""
    job = train(team, "undisturbed")
    job.until(lambda: all(worker_of(host) for host in team.workers), "a worker on each host")
    assert job.wait(JOB_SECONDS) == 0, job.printed
    tell(f"undisturbed: {time.monotonic() - job.since:.0f} s, NE {expected_ne:.5f}")
    check_steps(team, "undisturbed", EPOCHS)
    assert only_run(team.client, "undisturbed").data.tags["git_commit"] != "unknown"
    assert final_ne(f"{team.root}/runs/undisturbed") == pytest.approx(expected_ne, rel=1e-6)
    assert expected_ne < 0.01


def test_elastic_training_goes_on_with_fewer_and_takes_one_back(team: Team) -> None:
    """1-4 workers: a host lost for good leaves one, and training goes on; a host that comes back is used again."""
    epochs = 80
    lost, kept = team.workers
    job = team.submit(
        f"train --dataset fld --epochs {epochs} {LEARNING} --num-workers 1-4 --cpus-per-worker 1 "
        "--resize-seconds 5 --name elastic"
    )

    def epoch() -> int:
        return epochs_kept(f"{team.root}/runs/elastic")

    def workers() -> set[str]:
        return {host.address for host in team.workers if worker_of(host)}

    job.until(lambda: epoch() >= 2 and len(workers()) == 2, "two workers and two epochs")
    killed = lost.kill()
    assert killed
    assert not lost.processes()
    at = epoch()
    job.until(lambda: epoch() >= at + 3, "three epochs with one worker", 180)
    assert workers() == {kept.address}
    team.start_worker(lost)
    team.wait_for(lost, kept)
    job.until(lambda: workers() == {lost.address, kept.address}, "the host that came back is used", 180)
    at = epoch()
    job.until(lambda: epoch() >= at + 2, "two epochs with both")
    assert job.wait(400) == 0, job.printed
    check_steps(team, "elastic", epochs)
    run = only_run(team.client, "elastic")
    by_epoch = history(team.client, run, "workers")
    order = [int(by_epoch[step]) for step in sorted(by_epoch)]
    assert [n for i, n in enumerate(order) if i == 0 or n != order[i - 1]] == [2, 1, 2]
    assert run.data.metrics["val_error_best"] < 0.02


@dataclasses.dataclass
class Disturbed:
    """One training that faults come upon, one after another."""

    team: Team
    job: Submission
    tell: Callable[[str], None]
    kept: list[int] = dataclasses.field(default_factory=list)  # epochs with a checkpoint as each fault came
    name: str = "disturbed"

    def epoch(self) -> int:
        return epochs_kept(f"{self.team.root}/runs/{self.name}")

    def until(self, epoch: int) -> None:
        self.job.until(
            lambda: self.epoch() >= epoch and all(worker_of(host) for host in self.team.workers),
            f"epoch {epoch} on both hosts",
        )

    def under_way(self) -> None:
        """Wait until it trains on both hosts, with two epochs done since it began or since the last fault."""
        self.until(self.kept[-1] + 2 if self.kept else 2)

    def mark(self) -> float:
        """The moment of a fault."""
        self.kept.append(self.epoch())
        assert self.kept[-1] < EPOCHS - 2, "too late in the training to show anything"
        return time.monotonic()

    def goes_on(self, fault: str, since: float) -> None:
        """Wait for two epochs after the fault: what the lost workers had begun is one at most."""
        self.until(self.kept[-1] + 2)
        self.tell(f"{fault}: two epochs further after {time.monotonic() - since:.0f} s")


@pytest.fixture(scope="module")
def disturbed(shared: Team, tell: Callable[[str], None]) -> Iterator[Disturbed]:
    shared.restore()
    made = Disturbed(shared, train(shared, Disturbed.name, "--max-failures 6"), tell)
    yield made
    if made.job.process.poll() is None:  # a test has failed: the others need the hosts
        for driver in shared.head.find("-m jobs.train"):
            with contextlib.suppress(psutil.NoSuchProcess):
                driver.send_signal(signal.SIGKILL)


def test_training_survives_a_host_lost_and_replaced(team: Team, disturbed: Disturbed) -> None:
    """Raylet and workers of a training host die at once; five seconds later there is another host in its place."""
    disturbed.under_way()
    host = team.workers[0]
    (worker,) = worker_of(host)
    since = disturbed.mark()
    assert worker.pid in host.kill()
    assert gone(worker)
    time.sleep(5)
    team.start_worker(host)
    disturbed.goes_on("host killed, replaced after 5 s", since)


def test_training_survives_a_raylet_lost_alone(team: Team, disturbed: Disturbed) -> None:
    """Its workers end with it, and the host, started anew, is used again."""
    disturbed.under_way()
    host = team.workers[1]
    (raylet,), (worker,) = host.find("raylet/raylet"), worker_of(host)
    since = disturbed.mark()
    raylet.send_signal(signal.SIGKILL)
    wait_until(lambda: gone(raylet), "it is dead")
    wait_until(lambda: gone(worker), "no orphan trains on")
    host.kill()  # what `ray start` had besides
    team.start_worker(host)
    disturbed.goes_on("raylet alone killed, started anew", since)


@contextlib.contextmanager
def little_memory(process: psutil.Process, limit: int = 1 << 20) -> Iterator[Callable[[], int]]:
    """A control group that lets a process have so many bytes more. Yields how often the kernel has killed for it."""
    first = Path("/sys/fs/cgroup/memory").is_dir()
    base = Path("/sys/fs/cgroup/memory" if first else "/sys/fs/cgroup")
    group = base / f"glefld-{os.getpid()}"
    try:
        group.mkdir()
        (group / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(limit))
        (group / "cgroup.procs").write_text(str(process.pid))
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip(f"no control group that limits memory can be made here: {error}")

    def kills() -> int:
        events = (group / ("memory.oom_control" if first else "memory.events")).read_text()
        return int(dict(line.split() for line in events.splitlines())["oom_kill"])

    yield kills
    wait_until(lambda: not (group / "cgroup.procs").read_text(), "the group is empty")
    group.rmdir()


def test_training_survives_a_worker_out_of_memory(team: Team, disturbed: Disturbed) -> None:
    """The kernel kills it; the group starts again."""
    disturbed.under_way()
    (worker,) = worker_of(team.workers[1])
    with little_memory(worker) as kills:
        wait_until(lambda: gone(worker), "the worker is killed")
        since = disturbed.mark()
        assert kills() >= 1
    disturbed.goes_on("training worker out of memory", since)


def test_training_whose_driver_is_killed_goes_on_with_resume(team: Team, disturbed: Disturbed) -> None:
    """The job fails with one line; with --resume it goes on from its last checkpoint, in the same MLflow run."""
    disturbed.under_way()
    job = disturbed.job
    drivers = team.head.find("-m jobs.train")
    assert drivers
    since, printed = disturbed.mark(), len(job.printed)
    for driver in drivers:
        with contextlib.suppress(psutil.NoSuchProcess):
            driver.send_signal(signal.SIGKILL)
    assert job.wait(120) != 0
    assert job.printed.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in job.printed[printed:]
    wait_until(lambda: not any(worker_of(host) for host in team.workers), "the workers end with their driver")
    before = only_run(team.client, disturbed.name).info.run_id
    disturbed.kept[-1] = disturbed.epoch()
    disturbed.job = train(team, disturbed.name, "--resume --max-failures 6")
    disturbed.goes_on("driver killed, submitted again with --resume", since)
    assert only_run(team.client, disturbed.name).info.run_id == before


def test_training_survives_a_host_cut_off_and_back(team: Team, disturbed: Disturbed) -> None:
    """Its packets are dropped until it is given up: it ends itself once it hears so, and is started anew."""
    disturbed.under_way()
    host = team.workers[0]
    assert team.network.reaches(host, team.head, 6379)
    team.network.cut(host)
    since = disturbed.mark()
    assert not team.network.reaches(host, team.head, 6379)
    assert worker_of(host), "cut off, not killed"
    wait_until(lambda: host.address not in team.alive(), "it is given up", 120)
    assert host.find("raylet/raylet"), "given up, not killed"
    out = time.monotonic() - since
    team.network.join(host)
    raylet = host.process
    assert raylet is not None
    wait_until(lambda: raylet.poll() is not None, "the host that was given up ends its Ray", 120)
    host.kill()
    team.start_worker(host)
    disturbed.goes_on(f"host cut off for {out:.0f} s, then started anew", since)


def test_the_faults_left_no_trace_in_the_training(
    team: Team, disturbed: Disturbed, expected_ne: float
) -> None:
    """One finished run with every step, and the very NE of a training that nothing disturbs.

    No epoch that had a checkpoint when a fault came is trained again, and no more than the two that were not safe
    then: the one under way, and one whose checkpoint had not been pointed to yet.
    """
    assert disturbed.job.wait(JOB_SECONDS) == 0, disturbed.job.printed
    check_steps(team, disturbed.name, EPOCHS)
    run = only_run(team.client, disturbed.name)
    # The best checkpoint's val_ne is logged once more, as the stored model's; this one only by the epochs.
    epochs = times_logged(team.client, run, "val_error_best")
    assert epochs.keys() == {STEPS * n for n in range(1, EPOCHS + 1)}
    repeated = {step // STEPS for step, n in epochs.items() if n > 1}
    unsafe = {kept + n for kept in disturbed.kept for n in (1, 2)}
    assert repeated <= unsafe, (repeated, disturbed.kept)
    assert final_ne(f"{team.root}/runs/{disturbed.name}") == pytest.approx(expected_ne, rel=1e-6)


@dataclasses.dataclass(frozen=True)
class Raw:
    """A source in the bucket, and what one process makes of it on its own disk."""

    source: str
    made: Manifest
    shards: dict[str, str]


@pytest.fixture(scope="module")
def raw(shared: Team, tmp_path_factory: pytest.TempPathFactory) -> Raw:
    listed = rows(1000)
    folder = tmp_path_factory.mktemp("raw")
    local = write_fld(folder / "source", listed, photos(listed, width=300, height=400))
    source = upload(local, f"{shared.root}/raw")
    here = folder / "here"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.ingest.run.run_tasks", shards_here)
        patch.setattr("jobs.ingest.start_ray", lambda **_: None)
        ingest.run(ingest.Options("fld", source, output=str(here), shard_mib=1))
    made = open_dataset(str(here))
    assert len(made.shards) > 50
    return Raw(source, made, contents(str(here)))


def submit_ingest(team: Team, source: str, name: str) -> Submission:
    return team.submit(f"ingest --dataset fld --source {source} --output {team.root}/{name} --shard-mib 1")


def shards(url: str) -> list[str]:
    """The finished shards' paths."""
    return [path for path in storage.find(url) if path.startswith("split=")]


def contents(url: str) -> dict[str, str]:
    """The hash of each finished shard's bytes, by its path."""
    return {
        path: hashlib.sha256(storage.read_bytes(storage.join(url, path))).hexdigest() for path in shards(url)
    }


def check_same(team: Team, raw: Raw, name: str) -> None:
    """The data set, to each shard's bytes, that one machine makes of the source."""
    made = open_dataset(f"{team.root}/{name}")
    assert (made.content_hash, made.splits) == (raw.made.content_hash, raw.made.splits)
    assert contents(f"{team.root}/{name}") == raw.shards


def test_ingest_on_two_hosts_with_a_worker_killed_is_one_machines(
    team: Team, raw: Raw, tell: Callable[[str], None]
) -> None:
    """Both hosts write shards, one loses its worker in the middle of one, and the data set is the same."""
    job = submit_ingest(team, raw.source, "killed")
    seen: set[str] = set()

    def both_at_work() -> bool:
        seen.update(host.address for host in team.workers if host.find(*INGESTING))
        return len(seen) == 2

    job.until(both_at_work, "both hosts write shards", pause=0.05)
    job.until(lambda: shards(f"{team.root}/killed"), "the first shard")
    writing: list[psutil.Process] = []
    job.until(
        lambda: writing.extend(team.workers[0].find(*INGESTING)) or writing, "a task to kill", pause=0.05
    )
    writing[0].send_signal(signal.SIGKILL)
    wait_until(lambda: gone(writing[0]), "it is dead")
    assert not storage.exists(f"{team.root}/killed/_manifest.json"), "killed too late to show anything"
    assert job.wait(JOB_SECONDS) == 0, job.printed
    check_same(team, raw, "killed")
    tell(f"ingest with a worker killed: {time.monotonic() - job.since:.0f} s")


def fill(path: Path) -> None:
    """Write to a file until there is no room, and leave a little: where there is none at all Python goes elsewhere."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        finally:
            file.truncate(file.tell() - (1 << 14))


def test_ingest_on_a_full_disk_says_so_and_goes_on_with_room(
    team: Team, raw: Raw, store: ObjectStore, tell: Callable[[str], None]
) -> None:
    """Ingest ends with the system's own words; with room again it goes on, and no finished shard is redone."""
    filler = team.workers[1].temporary / "filler"
    job = submit_ingest(team, raw.source, "full")
    job.until(lambda: len(shards(f"{team.root}/full")) >= 5, "some shards are finished", pause=0.05)
    with pytest.raises(OSError, match="No space left"):
        fill(filler)
    assert job.wait(JOB_SECONDS) == 1
    told = time.monotonic() - job.since
    last = job.printed.splitlines()[-1]
    assert last.startswith("error: ")
    assert "No space left on device" in last
    assert not storage.exists(f"{team.root}/full/_manifest.json")
    filler.unlink()
    kept = store.written(f"{team.root}/full/split=")
    assert kept
    begun = time.monotonic()
    again = submit_ingest(team, raw.source, "full")
    assert again.wait(JOB_SECONDS) == 0, again.printed
    check_same(team, raw, "full")
    assert kept.items() <= store.written(f"{team.root}/full/split=").items()
    tell(
        f"a worker's disk full: the job said so after {told:.0f} s, with {len(kept)} shards kept; "
        f"with room again it took {time.monotonic() - begun:.0f} s"
    )
