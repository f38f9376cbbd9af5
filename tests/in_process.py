"""Ray's work in the test's own process, where it is not Ray's workers that are tested: these take seconds to start."""

import functools
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import ray
import torch

from glefld.models import checkpoint
from glefld.scoring.draw import Tile
from glefld.tracking import RunHandle, RunLog
from glefld.training import loop
from glefld.training.start import Job
from jobs import cli
from pipelines import evaluate
from pipelines.infer import run as infer_run
from pipelines.ingest import run as ingest_run
from pipelines.lease import Lease
from pipelines.train import run
from pipelines.train.workers import WorkerGroup


def task_here(function: Callable[..., Any]) -> SimpleNamespace:
    """In place of a function that ``ray.remote`` has wrapped."""
    return SimpleNamespace(remote=lambda *arguments: ray.put(function(*arguments)))


def without_ray() -> None:
    """Let this whole process train so, and start no Ray for it, which takes ten seconds."""
    torch.set_num_threads(1)
    cli.start_ray = lambda **_: None
    run.train = train_here


def without_ray_until_killed() -> None:
    """Let this whole process ingest and predict so, to be killed.

    It has a pause after each shard, so that a drawn moment is among them, and does not go on when all are there.
    """

    def shards(*arguments: Any, **named: Any) -> Iterator[int]:
        for count in shards_here(*arguments, **named):
            time.sleep(0.1)
            yield count
        threading.Event().wait()

    torch.set_num_threads(1)
    cli.start_ray = lambda **_: None
    infer_run.run_tasks = ingest_run.run_tasks = shards


def train_here(
    job: Job, workers: WorkerGroup, handle: RunHandle, lease: Lease, system_metrics: bool = False
) -> tuple[str, list[Tile]]:
    """In place of ``pipelines.train.run.train``: the same loop, log, checkpoint and pictures."""
    log = RunLog(handle, job.run)
    loop.train(job, torch.device("cpu"), log.log, lambda epoch: log.log(epoch.metrics, epoch.step))
    assert log.flush()
    best = f"{job.run}/{checkpoint.pointed(job.run, 'best')}"
    return best, evaluate.draw_here(best, job.data, "val", evaluate.Tasks())


def shards_here(
    job: str,
    shards: list[dict[str, Any]],
    write: Callable[..., Any],
    *,
    fn_kwargs: dict[str, Any] | None = None,
    fn_constructor_kwargs: dict[str, Any] | None = None,
    **_: Any,
) -> Iterator[int]:
    """In place of ``pipelines.resumable.run_tasks``: the shards one after the other, by the same writer."""
    writer = (
        write(**fn_constructor_kwargs)
        if fn_constructor_kwargs
        else functools.partial(write, **fn_kwargs or {})
    )
    for number, item in enumerate(shards):
        answer = writer({**item, "number": number, "killers": []})
        assert not answer["error"]
        yield answer["count"]
