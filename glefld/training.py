"""What one training worker does. It knows its rank and the group's size only to take its share.

b a rank's share of the global batch, K landmarks, S the input's size.
"""

import dataclasses
import io
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from glefld import checkpoint, heatmap, storage
from glefld.checkpoint import ModelCard
from glefld.dataset import open_dataset
from glefld.evaluation import EVAL_BATCH, evaluate
from glefld.loader import Augmentation, Batch, BatchLoader, InputPipeline
from glefld.metrics import Report
from glefld.models import build_model
from glefld.reader import SplitReader, global_batch, share, steps_per_epoch


def mirror_only() -> Augmentation:
    return Augmentation(rotate=0, scale=0, shift=0, colour=0)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a model is trained. The defaults are GLE's paper: Adam 1e-4, x0.1 each 5 epochs, batch 50, 30 epochs."""

    input_size: int = 224
    """Side of the square input, a multiple of 8."""
    epochs: int = 30
    batch_size: int = 50
    """Global batch: split among the workers."""
    learning_rate: float = 1e-4
    schedule: Literal["step", "cosine"] = "step"
    """step: the rate times step_factor each step_epochs. cosine: a linear warm-up, then down to zero."""
    step_epochs: int = 5
    step_factor: float = 0.1
    warmup_epochs: float = 1.0
    """Linear warm-up of the cosine schedule."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW); 0 is plain Adam."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the forward pass. auto: bf16 where the hardware multiplies it (CUDA, or AMX on a CPU), else fp32."""
    seed: int = 0
    checkpoint_steps: int = 0
    """Also keep a checkpoint each so many steps within an epoch; 0 keeps one at each epoch's end only."""
    log_steps: int = 20
    """Steps between two looks at the loss: the only times at which a step waits for the host."""
    augmentation: Augmentation = dataclasses.field(default_factory=mirror_only)

    def __post_init__(self) -> None:
        for name in ("input_size", "epochs", "batch_size", "step_epochs", "log_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        if self.input_size % 8:
            raise ValueError(
                f"input-size must be a multiple of 8, the network's stride, not {self.input_size}"
            )
        if self.learning_rate <= 0:
            raise ValueError(f"learning-rate must be above 0, not {self.learning_rate}")


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
    rows: int | None = None


@dataclasses.dataclass(frozen=True)
class EpochReport:
    """What is known after an epoch's validation, the same on every rank."""

    epoch: int
    step: int
    ne: float
    best_ne: float
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


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of the forward pass. On CPUs without AMX, bf16 was measured slower than fp32; with it, 1.9 x faster."""
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


@dataclasses.dataclass(frozen=True)
class Position:
    """How far a run has come: so many whole epochs and, in the next one, so many steps."""

    epoch: int = 0
    step: int = 0
    best_ne: float = math.inf


def train(
    job: Job,
    device: torch.device,
    log: Callable[[dict[str, float], int], None],
    report: Callable[[EpochReport], None],
) -> None:
    """Train to the end, going on from the run's last checkpoint if it has one.

    ``log`` gets metrics by step (call it on rank 0 only, or make it ignore the others); ``report`` is called on every
    rank once an epoch, before its checkpoint. Uses torch.distributed's default group where there is one. ValueError,
    on every rank, for a data set that cannot be trained on.
    """
    recipe = job.recipe
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    manifest = open_dataset(job.data)
    train_rows = SplitReader(job.data, manifest, "train", limit=job.rows)
    val_rows = SplitReader(job.data, manifest, "val")
    steps = steps_per_epoch(train_rows.rows, recipe.batch_size)
    if global_batch(train_rows.rows, recipe.batch_size, 0)[1] < world:
        raise ValueError(
            f"{world} workers need batches of at least {world} rows: the train split has {train_rows.rows} "
            f"and batch-size is {recipe.batch_size}"
        )

    model, optimizer, position = begin(job, len(manifest.landmark_set), device)
    parallel: nn.Module = model
    if world > 1:
        # Batch norm: each worker normalises by its own share, and running statistics are averaged before they are
        # used (validation and checkpoints). Synchronising every layer would cost more than it gives here.
        parallel = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
    dtype = choose_precision(recipe.precision, device)
    r = heatmap.radius(recipe.input_size)
    pipeline = InputPipeline(
        recipe.input_size,
        max(-(-recipe.batch_size // world), EVAL_BATCH),
        device.index if device.type == "cuda" else None,
        torch.get_num_threads(),
    )
    loader = BatchLoader(manifest.landmark_set, pipeline)

    def keep(at: Position, ne: float | None) -> None:
        """Let rank 0 write a checkpoint, the best one if its NE is; all ranks wait for it."""
        if rank == 0:
            card = ModelCard(
                model=job.model,
                config=job.config,
                landmark_set=manifest.landmark_set,
                input_size=recipe.input_size,
                radius=r,
                dataset=job.dataset,
                data_hash=manifest.content_hash,
                recipe=dataclasses.asdict(recipe),
                epoch=at.epoch,
                step=at.epoch * steps + at.step,
                ne=ne,
            )
            training = {"optimizer": optimizer.state_dict(), "position": dataclasses.asdict(at)}
            checkpoint.keep(job.run, model, card, training, best=ne is not None and ne == at.best_ne)
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
            loss = train_step(parallel, optimizer, batch, r, end - first, world, dtype)
            meter.add(step, loss, end - first, waited)
            if recipe.checkpoint_steps and (step + 1) % recipe.checkpoint_steps == 0 and step + 1 < steps:
                meter.flush()
                average_buffers(model, world)
                keep(dataclasses.replace(position, step=step + 1), None)
        assert next(batches, None) is None, "the loader has more batches than the epoch has steps"
        meter.flush()

        average_buffers(model, world)
        result = validate(model, val_rows, loader, r, rank, world, device)
        if result.ne is None:
            raise ValueError(
                f"the val split of {job.data} has no visible landmark: there is no NE to choose by"
            )
        position = Position(position.epoch + 1, 0, min(result.ne, position.best_ne))
        metrics = {"val_ne": result.ne, "val_ne_best": position.best_ne, "epoch": float(position.epoch)}
        metrics |= {f"val_ne/{name}": ne for name, ne in result.ne_by_landmark.items() if ne is not None}
        # Reported before it is kept: a worker lost in between repeats the epoch, and no metric is missing.
        report(EpochReport(position.epoch, position.epoch * steps, result.ne, position.best_ne, metrics))
        keep(position, result.ne)


def begin(
    job: Job, landmarks: int, device: torch.device
) -> tuple[nn.Module, torch.optim.Optimizer, Position]:
    """Model, optimizer and position: from the run's last checkpoint, else from the seed and the backbone's weights."""
    last = checkpoint.pointed(job.run, "last")
    if last is not None:
        model, _ = checkpoint.load(storage.join(job.run, last))
    else:
        torch.manual_seed(job.recipe.seed)
        model = build_model(job.model, job.config, landmarks)
        if job.weights is not None:
            load_backbone(model, job.weights)
    model.to(device)
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=job.recipe.learning_rate, weight_decay=job.recipe.weight_decay, fused=True
    )
    if last is None:
        return model, optimizer, Position()
    state = checkpoint.load_training(storage.join(job.run, last))
    optimizer.load_state_dict(state["optimizer"])
    return model, optimizer, Position(**state["position"])


def validate(
    model: nn.Module,
    rows: SplitReader,
    loader: BatchLoader,
    r: float,
    rank: int,
    world: int,
    device: torch.device,
) -> Report:
    """The whole split's scores on every rank; asserts that each row was counted once."""
    counters = evaluate(model, rows, loader, r, rank, world)
    if world > 1:
        total = counters.vector().to(device)
        dist.all_reduce(total)
        counters.load_vector(total.cpu())
    result = counters.report()
    assert result.rows == rows.rows, f"validation counted {result.rows} rows of {rows.rows}"
    return result


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    r: float,
    rows: int,
    world: int,
    dtype: torch.dtype,
) -> Tensor:
    """One step on a rank's share of a global batch of ``rows``; the rank's part of the loss, detached, on the device.

    DDP averages gradients over ranks, so a share's loss, divided by the global batch's rows, is multiplied by the
    number of ranks: the gradient is then the global batch's however its rows and visible landmarks are shared out.
    """
    images = batch.images.contiguous(memory_format=torch.channels_last)
    landmarks = batch.landmarks.to(images.device, non_blocking=True)
    weight = batch.weight().to(images.device, non_blocking=True)
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        predicted = model(images)
    loss = heatmap.loss(predicted, landmarks, weight, r, rows)
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


def load_backbone(model: nn.Module, url: str) -> None:
    """Load ``features.*`` of a torchvision VGG16 checkpoint (path or URL). ValueError if it does not fit."""
    state = torch.load(io.BytesIO(storage.read_bytes(url)), map_location="cpu", weights_only=True)
    features: nn.Module = model.get_submodule("features")
    wanted = features.state_dict()
    found = {name.removeprefix("features."): v for name, v in state.items() if name.startswith("features.")}
    missing = [name for name, v in wanted.items() if name not in found or found[name].shape != v.shape]
    if missing:
        raise ValueError(
            f"{url} does not hold this backbone's weights (features.{missing[0]} is missing or has another shape): "
            "give torchvision's vgg16 checkpoint and --model.backbone vgg16"
        )
    features.load_state_dict({name: found[name] for name in wanted})


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
