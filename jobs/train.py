"""Train a model on an ingested data set with Ray Train. Options, scores and the best model are logged to MLflow."""

import argparse
import dataclasses
import datetime
import logging
import re
import sys
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

import tyro
from rich.console import Console
from tyro.extras import literal_type_from_choices

from glefld import storage, tracking
from glefld.data.garments import require_whole_photos
from glefld.datasets import Dataset
from glefld.errors import UserError, require_between
from glefld.models import MODELS, checkpoint, weights
from glefld.models.system import Preset, Task
from glefld.recipe import Recipe
from glefld.redaction import redacted
from glefld.schema import Labels
from glefld.scoring.tables import score_tables
from glefld.training.start import Job, initial_model
from jobs.cli import (
    ONE_LINE,
    Device,
    Root,
    available,
    guard,
    models_folder,
    naming,
    on_cluster,
    open_data,
    parse_options,
    require_name,
    resolve_checkpoint,
    resolve_root,
    resolve_url,
    start_ray,
    suggesting,
    use_gpu,
)
from jobs.progress import TrainingProgress
from pipelines.train.workers import WorkerGroup, parse_workers, require_rows

if TYPE_CHECKING:
    from glefld.tracking import RunHandle

    System = str
else:
    System = literal_type_from_choices(MODELS)

logger = logging.getLogger(__name__)

Config = TypeVar("Config")

#: The system of each task.
USUAL: dict[Task, str] = {"landmarks": "fpn", "classify": "resnet", "detect": "fcos"}
#: Options that may change when a run is resumed. All others must be the same as at its start.
FREE_ON_RESUME = {
    "resume",
    "num_workers",
    "cpus_per_worker",
    "device",
    "max_failures",
    "resize_seconds",
    "root",
    "name",
    "output",
    "register",
    "alias",
    "system_metrics",
}


@dataclasses.dataclass(frozen=True)
class Options(Generic[Config]):
    """Options of the training job. Defaults come from the preset: `--preset paper --help` shows its own."""

    dataset: Dataset
    """Data set to train on."""
    config: Annotated[Config, tyro.conf.arg(name="model")]
    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    system: Annotated[System, tyro.conf.arg(name="model", help="System to train.")] = "fpn"
    task: Task = "landmarks"
    """landmarks; classify: the classifiers resnet and sanl-resnet, for their own use or to guide SANL; detect: fcos,
    which finds garments in photos that were ingested with --margin full."""
    preset: Preset = "best"
    """best: this project's, from ImageNet weights that are on board; half an hour on two CPU cores with fpn and some
    thousand photos. paper: the
    paper's network, and its or its released code's recipe, at 224 pixels."""
    data: str | None = None
    """Ingested data set, path or URL. Default: <root>/data/<dataset>."""
    output: str | None = None
    """Folder of the run, path or URL. Default: <root>/runs/<name>."""
    root: Root = None
    name: str | None = None
    """Name of the run. Default: data set, model and time; with --resume, the newest run of this data set and model."""
    num_workers: str | None = None
    """Number of workers: N, or MIN-MAX for elastic training. Default: one per GPU, or one without GPUs."""
    cpus_per_worker: int | None = None
    """CPUs per worker. Default: on one machine all CPUs, divided among the workers; on a cluster 1."""
    device: Device = "auto"
    resize_seconds: float = WorkerGroup.resize_seconds
    """How often elastic training checks whether workers can be added. Adding workers restarts the group from the last
    checkpoint."""
    max_failures: int = WorkerGroup.max_failures
    """How often to restart the worker group after a failure."""
    resume: bool = False
    """Resume a run that was stopped. Its options must be the same as at its start."""
    weights: str | None = None
    """Weights that the backbone starts with: a checkpoint of timm's or torchvision's, path or URL. Default: ImageNet's,
    which are on board for the backbone of --preset best."""
    pretrained: bool = False
    """Download the backbone's weights from timm's hub."""
    random_weights: bool = False
    """Start from random weights, without --weights and, with SANL, without --classifier."""
    classifier: str | None = None
    """Classifier whose attention guides SANL: checkpoint or run of --task classify, path, URL or MLflow model."""
    start_from: str | None = None
    """Checkpoint or run whose weights training starts with, all of them: of the same system and landmarks, path, URL or
    MLflow model. For instance one that was trained on rendered photos."""
    rows: int | None = None
    """Train on the first N rows only."""
    experiment: str | None = None
    """MLflow experiment. Default: glefld-<dataset>."""
    register: str | None = None
    """Register the best checkpoint in MLflow as a new version of the model with this name. Default: none."""
    alias: str | None = None
    """Point this alias at the registered version, for --checkpoint models:/NAME@ALIAS. Default: none."""
    system_metrics: bool = False
    """Log CPU, memory, disk, network and GPUs of each worker's machine to MLflow, every 10 seconds."""


