"""Ingest and training across three hosts, nothing going wrong, and elastic training as hosts go and come."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from glefld.data.dataset import open_dataset
from glefld.models import checkpoint
from jobs import ingest
from tests.cluster.conftest import ObjectStore
from tests.cluster.hosts import Team, make_team
from tests.cluster.runs import LEARNING, ROWS, STEPS, TWO_WORKERS, history, only_run, upload
from tests.ingested import write_dataset
from tests.raw_layouts import photos, rows, write_fld


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory, empty_store: Path, store: ObjectStore) -> Iterator[Team]:
    with make_team(tmp_path_factory.mktemp("team"), empty_store, store) as made:
        upload(write_dataset(made.folder / "fld", ROWS), f"{made.root}/data/fld")
        yield made


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("ray_cluster")
def test_ingest_on_several_hosts_is_the_same_data_set(team: Team, tmp_path: Path) -> None:
    """Both hosts write shards, and the content is what one machine makes of the source."""
    listed = rows(1200)
    source = write_fld(tmp_path / "source", listed, photos(listed, width=300, height=400))
    upload(source, f"{team.root}/raw")
    job = team.submit(
        f"ingest --dataset fld --source {team.root}/raw --output {team.root}/ingested --shard-mib 1"
    )
    seen: set[str] = set()
    while job.process.poll() is None:
        seen |= {host.address for host in team.workers if host.find("ray::", "_write_or_tell")}
        assert time.monotonic() < job.since + 300, job.printed
        time.sleep(0.1)
    assert job.wait() == 0, job.printed
    assert seen == {host.address for host in team.workers}
    ingest.run(ingest.Options("fld", str(source), output=str(tmp_path / "here"), shard_mib=1))
    here, there = open_dataset(str(tmp_path / "here")), open_dataset(f"{team.root}/ingested")
    assert len(there.shards) > 10
    assert there.content_hash == here.content_hash
    assert there.splits == here.splits


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_workers_train_on_two_hosts(team: Team) -> None:
    """DDP over the hosts' network: each host has one worker, the run has every step, and it learns."""
    job = team.submit(f"train --dataset fld --epochs 6 {LEARNING} {TWO_WORKERS} --name apart")
    job.until(
        lambda: all(host.find("ray::", "RayTrainWorker") for host in team.workers), "a worker on each host"
    )
    assert job.wait() == 0, job.printed
    run = only_run(team.client, "apart")
    assert run.info.status == "FINISHED"
    assert set(history(team.client, run, "val_ne")) == {STEPS * epoch for epoch in range(1, 7)}
    assert run.data.metrics["best_ne"] < 0.1
    assert run.data.tags["git_commit"] != "unknown"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_elastic_training_goes_on_with_fewer_and_takes_one_back(team: Team) -> None:
    """1-2 workers: a host lost for good leaves one, and training goes on; a host that comes back is used again."""
    epochs = 120
    lost, kept = team.workers
    job = team.submit(
        f"train --dataset fld --epochs {epochs} {LEARNING} --num-workers 1-4 --cpus-per-worker 1 --name elastic"
    )

    def epoch() -> int:
        last = checkpoint.pointed(f"{team.root}/runs/elastic", "last")
        return int(last.rpartition("/")[2]) // STEPS if last else 0

    def workers() -> set[str]:
        return {host.address for host in team.workers if host.find("ray::", "RayTrainWorker")}

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
    run = only_run(team.client, "elastic")
    assert run.info.status == "FINISHED"
    assert set(history(team.client, run, "val_ne")) == {STEPS * n for n in range(1, epochs + 1)}
    by_epoch = history(team.client, run, "workers")
    order = [int(by_epoch[step]) for step in sorted(by_epoch)]
    assert [n for i, n in enumerate(order) if i == 0 or n != order[i - 1]] == [2, 1, 2]
    assert run.data.metrics["best_ne"] < 0.02
