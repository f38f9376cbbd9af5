"""Score a checkpoint on a split: NE, PCK, AUC, EPE, classification and AP over OKS, beside published figures.

The scores are printed as tables, logged to an MLflow run and optionally written as JSON.
"""

import dataclasses
import time
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console

from glefld import __version__, storage, tracking
from glefld.data.garments import require_whole_photos
from glefld.datasets import Dataset
from glefld.detect import require_detector
from glefld.errors import UserError, require_between
from glefld.models import MODELS, checkpoint
from glefld.pages import count
from glefld.redaction import public_url
from glefld.schema import Labels, Manifest, Split
from glefld.scoring import evaluation
from glefld.scoring.baselines import Baselines
from glefld.scoring.metrics import Report
from glefld.scoring.tables import oks_table, pose_lines, score_tables
from jobs.cli import (
    Device,
    Root,
    available,
    main,
    naming,
    needing_no_reader,
    on_cluster,
    open_data,
    resolve_checkpoint,
    resolve_detector,
    resolve_root,
    resolve_url,
    start_ray,
    use_gpu,
)

if TYPE_CHECKING:
    from pipelines.evaluate import Tasks


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the evaluation job."""

    dataset: Dataset
    """Data set to score on."""
    checkpoint: str
    """Folder of a checkpoint, or of a run (its best one): path, URL or MLflow model (models:/NAME@ALIAS, runs:/ID)."""
    split: Split
    """Split to score on."""
    data: str | None = None
    """Ingested data set, path or URL. Default: <root>/data/<dataset>."""
    output: str | None = None
    """JSON file to write the scores to, path or URL. Default: none."""
    report: str | None = None
    """HTML file to write a page to, path or URL: the scores with their intervals, where the error lies, and the worst
    garments. The MLflow run has this page in any case. Default: none."""
    root: Root = None
    num_workers: int = 1
    """Number of tasks that share the split. The scores do not depend on it."""
    cpus_per_worker: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """CPUs per task. Default: on one machine all CPUs, divided among the tasks; on a cluster 1."""
    boxes: Literal["true", "detect"] = "true"
    """true: landmarks in the annotated boxes. detect: also in those that a detector finds in the whole photos, of a
    data set that was ingested with --margin full."""
    detector: str | None = None
    """Detector for --boxes detect: checkpoint or run, path, URL or MLflow model. Default: $GLEFLD_DETECTOR, else the
    newest run of a detector below the root."""
    device: Device = "auto"
    mirror: bool = False
    """Average each prediction with that for the mirror image: a little more accurate, at twice the time."""
    experiment: str | None = None
    """MLflow experiment. Default: glefld-<dataset>."""


def run(options: Options) -> None:
    """Score the checkpoint; print, write and log its scores. Raises UserError if an option is wrong."""
    require_between("--num-workers", options.num_workers, 1)
    if options.cpus_per_worker is not None:
        require_between("--cpus-per-worker", options.cpus_per_worker, 1)
    root = resolve_root(options.root)
    data, manifest = open_data(options.data, root, options.dataset)
    if not manifest.splits.get(options.split):
        raise UserError(f"--split {options.split}: the data set {data} has no rows in it")
    output = resolve_url(options.output, "--output") if options.output else None
    if output is not None:
        storage.require_writable(output, "--output", folder=False)
    place = resolve_url(options.report, "--report") if options.report else None
    if place is not None:
        storage.require_writable(place, "--report", folder=False)
    uri = tracking.tracking_uri(root, on_cluster())
    tracking.require_answer(uri)
    url = resolve_checkpoint(options.checkpoint, "--checkpoint", root)

    from pipelines import evaluate

    tasks = choose_tasks(options)
    with naming("--checkpoint"):
        shared = evaluate.shared_labels(url, data)
    card = checkpoint.read_card(url)
    if MODELS[card.model].task == "detect":
        if options.mirror:
            raise UserError("--mirror is for landmarks and classes: leave it out with a detector")
        if options.boxes == "detect":
            raise UserError(f"--boxes detect is for landmarks: --checkpoint {url} is a detector itself")
        with naming("--data" if options.data else "--dataset"):
            require_whole_photos(data, manifest)
    elif shared != manifest.labels:
        print(f"scored: {shared.summary()}. The checkpoint was not trained for the data set's other labels.")
    detector = choose_detector(options, data, manifest, shared)
    with tracking.connecting(uri):
        start_ray()
    model_id = tracking.find_by_digest(uri, checkpoint.digest(url))
    handle = tracking.start_run(
        uri,
        options=options,
        manifest=manifest,
        data=data,
        name=f"evaluate-{options.split}",
        experiment=options.experiment,
        split=options.split,
        model_id=model_id,
    )
    with tracking.logged_run(handle) as log:
        start = time.monotonic()
        report, rows = evaluate.evaluate_rows(url, data, options.split, tasks, options.mirror)
        seconds = time.monotonic() - start
        detected = None
        if detector is not None:
            detected = evaluate.evaluate_detected(url, detector, data, options.split, tasks, options.mirror)
        baseline = evaluate.baselines(data, options.split, report.label)
        scores = evaluation.evaluation_json(
            report,
            dataset=manifest.dataset,
            split=options.split,
            checkpoint=url,
            baseline=baseline,
            mirror=options.mirror,
            detected=detected,
        )
        # Print and write the scores before logging, which can fail with the MLflow server.
        with needing_no_reader():
            print_scores(manifest.title, report, baseline, seconds, detected)
        if output is not None:
            storage.write_json(output, scores)
            print(f"written to {output}")
        numbers = report.numbers()
        if detected is not None:
            numbers |= {"detected_recall": detected.recall}
            numbers |= {f"detected_{name}": value for name, value in detected.report.numbers().items()}
        named = {f"{options.split}_{name}": value for name, value in numbers.items()}
        if model_id is None:
            log.log(named, step=0)
        else:
            log.log_scores(named, tracking.Scored(model_id, tracking.DataKey.of(manifest)))
        facts = describe(options, url, card, data, manifest, detector)
        page = evaluate.draw_page(
            url, data, options.split, tasks, options.mirror, report, rows, baseline, detected, facts
        )
        if place is not None:
            storage.write_bytes(place, page.encode())
            print(f"page       {place}")
        log.log_text(page, f"{options.split}/report.html")
        pictures = evaluate.draw_examples(url, data, options.split, tasks, options.mirror)
        evaluate.log_scores(log, scores, report, baseline, data, pictures, detected)
    Console().print(f"MLflow     {tracking.where(handle)}", soft_wrap=True)


def describe(
    options: Options,
    url: str,
    card: checkpoint.ModelCard,
    data: str,
    manifest: Manifest,
    detector: str | None,
) -> dict[str, str]:
    """Return what is scored and how, for a reader who has nothing but the page."""
    config = ", ".join(f"{name} {value}" for name, value in card.config.items())
    same = "the same data" if card.data_hash == manifest.content_hash else f"data {card.data_hash[:12]}"
    facts = {
        "system": card.model,
        "options": config,
        "checkpoint": public_url(url),
        "trained": f"on {card.dataset} ({same}), {count(card.epoch, 'epoch')}, {count(card.step, 'step')}",
        "first weights": card.weights,
        "input": f"{card.input_size} pixels" + (", each also mirrored" if options.mirror else ""),
        "data set": f"{public_url(data)}, data {manifest.content_hash[:12]}",
        "split": f"{options.split}, {count(manifest.splits[options.split], 'row')}",
    }
    if detector is not None:
        facts["detector"] = public_url(detector)
    facts["command"] = tracking.command()
    facts["version"] = f"glefld {__version__}, commit {tracking.git_commit()}"
    return facts


def choose_detector(options: Options, data: str, manifest: Manifest, shared: Labels) -> str | None:
    """Return the URL of the detector's checkpoint, None without --boxes detect. UserError if it cannot be used."""
    if options.boxes != "detect":
        if options.detector is not None:
            raise UserError("--detector is for detected boxes: add --boxes detect, or leave it out")
        return None
    with naming("--boxes detect"):
        require_whole_photos(data, manifest)
        if not len(shared.landmark_set):
            raise UserError("the checkpoint finds no landmarks of this data set: leave it out")
    found = resolve_detector(options.detector, options.root)
    with naming("--detector"):
        require_detector(found, checkpoint.read_card(found))
    return found