def run(options: Options[Any]) -> None:
    """Train, and print the best checkpoint and its scores. Raises UserError if an option is wrong."""
    check(options)
    root = resolve_root(options.root)
    data, manifest = open_data(options.data, root, options.dataset)
    if options.task == "detect":
        with naming("--data" if options.data else "--dataset"):
            require_whole_photos(data, manifest)
    workers = choose_workers(options)
    require_rows(data, manifest, workers.most, options.recipe.batch_size, options.rows)
    uri = tracking.tracking_uri(root, on_cluster())
    tracking.require_answer(uri)
    folder, started = find_run(options, root)
    storage.require_writable(folder, "--output" if options.output else "--root", folder=True)
    with naming("--register" if options.alias is None else "--register, --alias"):
        registration = tracking.Registration(options.register, options.alias) if options.register else None
    job = make_job(options, root, data, folder, begun=checkpoint.pointed(folder, "last") is not None)
    if started is None:
        check_model(options, job, manifest.labels)

    from pipelines import ray_private
    from pipelines.lease import hold
    from pipelines.train.run import train_and_score

    console = Console()

    with hold(folder) as lease:
        started = resumed(options, folder)  # again: another process may have begun or ended since
        with tracking.connecting(uri):
            start_ray(dashboard=True)
        handle = tracking.start_run(
            uri,
            options=options,
            manifest=manifest,
            data=data,
            name=folder.rsplit("/", 1)[-1],
            experiment=options.experiment,
            resume=started["run_id"] if started else None,
        )
        record = {
            "options": _comparable(options),
            "run_id": handle.run_id,
            "begun": (started or {}).get("begun") or datetime.datetime.now(datetime.UTC).isoformat(),
        }
        storage.write_json(storage.join(folder, "run.json"), record)
        with TrainingProgress(console, workers) as progress, ray_private.worker_lines(progress.take):
            best, report, baselines = train_and_score(
                job, workers, handle, lease, registration, options.system_metrics
            )
    if registration is not None:
        copy_model(handle, root)
    console.print(score_tables(options.dataset, report, baselines))
    console.print(f"run        {folder}", soft_wrap=True)
    console.print(f"checkpoint {best}", soft_wrap=True)
    console.print(f"MLflow     {tracking.where(handle)}", soft_wrap=True)


