"""Ray's work in the test's own process, where it is not Ray's workers that are tested: these take seconds to start."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import ray
import torch

from glefld.models import checkpoint
from glefld.tracking import RunHandle, RunLog
from glefld.training import loop
from glefld.training.start import Job
from pipelines import evaluate
from pipelines.lease import Lease
from pipelines.train import run
from pipelines.train.worker import Pictures
from pipelines.train.workers import WorkerGroup


def task_here(function: Callable[..., Any]) -> SimpleNamespace:
    """In place of a function that ``ray.remote`` has wrapped."""
    return SimpleNamespace(remote=lambda *arguments: ray.put(function(*arguments)))


def without_workers() -> None:
    """Let this whole process train so."""
    run.train = train_here


def train_here(
    job: Job, workers: WorkerGroup, handle: RunHandle, lease: Lease, system_metrics: bool = False
) -> tuple[str, Pictures]:
    """In place of ``pipelines.train.run.train``: the same loop, log, checkpoint and pictures."""
    log = RunLog(handle, job.run)
    loop.train(job, torch.device("cpu"), log.log, lambda epoch: log.log(epoch.metrics, epoch.step))
    assert log.flush()
    best = f"{job.run}/{checkpoint.pointed(job.run, 'best')}"
    return best, evaluate.draw_here(best, job.data, "val", evaluate.Tasks())


def predict_here(
    job: str, shards: list[dict[str, Any]], write: type, *, fn_constructor_kwargs: dict[str, Any], **_: Any
) -> Iterator[int]:
    """In place of ``pipelines.infer.run.run_tasks``: the shards one after the other, by the same writer."""
    writer = write(**fn_constructor_kwargs)
    for number, item in enumerate(shards):
        answer = writer({**item, "number": number, "killers": []})
        assert not answer["error"]
        yield answer["count"]
