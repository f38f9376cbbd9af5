"""Train several systems on the same data with the same recipe, and put them in one table and chart."""

import dataclasses
import datetime
from typing import Annotated, Any, get_type_hints

import ray
import tyro
from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from glefld import storage, tracking
from glefld.datasets import Dataset
from glefld.errors import UserError, require_between
from glefld.models import MODELS, build_model
from glefld.models.system import Preset
from glefld.recipe import SMALL, Recipe
from glefld.schema import Labels, Split
from glefld.scoring import comparison
from glefld.scoring.comparison import Result
from glefld.scoring.tables import as_text
from jobs.cli import (
    Device,
    Root,
    main,
    on_cluster,
    open_data,
    resolve_checkpoint,
    resolve_root,
    resolve_url,
    start_ray,
    use_gpu,
)
from pipelines.compare import Comparison, Entry, check, compare, find_guides, measure, slug
from pipelines.evaluate import baselines
from pipelines.train.run import WorkerGroup

ALL = tuple(name for name, system in MODELS.items() if system.task == "landmarks" and name != "local")


@dataclasses.dataclass(frozen=True)
class Options:
    """Which systems, on what, and how."""

    dataset: Dataset
    """Which data set."""
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = SMALL
    models: tuple[str, ...] = ()
    """Systems, each NAME or NAME:OPTION=VALUE,... with options of its config or of the recipe: gle:modules=0
    sanl:attention=none,landmarks=annotated. Default: all that suit the data set's labels."""
    backbone: str | None = None
    """The same features for all, such as resnet18. Default: each system's own of the preset."""
    preset: Preset = "small"
    """Whose configs the systems start from; the recipe is given by the options below, whatever the preset."""
    seeds: int = 1
    """Repeat with so many seeds, from --seed on; a difference is called one from three on."""
    split: Split = "val"
    """Scored on this split. Choose on val; test is for the last word."""
    data: str | None = None
    """The ingested data set, path or URL. Default: <root>/data/<dataset>."""
    root: Root = None
    name: str | None = None
    """Name of the comparison, which is kept in <root>/runs/<name>; given again, it goes on. Default: by time."""
    rows: int | None = None
    """Train on the first so many rows only."""
    weights: tuple[str, ...] = ()
    """ImageNet weights by backbone, BACKBONE=FILE_OR_URL each: torchvision's checkpoints. resnet18's also starts what
    guides SANL."""
    random_weights: bool = False
    """Let --preset paper start from random weights where none are given."""
    classifier: str | None = None
    """The classifier that guides SANL, for all seeds. Default: one a seed, trained first with the same recipe."""
    num_workers: int = 1
    """Workers of each training run."""
    cpus_per_worker: int | None = None
    """CPUs a worker takes. Default on one machine: all of them, shared out; on a cluster: 1."""
    device: Device = "auto"
    max_failures: int = 3
    """How often a worker group is started again after a loss."""
    parallel: int = 1
    """Runs at the same time, if the cluster has room for them."""
    experiment: str | None = None
    """MLflow experiment. Default: glefld-<dataset>."""