def check(options: Options[Any]) -> None:
    """Raise UserError for options that are out of range or do not fit together."""
    require_between("--resize-seconds", options.resize_seconds, 0)
    require_between("--max-failures", options.max_failures, 0)
    require_name(options.name)
    for field in ("weights", "classifier", "start_from"):
        if getattr(options, field) == "":
            raise UserError(f"--{field.replace('_', '-')} is empty: name a file, or leave it out")
    for field in ("cpus_per_worker", "rows"):
        if (value := getattr(options, field)) is not None:
            require_between(f"--{field.replace('_', '-')}", value, 1)
    if MODELS[options.system].task != options.task:
        names = ", ".join(name for name, system in MODELS.items() if system.task == options.task)
        raise UserError(f"--task {options.task} does not fit --model {options.system}: choose one of {names}")
    if sum((options.weights is not None, options.pretrained, options.random_weights)) > 1:
        raise UserError("--weights, --pretrained and --random-weights exclude one another: give one of them")
    given = {
        "weights": options.weights,
        "pretrained": options.pretrained,
        "random-weights": options.random_weights,
    }
    if not hasattr(options.config, "backbone"):
        for name in ("weights", "pretrained"):
            if given[name]:
                raise UserError(
                    f"--{name}: {options.system} has no backbone that takes weights: leave it out"
                )
    given |= {"classifier": options.classifier}
    if options.start_from and (other := [name for name, value in given.items() if value]):
        raise UserError(f"--start-from gives the model all its weights: leave --{other[0]} out")
    if options.alias and not options.register:
        raise UserError("--alias needs a registered model: add --register NAME")


def make_job(options: Options[Any], root: str, data: str, folder: str, begun: bool = False) -> Job:
    """Return what the workers get. Raises UserError for weights or a classifier that cannot be accessed.

    begun: the run has a checkpoint of its own, so that nobody needs what it started with.
    """

    def found(place: str | None, option: str) -> str | None:
        return place if place is None or begun else resolve_checkpoint(place, option, root)

    return Job(
        dataset=options.dataset,
        data=data,
        run=folder,
        model=options.system,
        config=dataclasses.asdict(options.config),
        recipe=options.recipe,
        weights=None
        if options.start_from
        else weights.choose(
            getattr(options.config, "backbone", None),
            resolve_url(options.weights, "--weights") if options.weights else None,
            options.pretrained,
            options.random_weights,
        ),
        classifier=found(options.classifier, "--classifier"),
        rows=options.rows,
        start_from=found(options.start_from, "--start-from"),
    )


def check_model(options: Options[Any], job: Job, labels: Labels) -> None:
    """Build the model as the workers will. Raises UserError if it, its weights or its classifier does not fit."""
    model = initial_model(job, labels)
    alone = job.classifier is None and job.start_from is None
    if model.guided_by is not None and alone and not options.random_weights:
        raise UserError(
            f"{options.system} is guided by a classifier: give --classifier RUN (train one with glefld train "
            f"--task classify --dataset {options.dataset} --model.backbone {model.guided_by.backbone}), or "
            "--random-weights to train without one"
        )


def copy_model(handle: "RunHandle", root: str) -> None:
    """Copy the run's model below the root, where jobs find it that may not write there.

    If MLflow does not have it yet, a warning says so: the training is done all the same.
    """
    try:
        tracking.fetch(f"runs:/{handle.run_id}", handle.tracking_uri, models_folder(root))
    except ONE_LINE as error:
        logger.warning(
            "the registered model was not copied, which --resume makes up for: %s",
            redacted(str(error)),
        )


def _begun(folder: str) -> str:
    """Return when a run was begun, in UTC as ISO 8601, from its run.json; empty if it has none or does not say."""
    record = storage.join(folder, "run.json")
    return storage.read_json(record).get("begun", "") if storage.exists(record) else ""


