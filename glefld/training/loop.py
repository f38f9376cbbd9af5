"""What one training worker does, alone or as one rank of a torch.distributed group."""

import dataclasses
import io
import math
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

from glefld import storage
from glefld.data.dataset import open_dataset
from glefld.data.loader import Batch, BatchLoader, InputPipeline
from glefld.data.order import global_batch, steps_per_epoch
from glefld.data.reader import SplitReader
from glefld.errors import Mistake, UserError
from glefld.models import build_model, checkpoint
from glefld.models.checkpoint import ModelCard
from glefld.models.precision import Choice, Named, choose_precision
from glefld.models.system import Model
from glefld.recipe import Recipe
from glefld.redaction import public_url
from glefld.schema import Labels, Manifest
from glefld.scoring.evaluation import EVAL_BATCH, evaluate
from glefld.scoring.metrics import Counters, Report
from glefld.training.losses import total_loss
from glefld.training.meter import Meter, learning_rate


@dataclasses.dataclass(frozen=True)
class Job:
    """One training run. It can be sent to workers as JSON."""

    dataset: str
    data: str
    """URL of the ingested data set."""
    run: str
    """URL of the run's folder, which gets the checkpoints."""
    model: str
    config: dict[str, Any]
    """The system's own options."""
    recipe: Recipe
    weights: str | None = None
    """URL of a torchvision checkpoint to initialise the backbone with."""
    classifier: str | None = None
    """URL of a classifier's checkpoint, for systems that are guided by one."""
    rows: int | None = None
    """Train on the first rows only."""

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Job":
        """Return the job that ``dataclasses.asdict`` made the value of."""
        return cls(**{**value, "recipe": Recipe.from_json(value["recipe"])})


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


@dataclasses.dataclass(frozen=True)
class Position:
    """How far a run has come."""

    epoch: int = 0
    """Completed epochs."""
    step: int = 0
    """Completed steps of the next epoch."""
    best: float = math.inf
    """The lowest validation error so far."""


def train(
    job: Job,
    device: torch.device,
    log: Callable[[dict[str, float], int], None],
    report: Callable[[EpochReport], None],
    store_log: Callable[[], None] = lambda: None,
    announce: Callable[[Choice], None] = lambda choice: None,
    loading_threads: int | None = None,
) -> None:
    """Train to the end, starting from the run's last checkpoint if it has one.

    log: gets metrics by step, on every rank. report: called on every rank once an epoch, before its checkpoint.
    store_log: called before a checkpoint within an epoch. announce: gets the precision of the forward pass, before the
    first step. loading_threads: CPU threads that load batches; by default as many as PyTorch computes with. Uses
    torch.distributed's default group if there is one.
    Mistake for a data set or a number of workers that cannot be trained with, and once a logged loss or a prediction on
    the val split is not finite.
    """
    training, position = Training.begin(job, device, loading_threads)
    announce(training.precision)
    while position.epoch < job.recipe.epochs:
        training.epoch(position, log, store_log)
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
    device: torch.device
    precision: Choice
    """Precision of the forward pass."""
    rank: int
    world: int

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
        model, optimizer, position, kept = _last_or_initial(job, manifest, device)
        precision = _agreed_precision(recipe, model, kept, device, -(-batch // world), rank, world)
        pipeline = InputPipeline(
            recipe.input_size,
            max(recipe.batch_size, EVAL_BATCH),
            device.index if device.type == "cuda" else None,
            loading_threads or torch.get_num_threads(),
        )
        training = cls(
            job=job,
            manifest=manifest,
            train_rows=train_rows,
            val_rows=val_rows,
            model=model,
            parallel=_distributed(model) if world > 1 else model,
            optimizer=optimizer,
            loader=BatchLoader(manifest.labels, pipeline),
            device=device,
            precision=precision,
            rank=rank,
            world=world,
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
    ) -> None:
        """Take the epoch's remaining steps, with the recipe's checkpoints in between."""
        recipe, steps = self.job.recipe, self.steps
        meter = Meter(recipe, position.epoch * steps, steps, log)
        kept = time.monotonic()
        batches = self._batches(position)
        self.parallel.train()
        for step in range(position.step, steps):
            started = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - started
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(recipe, position.epoch * steps + step, steps)
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
        counters = evaluate(
            self.model, self.val_rows, self.loader, self.rank, self.world, self.manifest.labels
        )
        if self.world > 1:
            total = counters.vector().to(self.device)
            dist.all_reduce(total)
            counters.load_vector(total.cpu())
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
                dataset=self.job.dataset,
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


def _last_or_initial(
    job: Job, manifest: Manifest, device: torch.device
) -> tuple[Model, torch.optim.Optimizer, Position, Named | None]:
    """Model, optimizer, position and precision of the run's last checkpoint; without one, those that a run starts with.

    The precision is None if it is still to be chosen.
    Mistake if the data set is not the one that the run was started with.
    """
    last = checkpoint.pointed(job.run, "last")
    if last is not None:
        model, card = checkpoint.load(storage.join(job.run, last))
        if card.data_hash != manifest.content_hash:
            raise Mistake(f"{job.data} has changed since {job.run} was started: train a new run on it")
    else:
        model = initial_model(job, manifest.labels)
    model.to(device)
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=job.recipe.learning_rate,
        weight_decay=job.recipe.weight_decay,
        fused=True,
    )
    if last is None:
        return model, optimizer, Position(), None
    state = checkpoint.load_training(storage.join(job.run, last))
    optimizer.load_state_dict(state["optimizer"])
    return model, optimizer, Position(**state["position"]), state.get("precision")


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


def read_weights(url: str) -> dict[str, Tensor]:
    """Read a torchvision checkpoint: tensors by name. UserError if there is none at the URL."""
    shown = f"--weights {public_url(url)}"
    try:
        data = io.BytesIO(storage.read_bytes(url))
    except FileNotFoundError as error:
        raise UserError(f"{shown}: there is no such file") from error
    except IsADirectoryError as error:
        raise UserError(f"{shown} is a folder: name the file in it") from error
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd pickles, beside the one line that says it all
            state = torch.load(data, map_location="cpu", weights_only=True)
    except Exception as error:  # a file of another kind is read as a pickle, and breaks that anywhere
        # torch's own words are advice to run the file's code, or of pickle's internals.
        raise UserError(
            f"{shown} is not a torchvision checkpoint: it cannot be read as tensors by name, or holds code, which is "
            "never run. Give a file as torchvision publishes it (a state_dict saved with torch.save)"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{shown} is not a torchvision checkpoint: it holds more than tensors by name")
    return state


def initial_model(job: Job, labels: Labels) -> Model:
    """The model that a run starts with: initialised from the seed, then with the job's weights and classifier.

    UserError for an input size that the system does not accept, and for weights that are not usable or do not fit.
    """
    weights = read_weights(job.weights) if job.weights is not None else None
    torch.manual_seed(job.recipe.seed)
    model = build_model(job.model, job.config, labels)
    size = job.recipe.input_size
    if size % model.stride:
        raise UserError(
            f"input-size must be a multiple of {model.stride}, the stride of {job.model}, not {size}"
        )
    if weights is not None:
        model.load_backbone(weights)
    if job.classifier is not None:
        classifier, _ = checkpoint.load(job.classifier)
        model.load_classifier(classifier)
    return model


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
