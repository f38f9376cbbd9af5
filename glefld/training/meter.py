"""What training logs of its steps: their mean loss, the learning rate and the speed."""

import math
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from glefld.errors import Mistake
from glefld.recipe import Recipe
from glefld.scoring.metrics import DIVERGED


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Learning rate of a step, counted from the run's start, with ``steps`` an epoch. A resumed run needs no state."""
    if recipe.schedule == "step":
        return recipe.learning_rate * recipe.step_factor ** (step // steps // recipe.step_epochs)
    warmup = recipe.warmup_epochs * steps
    total = recipe.epochs * steps
    if step < warmup:
        return recipe.learning_rate * (step + 1) / (warmup + 1)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total - warmup)))


class Seen(NamedTuple):
    """What happened between two logs, on one rank."""

    images: int
    """Rows of the global batches."""
    waited: float
    """Seconds in which this rank had no data."""
    loss: float
    """Mean loss of the global batches."""


class Meter:
    """Collects an epoch's losses on the device and logs means over ``log_steps`` steps, summed over the ranks.

    first: the epoch's first step, counted from the run's start. steps: steps of an epoch. The steps of a mean are the
    same wherever a run was resumed: they end at multiples of ``log_steps``, at a checkpoint and with the epoch.
    seen: gets the same as sums, on every rank.
    """

    def __init__(
        self,
        recipe: Recipe,
        first: int,
        steps: int,
        log: Callable[[dict[str, float], int], None],
        seen: Callable[[Seen], None] = lambda seen: None,
    ) -> None:
        self.recipe, self.first, self.steps, self.log, self.seen = recipe, first, steps, log, seen
        self.losses: list[Tensor] = []
        self.figures: list[tuple[int, int, float]] = []
        self.since = time.perf_counter()

    def add(self, step: int, loss: Tensor, rows: int, waited: float) -> None:
        """Record a step of the epoch: this rank's part of the loss, the global batch's rows, seconds without data."""
        self.losses.append(loss)
        self.figures.append((step, rows, waited))
        if (step + 1) % self.recipe.log_steps == 0:
            self.flush()

    def flush(self) -> None:
        """Log what was recorded since the last time, as its last step; Mistake at the first loss that is not finite."""
        if not self.losses:
            return
        losses = torch.stack(self.losses)
        if dist.is_initialized():
            dist.all_reduce(losses)  # the ranks' parts of the global batch's loss
        values = losses.tolist()
        seconds = time.perf_counter() - self.since
        steps, rows, waits = zip(*self.figures, strict=True)
        for step, value in zip(steps, values, strict=True):
            if not math.isfinite(value):
                raise Mistake(f"the loss of step {self.first + step} is not finite: {DIVERGED}")
        last = self.first + steps[-1]
        self.log(
            {
                "loss": statistics.fmean(values),
                "learning_rate": learning_rate(self.recipe, last, self.steps),
                "data_wait_seconds": statistics.fmean(waits),
                "images_per_second": sum(rows) / seconds,
            },
            last,
        )
        self.seen(Seen(sum(rows), sum(waits), statistics.fmean(values)))
        self.losses, self.figures, self.since = [], [], time.perf_counter()
