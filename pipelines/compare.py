"""Train and score several systems with one recipe, as child runs of one MLflow run, in parallel if there is room."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import ray
import torch

from glefld import storage, tracking
from glefld.data.dataset import open_dataset
from glefld.errors import UserError
from glefld.models import checkpoint, weights
from glefld.models.backbones import EMBEDDED
from glefld.models.classifier import Label, ResNetConfig
from glefld.models.precision import choose_precision
from glefld.models.system import Guidance, Model
from glefld.recipe import Recipe
from glefld.schema import Split
from glefld.scoring import cost
from glefld.scoring.comparison import Result
from glefld.scoring.cost import Cost
from glefld.scoring.evaluation import EVAL_BATCH
from glefld.training.start import Job, initial_model
from pipelines.train.workers import WorkerGroup

if TYPE_CHECKING:
    from glefld.tracking import RunHandle
    from pipelines.lease import Lease


@dataclasses.dataclass(frozen=True)
class ComparedSystem:
    """One row of the comparison: a system, its config, and its recipe, which is the shared one with its own changes."""

    name: str
    system: str
    config: Any
    recipe: Recipe


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The settings that all entries share."""

    dataset: str
    data: str
    folder: str
    split: Split
    rows: int | None
    weights: Mapping[str, str]
    """URLs of weights, by backbone."""
    pretrained: bool
    """Take those of other backbones from timm's hub."""
    random_weights: bool
    """Start other backbones from random weights."""
    parallel: int
    experiment: str | None


def slug(name: str) -> str:
    """Return an entry's name with only characters that are valid in folder and metric names."""
    return "".join(c if c.isalnum() or c in "-." else "-" for c in name)


