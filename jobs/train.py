"""Train a model on an ingested data set with Ray Train; options, scores and the best model go to MLflow."""

import argparse
import dataclasses
import datetime
import re
import sys
from typing import Annotated, Any, Generic, TypeVar, get_args

import ray
import tyro
from rich.console import Console

from glefld import storage, tracking
from glefld.datasets import Dataset
from glefld.errors import UserError, require_between
from glefld.models import MODELS, build_model
from glefld.models.system import Preset, Task
from glefld.recipe import Recipe
from glefld.scoring.tables import score_tables
from glefld.tracking import Registration
from glefld.training import loop
from glefld.training.loop import Job
from jobs.cli import (
    Device,
    Root,
    guard,
    on_cluster,
    open_data,
    resolve_checkpoint,
    resolve_root,
    resolve_url,
    start_ray,
    use_gpu,
)
from pipelines.train.run import WorkerGroup, parse_workers, train_and_score

Config = TypeVar("Config")

#: What may differ when a run is resumed; all else is what the run was started with.
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
}


@dataclasses.dataclass(frozen=True)
class Options(Generic[Config]):
    """What to train, on what, where and how. Defaults are the preset's: `--preset paper --help` shows the paper's."""

    dataset: Dataset
    """Which data set."""
    config: Annotated[Config, tyro.conf.arg(name="model")]
    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    system: Annotated[str, tyro.conf.arg(name="model", help=f"Which system: {', '.join(MODELS)}.")] = "gle"
    task: Task = "landmarks"
    """landmarks, or classify: the classifiers (resnet, sanl-resnet), which guide SANL and stand for themselves."""
    preset: Preset = "small"
    """paper: the paper's network and recipe at 224 pixels; small: a narrow one at 112 for two CPU cores."""
    data: str | None = None
    """The ingested data set, path or URL. Default: <root>/data/<dataset>."""
    output: str | None = None
    """Folder of the run, path or URL. Default: <root>/runs/<name>."""
    root: Root = None
    name: str | None = None
    """Name of the run. Default: data set, model and time; with --resume, the newest such run."""
    num_workers: str | None = None
    """Workers: N, or MIN-MAX for elastic training. Default: one for each GPU, or one."""
    cpus_per_worker: int | None = None
    """CPUs a worker takes. Default on one machine: all of them, shared out; on a cluster: 1."""
    device: Device = "auto"
    resize_seconds: float = 60.0
    """How often elastic training checks whether workers can be added. Adding one restarts all of them from the last
    checkpoint."""
    max_failures: int = 3
    """How often the worker group is restarted after a loss."""
    resume: bool = False
    """Go on with a run that was stopped: the same options as it was started with."""
    weights: str | None = None
    """ImageNet weights of the backbone: torchvision's checkpoint of it, a path or URL. Never fetched by itself."""
    random_weights: bool = False
    """Let --preset paper start without --weights, and SANL without --classifier, from random ones."""
    classifier: str | None = None
    """The classifier whose attention guides SANL: a checkpoint or run of --task classify, path, URL or MLflow model."""
    rows: int | None = None
    """Train on the first so many rows only."""
    experiment: str | None = None
    """MLflow experiment. Default: glefld-<dataset>."""
    register: str | None = None
    """Name in MLflow's model registry of which the best checkpoint becomes a new version. Default: none."""
    alias: str | None = None
    """Alias that then means this version, so that --checkpoint models:/NAME@ALIAS finds it. Default: none."""


def run(options: Options[Any]) -> None:
    require_between("--resize-seconds", options.resize_seconds, 0)
    if MODELS[options.system].task != options.task:
        names = ", ".join(name for name, system in MODELS.items() if system.task == options.task)
        raise UserError(f"--task {options.task} is not what {options.system} does: choose --model {names}")
    if options.preset == "paper" and options.weights is None and not options.random_weights:
        raise UserError(
            "--preset paper starts from ImageNet weights: give --weights FILE_OR_URL (torchvision's checkpoint of the "
            "backbone), or --random-weights to go without"
        )
    root = resolve_root(options.root)
    data, manifest = open_data(options.data, root, options.dataset)
    guided = build_model(options.system, options.config, manifest.labels).guided_by is not None
    if guided and options.classifier is None and not options.random_weights:
        raise UserError(
            f"{options.system} is guided by a classifier: give --classifier RUN (of python -m jobs.train "
            f"--task classify --dataset {options.dataset}), or --random-weights to go without"
        )
    if options.alias and not options.register:
        raise UserError("--alias is for a registered model: give --register NAME too")
    registration = Registration(options.register, options.alias) if options.register else None
    uri = tracking.tracking_uri(root, on_cluster())
    folder, started = find_run(options, root)
    job = Job(
        dataset=options.dataset,
        data=data,
        run=folder,
        model=options.system,
        config=dataclasses.asdict(options.config),
        recipe=options.recipe,
        weights=resolve_url(options.weights, "--weights") if options.weights else None,
        classifier=resolve_checkpoint(options.classifier, "--classifier", root)
        if options.classifier
        else None,
        rows=options.rows,
    )
    if started is None:
        loop.initial_model(job, manifest.labels)  # what is wrong with it shows here, and not in the workers
    start_ray(dashboard=True)
    workers = choose_workers(options)
    handle = tracking.start_run(
        uri,
        options=options,
        manifest=manifest,
        data=data,
        name=folder.rsplit("/", 1)[-1],
        experiment=options.experiment,
        resume=started["run_id"] if started else None,
    )
    storage.write_json(
        storage.join(folder, "run.json"), {"options": _comparable(options), "run_id": handle.run_id}
    )
    best, report, baselines = train_and_score(job, workers, handle, registration)
    console = Console()
    console.print(score_tables(options.dataset, report, baselines))
    console.print(f"run        {folder}", soft_wrap=True)
    console.print(f"checkpoint {best}", soft_wrap=True)
    console.print(f"MLflow     {tracking.where(handle)}", soft_wrap=True)


