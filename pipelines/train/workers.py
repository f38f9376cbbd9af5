"""How many workers train, and with what. Imports no Ray, so that a mistake is told before it is loaded."""

import dataclasses
from collections.abc import Mapping

from glefld.data.order import global_batch
from glefld.errors import UserError
from glefld.schema import Manifest


@dataclasses.dataclass(frozen=True)
class WorkerGroup:
    """The number of workers and the resources of each. Training is elastic if ``least`` and ``most`` differ."""

    least: int
    most: int
    cpus: int
    gpu: bool
    max_failures: int = 3
    resize_seconds: float = 60.0
    """Interval at which elastic training checks for room for more workers. Each resize restarts from a checkpoint."""

    @property
    def count(self) -> int | tuple[int, int]:
        """``num_workers`` as Ray Train expects it."""
        return self.least if self.least == self.most else (self.least, self.most)


def parse_workers(text: str, option: str = "--num-workers") -> tuple[int, int]:
    """Parse ``N`` or ``MIN-MAX`` to (least, most). Raises UserError for anything else, which names the option."""
    least, dash, most = text.partition("-")
    if not least.isdecimal() or (dash and not most.isdecimal()):
        raise UserError(f"{option} must be N or MIN-MAX, such as 2 or 1-4, not {text!r}")
    bounds = int(least), int(most if dash else least)
    if not 1 <= bounds[0] <= bounds[1]:
        raise UserError(f"{option} {text}: MIN must be at least 1 and at most MAX")
    return bounds


def loading_threads(gpu: bool, assigned: int, node: Mapping[str, float]) -> int:
    """Return the number of CPU threads that load a worker's batches.

    assigned: the CPUs that Ray gave it. node: the machine's resources. With a GPU it is the GPU's share of the
    machine's CPUs if that is more: on a cluster a worker reserves one CPU, so that it need not wait for others, and one
    thread starves a GPU.
    """
    if not gpu:
        return assigned
    return max(assigned, int(node.get("CPU", 0) // max(1, node.get("GPU", 0))))


def require_rows(data: str, manifest: Manifest, workers: int, batch_size: int, limit: int | None) -> None:
    """Raise UserError unless the data set has rows to train and validate on, and each batch one for each worker.

    limit: train on the first rows only, so many.
    """
    for split in ("train", "val"):
        if not manifest.splits.get(split):
            have = ", ".join(name for name, rows in manifest.splits.items() if rows)
            raise UserError(f"the data set {data} has no rows in its split {split!r}; it has: {have}")
    rows = min(limit or manifest.splits["train"], manifest.splits["train"])
    smallest = global_batch(rows, batch_size, 0)[1]
    if smallest < workers:
        raise UserError(
            f"--num-workers {workers} needs batches of at least {workers} rows, but --batch-size {batch_size} makes "
            f"batches of {smallest} of the {rows} rows to train on: lower --num-workers or raise --batch-size"
        )
