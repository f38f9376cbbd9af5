"""What one training worker does, alone or as one rank of a torch.distributed group."""

import dataclasses
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from glefld.data.dataset import open_dataset
from glefld.data.garments import PhotoBoxes
from glefld.data.loader import Batch, BatchLoader, InputPipeline
from glefld.data.order import global_batch, steps_per_epoch
from glefld.data.reader import SplitReader
from glefld.errors import Mistake, UserError
from glefld.models import checkpoint
from glefld.models.calibration import Calibration
from glefld.models.checkpoint import ModelCard
from glefld.models.precision import Choice, Named, choose_precision
from glefld.models.system import Model
from glefld.recipe import Recipe
from glefld.schema import Manifest, Split
from glefld.scoring.evaluation import EVAL_BATCH, evaluate
from glefld.scoring.metrics import Counters, Report
from glefld.training.losses import total_loss
from glefld.training.meter import Meter, Seen, learning_rate
from glefld.training.start import Job, Position, last_or_initial, origin


@dataclasses.dataclass(frozen=True)
class EpochReport:
    """The results of an epoch, the same on every rank."""

    epoch: int
    """Completed epochs."""
    step: int
    """Completed steps."""
    error: float
    """``Report.error`` of the val split; lower is better."""
    best: float
    """The lowest error so far."""
    metrics: dict[str, float]


class Began(NamedTuple):
    """What is known before the first step."""

    precision: Choice
    """Precision of the forward pass."""
    steps: int
    """Steps of an epoch."""
    done: int
    """Steps that an earlier start of the run has done."""


def train(
    job: Job,
    device: torch.device,
    log: Callable[[dict[str, float], int], None],
    report: Callable[[EpochReport], None],
    store_log: Callable[[], None] = lambda: None,
    announce: Callable[[Began], None] = lambda began: None,
    loading_threads: int | None = None,
    seen: Callable[[Seen], None] = lambda seen: None,
) -> None:
    """Train to the end, starting from the run's last checkpoint if it has one.

    log: gets metrics by step, on every rank. report: called on every rank once an epoch, before its checkpoint.
    store_log: called before a checkpoint within an epoch. announce: called on every rank before the first step.
    loading_threads: CPU threads that load batches; by default as many as PyTorch computes with. seen: gets what
    happened since the last log. Uses torch.distributed's default group if there is one.
    Mistake for a data set or a number of workers that cannot be trained with, and once a logged loss or a prediction on
    the val split is not finite.
    """
    training, position = Training.begin(job, device, loading_threads)
    announce(Began(training.precision, training.steps, position.epoch * training.steps + position.step))
    while position.epoch < job.recipe.epochs:
        training.epoch(position, log, store_log, seen)
        scored = training.validate()
        position = Position(position.epoch + 1, best=min(scored.error, position.best))
        # Before the checkpoint: a worker lost in between repeats the epoch, and no metric is missing.
        report(training.summary(position, scored))
        training.keep(position, scored)


class Scored(NamedTuple):
    """A validation, the same on every rank."""

    counters: Counters
    report: Report
    error: float
    """The report's, which the best checkpoint is chosen by."""