def find_run(options: Options[Any], root: str) -> tuple[str, dict[str, Any] | None]:
    """The run's folder, and what run.json says of it if it goes on. UserError for a wrong --resume or a taken name."""
    runs = storage.join(root, "runs")
    prefix = f"{options.dataset}-{options.system}-"
    if options.output:
        folder = resolve_url(options.output, "--output")
    elif options.name:
        folder = storage.join(runs, options.name)
    elif options.resume:
        # The rest is a time: fld-sanl- also begins the runs of sanl-resnet.
        named = re.compile(re.escape(prefix) + r"\d{8}-\d{6}")
        names = [
            entry.name for entry in storage.entries(runs) if entry.is_folder and named.fullmatch(entry.name)
        ]
        if not names:
            raise UserError(f"--resume: there is no run {prefix}... in {runs}; say which with --name")
        folder = storage.join(runs, max(names))
    else:
        folder = storage.join(runs, prefix + datetime.datetime.now().strftime("%Y%m%d-%H%M%S"))
    record = storage.join(folder, "run.json")
    if not storage.exists(record):
        if options.resume:
            raise UserError(f"--resume: {folder} is not a run (it has no run.json)")
        return folder, None
    if not options.resume:
        raise UserError(f"there is a run in {folder}: give --resume to go on with it, or another --name")
    started = storage.read_json(record)
    wanted = _comparable(options)
    changed = [name for name in wanted if wanted[name] != started["options"].get(name)]
    if changed:
        was = ", ".join(f"{name} {started['options'].get(name)!r}" for name in changed)
        raise UserError(
            f"--resume goes on with the run's own options, which were: {was}; give the same again"
        )
    return folder, started


def _comparable(options: Options[Any]) -> dict[str, Any]:
    """The options that a run is gone on with, as run.json keeps them: without passwords."""
    kept = {name: value for name, value in dataclasses.asdict(options).items() if name not in FREE_ON_RESUME}
    return storage.redacted(kept)


def choose_workers(options: Options[Any]) -> WorkerGroup:
    """The worker group that the options ask for, on the resources that are there."""
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    gpu = use_gpu(options.device)
    least, most = parse_workers(options.num_workers or str(max(1, gpus if gpu else 1)))
    each = options.cpus_per_worker or (1 if on_cluster() else max(1, cpus // most))
    if gpu and least > gpus and not on_cluster():
        raise UserError(f"--num-workers {least}, but this machine has {gpus} GPUs: ask for {gpus} at most")
    if not on_cluster() and least * each > cpus:
        raise UserError(
            f"{least} workers of {each} CPUs are more than this machine's {cpus}: lower --num-workers"
        )
    return WorkerGroup(least, most, each, gpu, options.max_failures, options.resize_seconds)


def parse(argv: list[str]) -> Options[Any]:
    """Options whose defaults are the preset's, for the model and data set that are named. Exits 2 on a wrong one."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--dataset", default="fld")
    first.add_argument("--task", choices=get_args(Task), default="landmarks")
    first.add_argument("--model", choices=MODELS)
    first.add_argument("--preset", choices=("paper", "small"), default="small")
    named, _ = first.parse_known_args(argv)
    name = named.model or ("gle" if named.task == "landmarks" else "resnet")
    config, recipe = MODELS[name].preset(named.preset, named.dataset)
    default = Options(
        dataset=tyro.MISSING, config=config, recipe=recipe, system=name, task=named.task, preset=named.preset
    )
    of_this_system: Any = Options[type(config)]  # type: ignore[misc]
    return tyro.cli(of_this_system, default=default, args=argv, description=__doc__)


if __name__ == "__main__":
    guard(lambda: run(parse(sys.argv[1:])))
