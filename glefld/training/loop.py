"""What one training worker does. It knows its rank and the group's size only to take its share."""

import dataclasses
import io
import math
import pickle
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from glefld import storage
from glefld.data.dataset import open_dataset
from glefld.data.loader import Batch, BatchLoader, InputPipeline
from glefld.data.reader import SplitReader, global_batch, share, steps_per_epoch
from glefld.errors import UserError
from glefld.models import build_model, checkpoint
from glefld.models.checkpoint import ModelCard
from glefld.models.precision import choose_precision
from glefld.models.system import Model
from glefld.recipe import Recipe
from glefld.schema import Labels
from glefld.scoring.evaluation import EVAL_BATCH, evaluate
from glefld.scoring.metrics import Report
from glefld.training.losses import total_loss


class Mistake(UserError):
    """A user's mistake that only the workers see: raised on all ranks at once, never on one alone."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One training run: what, on which data, into which folder."""

    dataset: str
    data: str
    run: str
    model: str
    config: dict[str, Any]
    recipe: Recipe
    weights: str | None = None
    classifier: str | None = None
    rows: int | None = None

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Job":
        return cls(**{**value, "recipe": Recipe.from_json(value["recipe"])})


@dataclasses.dataclass(frozen=True)
class EpochReport:
    """What is known after an epoch's validation, the same on every rank."""

    epoch: int
    step: int
    error: float  # what the best checkpoint has least of, ``Report.error``
    best: float
    metrics: dict[str, float]


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """The rate of a step, counted over the whole run; ``steps`` an epoch. It needs no state to go on from."""
    if recipe.schedule == "step":
        return recipe.learning_rate * recipe.step_factor ** (step // steps // recipe.step_epochs)
    warmup = recipe.warmup_epochs * steps
    total = recipe.epochs * steps
    if step < warmup:
        return recipe.learning_rate * (step + 1) / (warmup + 1)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total - warmup)))


@dataclasses.dataclass(frozen=True)
class Position:
    """How far a run has come: so many whole epochs and, in the next one, so many steps."""

    epoch: int = 0
    step: int = 0
    best: float = math.inf


def train(
    job: Job,
    device: torch.device,
    log: Callable[[dict[str, float], int], None],
    report: Callable[[EpochReport], None],
    store_log: Callable[[], None] = lambda: None,
) -> None:
    """Train to the end, going on from the run's last checkpoint if it has one.

    ``log`` gets metrics by step (call it on rank 0 only, or make it ignore the others); ``report`` is called on every
    rank once an epoch, before its checkpoint; ``store_log`` before one within an epoch. Uses torch.distributed's
    default group where there is one. Mistake for a data set that cannot be trained on.
    """
    recipe = job.recipe
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    manifest = open_dataset(job.data)
    train_rows = SplitReader(job.data, manifest, "train", limit=job.rows)
    val_rows = SplitReader(job.data, manifest, "val")
    steps = steps_per_epoch(train_rows.rows, recipe.batch_size)
    if global_batch(train_rows.rows, recipe.batch_size, 0)[1] < world:
        raise Mistake(
            f"{world} workers need batches of at least {world} rows: the train split has {train_rows.rows} "
            f"and batch-size is {recipe.batch_size}"
        )

    labels = manifest.labels
    model, optimizer, position = begin(job, labels, device)
    parallel: nn.Module = model
    if world > 1:
        # Batch norm: each worker normalises by its own share, and running statistics are averaged before they are
        # used (validation and checkpoints). Synchronising every layer would cost more than it gives here.
        with warnings.catch_warnings():
            # The option's new name came with torch 2.15 alone.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            parallel = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
    dtype = choose_precision(recipe.precision, device)
    pipeline = InputPipeline(
        recipe.input_size,
        max(-(-recipe.batch_size // world), EVAL_BATCH),
        device.index if device.type == "cuda" else None,
        torch.get_num_threads(),
    )
    loader = BatchLoader(labels, pipeline)

    def keep(at: Position, result: Report | None) -> None:
        """Let rank 0 write a checkpoint, the best one if its error is the least; all ranks wait for it."""
        if rank == 0:
            card = ModelCard(
                model=job.model,
                config=job.config,
                labels=labels,
                input_size=recipe.input_size,
                dataset=job.dataset,
                data_hash=manifest.content_hash,
                recipe=dataclasses.asdict(recipe),
                epoch=at.epoch,
                step=at.epoch * steps + at.step,
                val=result.numbers() if result is not None else {},
            )
            training = {"optimizer": optimizer.state_dict(), "position": dataclasses.asdict(at)}
            checkpoint.keep(
                job.run, model, card, training, best=result is not None and result.error == at.best
            )
        if world > 1:
            dist.barrier()

    while position.epoch < recipe.epochs:
        meter = Meter(recipe, position.epoch * steps, steps, log)
        batches = _train_batches(loader, train_rows, recipe, position, rank, world)
        parallel.train()
        for step in range(position.step, steps):
            waited = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - waited
            first, end = global_batch(train_rows.rows, recipe.batch_size, step)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, position.epoch * steps + step, steps)
            loss = train_step(model, parallel, optimizer, batch, recipe, end - first, world, dtype)
            meter.add(step, loss, end - first, waited)
            if recipe.checkpoint_steps and (step + 1) % recipe.checkpoint_steps == 0 and step + 1 < steps:
                meter.flush()
                store_log()  # a worker lost after this goes on behind these steps
                average_buffers(model, world)
                keep(dataclasses.replace(position, step=step + 1), None)
        assert next(batches, None) is None, "the loader has more batches than the epoch has steps"
        meter.flush()

        average_buffers(model, world)
        result = validate(model, val_rows, loader, rank, world, device)
        if result.error is None:
            raise Mistake(
                f"the val split of {job.data} has nothing that {job.model} predicts: no score to choose by"
            )
        position = Position(position.epoch + 1, 0, min(result.error, position.best))
        metrics = {f"val_{name}": value for name, value in result.numbers().items()}
        metrics |= {
            "val_error": result.error,
            "val_error_best": position.best,
            "epoch": float(position.epoch),
            "workers": float(world),
        }
        # Reported before it is kept: a worker lost in between repeats the epoch, and no metric is missing.
        report(EpochReport(position.epoch, position.epoch * steps, result.error, position.best, metrics))
        keep(position, result)


def begin(job: Job, labels: Labels, device: torch.device) -> tuple[Model, torch.optim.Optimizer, Position]:
    """Model, optimizer and position: from the run's last checkpoint, else from the seed and the given weights."""
    last = checkpoint.pointed(job.run, "last")
    if last is not None:
        model, card = checkpoint.load(storage.join(job.run, last))
        if card.data_hash != open_dataset(job.data).content_hash:
            raise Mistake(f"{job.data} has changed since {job.run} was begun: train a new run on it")
    else:
        model = initial_model(job, labels)
    model.to(device)
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=job.recipe.learning_rate,
        weight_decay=job.recipe.weight_decay,
        fused=True,
    )
    if last is None:
        return model, optimizer, Position()
    state = checkpoint.load_training(storage.join(job.run, last))
    optimizer.load_state_dict(state["optimizer"])
    return model, optimizer, Position(**state["position"])


