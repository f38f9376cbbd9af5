"""What Prometheus is told of a job, through the metrics endpoint that Ray runs on each machine.

Ray puts ``ray_`` before the names. Counters are kept by Ray's agent on the machine, so they outlive the process that
has counted; infra/README.md says how they are scraped, and infra/grafana has a dashboard of them. Without Ray, or in a
process that no cluster knows, nothing is counted. A count costs a few microseconds, and there are some a shard, or some
every ``log_steps`` steps of a training.
"""

import functools
from collections.abc import Mapping

import ray
from ray.util.metrics import Counter, Gauge, Histogram

#: Bounds of ``glefld_shard_seconds``' buckets.
SECONDS = [0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]


@functools.cache
def _counter(name: str, description: str, *labels: str) -> Counter:
    return Counter(name, description, labels)


@functools.cache
def _gauge(name: str, description: str, *labels: str) -> Gauge:
    return Gauge(name, description, labels)


@functools.cache
def _shard_seconds() -> Histogram:
    return Histogram("glefld_shard_seconds", "Seconds that a task took for a shard", SECONDS, ("job",))


def _count(amount: float, name: str, description: str, **labels: str) -> None:
    """Add an amount, unless it is nothing: Ray takes no zero."""
    if amount > 0 and ray.is_initialized():
        _counter(name, description, *labels).inc(amount, labels)


def _set(value: float, name: str, description: str, **labels: str) -> None:
    if ray.is_initialized():
        _gauge(name, description, *labels).set(value, labels)


def rows(job: str, outcomes: Mapping[str, int]) -> None:
    """Count rows of ``ingest`` or garments of ``infer``, by ``ok`` or by what was wrong with them."""
    for outcome, count in outcomes.items():
        _count(
            count, "glefld_rows_total", "Rows written, or set aside for a reason", job=job, outcome=outcome
        )


def shard(job: str, outcomes: Mapping[str, int], seconds: float, waited: float) -> None:
    """Count a shard that was written: its rows, the seconds of its task, and those in which a model had no data."""
    rows(job, outcomes)
    waits(job, waited)
    if ray.is_initialized():
        _shard_seconds().observe(seconds, {"job": job})


def waits(job: str, seconds: float) -> None:
    """Count seconds in which a model had no data."""
    _count(
        seconds, "glefld_data_wait_seconds_total", "Seconds in which models waited for their data", job=job
    )


def lost(job: str, shards: int) -> None:
    """Count shards whose task lost its worker twice."""
    _count(shards, "glefld_lost_shards_total", "Shards whose task has lost its worker twice", job=job)


def planned(job: str, count: int) -> None:
    """Count rows, or photos, that a run has begun to process."""
    _count(count, "glefld_planned_rows_total", "Rows or photos that runs have begun to process", job=job)


def trained(run: str, images: int, waited: float, loss: float) -> None:
    """Count a worker's images and its seconds without data, and keep the loss."""
    _count(images, "glefld_training_images_total", "Images that training has seen", run=run)
    waits("train", waited)
    _set(loss, "glefld_training_loss", "Mean loss of the last logged steps", run=run)


def validated(run: str, epoch: int, error: float) -> None:
    """Keep an epoch's error on the val split."""
    _set(
        error,
        "glefld_training_val_error",
        "Error on the val split, that the best checkpoint is chosen by",
        run=run,
    )
    _set(epoch, "glefld_training_epochs", "Completed epochs", run=run)


def failed(run: str, workers: int) -> None:
    """Count training workers that have failed."""
    _count(workers, "glefld_training_failures_total", "Training workers that have failed", run=run)