def run(options: Options) -> None:
    for field in ("seeds", "num_workers", "parallel"):
        require_between(f"--{field.replace('_', '-')}", getattr(options, field), 1)
    root = resolve_root(options.root)
    data, manifest = open_data(options.data, root, options.dataset)
    entries = [parse_entry(text, options) for text in options.models or suiting(options, manifest.labels)]
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        raise UserError("--models names a system twice with the same options")
    weights = parse_weights(options, entries)
    classifier = resolve_checkpoint(options.classifier, "--classifier", root) if options.classifier else None
    uri = tracking.tracking_uri(root, on_cluster())
    name = options.name or f"compare-{options.dataset}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    folder = storage.join(root, "runs", name)
    plan = Comparison(
        dataset=options.dataset,
        data=data,
        folder=folder,
        split=options.split,
        rows=options.rows,
        weights=weights,
        parallel=options.parallel,
        experiment=options.experiment,
    )
    guided_by = check(plan, entries)
    start_ray(dashboard=True)
    workers = choose_workers(options)
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
    console = Console()

    def tell(result: Result) -> None:
        console.print(f"{result.system}, seed {result.seed}: error {result.error:.4f}")

    written = storage.join(folder, f"results-{options.split}.json")
    seeds = range(options.recipe.seed, options.recipe.seed + options.seeds)
    with tracking.to_its_end(parent, folder) as log:
        guides = find_guides(plan, guided_by, seeds, classifier, options.recipe, parent, workers, tell)
        results = compare(plan, entries, seeds, parent, guides, workers, tell)
        baseline = baselines(data, options.split, "category")
        costs = measure(results, workers)
        compared = comparison.rows(results, costs)
        words = as_text(comparison.table(options.dataset, options.split, compared, baseline), width=160)
        chart = comparison.chart(options.dataset, options.split, compared, baseline)
        value = {
            "split": options.split,
            "results": [dataclasses.asdict(result) for result in results],
            "costs": {system: dataclasses.asdict(cost) for system, cost in costs.items()},
        }
        log.log({f"error/{slug(r.system)}-seed{r.seed}": r.error for r in results}, step=0)
        log.log_text(words, f"{options.split}/table.txt")
        log.log_figure(chart, f"{options.split}/ne.png")
        log.log_dict(value, f"{options.split}/results.json")
        storage.write_json(written, value)
    console.print(words, soft_wrap=True, highlight=False)
    console.print(f"results    {written}", soft_wrap=True)
    console.print(f"MLflow     {tracking.where(parent)}", soft_wrap=True)


def suiting(options: Options, labels: Labels) -> list[str]:
    """The systems that can be trained on these labels."""
    found = []
    for system in ALL:
        try:
            build_model(system, MODELS[system].preset(options.preset, options.dataset)[0], labels)
        except UserError as error:
            print(f"left out: {error}")
        else:
            found.append(system)
    return found


def parse_weights(options: Options, entries: list[Entry]) -> dict[str, str]:
    """``BACKBONE=FILE_OR_URL`` to absolute places by backbone. UserError if one is not so, of no use, or missing."""
    weights = {}
    backbones = {entry.config.backbone: entry.name for entry in entries if hasattr(entry.config, "backbone")}
    for text in options.weights:
        backbone, equals, place = text.partition("=")
        if not equals:
            raise UserError(f"--weights {text}: give BACKBONE=FILE_OR_URL, such as vgg16=vgg16.pth")
        if backbone not in {*backbones, "resnet18"}:
            raise UserError(f"--weights {text}: no system of the comparison has the backbone {backbone!r}")
        weights[backbone] = resolve_url(place, "--weights")
    missing = [backbone for backbone in backbones if backbone not in weights]
    if options.preset == "paper" and missing and not options.random_weights:
        raise UserError(
            f"--preset paper starts from ImageNet weights: give --weights {missing[0]}=FILE_OR_URL "
            f"(for {backbones[missing[0]]}), or --random-weights to go without"
        )
    return weights


def parse_entry(text: str, options: Options) -> Entry:
    """``NAME:OPTION=VALUE,...`` with options of the system's config or of the recipe. UserError if it is not so."""
    system, _, rest = text.partition(":")
    if system not in MODELS or MODELS[system].task != "landmarks":
        raise UserError(f"--models: {system!r} is none of {', '.join(ALL)}")
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
    return Entry(text, system, config, recipe)


def with_option(value: Any, name: str, text: str, entry: str) -> Any:
    """A dataclass with one field parsed from text by its type. UserError if it cannot be."""
    kind = get_type_hints(type(value))[name]
    try:
        parsed = TypeAdapter(kind).validate_strings(text)
    except ValidationError:
        raise UserError(f"--models {entry}: {name} cannot be {text!r}") from None
    return dataclasses.replace(value, **{name: parsed})


def choose_workers(options: Options) -> WorkerGroup:
    """Each run's worker group, on the resources that are there."""
    cpus = int(ray.cluster_resources().get("CPU", 1))
    share = options.num_workers * options.parallel
    each = options.cpus_per_worker or (1 if on_cluster() else max(1, cpus // share))
    if not on_cluster() and options.num_workers * each > cpus:
        raise UserError(
            f"{options.num_workers} workers of {each} CPUs are more than this machine's {cpus}: lower --num-workers"
        )
    gpu = use_gpu(options.device)
    return WorkerGroup(options.num_workers, options.num_workers, each, gpu, options.max_failures)


if __name__ == "__main__":
    main(Options, run)