def choose_tasks(options: Options) -> "Tasks":
    """Choose the tasks from the options and what is available. Raises UserError for more than this machine has."""
    from pipelines.evaluate import Tasks

    resources = available()
    cpus = int(resources.get("CPU", 1))
    each = options.cpus_per_worker or (1 if on_cluster() else max(1, cpus // options.num_workers))
    if each > cpus and not on_cluster():
        raise UserError(f"--cpus-per-worker {each} is more than this machine's {cpus} CPUs: lower it")
    gpu = use_gpu(options.device, resources.get("GPU", 0))
    return Tasks(options.num_workers, each, gpu)


def print_scores(
    dataset: str,
    report: Report,
    baseline: Baselines,
    seconds: float,
    detected: evaluation.EndToEnd | None = None,
) -> None:
    """Print the scores."""
    console = Console()
    console.print(score_tables(dataset, report, baseline, detected))
    if report.oks is not None:
        console.print(oks_table(report.oks))
    for name, (low, high) in report.ne_intervals.items():
        console.print(f"{'NE ' + name + ', 95 %':24s} {low:.4f} to {high:.4f}")
    for name, value in report.numbers().items():
        if not name.startswith(("ne/", "recall")):  # these are in the tables
            console.print(f"{name:24s} {value:.4f}")
    for line in pose_lines(dataset):
        console.print(line, soft_wrap=True)
    console.print(f"{'garments per second':24s} {report.rows / seconds:.0f}")


if __name__ == "__main__":
    main(Options, run)
