"""Training on Ray Train: a worker group with DDP over gloo or NCCL, restarted after failures, in one MLflow run."""

import contextlib
import dataclasses
import logging
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer

from glefld import storage, tracking
from glefld.data.dataset import open_dataset
from glefld.errors import Mistake, UserError
from glefld.models import checkpoint
from glefld.models.precision import Choice
from glefld.scoring import evaluation
from glefld.scoring.baselines import Baselines
from glefld.scoring.metrics import Report
from glefld.training import loop
from glefld.training.loop import EpochReport, Job
from pipelines import evaluate, ray_private
from pipelines.lease import Lease
from pipelines.train.process_group import NodeAddressConfig
from pipelines.train.workers import WorkerGroup

if TYPE_CHECKING:
    from glefld.tracking import Registration, RunHandle, RunLog

logger = logging.getLogger(__name__)

#: Attempts to start a fixed number of workers, a minute each (Ray's RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S). This gives
#: a cluster time to add machines without waiting forever.
START_TRIES = 30


def train_and_score(
    job: Job,
    workers: WorkerGroup,
    handle: "RunHandle",
    lease: Lease,
    registration: "Registration | None" = None,
) -> tuple[str, Report, Baselines]:
    """Train a job, score its best checkpoint on val, and end its MLflow run.

    lease: this driver's claim on the run. registration: registers the best checkpoint in MLflow's model registry.
    Returns the checkpoint's URL, its scores and those of the baselines. Raises what ``train`` raises.
    """
    with tracking.logged_run(handle, job.run) as log:
        best = train(job, workers, handle, lease)
        scorer = evaluate.Tasks(cpus=workers.cpus, gpu=workers.gpu)
        report, baselines = score(best, job.data, log, scorer, registration)
    return best, report, baselines


def train(job: Job, workers: WorkerGroup, handle: "RunHandle", lease: Lease) -> str:
    """Train the job and return the URL of its best checkpoint.

    Raises UserError if the cluster has no room for the workers or a worker reports a user error, and Ray's error if
    the workers failed too often.
    """
    trainer = TorchTrainer(
        _work,
        torch_config=NodeAddressConfig(),
        train_loop_config={
            "job": dataclasses.asdict(job),
            "handle": dataclasses.asdict(handle),
            "lease": dataclasses.asdict(lease),
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count,
            use_gpu=workers.gpu,
            elastic_resize_monitor_interval_s=workers.resize_seconds,
            resources_per_worker={"CPU": workers.cpus} | ({"GPU": 1} if workers.gpu else {}),
        ),
        run_config=ray.train.RunConfig(
            # Only Ray's own records. We write the checkpoints, to verify them and to read them without Ray.
            name="ray",
            storage_path=storage.local_path(job.run),
            storage_filesystem=storage.arrow_filesystem(job.run),
            failure_config=ray.train.FailureConfig(
                max_failures=workers.max_failures, controller_failure_limit=START_TRIES
            ),
        ),
    )
    with _interruptible():
        try:
            mistake = trainer.fit().return_value
        except ray.train.ControllerError as error:
            if not ray_private.is_start_timeout(error.controller_failure):
                raise
            raise UserError(
                f"the cluster had no room for {workers.most} workers of {workers.cpus} CPUs"
                f"{' and a GPU' if workers.gpu else ''} in {START_TRIES} tries: add machines or lower --num-workers, "
                "then continue with --resume (jobs.train) or the same --name (jobs.compare)"
            ) from error
    if mistake is not None:
        raise UserError(mistake)
    best = checkpoint.pointed(job.run, "best")
    assert best is not None, "training ended without a checkpoint"
    return storage.join(job.run, best)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Turn Ctrl-C into KeyboardInterrupt: Ray Train installs a handler that exits with status 0, and keeps it."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


def score(
    best: str, data: str, log: "RunLog", scorer: evaluate.Tasks, registration: "Registration | None"
) -> tuple[Report, Baselines]:
    """Score the best checkpoint on val, and log scores, tables, pictures and the model to the run."""
    report = evaluate.evaluate_checkpoint(best, data, "val", scorer)
    baselines = evaluate.baselines(data, "val", report.label)
    scores = evaluation.evaluation_json(
        report, dataset=open_dataset(data).dataset, split="val", checkpoint=best, baseline=baselines
    )
    evaluate.log_scores(log, scores, report, baselines, data, scorer)
    _, card = checkpoint.load(best)
    numbers = {f"best_{name}": value for name, value in report.numbers().items()}
    log.log_model(best, name=card.model, step=card.step, metrics=numbers, registration=registration)
    return report, baselines


def _work(config: dict[str, Any]) -> str | None:
    """Run one worker; rank 0 logs to MLflow. Returns the message of a user error, or None."""
    job = Job.from_json(config["job"])
    device = ray.train.torch.get_device()
    assigned = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
    torch.set_num_threads(max(1, int(assigned)))
    first = ray.train.get_context().get_world_rank() == 0
    ray_private.silence_train_reports()
    log = tracking.RunLog(tracking.RunHandle(**config["handle"]), job.run) if first else None
    lease = Lease(**config["lease"])

    def announce(choice: Choice) -> None:
        if log is not None:
            log.set_tag("precision", choice.precision)
            logger.info("precision %s: %s", choice.precision, choice.why)

    def log_step(metrics: dict[str, float], step: int) -> None:
        if log is not None:
            log.log(metrics, step)

    def store_log() -> None:
        """Called before each checkpoint, which a worker must not write to a run that another driver has taken over."""
        if log is not None:
            lease.require()
            log.flush()

    def report(epoch: EpochReport) -> None:
        log_step(epoch.metrics, epoch.step)
        store_log()
        if log is not None:
            name = "NE" if "val_ne" in epoch.metrics else "error"
            # Not print(): Ray Train would show the line twice.
            logger.info("epoch %d: %s %.4f on val, best %.4f", epoch.epoch, name, epoch.error, epoch.best)
        ray.train.report({"error": epoch.error, "epoch": epoch.epoch})

    try:
        lease.require()
    except UserError as error:
        return str(error)
    try:
        loop.train(job, device, log_step, report, store_log, announce)
    except Mistake as error:
        # Returned instead of raised: Ray would restart the group, only to fail the same way.
        return str(error)
    finally:
        if log is not None:
            log.flush()
    return None