def compare(
    comparison: Comparison,
    entries: Sequence[ComparedSystem],
    seeds: Sequence[int],
    parent: "RunHandle",
    lease: "Lease",
    guides: Mapping[tuple[str, int], str],
    workers: WorkerGroup,
    done: Callable[[Result], None],
) -> list[Result]:
    """Train and score each entry with each seed.

    Results are in the order of the entries; ``done`` is called with each one as it becomes available.
    lease: this driver's claim on the comparison's folder. guides: URLs of the guiding classifiers, by entry name and
    seed. If an earlier comparison in this folder was stopped, its finished runs are read and its unfinished runs are
    resumed. Raises UserError if its options differ.
    """
    waiting = [(entry, seed) for entry in entries for seed in seeds]
    running: dict[ray.ObjectRef, RunHandle] = {}
    results: dict[tuple[str, int], Result] = {}

    def note(result: Result) -> None:
        results[result.system, result.seed] = result
        done(result)

    try:
        while waiting or running:
            while waiting and len(running) < comparison.parallel:
                entry, seed = waiting.pop(0)
                job = make_job(comparison, entry, seed, guides)
                earlier = begun(job)
                if earlier is not None and (found := finished(job, comparison.split)) is not None:
                    note(found)
                    continue
                resume = earlier["run_id"] if earlier is not None else None
                handle = open_run(job, f"{entry.name} seed {seed}", comparison.experiment, parent, resume)
                running[_child.remote(job, entry.name, comparison.split, workers, handle, lease)] = handle
            if running:
                (ready,), _ = ray.wait(list(running), num_returns=1)
                result = ray.get(ready)  # may raise, so its run stays in ``running`` and is ended below
                del running[ready]
                note(result)
    except BaseException as error:
        for task, handle in running.items():
            ray.cancel(task, force=True)
            tracking.finish(handle, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    return [results[entry.name, seed] for entry in entries for seed in seeds]


def find_guides(
    comparison: Comparison,
    guided_by: dict[str, Guidance],
    seeds: Sequence[int],
    given: str | None,
    recipe: Recipe,
    parent: "RunHandle",
    lease: "Lease",
    workers: WorkerGroup,
    done: Callable[[Result], None],
) -> dict[tuple[str, int], str]:
    """Return the guiding classifiers' URLs by entry name and seed: the given one, or trained with the same recipe.

    guided_by: by entry name, the classifier that it needs, as ``check`` returns them.
    """
    if given is not None:
        return {(name, seed): given for name in guided_by for seed in seeds}
    needed = dict.fromkeys(guided_by.values())
    trained = guides_to_train(guided_by, recipe)
    results = iter(compare(comparison, trained, seeds, parent, lease, {}, workers, done))
    checkpoints = {(guide, seed): next(results).checkpoint for guide in needed for seed in seeds}
    return {(name, seed): checkpoints[guide, seed] for name, guide in guided_by.items() for seed in seeds}


def guides_to_train(guided_by: Mapping[str, Guidance], recipe: Recipe) -> list[ComparedSystem]:
    """Return the classifiers that guide the entries, each once."""
    return [
        ComparedSystem(
            f"classifier:backbone={backbone},label={label}",
            "resnet",
            ResNetConfig(backbone, cast(Label, label)),
            recipe,
        )
        for backbone, label in dict.fromkeys(guided_by.values())
    ]


def check(
    comparison: Comparison, entries: Sequence[ComparedSystem], given: str | None, recipe: Recipe
) -> dict[str, Guidance]:
    """Build each entry's model and its guide, and return the guides by name of the entries that need one.

    given: the classifier that guides all of them; None to train each that is needed with ``recipe``.
    Raises UserError for an entry or a guide that cannot be trained or used, before hours are spent on the others, and
    for weights or a classifier that nothing uses.
    """
    labels = open_dataset(comparison.data).labels

    def build(entry: ComparedSystem, guides: Mapping[tuple[str, int], str]) -> Model:
        try:
            return initial_model(make_job(comparison, entry, entry.recipe.seed, guides), labels)
        except UserError as error:
            raise UserError(f"{entry.name}: {error}") from error

    built = {entry.name: build(entry, {}).guided_by for entry in entries}
    guided_by = {name: guide for name, guide in built.items() if guide is not None}
    if given is not None and not guided_by:
        raise UserError("--classifier: no system of the comparison is guided by a classifier: leave it out")
    trained = [] if given is not None else guides_to_train(guided_by, recipe)
    for entry in entries:
        if given is not None and entry.name in guided_by:
            build(entry, {(entry.name, entry.recipe.seed): given})
    for guide in trained:
        build(guide, {})
    used = {getattr(entry.config, "backbone", "") for entry in (*entries, *trained)}
    for backbone in comparison.weights:
        if backbone not in used:
            raise UserError(
                f"--weights {backbone}=...: no system of the comparison has the backbone {backbone!r}, nor is a "
                "classifier trained that guides one"
            )
    return guided_by


def make_job(
    comparison: Comparison, entry: ComparedSystem, seed: int, guides: Mapping[tuple[str, int], str]
) -> Job:
    """Return the training job of one entry and seed, in its own folder inside the comparison's."""
    backbone = getattr(entry.config, "backbone", None)
    return Job(
        dataset=comparison.dataset,
        data=comparison.data,
        run=storage.join(comparison.folder, f"{slug(entry.name)}-seed{seed}"),
        model=entry.system,
        config=dataclasses.asdict(entry.config),
        recipe=dataclasses.replace(entry.recipe, seed=seed),
        weights=weights.choose(
            backbone,
            comparison.weights.get(backbone or ""),
            # What is on board goes before: these two are for the backbones that have none there.
            comparison.pretrained and backbone != EMBEDDED,
            comparison.random_weights and backbone != EMBEDDED,
        ),
        classifier=guides.get((entry.name, seed)),
        rows=comparison.rows,
    )


def begun(job: Job) -> dict[str, Any] | None:
    """Return the job's run.json if it was started before, else None. Raises UserError if its options differ."""
    record = storage.join(job.run, "run.json")
    if not storage.exists(record):
        return None
    found = storage.read_json(record)
    if found["job"] != dataclasses.asdict(job):
        raise UserError(
            f"{job.run} was started with other options: choose another --name for this comparison"
        )
    return found


def finished(job: Job, split: Split) -> Result | None:
    """Return the scores on a split, or None if the job has not been scored on it yet."""
    url = result_url(job, split)
    return Result(**storage.read_json(url)) if storage.exists(url) else None


def result_url(job: Job, split: Split) -> str:
    """Return where a job's scores on a split are stored."""
    return storage.join(job.run, f"result-{split}.json")


def open_run(
    job: Job, name: str, experiment: str | None, parent: "RunHandle", resume: str | None
) -> "RunHandle":
    """Open the job's MLflow run: the run with the id ``resume``, or a new child of ``parent``."""
    handle = tracking.start_run(
        parent.tracking_uri,
        options=job,
        manifest=open_dataset(job.data),
        data=job.data,
        name=name,
        experiment=experiment,
        resume=resume,
        parent=parent,
    )
    record = {"job": dataclasses.asdict(job), "run_id": handle.run_id}
    storage.write_json(storage.join(job.run, "run.json"), record)
    return handle


@ray.remote(num_cpus=0, max_retries=0)
def _child(
    job: Job, name: str, split: Split, workers: WorkerGroup, handle: "RunHandle", lease: "Lease"
) -> Result:
    # Ray Train and what draws take seconds to import, before jobs.compare could tell of a mistake.
    from pipelines import evaluate
    from pipelines.train.run import train_and_score

    best, report, _ = train_and_score(job, workers, handle, lease)
    if split != "val":
        scorer = evaluate.Tasks(cpus=workers.cpus, gpu=workers.gpu)
        report = evaluate.evaluate_checkpoint(best, job.data, split, scorer)
    result = Result.of(report, system=name, seed=job.recipe.seed, checkpoint=best, run_id=handle.run_id)
    storage.write_json(result_url(job, split), dataclasses.asdict(result))
    return result


def measure(results: Sequence[Result], workers: WorkerGroup) -> dict[str, Cost]:
    """Measure each system's cost on the resources of one worker, one system at a time.

    Call it when no training is running, as that would distort the timings.
    """
    checkpoints = {result.system: result.checkpoint for result in results}
    task = ray.remote(_measure).options(num_cpus=workers.cpus, num_gpus=1 if workers.gpu else 0)
    return ray.get(task.remote(checkpoints, workers))


def _measure(checkpoints: dict[str, str], workers: WorkerGroup) -> dict[str, Cost]:
    torch.set_num_threads(workers.cpus)
    device = torch.device("cuda:0" if workers.gpu else "cpu")
    costs = {}
    for system, url in checkpoints.items():
        model, card = checkpoint.load(url)
        model.to(device).to(memory_format=torch.channels_last)
        best = choose_precision("auto", model, card.input_size, EVAL_BATCH, training=False)
        costs[system] = cost.measure(model, card.input_size, EVAL_BATCH, best.dtype)
    return costs