def find_run(options: Options[Any], root: str) -> tuple[str, dict[str, Any] | None]:
    """Return the run's folder, and its run.json if the run is resumed.

    Raises UserError if the run to resume does not exist or has other options, or if a new run's name is taken.
    """
    runs = storage.join(root, "runs")
    prefix = f"{options.dataset}-{options.system}-"
    if options.output:
        folder = resolve_url(options.output, "--output")
    elif options.name:
        folder = storage.join(runs, options.name)
    elif options.resume:
        # Match the timestamp too: the prefix fld-sanl- also matches runs of sanl-resnet.
        named = re.compile(re.escape(prefix) + r"\d{8}-\d{6}")
        names = [
            entry.name for entry in storage.entries(runs) if entry.is_folder and named.fullmatch(entry.name)
        ]
        if not names:
            raise UserError(
                f"--resume: there is no run {prefix}... in {runs}: name the run with --name or --output"
            )
        folder = storage.join(runs, max(names, key=lambda name: (_begun(storage.join(runs, name)), name)))
    else:
        folder = storage.join(runs, prefix + datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S"))
    return folder, resumed(options, folder)


def resumed(options: Options[Any], folder: str) -> dict[str, Any] | None:
    """Return a run's run.json if the run is resumed, or None if it is new.

    Raises UserError if the run to resume does not exist or has other options, or if a new run's name is taken.
    """
    record = storage.join(folder, "run.json")
    if not storage.exists(record):
        if options.resume:
            with suggesting(folder):
                raise UserError(
                    f"--resume: {folder} is not a run (it has no run.json): check --name and --output"
                )
        return None
    if not options.resume:
        raise UserError(
            f"{folder} already holds a run: give --resume to continue it, or choose another --name"
        )
    started = storage.read_json(record)
    if "options" not in started:
        raise UserError(
            f"--resume: {folder} belongs to a comparison: continue it with glefld compare and its --name"
        )
    wanted = _comparable(options)
    changed = [name for name in wanted if wanted[name] != started["options"].get(name)]
    if changed:
        was = ", ".join(f"{name} {started['options'].get(name)!r}" for name in changed)
        raise UserError(f"--resume needs the options that the run was started with: {was}")
    return started


def _comparable(options: Options[Any]) -> dict[str, Any]:
    """Return the options that must be the same when a run is resumed, as stored in run.json, without passwords."""
    kept = {name: value for name, value in dataclasses.asdict(options).items() if name not in FREE_ON_RESUME}
    return redacted(kept)


def choose_workers(options: Options[Any]) -> WorkerGroup:
    """Choose the worker group from the options and what is available.

    Raises UserError if this machine has too few CPUs or GPUs.
    """
    resources = available()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    gpu = use_gpu(options.device, gpus)
    least, most = parse_workers(options.num_workers or str(max(1, gpus if gpu else 1)))
    each = options.cpus_per_worker or (1 if on_cluster() else max(1, cpus // most))
    if gpu and least > gpus and not on_cluster():
        raise UserError(f"--num-workers {least}, but this machine has {gpus} GPUs: lower --num-workers")
    if not on_cluster() and least * each > cpus:
        raise UserError(
            f"{least} workers of {each} CPUs need more than this machine's {cpus} CPUs: "
            "lower --num-workers or --cpus-per-worker"
        )
    return WorkerGroup(least, most, each, gpu, options.max_failures, options.resize_seconds)


def parse(argv: list[str]) -> Options[Any]:
    """Parse the command line (exit status 2 if it is wrong). Defaults depend on the preset, model and data set."""
    # A value that there is not is refused by the second parser, which knows all options.
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("--dataset", "--task", "--model", "--preset"):
        first.add_argument(option, nargs="?")
    named, _ = first.parse_known_args(argv)
    task: Task = next((task for task in USUAL if task == named.task), "landmarks")
    preset: Preset = "paper" if named.preset == "paper" else "best"
    name = named.model if named.model in MODELS else USUAL[task]
    of_this_system, default = defaults(name, task, preset, named.dataset or "fld")
    return parse_options(of_this_system, argv, sys.modules[__name__], default)


def defaults(system: str, task: Task, preset: Preset, dataset: str) -> tuple[Any, Options[Any]]:
    """Return the type of a system's options, and their defaults with this preset and data set."""
    config, recipe = MODELS[system].preset(preset, dataset)
    default = Options(
        dataset=tyro.MISSING, config=config, recipe=recipe, system=system, task=task, preset=preset
    )
    return Options[type(config)], default  # type: ignore[misc]


if __name__ == "__main__":
    guard(lambda: run(parse(sys.argv[1:])))