def initial_model(job: Job, labels: Labels) -> Model:
    """The model that a run begins with: from its seed, with the weights and the classifier that it is given.

    UserError for an input that the system does not take, and for weights that are not there or do not fit.
    """
    torch.manual_seed(job.recipe.seed)
    model = build_model(job.model, job.config, labels)
    size = job.recipe.input_size
    if size % model.stride:
        raise UserError(
            f"input-size must be a multiple of {model.stride}, the stride of {job.model}, not {size}"
        )
    if job.weights is not None:
        data = io.BytesIO(storage.read_bytes(job.weights))
        try:
            state = torch.load(data, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise UserError(
                f"--weights {job.weights} is not a checkpoint of torchvision's: {error}"
            ) from error
        model.load_backbone(state)
    if job.classifier is not None:
        classifier, _ = checkpoint.load(job.classifier)
        model.load_classifier(classifier)
    return model


def validate(
    model: Model,
    rows: SplitReader,
    loader: BatchLoader,
    rank: int,
    world: int,
    device: torch.device,
) -> Report:
    """The whole split's scores on every rank; asserts that each row was counted once."""
    counters = evaluate(model, rows, loader, rank, world)
    if world > 1:
        total = counters.vector().to(device)
        dist.all_reduce(total)
        counters.load_vector(total.cpu())
    try:
        result = counters.report()
    except UserError as error:  # not a number: all ranks have the same sums
        raise Mistake(str(error)) from error
    assert result.rows == rows.rows, f"validation counted {result.rows} rows of {rows.rows}"
    return result


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
    """One step on a rank's share of a global batch of ``rows``; the rank's part of the loss, detached, on the device.

    ``parallel`` is the model, or DDP around it. DDP averages gradients over ranks, so a share's loss, divided by the
    global batch's rows, is multiplied by the number of ranks: the gradient is then the global batch's however its
    rows and visible landmarks are shared out.
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
    """Give every rank the mean of the ranks' batch-norm statistics."""
    if world == 1:
        return
    for buffer in model.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer.div_(world)


class Meter:
    """Collects a step's figures on the device and hands them on each ``log_steps``, averaged over ranks."""

    def __init__(
        self, recipe: Recipe, first: int, steps: int, log: Callable[[dict[str, float], int], None]
    ) -> None:
        self.recipe, self.first, self.steps, self.log = recipe, first, steps, log
        self.losses: list[Tensor] = []
        self.figures: list[tuple[int, int, float]] = []
        self.since = time.perf_counter()

    def add(self, step: int, loss: Tensor, rows: int, waited: float) -> None:
        self.losses.append(loss)
        self.figures.append((step, rows, waited))
        if len(self.losses) == self.recipe.log_steps:
            self.flush()

    def flush(self) -> None:
        if not self.losses:
            return
        losses = torch.stack(self.losses)
        if dist.is_initialized():
            dist.all_reduce(losses)  # a rank's loss is its part of the global batch's
        values = losses.tolist()
        seconds = time.perf_counter() - self.since
        rate = sum(rows for _, rows, _ in self.figures) / seconds
        for (step, _, waited), value in zip(self.figures, values, strict=True):
            at = self.first + step
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


def _train_batches(
    loader: BatchLoader, rows: SplitReader, recipe: Recipe, position: Position, rank: int, world: int
) -> Iterator[Batch]:
    """A rank's shares of the global batches that the epoch still has."""
    order = rows.order(recipe.seed, position.epoch)
    shares = []
    for step in range(position.step, steps_per_epoch(rows.rows, recipe.batch_size)):
        first, end = share(*global_batch(rows.rows, recipe.batch_size, step), rank, world)
        shares.append(order[first:end])
    seeds = ((recipe.seed, position.epoch, int(row)) for part in shares for row in part)
    return loader.run(rows.read(shares), recipe.augmentation, seeds)
