"""Train several systems on the same data with the same recipe, and compare them in a table and a chart."""

import dataclasses
import datetime
from typing import Annotated, Any, get_type_hints

import tyro
from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from glefld import storage, tracking
from glefld.datasets import Dataset
from glefld.errors import UserError, require_between
from glefld.models import MODELS, build_model
from glefld.models.system import Preset
from glefld.recipe import BEST, Recipe
from glefld.schema import Labels, Split
from glefld.scoring.comparison import Result, chart, rows, table
from glefld.scoring.tables import as_text
from jobs.cli import (
    Device,
    Root,
    available,
    main,
    on_cluster,
    open_data,
    require_name,
    resolve_checkpoint,
    resolve_root,
    resolve_url,
    start_ray,
    use_gpu,
)
from jobs.progress import TrainingProgress
from pipelines.compare import ComparedSystem, Comparison, check, compare, find_guides, measure, slug
from pipelines.train.workers import WorkerGroup, require_rows

ALL = tuple(name for name, system in MODELS.items() if system.task == "landmarks" and name != "local")


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the comparison job."""

    dataset: Dataset
    """Data set to train and score on."""
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = BEST
    models: tuple[str, ...] = ()
    """Systems to compare, each NAME or NAME:OPTION=VALUE,... with options of its config or of the recipe, such as
    gle:modules=0 or sanl:attention=none,landmarks=annotated. Default: all that the data set's labels allow, with DAFE
    in both of its forms."""
    backbone: str | None = None
    """Backbone of all systems that have one, such as resnet18. Default: each system's own, from the preset."""
    preset: Preset = "best"
    """Preset of the systems' configs. It does not change the recipe, which the options below set."""
    seeds: int = 1
    """Number of seeds, counting up from --seed. Differences between systems are judged from 3 seeds on."""
    split: Split = "val"
    """Split to score on. Use val to choose between systems, and test only for final results."""
    data: str | None = None
    """Ingested data set, path or URL. Default: <root>/data/<dataset>."""
    root: Root = None
    name: str | None = None
    """Name of the comparison, stored in <root>/runs/<name>. An existing name resumes it. Default: a timestamp."""
    rows: int | None = None
    """Train on the first N rows only."""
    weights: tuple[str, ...] = ()
    """Weights that backbones start with, also those of the classifiers that guide SANL: each BACKBONE=FILE_OR_URL of a
    checkpoint of timm's or torchvision's. Default: ImageNet's, which are on board for the backbone of --preset best."""
    pretrained: bool = False
    """Download the weights of the backbones that have none on board from timm's hub."""
    random_weights: bool = False
    """Start the backbones that have none on board from random weights."""
    classifier: str | None = None
    """Classifier that guides SANL, for all seeds. Default: first train one per seed with the same recipe."""
    num_workers: int = 1
    """Workers per training run."""
    cpus_per_worker: int | None = None
    """CPUs per worker. Default: on one machine all CPUs, divided among the workers; on a cluster 1."""
    device: Device = "auto"
    max_failures: int = WorkerGroup.max_failures
    """How often to restart a worker group after a failure."""
    parallel: int = 1
    """Number of training runs at the same time, if the cluster has room."""
    experiment: str | None = None
    """MLflow experiment. Default: glefld-<dataset>."""


def run(options: Options) -> None:
    """Train and score the systems, print their table and log it. Raises UserError if an option is wrong."""
    for field in ("seeds", "num_workers", "parallel", "cpus_per_worker", "rows"):
        if (value := getattr(options, field)) is not None:
            require_between(f"--{field.replace('_', '-')}", value, 1)
    require_between("--max-failures", options.max_failures, 0)
    require_name(options.name)
    root = resolve_root(options.root)
    data, manifest = open_data(options.data, root, options.dataset)
    if not manifest.splits.get(options.split):
        raise UserError(f"--split {options.split}: the data set {data} has no rows in it")
    uri = tracking.tracking_uri(root, on_cluster())
    tracking.require_answer(uri)
    name = options.name or f"compare-{options.dataset}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    folder = storage.join(root, "runs", name)
    storage.require_writable(folder, "--root", folder=True)
    entries = [
        parse_entry(text, options) for text in options.models or trainable_systems(options, manifest.labels)
    ]
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        raise UserError("--models names a system twice with the same options: remove one of them")
    for recipe in (options.recipe, *(entry.recipe for entry in entries)):
        require_rows(data, manifest, options.num_workers, recipe.batch_size, options.rows)
    comparison = Comparison(
        dataset=options.dataset,
        data=data,
        folder=folder,
        split=options.split,
        rows=options.rows,
        weights=parse_weights(options),
        pretrained=options.pretrained,
        random_weights=options.random_weights,
        parallel=options.parallel,
        experiment=options.experiment,
    )
    classifier = resolve_checkpoint(options.classifier, "--classifier", root) if options.classifier else None
    workers = choose_workers(options)
    guided_by = check(comparison, entries, classifier, options.recipe)

    from pipelines import ray_private
    from pipelines.evaluate import baselines
    from pipelines.lease import hold

    console = Console()

    def print_result(result: Result) -> None:
        console.print(f"{result.system}, seed {result.seed}: error {result.error:.4f}")

    written = storage.join(folder, f"results-{options.split}.json")
    seeds = range(options.recipe.seed, options.recipe.seed + options.seeds)
    with hold(folder) as lease:
        with tracking.connecting(uri):
            start_ray(dashboard=True)
        record = storage.join(folder, "compare.json")
        begun = storage.read_json(record)["run_id"] if storage.exists(record) else None
        parent = tracking.start_run(
            uri,
            options=options,
            manifest=manifest,
            data=data,
            name=name,
            experiment=options.experiment,
            resume=begun,
        )
        storage.write_json(record, {"run_id": parent.run_id})
        with tracking.logged_run(parent, folder) as log:
            with (
                TrainingProgress(console, workers, several=True) as progress,
                ray_private.worker_lines(progress.take),
            ):
                guides = find_guides(
                    comparison,
                    guided_by,
                    seeds,
                    classifier,
                    options.recipe,
                    parent,
                    lease,
                    workers,
                    print_result,
                )
                results = compare(comparison, entries, seeds, parent, lease, guides, workers, print_result)
            baseline = baselines(data, options.split, "category")
            costs = measure(results, workers)
            compared = rows(results, costs)
            words = as_text(table(manifest.title, options.split, compared, baseline), width=160)
            figure = chart(manifest.title, options.split, compared, baseline)
            value = {
                "split": options.split,
                "results": [dataclasses.asdict(result) for result in results],
                "costs": {system: dataclasses.asdict(cost) for system, cost in costs.items()},
            }
            log.log({f"error/{slug(r.system)}-seed{r.seed}": r.error for r in results}, step=0)
            log.log_text(words, f"{options.split}/table.txt")
            log.log_figure(figure, f"{options.split}/ne.png")
            log.log_dict(value, f"{options.split}/results.json")
            storage.write_json(written, value)
    console.print(words, soft_wrap=True, highlight=False)
    console.print(f"results    {written}", soft_wrap=True)
    console.print(f"MLflow     {tracking.where(parent)}", soft_wrap=True)


