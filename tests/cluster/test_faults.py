"""Faults on several hosts: each is survived or ends with a clear error, and nothing of the result is lost or wrong.

Every test proves that its fault took place, and prints what it cost in time beside an undisturbed run.
"""

import contextlib
import dataclasses
import hashlib
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from glefld import storage
from glefld.data.dataset import open_dataset
from glefld.models import checkpoint
from tests.cluster.conftest import ObjectStore
from tests.cluster.hosts import Host, Submission, Team, make_team
from tests.cluster.runs import (
    EPOCHS,
    LEARNING,
    ROWS,
    STEPS,
    TWO_WORKERS,
    final_ne,
    five_seeds,
    history,
    only_run,
    times_logged,
    upload,
)
from tests.cluster.servers import wait_until
from tests.ingested import write_dataset
from tests.raw_layouts import photos, rows, write_fld

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
JOB_SECONDS = 400.0  # after which a job counts as hanging


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, empty_store: Path, store: ObjectStore) -> Iterator[Team]:
    with make_team(tmp_path_factory.mktemp("team"), empty_store, store) as team:
        upload(write_dataset(team.folder / "data" / "fld", ROWS), f"{team.root}/data/fld")
        yield team


@pytest.fixture
def team(shared: Team) -> Team:
    """All hosts up again, whatever the test before has done to them."""
    shared.restore()
    return shared


@dataclasses.dataclass(frozen=True)
class Undisturbed:
    ne: list[float]
    seconds: float


@pytest.fixture(scope="module")
def undisturbed(shared: Team, request: pytest.FixtureRequest) -> Undisturbed:
    """The final NE of five seeds, and how long one such run takes on the hosts."""
    scores = five_seeds(shared.folder)
    job = train(shared, "undisturbed")
    assert job.wait(JOB_SECONDS) == 0, job.printed
    made = Undisturbed(scores, time.monotonic() - job.since)
    ne = final_ne(f"{shared.root}/runs/undisturbed")
    tell(
        request, f"undisturbed: {made.seconds:.0f} s, NE {ne:.5f}; five seeds {[f'{n:.5f}' for n in scores]}"
    )
    return made


def tell(request: pytest.FixtureRequest, line: str) -> None:
    """A line in the log of the test run, whether the tests pass or not."""
    capture = request.config.pluginmanager.get_plugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        print(f"\n  {line}", flush=True)


def train(team: Team, name: str, more: str = "") -> Submission:
    return team.submit(f"train --dataset fld --epochs {EPOCHS} {LEARNING} {TWO_WORKERS} --name {name} {more}")


def epoch(team: Team, name: str) -> int:
    """How many epochs have a checkpoint."""
    last = checkpoint.pointed(f"{team.root}/runs/{name}", "last")
    return int(last.rpartition("/")[2]) // STEPS if last else 0


def under_way(team: Team, name: str) -> Submission:
    """A training after its second epoch, on both hosts."""
    job = train(team, name)
    job.until(lambda: epoch(team, name) >= 2, "the second epoch", 240)
    assert all(worker_of(host) for host in team.workers)
    return job


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def worker_of(host: Host) -> list[psutil.Process]:
    return host.find("ray::", "RayTrainWorker")


