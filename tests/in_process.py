"""Training in the test's own process, where it is not Ray's workers that are tested: they take ten seconds to start."""

import torch

from glefld.models import checkpoint
from glefld.tracking import RunHandle, RunLog
from glefld.training import loop
from glefld.training.loop import Job
from pipelines.lease import Lease
from pipelines.train.workers import WorkerGroup


def train_here(job: Job, workers: WorkerGroup, handle: RunHandle, lease: Lease) -> str:
    """In place of ``pipelines.train.run.train``: the same loop, log and checkpoint."""
    log = RunLog(handle, job.run)
    loop.train(job, torch.device("cpu"), log.log, lambda epoch: log.log(epoch.metrics, epoch.step))
    assert log.flush()
    return f"{job.run}/{checkpoint.pointed(job.run, 'best')}"
