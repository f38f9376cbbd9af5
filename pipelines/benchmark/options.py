"""What to measure. Imports no Ray and no MLflow, so that a mistake is told before they are loaded."""

import dataclasses
from typing import Annotated, Any, Literal, get_args

import tyro

from glefld.data.dataset import open_dataset
from glefld.datasets import Dataset
from glefld.errors import UserError, require_between
from glefld.models import MODELS
from glefld.models.system import Preset
from glefld.recipe import Precision, Recipe

Stage = Literal[
    "ceilings",
    "read",
    "loader",
    "step",
    "predict",
    "shard",
    "ingest",
    "infer",
    "epoch",
    "evaluate",
    "start",
    "plan",
]
STAGES: tuple[Stage, ...] = get_args(Stage)
#: The stages that are measured unless others are named. Planning takes minutes.
DEFAULT = tuple(stage for stage in STAGES if stage != "plan")
#: The stages that start whole jobs, which use the cluster if there is one.
JOBS = ("ingest", "infer", "epoch", "evaluate", "start", "plan")
#: The stages that read raw archives.
RAW = ("shard", "ingest")
#: The stages that log to MLflow.
TRACKED = ("epoch", "evaluate", "start")


@dataclasses.dataclass(frozen=True)
class BenchmarkOptions:
    """What is measured, and on what."""

    stages: tuple[Stage, ...] = DEFAULT
    """Stages to measure: ceilings (the machine's own), read, loader, step, predict and shard (one of ingest's tasks) in
    one process; ingest, infer, epoch, evaluate and start as whole jobs; plan (only if named: planning of --plan-rows
    rows of ingest, without pictures)."""
    peers: bool = False
    """Also measure what a user would otherwise write: Pillow scripts, torchvision's DataLoader, a plain step."""
    grow: Annotated[tuple[int, ...], tyro.conf.arg(metavar="FACTOR ...")] = ()
    """Also run ingest and infer on rendered photos of --rows times each factor, such as 1 4 16, and say whether time
    and peak memory stay flat within 10 %."""
    dataset: Dataset = "fld"
    """Data set to measure on."""
    source: str | None = None
    """Raw data set, as for glefld ingest. Default: --rows photos are rendered."""
    data: str | None = None
    """Ingested data set, path or URL. Default: the source is ingested."""
    photos: str | None = None
    """Photos for predict and infer, as for glefld infer --input. Default: the source's img.zip, else the data set."""
    checkpoint: str | None = None
    """Checkpoint for predict, infer and evaluate. Default: the system with random weights."""
    model: str = "fpn"
    """System to measure."""
    preset: Preset = "best"
    """Preset of the system and the recipe."""
    batch_size: int | None = None
    """Rows per batch. Default: the preset's."""
    input_size: int | None = None
    """Side of the input in pixels. Default: the preset's."""
    precision: Precision = "auto"
    """Precision of training."""
    rows: int = 2000
    """Photos to render, and the most rows that a training epoch takes."""
    plan_rows: tuple[int, ...] = (1_000_000, 4_000_000, 16_000_000)
    """Numbers of rows that the stage plan plans."""
    seconds: float = 5.0
    """Seconds that each repetition of a stage in one process takes at least."""
    repeats: int = 3
    """Repetitions of each figure, in turn with those that it is compared with."""
    cpus: int | None = None
    """CPUs that stages in one process use. Default: this machine's; on a cluster those of its largest machine."""
    work: str | None = None
    """Folder for what is made: photos, data sets, runs; path or URL. It gets a folder of its own in there, which is
    removed at the end. Default: a temporary folder; a cluster needs one that all machines share."""

    def check(self) -> None:
        """Raise UserError for a value out of range, or options that do not fit together."""
        if not self.stages and not self.grow:
            raise UserError(f"--stages names no stage: give some of {', '.join(STAGES)}, or --grow")
        for name in ("rows", "repeats", "batch_size", "input_size", "cpus"):
            if (value := getattr(self, name)) is not None:
                require_between(f"--{name.replace('_', '-')}", value, 1)
        require_between("--seconds", self.seconds, 0.01)
        if not self.plan_rows:
            raise UserError("--plan-rows needs at least one number of rows")
        for rows in self.plan_rows:
            require_between("--plan-rows", rows, 1)
        for factor in self.grow:
            require_between("--grow", factor, 1)
        if len(set(self.grow)) == 1 or list(self.grow) != sorted(set(self.grow)):
            raise UserError("--grow needs at least two factors in rising order, such as 1 4 16")
        if self.model not in MODELS or MODELS[self.model].task != "landmarks":
            names = ", ".join(name for name, system in MODELS.items() if system.task == "landmarks")
            raise UserError(f"--model {self.model} cannot be measured: choose one of {names}")
        if self.data is not None:
            manifest = open_dataset(self.data)
            if manifest.dataset != self.dataset:
                raise UserError(
                    f"--data {self.data} holds {manifest.dataset}: give --dataset {manifest.dataset}"
                )
            if missing := [split for split in ("train", "val") if not manifest.splits.get(split)]:
                raise UserError(
                    f"--data {self.data} has no rows in its split {missing[0]}, which is measured too"
                )
        if (
            self.source is None
            and self.dataset != "fld"
            and (self.data is None or set(RAW) & set(self.stages))
        ):
            raise UserError(
                f"--dataset {self.dataset} needs --source, the raw data to measure: only fld is rendered for you"
            )

    def system(self) -> tuple[Any, Recipe]:
        """Return the system's config, and the recipe with what these options change."""
        config, recipe = MODELS[self.model].preset(self.preset, self.dataset)
        given: dict[str, Any] = {
            "batch_size": self.batch_size,
            "input_size": self.input_size,
            "precision": self.precision,
        }
        return config, dataclasses.replace(recipe, **{k: v for k, v in given.items() if v is not None})


@dataclasses.dataclass(frozen=True)
class Resources:
    """What a stage in one process may use."""

    cpus: int
    gpu: bool
