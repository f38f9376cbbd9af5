"""What the tests on several hosts train, and what they look up of it afterwards."""

import os
from collections import Counter
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
from mlflow import MlflowClient
from mlflow.entities import Run

from glefld import storage
from glefld.models import checkpoint
from glefld.training.loop import train
from glefld.training.start import Job
from jobs.train import parse

ROWS = {"train": 128, "val": 32}
STEPS = 16  # an epoch
#: Ten would do to learn this; so many leave room for one fault after another.
EPOCHS = 24
#: A small network that finds the dots to a hundredth of the box within some four epochs. Mirrored, a dot of either
#: colour would be left and right.
LEARNING = (
    "--model local --input-size 32 --batch-size 8 --precision fp32 --learning-rate 1e-2 --log-steps 1 "
    "--augmentation.mirror 0 --augmentation.rotate 0"
)
TWO_WORKERS = "--num-workers 2 --cpus-per-worker 1"


def _rank(rank: int, world: int, root: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{root}/group", rank=rank, world_size=world)
    torch.set_num_threads(1)
    options = parse(f"--dataset fld --epochs {EPOCHS} {LEARNING}".split())
    job = Job("fld", f"{root}/fld", f"{root}/alone", "local", vars(options.config), options.recipe)
    train(job, torch.device("cpu"), lambda *_: None, lambda _: None)
    dist.destroy_process_group()


def ne_without_ray(root: Path) -> float:
    """The final NE of the same training as on the cluster, by two processes of this machine and without Ray.

    ``root`` holds the data set as ``fld``.
    """
    torch.multiprocessing.spawn(_rank, (2, str(root)), nprocs=2)
    return final_ne(f"{root}/alone")


def epochs_kept(run: str) -> int:
    """How many epochs the run's last checkpoint has behind it."""
    last = checkpoint.pointed(run, "last")
    return int(last.rpartition("/")[2]) // STEPS if last else 0


def final_ne(run: str) -> float:
    """What a finished run's last checkpoint scored on val."""
    last = checkpoint.pointed(run, "last")
    assert last is not None
    _, card = checkpoint.load(storage.join(run, last))
    assert card.epoch == EPOCHS
    return card.val["ne"]


def only_run(client: MlflowClient, name: str) -> Run:
    """The one MLflow run of that name."""
    (experiment,) = [e for e in client.search_experiments() if e.name == "glefld-fld"]
    (run,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
    return run


def times_logged(client: MlflowClient, run: Run, metric: str) -> dict[int, int]:
    """How often each step was logged: more than once where it was repeated."""
    return Counter(m.step for m in client.get_metric_history(run.info.run_id, metric))


def history(client: MlflowClient, run: Run, metric: str) -> dict[int, float]:
    """A metric's last value by step: a step may have been repeated."""
    return {m.step: m.value for m in client.get_metric_history(run.info.run_id, metric)}