@dataclasses.dataclass(frozen=True)
class Training:
    """One worker's side of a run: what stays the same from epoch to epoch, and an epoch's phases.

    All ranks call each phase at the same time.
    """

    job: Job
    manifest: Manifest
    train_rows: SplitReader
    val_rows: SplitReader
    model: Model
    parallel: nn.Module
    """The model, or DDP around it."""
    optimizer: torch.optim.Optimizer
    loader: BatchLoader
    val_loader: BatchLoader
    device: torch.device
    precision: Choice
    """Precision of the forward pass."""
    rank: int
    world: int
    origin: str
    """Where the first weights were from, for the model card."""

    @classmethod
    def begin(
        cls, job: Job, device: torch.device, loading_threads: int | None = None
    ) -> tuple["Training", Position]:
        """Open the data, and the model as its last checkpoint or the seed has it. Mistake if they cannot be used."""
        recipe = job.recipe
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        manifest = open_dataset(job.data)
        train_rows = SplitReader(job.data, manifest, "train", limit=job.rows)
        val_rows = SplitReader(job.data, manifest, "val")
        batch = global_batch(train_rows.rows, recipe.batch_size, 0)[1]
        if batch < world:
            raise Mistake(
                f"{world} workers need batches of at least {world} rows: the train split has {train_rows.rows} "
                f"and batch-size is {recipe.batch_size}"
            )
        if rank == 0:
            checkpoint.tidy(job.run)
        model, optimizer, position, kept = last_or_initial(job, manifest, device)
        precision = _agreed_precision(recipe, model, kept, device, -(-batch // world), rank, world)
        pipeline = InputPipeline(
            recipe.input_size,
            model.normalisation,
            max(recipe.batch_size, EVAL_BATCH),
            device.index if device.type == "cuda" else None,
            loading_threads or torch.get_num_threads(),
        )

        def loader(split: Split) -> BatchLoader:
            photos = PhotoBoxes.read(job.data, manifest, split) if model.detects else None
            return BatchLoader(manifest.labels, pipeline, photos)

        training = cls(
            job=job,
            manifest=manifest,
            train_rows=train_rows,
            val_rows=val_rows,
            model=model,
            parallel=_distributed(model) if world > 1 else model,
            optimizer=optimizer,
            loader=loader("train"),
            val_loader=loader("val"),
            device=device,
            precision=precision,
            rank=rank,
            world=world,
            origin=origin(job),
        )
        return training, position

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return steps_per_epoch(self.train_rows.rows, self.job.recipe.batch_size)

    def epoch(
        self,
        position: Position,
        log: Callable[[dict[str, float], int], None],
        store_log: Callable[[], None],
        seen: Callable[[Seen], None],
    ) -> None:
        """Take the epoch's remaining steps, with the recipe's checkpoints in between."""
        recipe, steps = self.job.recipe, self.steps
        meter = Meter(recipe, position.epoch * steps, steps, log, seen)
        kept = time.monotonic()
        batches = self._batches(position)
        self.parallel.train()
        for step in range(position.step, steps):
            started = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - started
            for group in self.optimizer.param_groups:
                group["lr"] = group["rate"] * learning_rate(recipe, position.epoch * steps + step, steps)
            first, end = global_batch(self.train_rows.rows, recipe.batch_size, step)
            loss = train_step(
                self.model,
                self.parallel,
                self.optimizer,
                batch,
                recipe,
                rows=end - first,
                world=self.world,
                dtype=self.precision.dtype,
            )
            meter.add(step, loss, end - first, waited)
            if step + 1 < steps and self._is_due(step + 1, kept):
                meter.flush()
                store_log()  # a worker lost after the checkpoint does not repeat these steps
                average_buffers(self.model, self.world)
                self.keep(dataclasses.replace(position, step=step + 1), None)
                kept = time.monotonic()
        assert next(batches, None) is None, "the loader has more batches than the epoch has steps"
        meter.flush()
        average_buffers(self.model, self.world)

    def _is_due(self, done: int, kept: float) -> bool:
        """Whether a checkpoint is due after so many steps of the epoch, the last one being of the time ``kept``.

        By the clock, rank 0's, only where losses are logged: so the steps of a logged mean do not depend on it.
        """
        recipe = self.job.recipe
        if recipe.checkpoint_steps:
            return done % recipe.checkpoint_steps == 0
        if not recipe.checkpoint_minutes or done % recipe.log_steps:
            return False
        due = torch.tensor(time.monotonic() - kept >= 60 * recipe.checkpoint_minutes, device=self.device)
        if self.world > 1:
            dist.broadcast(due, 0)
        return bool(due)

    def validate(self) -> Scored:
        """Score the model on the val split."""
        self.model.calibration = Calibration()
        counters = evaluate(
            self.model, self.val_rows, self.val_loader, self.rank, self.world, self.manifest.labels
        )
        if self.world > 1:
            total = counters.vector().to(self.device)
            dist.all_reduce(total)
            counters.load_vector(total.cpu())
        self.model.calibration = counters.calibrate()
        try:
            result = counters.report()
        except UserError as error:  # not finite; all ranks have the same sums
            raise Mistake(str(error)) from error
        assert result.rows == self.val_rows.rows, (
            f"validation counted {result.rows} rows of {self.val_rows.rows}"
        )
        if result.error is None:
            raise Mistake(
                f"the val split of {self.job.data} has no labels for what {self.job.model} predicts: without a "
                "score, no checkpoint can be the best"
            )
        if result.boxes is not None:
            self.model.least_score = result.boxes.least_score
        return Scored(counters, result, result.error)

    def summary(self, position: Position, scored: Scored) -> EpochReport:
        """The report of the epoch that has led to this position."""
        metrics = {f"val_{name}": value for name, value in scored.report.numbers().items()}
        metrics |= {
            "val_error": scored.error,
            "val_error_best": position.best,
            "epoch": float(position.epoch),
            "workers": float(self.world),
        }
        return EpochReport(position.epoch, position.epoch * self.steps, scored.error, position.best, metrics)

    def keep(self, position: Position, scored: Scored | None) -> None:
        """Let rank 0 write a checkpoint, marked as the best if its error is the lowest; all ranks wait for it."""
        if self.rank == 0:
            card = ModelCard(
                model=self.job.model,
                config=self.job.config,
                labels=self.manifest.labels,
                input_size=self.job.recipe.input_size,
                normalisation=self.model.normalisation,
                calibration=self.model.calibration,
                least_score=self.model.least_score,
                weights=self.origin,
                dataset=self.manifest.title,
                data_hash=self.manifest.content_hash,
                recipe=dataclasses.asdict(self.job.recipe),
                epoch=position.epoch,
                step=position.epoch * self.steps + position.step,
                val=scored.report.numbers() if scored is not None else {},
            )
            state: dict[str, Any] = {
                "optimizer": self.optimizer.state_dict(),
                "position": dataclasses.asdict(position),
                "precision": self.precision.precision,
            }
            if scored is not None:
                state["val"] = scored.counters.vector()
            best = scored is not None and scored.error == position.best
            checkpoint.keep(self.job.run, self.model, card, state, best=best)
        if self.world > 1:
            dist.barrier()

    def _batches(self, position: Position) -> Iterator[Batch]:
        """This rank's shares of the epoch's remaining global batches."""
        recipe = self.job.recipe
        order = self.train_rows.order(recipe.seed, position.epoch, recipe.streams, recipe.window_rows)
        seeds: deque[tuple[int, ...]] = deque()

        def tables() -> Iterator[pa.Table]:
            shares = self.train_rows.epoch(
                order, recipe.batch_size, first_step=position.step, rank=self.rank, world=self.world
            )
            for numbers, table in shares:
                seeds.extend((recipe.seed, position.epoch, number) for number in numbers.tolist())
                yield table

        return self.loader.run(tables(), recipe.augmentation, iter(seeds.popleft, None))


def _agreed_precision(
    recipe: Recipe, model: Model, kept: Named | None, device: torch.device, rows: int, rank: int, world: int
) -> Choice:
    """The precision that was asked for, or that the run was begun with, or that rank 0 measures for all ranks.

    rows: a rank's share of a batch.
    """

    def choose() -> Choice:
        return choose_precision(recipe.precision, model, recipe.input_size, rows, training=True)

    if recipe.precision != "auto":
        return choose()
    if kept is not None:
        return Choice(kept, "as the run was begun")
    choice = [choose() if rank == 0 else None]
    if world > 1:
        dist.broadcast_object_list(choice, device=device)
    assert choice[0] is not None
    return choice[0]


def _distributed(model: Model) -> DistributedDataParallel:
    # Each worker's batch norm normalises by its own share, and the running statistics are averaged before they are
    # used, in validation and checkpoints. Synchronising every layer would cost more than it gains here.
    with warnings.catch_warnings():
        # The option's new name needs torch 2.15.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)


def train_step(
    model: Model,
    parallel: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    recipe: Recipe,
    rows: int,
    world: int,
    dtype: torch.dtype,
) -> Tensor:
    """Take one optimizer step and return this rank's part of the loss, a detached scalar on the device.

    batch: this rank's share of a global batch of ``rows``. parallel: the model, or DDP around it.

    The loss is divided by the global batch's rows. DDP averages gradients over the ranks, so the loss is multiplied by
    their number: the result is the global batch's gradient, however rows and visible landmarks are divided.
    """
    images = batch.images.contiguous(memory_format=torch.channels_last)
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        output = parallel(images)
    loss = total_loss(model, output, batch, recipe, rows, world)
    optimizer.zero_grad(set_to_none=True)
    (loss * world).backward()
    optimizer.step()
    return loss.detach()


def average_buffers(model: nn.Module, world: int) -> None:
    """Replace batch norm's running statistics by their mean over the ranks."""
    if world == 1:
        return
    for buffer in model.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer.div_(world)
