"""Training in the test's own process, where it is not Ray's workers that are tested: they take ten seconds to start."""

import torch

from glefld.models import checkpoint
from glefld.tracking import RunHandle, RunLog
from glefld.training import loop
from glefld.training.loop import Job
from pipelines import evaluate
from pipelines.lease import Lease
from pipelines.train.worker import Pictures
from pipelines.train.workers import WorkerGroup


def train_here(job: Job, workers: WorkerGroup, handle: RunHandle, lease: Lease) -> tuple[str, Pictures]:
    """In place of ``pipelines.train.run.train``: the same loop, log, checkpoint and pictures."""
    log = RunLog(handle, job.run)
    loop.train(job, torch.device("cpu"), log.log, lambda epoch: log.log(epoch.metrics, epoch.step))
    assert log.flush()
    best = f"{job.run}/{checkpoint.pointed(job.run, 'best')}"
    return best, evaluate.draw_here(best, job.data, "val", evaluate.Tasks())
