"""Training on Ray Train: a worker group with DDP over gloo or NCCL, restarted after failures, in one MLflow run."""

import contextlib
import dataclasses
import os
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import ray
import ray.train
from ray.train.torch import TorchTrainer

from glefld import storage, tracking
from glefld.data.dataset import open_dataset
from glefld.errors import UserError
from glefld.models import checkpoint
from glefld.scoring import evaluation
from glefld.scoring.baselines import Baselines
from glefld.scoring.draw import Tile
from glefld.scoring.metrics import Report
from glefld.training.start import Job
from pipelines import evaluate, ray_private
from pipelines.lease import Lease
from pipelines.train.failures import TellFailures
from pipelines.train.process_group import NodeAddressConfig
from pipelines.train.worker import Ended, best_checkpoint, work
from pipelines.train.workers import WorkerGroup

if TYPE_CHECKING:
    from glefld.tracking import Registration, RunHandle, RunLog

#: Attempts to start a fixed number of workers, a minute each (Ray's RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S). This gives
#: a cluster time to add machines without waiting forever.
START_TRIES = 30
#: How often Ray Train looks at its workers. An epoch ends, and so does the training, when it does: its own 2 s would be
#: what a short epoch takes.
LOOK_SECONDS = 0.5


def train_and_score(
    job: Job,
    workers: WorkerGroup,
    handle: "RunHandle",
    lease: Lease,
    registration: "Registration | None" = None,
    system_metrics: bool = False,
) -> tuple[str, Report, Baselines]:
    """Train a job, log its best checkpoint and its scores on val, and end its MLflow run.

    lease: this driver's claim on the run. registration: registers the best checkpoint in MLflow's model registry.
    system_metrics: log the load of the workers' machines.
    Returns the checkpoint's URL, its scores and those of the baselines. Raises what ``train`` raises.
    """
    with tracking.logged_run(handle, job.run) as log:
        best, pictures = train(job, workers, handle, lease, system_metrics)
        report = evaluate.trained_report(best, job.data, evaluate.Tasks(cpus=workers.cpus, gpu=workers.gpu))
        baselines = log_best(best, job.data, log, report, pictures, registration)
    return best, report, baselines


def train(
    job: Job, workers: WorkerGroup, handle: "RunHandle", lease: Lease, system_metrics: bool = False
) -> tuple[str, list[Tile]]:
    """Train the job and return the URL of its best checkpoint, and pictures of what it predicts on val.

    Raises UserError if the cluster has no room for the workers or a worker reports a user error, and Ray's error if
    the workers failed too often.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(LOOK_SECONDS))
    trainer = TorchTrainer(
        work,
        torch_config=NodeAddressConfig(),
        train_loop_config={
            "job": dataclasses.asdict(job),
            "handle": dataclasses.asdict(handle),
            "lease": dataclasses.asdict(lease),
            "system_metrics": system_metrics,
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
            worker_runtime_env={"env_vars": ray_private.waiting_threads()},
            failure_config=ray.train.FailureConfig(
                max_failures=workers.max_failures, controller_failure_limit=START_TRIES
            ),
            callbacks=[TellFailures(job.run.rsplit("/", 1)[-1], workers.max_failures)],
            # Each step of the controller is told at INFO; what matters of it we tell in our own words.
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    )
    with _interruptible():
        try:
            ended: Ended = ray_private.without_datasets(trainer).fit().return_value
        except ray.train.ControllerError as error:
            if not ray_private.is_start_timeout(error.controller_failure):
                raise
            raise UserError(
                f"the cluster had no room for {workers.most} workers of {workers.cpus} CPUs"
                f"{' and a GPU' if workers.gpu else ''} in {START_TRIES} tries: add machines or lower --num-workers, "
                "then continue with --resume (glefld train) or the same --name (glefld compare)"
            ) from error
    if ended.mistake is not None:
        raise UserError(ended.mistake)
    return best_checkpoint(job.run), ended.pictures


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


def log_best(
    best: str,
    data: str,
    log: "RunLog",
    report: Report,
    pictures: list[Tile],
    registration: "Registration | None",
) -> Baselines:
    """Log scores, tables, pictures and the model to the run. Returns the scores of the baselines."""
    baselines = evaluate.baselines(data, "val", report.label)
    manifest = open_dataset(data)
    scores = evaluation.evaluation_json(
        report, dataset=manifest.dataset, split="val", checkpoint=best, baseline=baselines
    )
    evaluate.log_scores(log, scores, report, baselines, data, pictures)
    card = checkpoint.read_card(best)
    numbers = {f"val_{name}": value for name, value in report.numbers().items()}
    log.log_model(
        best,
        name=card.model,
        step=card.step,
        metrics=numbers,
        data=tracking.DataKey.of(manifest),
        note=tracking.model_note(card, manifest, data),
        registration=registration,
    )
    return baselines