def check(team: Team, undisturbed: Undisturbed, name: str, kept: int) -> float:
    """One finished run with every step, and a final NE like that of runs that nothing disturbed; the NE.

    ``kept``: how many epochs had a checkpoint when the fault came. None of them is trained again, and no more than the
    two that were not safe then: the one under way, and one whose checkpoint had not been pointed to yet.
    """
    run = only_run(team.client, name)
    repeated = {step // STEPS for step, n in times_logged(team.client, run, "val_ne").items() if n > 1}
    assert not {n for n in repeated if n <= kept}, (repeated, kept)
    assert len(repeated) <= 2, repeated
    assert run.info.status == "FINISHED"
    assert set(history(team.client, run, "val_ne")) == {STEPS * n for n in range(1, EPOCHS + 1)}
    assert set(history(team.client, run, "loss")) == set(range(EPOCHS * STEPS))
    ne = final_ne(f"{team.root}/runs/{name}")
    mean, spread = statistics.mean(undisturbed.ne), statistics.stdev(undisturbed.ne)
    assert abs(ne - mean) <= 2 * spread, (ne, undisturbed.ne)
    return ne


def finish(
    request: pytest.FixtureRequest,
    team: Team,
    undisturbed: Undisturbed,
    name: str,
    job: Submission,
    fault: str,
    kept: int,
) -> None:
    """Wait for the job, check its run and tell what the fault cost. ``kept`` as in ``check``."""
    assert job.wait(JOB_SECONDS) == 0, job.printed
    lost = time.monotonic() - job.since - undisturbed.seconds
    ne = check(team, undisturbed, name, kept)
    tell(request, f"{fault}: {lost:+.0f} s, NE {ne:.5f}")


def test_a_host_lost_and_replaced(
    team: Team, undisturbed: Undisturbed, request: pytest.FixtureRequest
) -> None:
    """Raylet and workers of a training host die at once; five seconds later there is another host in its place."""
    job = under_way(team, "lost")
    host = team.workers[0]
    (worker,) = worker_of(host)
    kept = epoch(team, "lost")
    assert worker.pid in host.kill()
    assert gone(worker)
    time.sleep(5)
    team.start_worker(host)
    finish(request, team, undisturbed, "lost", job, "host killed, replaced after 5 s", kept)


def test_a_raylet_lost_alone(team: Team, undisturbed: Undisturbed, request: pytest.FixtureRequest) -> None:
    """Its workers end with it, and the host, started anew, is used again."""
    job = under_way(team, "raylet")
    host = team.workers[1]
    (raylet,), (worker,) = host.find("raylet/raylet"), worker_of(host)
    kept = epoch(team, "raylet")
    raylet.send_signal(signal.SIGKILL)
    wait_until(lambda: gone(raylet), "it is dead")
    wait_until(lambda: gone(worker), "no orphan trains on")
    host.kill()  # what `ray start` had besides
    team.start_worker(host)
    finish(request, team, undisturbed, "raylet", job, "raylet alone killed, started anew", kept)


def test_a_host_cut_off_and_back(
    team: Team, undisturbed: Undisturbed, request: pytest.FixtureRequest
) -> None:
    """Its packets are dropped for 30 s: it is given up, ends itself once it hears so, and is started anew."""
    job = under_way(team, "cut")
    host = team.workers[0]
    assert team.network.reaches(host, team.head, 6379)
    team.network.cut(host)
    kept = epoch(team, "cut")
    assert not team.network.reaches(host, team.head, 6379)
    assert worker_of(host), "cut off, not killed"
    time.sleep(30)
    team.network.join(host)
    raylet = host.process
    assert raylet is not None
    wait_until(lambda: raylet.poll() is not None, "the host that was given up ends its Ray", 120)
    host.kill()
    team.start_worker(host)
    finish(request, team, undisturbed, "cut", job, "host cut off for 30 s, then started anew", kept)


def test_the_driver_killed_and_submitted_again(
    team: Team, undisturbed: Undisturbed, request: pytest.FixtureRequest
) -> None:
    """The job fails with one line; with --resume it goes on from its last checkpoint, in the same MLflow run."""
    job = under_way(team, "driver")
    drivers = team.head.find("-m jobs.train")
    assert drivers
    for driver in drivers:
        with contextlib.suppress(psutil.NoSuchProcess):
            driver.send_signal(signal.SIGKILL)
    assert job.wait(120) != 0
    assert job.printed.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in job.printed
    wait_until(lambda: not any(worker_of(host) for host in team.workers), "the workers end with their driver")
    before, at = only_run(team.client, "driver"), epoch(team, "driver")
    assert 2 <= at < EPOCHS
    again = train(team, "driver", "--resume")
    assert again.wait(JOB_SECONDS) == 0, again.printed
    assert only_run(team.client, "driver").info.run_id == before.info.run_id
    again.since = job.since
    finish(request, team, undisturbed, "driver", again, "driver killed, submitted again with --resume", at)


@contextlib.contextmanager
def little_memory(process: psutil.Process, limit: int = 8 << 20) -> Iterator[Callable[[], int]]:
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


def test_a_training_worker_out_of_memory(
    team: Team, undisturbed: Undisturbed, request: pytest.FixtureRequest
) -> None:
    """The kernel kills it; the group starts again."""
    job = under_way(team, "memory")
    (worker,) = worker_of(team.workers[1])
    kept = epoch(team, "memory")
    with little_memory(worker) as kills:
        wait_until(lambda: gone(worker), "the worker is killed")
        assert kills() >= 1
    finish(request, team, undisturbed, "memory", job, "training worker out of memory", kept)


@dataclasses.dataclass(frozen=True)
class Raw:
    source: str
    content_hash: str
    seconds: float


@pytest.fixture(scope="module")
def raw(shared: Team, tmp_path_factory: pytest.TempPathFactory) -> Raw:
    """A source of several shards, what undisturbed ingest makes of it and how long that takes."""
    listed = rows(1500)
    local = tmp_path_factory.mktemp("raw") / "source"
    source = f"{shared.root}/raw"
    upload(write_fld(local, listed, photos(listed, width=300, height=400)), source)
    job = ingest(shared, source, "whole")
    assert job.wait(JOB_SECONDS) == 0, job.printed
    return Raw(source, open_dataset(f"{shared.root}/whole").content_hash, time.monotonic() - job.since)


def ingest(team: Team, source: str, name: str) -> Submission:
    return team.submit(f"ingest --dataset fld --source {source} --output {team.root}/{name} --shard-mib 1")


def shards(url: str) -> dict[str, tuple[object, str]]:
    """The finished shards: when each was written, and its content's hash."""
    fs, root = storage.filesystem(url)
    fs.invalidate_cache()
    found = fs.find(root, detail=True).items()
    return {
        path.removeprefix(root): (info["LastModified"], hashlib.sha256(fs.cat_file(path)).hexdigest())
        for path, info in found
        if "/split=" in path
    }


def contents(url: str) -> dict[str, str]:
    return {path: digest for path, (_, digest) in shards(url).items()}


def test_an_ingest_worker_killed(team: Team, raw: Raw, request: pytest.FixtureRequest) -> None:
    """In the middle of a shard: the shard is written by another worker, and the data set is the same."""
    job = ingest(team, raw.source, "killed")
    job.until(lambda: shards(f"{team.root}/killed"), "the first shard", 240)
    writing: list[psutil.Process] = []
    job.until(
        lambda: writing.extend(team.workers[0].find("ray::", "_write_or_tell")) or writing, "a task to kill"
    )
    writing[0].send_signal(signal.SIGKILL)
    wait_until(lambda: gone(writing[0]), "it is dead")
    assert not storage.exists(f"{team.root}/killed/manifest.json"), "killed too late to show anything"
    assert job.wait(JOB_SECONDS) == 0, job.printed
    lost = time.monotonic() - job.since - raw.seconds
    assert open_dataset(f"{team.root}/killed").content_hash == raw.content_hash
    assert contents(f"{team.root}/killed") == contents(f"{team.root}/whole")
    tell(request, f"ingest worker killed: {lost:+.0f} s")


def fill(path: Path) -> None:
    """Write to a file until there is no room, and leave a little: where there is none at all Python goes elsewhere."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        finally:
            file.truncate(file.tell() - (1 << 14))


def test_a_workers_disk_full(team: Team, raw: Raw, request: pytest.FixtureRequest) -> None:
    """Ingest ends with the system's own words; with room again it goes on, and no finished shard is redone."""
    host = team.workers[1]
    filler = host.temporary / "filler"
    with pytest.raises(OSError, match="No space left"):
        fill(filler)
    job = ingest(team, raw.source, "full")
    assert job.wait(JOB_SECONDS) == 1
    told = time.monotonic() - job.since
    last = job.printed.splitlines()[-1]
    assert last.startswith("error: ")
    assert "No space left on device" in last
    assert not storage.exists(f"{team.root}/full/manifest.json")
    filler.unlink()
    kept = shards(f"{team.root}/full")
    again = ingest(team, raw.source, "full")
    assert again.wait(JOB_SECONDS) == 0, again.printed
    assert open_dataset(f"{team.root}/full").content_hash == raw.content_hash
    assert contents(f"{team.root}/full") == contents(f"{team.root}/whole")
    assert kept.items() <= shards(f"{team.root}/full").items()
    tell(request, f"a worker's disk full: the job said so after {told:.0f} s")
