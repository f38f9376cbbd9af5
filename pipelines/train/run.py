"""Ray Train runs the workers of a training job: DDP over gloo or nccl, restarted after a loss, in one MLflow run."""

import contextlib
import dataclasses
import logging
import signal
import threading
from collections.abc import Iterator
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer

from glefld import storage, tracking
from glefld.data.dataset import open_dataset
from glefld.errors import UserError
from glefld.models import checkpoint
from glefld.scoring import evaluation
from glefld.scoring.baselines import Baselines
from glefld.scoring.metrics import Report
from glefld.tracking import Registration, RunHandle, RunLog
from glefld.training import loop
from glefld.training.loop import EpochReport, Job, Mistake
from pipelines import evaluate, ray_private
from pipelines.train.process_group import NodeAddressConfig

logger = logging.getLogger(__name__)

#: How often the start of a fixed number of workers is waited for, a minute each (Ray's
#: RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S): time for a cluster to add machines, but not for ever.
START_TRIES = 30


@dataclasses.dataclass(frozen=True)
class WorkerGroup:
    """The worker group: a number of workers, or the least and most for elastic training; what each one takes."""

    least: int
    most: int
    cpus: int
    gpu: bool
    max_failures: int = 3
    resize_seconds: float = 60.0
    """How often elastic training checks for room for more workers; each resize restarts it from a checkpoint."""

    @property
    def count(self) -> int | tuple[int, int]:
        return self.least if self.least == self.most else (self.least, self.most)


def parse_workers(text: str) -> tuple[int, int]:
    """``N`` or ``MIN-MAX`` as (least, most). UserError for anything else."""
    least, dash, most = text.partition("-")
    if not least.isdecimal() or (dash and not most.isdecimal()):
        raise UserError(f"--num-workers takes N or MIN-MAX, such as 2 or 1-4, not {text!r}")
    bounds = int(least), int(most if dash else least)
    if not 1 <= bounds[0] <= bounds[1]:
        raise UserError(f"--num-workers {text}: at least one worker, and MIN at most MAX")
    return bounds


def train_and_score(
    job: Job, workers: WorkerGroup, handle: RunHandle, registration: Registration | None = None
) -> tuple[str, Report, Baselines]:
    """Train a job, score its best checkpoint on val, and end its MLflow run: the checkpoint's URL and the scores.

    ``registration`` is what the best checkpoint will be called in MLflow's registry.
    """
    with tracking.to_its_end(handle, job.run) as log:
        best = train(job, workers, handle)
        scorer = evaluate.Tasks(cpus=workers.cpus, gpu=workers.gpu)
        report, baselines = score(best, job.data, log, scorer, registration)
    return best, report, baselines


def train(job: Job, workers: WorkerGroup, handle: RunHandle) -> str:
    """Run the job to its end and return the URL of its best checkpoint. Raises what ended the workers for good."""
    trainer = TorchTrainer(
        _work,
        torch_config=NodeAddressConfig(),
        train_loop_config={"job": dataclasses.asdict(job), "handle": dataclasses.asdict(handle)},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count,
            use_gpu=workers.gpu,
            elastic_resize_monitor_interval_s=workers.resize_seconds,
            resources_per_worker={"CPU": workers.cpus} | ({"GPU": 1} if workers.gpu else {}),
        ),
        run_config=ray.train.RunConfig(
            # Ray's own records. Checkpoints are ours: read back, hashed, and the same without Ray.
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
                f"{' and a GPU' if workers.gpu else ''} in {START_TRIES} tries: add machines, or ask for fewer with "
                "--num-workers; --resume goes on from the last checkpoint"
            ) from error
    if mistake is not None:
        raise UserError(mistake)
    best = checkpoint.pointed(job.run, "best")
    assert best is not None, "training ended without a checkpoint"
    return storage.join(job.run, best)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C is a KeyboardInterrupt: Ray Train's handler, which it leaves behind, exits as if all were well."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


def score(
    best: str, data: str, log: RunLog, scorer: evaluate.Tasks, registration: Registration | None
) -> tuple[Report, Baselines]:
    """Score the best checkpoint on val and put scores, tables, pictures and model into the run."""
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
    """One worker: its device, rank 0's log, a report to Ray an epoch. Returns what the user did wrong, if anything."""
    job = Job.from_json(config["job"])
    device = ray.train.torch.get_device()
    assigned = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
    torch.set_num_threads(max(1, int(assigned)))
    first = ray.train.get_context().get_world_rank() == 0
    ray_private.silence_train_reports()
    log = RunLog(RunHandle(**config["handle"]), job.run) if first else None

    def log_step(metrics: dict[str, float], step: int) -> None:
        if log is not None:
            log.log(metrics, step)

    def store_log() -> None:
        if log is not None:
            log.flush()

    def report(epoch: EpochReport) -> None:
        log_step(epoch.metrics, epoch.step)
        store_log()
        if log is not None:
            name = "NE" if "val_ne" in epoch.metrics else "error"
            # Ray Train's print would show it twice.
            logger.info("epoch %d: %s %.4f on val, best %.4f", epoch.epoch, name, epoch.error, epoch.best)
        ray.train.report({"error": epoch.error, "epoch": epoch.epoch})

    try:
        loop.train(job, device, log_step, report, store_log)
    except Mistake as error:
        # Raised, it would make Ray start the group again, to the same end.
        return str(error)
    finally:
        if log is not None:
            log.flush()
    return None