def trainable_systems(options: Options, labels: Labels) -> list[str]:
    """Return the systems that can be trained on these labels, each with its other forms.

    Prints why the others are left out.
    """
    found = []
    for system in ALL:
        try:
            build_model(system, MODELS[system].preset(options.preset, options.dataset)[0], labels)
        except UserError as error:
            print(f"left out: {error}")
        else:
            found += [system, *(f"{system}:{form}" for form in MODELS[system].forms)]
    return found


def parse_weights(options: Options) -> dict[str, str]:
    """Parse --weights to absolute paths or URLs by backbone. Raises UserError for a malformed item."""
    if options.pretrained and options.random_weights:
        raise UserError("--pretrained and --random-weights exclude one another: give one of them")
    weights = {}
    for text in options.weights:
        backbone, equals, place = text.partition("=")
        if not equals or not place:
            raise UserError(f"--weights {text}: must be BACKBONE=FILE_OR_URL, such as vgg16=vgg16.pth")
        weights[backbone] = resolve_url(place, "--weights")
    return weights


def parse_entry(text: str, options: Options) -> ComparedSystem:
    """Parse ``NAME:OPTION=VALUE,...``, with options of the system's config or of the recipe.

    Raises UserError for an unknown system or option, or a value that cannot be parsed.
    """
    system, _, rest = text.partition(":")
    if system not in MODELS or MODELS[system].task != "landmarks":
        raise UserError(f"--models: {system!r} is not one of {', '.join(ALL)}")
    config = MODELS[system].preset(options.preset, options.dataset)[0]
    recipe = options.recipe
    if options.backbone and hasattr(config, "backbone"):
        config = with_option(config, "backbone", options.backbone, text)
    for item in filter(None, rest.split(",")):
        name, equals, value = item.partition("=")
        name = name.replace("-", "_")
        own, shared = ({field.name for field in dataclasses.fields(value)} for value in (config, recipe))
        if not equals or name not in own | shared - {"seed"}:
            raise UserError(
                f"--models {text}: {item!r} is not OPTION=VALUE of {system}'s config or of the recipe"
            )
        if name in own:
            config = with_option(config, name, value, text)
        else:
            recipe = with_option(recipe, name, value, text)
    return ComparedSystem(text, system, config, recipe)


def with_option(value: Any, name: str, text: str, entry: str) -> Any:
    """Return a copy of a dataclass with one field parsed from text. Raises UserError if the text does not parse."""
    kind = get_type_hints(type(value))[name]
    try:
        parsed = TypeAdapter(kind).validate_strings(text)
    except ValidationError:
        raise UserError(f"--models {entry}: {name} cannot be {text!r}") from None
    return dataclasses.replace(value, **{name: parsed})


def choose_workers(options: Options) -> WorkerGroup:
    """Choose the worker group of each run from the options and what is available.

    Raises UserError if this machine has too few CPUs.
    """
    resources = available()
    cpus = int(resources.get("CPU", 1))
    share = options.num_workers * options.parallel
    each = options.cpus_per_worker or (1 if on_cluster() else max(1, cpus // share))
    if not on_cluster() and options.num_workers * each > cpus:
        raise UserError(
            f"{options.num_workers} workers of {each} CPUs need more than this machine's {cpus} CPUs: "
            "lower --num-workers or --cpus-per-worker"
        )
    gpu = use_gpu(options.device, resources.get("GPU", 0))
    return WorkerGroup(options.num_workers, options.num_workers, each, gpu, options.max_failures)


if __name__ == "__main__":
    main(Options, run)
