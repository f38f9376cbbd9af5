"""What Prometheus is told of a job, through the metrics endpoint that Ray runs on each machine.

Ray puts ``ray_`` before the names. Without Ray nothing is counted. A count costs a few microseconds, and there are some
a shard, or some every ``log_steps`` steps of a training. Counters stay until the machine's Ray ends, gauges go 20 s
after they were set. infra/README.md says how they are scraped, and infra/grafana has a dashboard of them. The label is
``command``, since Prometheus has a label ``job`` of its own.
"""

import functools
from collections.abc import Mapping

import ray
from ray.util.metrics import Counter, Gauge, Histogram

#: Bounds of the buckets of ``glefld_shard_seconds``.
SECONDS = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]


@functools.cache
def _counter(name: str, description: str, *labels: str) -> Counter:
    return Counter(name, description, labels)


@functools.cache
def _gauge(name: str, description: str, *labels: str) -> Gauge:
    return Gauge(name, description, labels)


@functools.cache
def _shard_seconds() -> Histogram:
    return Histogram("glefld_shard_seconds", "Seconds that a task took for a shard", SECONDS, ("command",))


def _count(amount: float, name: str, description: str, **labels: str) -> None:
    """Add an amount, unless it is nothing: Ray takes no zero."""
    if amount > 0 and ray.is_initialized():
        _counter(name, description, *labels).inc(amount, labels)


def _set(value: float, name: str, description: str, **labels: str) -> None:
    if ray.is_initialized():
        _gauge(name, description, *labels).set(value, labels)


def rows(command: str, outcomes: Mapping[str, int]) -> None:
    """Count rows of ``ingest`` or garments of ``infer``, by ``ok`` or by what was wrong with them."""
    for outcome, count in outcomes.items():
        labels = {"command": command, "outcome": outcome}
        _count(count, "glefld_rows_total", "Rows written, or set aside for a reason", **labels)


def rows_left(command: str, count: int) -> None:
    """Keep how many rows, or photos, a run has still to process."""
    _set(count, "glefld_rows_left", "Rows or photos that a run has still to process", command=command)


def shard(command: str, outcomes: Mapping[str, int], seconds: float, waited: float) -> None:
    """Count a shard that was written: its rows, the seconds of its task, and those in which a model had no data."""
    rows(command, outcomes)
    waits(command, waited)
    if ray.is_initialized():
        _shard_seconds().observe(seconds, {"command": command})


def waits(command: str, seconds: float) -> None:
    """Count seconds in which a model had no data."""
    _count(
        seconds, "glefld_data_wait_seconds_total", "Seconds in which models waited for data", command=command
    )


def lost(command: str, shards: int) -> None:
    """Count shards whose task has lost its worker twice."""
    _count(shards, "glefld_lost_shards_total", "Shards whose task has lost its worker twice", command=command)


def trained(run: str, images: int, loss: float) -> None:
    """Count the images of all workers, and keep the loss."""
    _count(images, "glefld_training_images_total", "Images that training has seen", run=run)
    _set(loss, "glefld_training_loss", "Mean loss of the last logged steps", run=run)


def validated(run: str, epochs: int, error: float) -> None:
    """Keep the number of completed epochs, and the last one's error on the val split."""
    _set(epochs, "glefld_training_epochs", "Completed epochs", run=run)
    _set(
        error, "glefld_training_val_error", "Error on the val split, by which checkpoints are chosen", run=run
    )


def failed(run: str, workers: int) -> None:
    """Count training workers that have failed."""
    _count(workers, "glefld_training_failures_total", "Training workers that have failed", run=run)
