"""What a training step logs: its loss, its learning rate and its speed."""

import math
import time
from collections.abc import Callable

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


class Meter:
    """Collects an epoch's losses on the device and logs them every ``log_steps``, summed over the ranks.

    first: the epoch's first step, counted from the run's start. steps: steps of an epoch.
    """

    def __init__(
        self, recipe: Recipe, first: int, steps: int, log: Callable[[dict[str, float], int], None]
    ) -> None:
        self.recipe, self.first, self.steps, self.log = recipe, first, steps, log
        self.losses: list[Tensor] = []
        self.figures: list[tuple[int, int, float]] = []
        self.since = time.perf_counter()

    def add(self, step: int, loss: Tensor, rows: int, waited: float) -> None:
        """Record a step of the epoch: this rank's part of the loss, the global batch's rows, seconds without data."""
        self.losses.append(loss)
        self.figures.append((step, rows, waited))
        if len(self.losses) == self.recipe.log_steps:
            self.flush()

    def flush(self) -> None:
        """Log what was recorded since the last time; Mistake at the first loss that is not finite."""
        if not self.losses:
            return
        losses = torch.stack(self.losses)
        if dist.is_initialized():
            dist.all_reduce(losses)  # the ranks' parts of the global batch's loss
        values = losses.tolist()
        seconds = time.perf_counter() - self.since
        rate = sum(rows for _, rows, _ in self.figures) / seconds
        for (step, _, waited), value in zip(self.figures, values, strict=True):
            at = self.first + step
            if not math.isfinite(value):
                raise Mistake(f"the loss of step {at} is not finite: {DIVERGED}")
            self.log(
                {
                    "loss": value,
                    "learning_rate": learning_rate(self.recipe, at, self.steps),
                    "data_wait_seconds": waited,
                    "images_per_second": rate,
                },
                at,
            )
        self.losses, self.figures, self.since = [], [], time.perf_counter()
