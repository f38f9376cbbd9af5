"""One training worker's process: the loop, its log, and pictures in the end.

Ray Train's controller imports this module too, and workers wait for it: so the function imports what it needs itself.
"""

import contextlib
import statistics
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from glefld import storage
from pipelines.train.events import Began, EpochEnded, Stepped, tell

if TYPE_CHECKING:
    from glefld.scoring.draw import Tile
    from glefld.training import loop

#: How often a worker tells the driver of its steps, at most.
TELL_SECONDS = 1.0


def best_checkpoint(run: str) -> str:
    """Return the URL of the best checkpoint of a run that was trained."""
    from glefld.models import checkpoint

    best = checkpoint.pointed(run, "best")
    assert best is not None, "training ended without a checkpoint"
    return storage.join(run, best)


class Ended(NamedTuple):
    """How a worker ended: with a user's mistake, or on rank 0 with pictures of what the best checkpoint predicts."""

    mistake: str | None
    pictures: "list[Tile]"


def work(config: dict[str, Any]) -> Ended:
    """Run one worker; rank 0 logs to MLflow, and draws in the end, which a new process would take seconds to begin."""
    import ray
    import ray.train.torch
    import torch

    from glefld import tracking
    from glefld.errors import Mistake, UserError
    from glefld.training import loop
    from glefld.training.start import Job
    from pipelines import metrics, ray_private
    from pipelines.lease import Lease
    from pipelines.train.workers import loading_threads

    job = Job.from_json(config["job"])
    device = ray.train.torch.get_device()
    context = ray.get_runtime_context()
    threads = max(1, int(context.get_assigned_resources().get("CPU", 1)))
    torch.set_num_threads(threads)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    node = next(node for node in nodes if node["NodeID"] == context.get_node_id())
    loading = loading_threads(device.type == "cuda", threads, node["Resources"])
    first = ray.train.get_context().get_world_rank() == 0
    ray_private.quiet_train_worker()
    handle = tracking.RunHandle(**config["handle"])
    log = tracking.RunLog(handle, job.run) if first else None
    load: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if (
        config["system_metrics"] and ray.train.get_context().get_local_rank() == 0
    ):  # one worker of each machine
        name = node["NodeManagerHostname"] if len(nodes) > 1 else None
        load = tracking.system_metrics(log or tracking.RunLog(handle), name)
    lease = Lease(**config["lease"])

    run = job.run.rsplit("/", 1)[-1]
    rates: list[float] = []  # of the epoch: images per second, each over as many steps
    told = 0.0

    def announce(began: "loop.Began") -> None:
        if log is not None:
            chosen = began.precision
            log.set_tag("precision", chosen.precision)
            size = (job.recipe.epochs, began.steps, began.done, ray.train.get_context().get_world_size())
            tell(Began(run, chosen.precision, chosen.why, *size))

    def log_step(metrics: dict[str, float], step: int) -> None:
        nonlocal told
        if log is not None:
            log.log(metrics, step)
            rates.append(metrics["images_per_second"])
            if time.monotonic() - told >= TELL_SECONDS:
                tell(Stepped(run, step + 1, rates[-1]))
                told = time.monotonic()

    def count(seen: "loop.Seen") -> None:
        metrics.waits("train", seen.waited)
        if log is not None:
            metrics.trained(run, seen.images, seen.loss)

    def store_log() -> None:
        """Called before each checkpoint, which a worker must not write to a run that another driver has taken over."""
        if log is not None:
            lease.require()
            log.flush()

    def report(epoch: "loop.EpochReport") -> None:
        if log is not None:
            log.log(epoch.metrics, epoch.step)
            metrics.validated(run, epoch.epoch, epoch.error)
        store_log()
        if log is not None:
            names = {"val_ne": "NE", "val_box_ap": "1 - AP"}
            measure = next((name for score, name in names.items() if score in epoch.metrics), "error")
            rate = statistics.harmonic_mean(rates) if rates else 0.0
            tell(EpochEnded(run, epoch.epoch, epoch.step, rate, measure, epoch.error, epoch.best))
            rates.clear()
        ray.train.report({"error": epoch.error, "epoch": epoch.epoch})

    try:
        lease.require()
    except UserError as error:
        return Ended(str(error), [])
    try:
        with load:
            loop.train(job, device, log_step, report, store_log, announce, loading, count)
    except Mistake as error:
        # Returned instead of raised: Ray would restart the group, only to fail the same way.
        return Ended(str(error), [])
    finally:
        if log is not None:
            log.flush()
    if log is None:
        return Ended(None, [])
    from pipelines import evaluate

    tasks = evaluate.Tasks(cpus=threads, gpu=device.type == "cuda")
    return Ended(None, evaluate.draw_here(best_checkpoint(job.run), job.data, "val", tasks))
