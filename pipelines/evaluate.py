"""Distributed evaluation: each Ray task counts its share of a split, and the driver sums the counters.

Every row is counted exactly once. The module also logs the scores, tables and pictures to an MLflow run.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
import torch
from torch import Tensor

from glefld import pages
from glefld.data.dataset import open_dataset
from glefld.data.garments import PhotoBoxes
from glefld.data.loader import Batch, BatchLoader, InputPipeline
from glefld.data.reader import SplitReader
from glefld.data.truth import Truth
from glefld.errors import UserError
from glefld.models import MODELS, checkpoint
from glefld.models.system import Model
from glefld.schema import ClassLabel, Labels, Split
from glefld.scoring import draw, oks
from glefld.scoring.baselines import Baselines, fit_and_score
from glefld.scoring.bootstrap import REPLICATES
from glefld.scoring.evaluation import EVAL_BATCH, Answer, EndToEnd, detect_rows, evaluate, shared
from glefld.scoring.examples import Example, draw_rows, examples
from glefld.scoring.metrics import Counters, Report
from glefld.scoring.page import listed_rows, page, worst_rows
from glefld.scoring.page.parts import Scored
from glefld.scoring.rows import Rows, join, rows_of
from glefld.scoring.tables import as_text, score_tables

if TYPE_CHECKING:
    from glefld.tracking import RunLog  # MLflow is slow to import, and the tasks do not need it

EXAMPLES = 24
#: The columns that the baselines read. They need no pictures.
TRUTH_COLUMNS = [
    "landmarks",
    "visibility",
    "box",
    "crop_box",
    "garment_type",
    "view",
    "category",
    "attributes",
]


@dataclasses.dataclass(frozen=True)
class Tasks:
    """The number of tasks that share a split, and the resources of each. They change the scores by rounding only."""

    number: int = 1
    cpus: int = 1
    gpu: bool = False


def evaluate_checkpoint(url: str, data: str, split: Split, tasks: Tasks, mirror: bool = False) -> Report:
    """Score a checkpoint on a split in fp32. The scores do not depend on the number of tasks.

    mirror: average each prediction with that for the mirror image.
    Scored are the labels that the checkpoint and the data set share (``shared_labels``). They include AP over OKS if
    the landmark set defines it. Raises UserError if they share none.
    """
    return evaluate_rows(url, data, split, tasks, mirror)[0]


def evaluate_rows(
    url: str, data: str, split: Split, tasks: Tasks, mirror: bool = False
) -> tuple[Report, Rows | None]:
    """Score a checkpoint as ``evaluate_checkpoint`` does; also returns what each row contributes (``rows_of``)."""
    manifest = open_dataset(data)
    model, _ = checkpoint.load(url)
    labels = shared_labels(url, data)
    task = _task(_count_share, tasks)
    counters = Counters(labels, model.label, REPLICATES, model.detects)
    shares = ray.get([task.remote(url, data, split, rank, tasks, mirror) for rank in range(tasks.number)])
    for done in shares:
        share = Counters(labels, model.label, REPLICATES, model.detects)
        share.load_vector(done.counters)
        counters += share
    report = counters.report()
    assert report.rows == manifest.splits[split], f"counted {report.rows} of {manifest.splits[split]} rows"
    rows = join([done.rows for done in shares if done.rows is not None])
    batches = [batch for done in shares for batch in done.found]
    if not batches:
        return report, rows
    found = oks.Found(*(np.concatenate(part) for part in zip(*batches, strict=True)))
    reader = SplitReader(data, manifest, split)
    # The data set's set, not the checkpoint's: sigmas are for scores alone and may be newer there.
    landmark_set = manifest.landmark_set
    truth = oks.Annotated.from_arrow(pa.concat_tables(reader.tables(oks.COLUMNS)), landmark_set)
    return dataclasses.replace(report, oks=oks.score(found, truth, landmark_set)), rows


def evaluate_detected(
    url: str, detector: str, data: str, split: Split, tasks: Tasks, mirror: bool = False
) -> EndToEnd:
    """Score a landmark checkpoint in the boxes that a detector finds in whole photos, as ``evaluate_checkpoint`` does.

    Landmarks are measured in the true boxes' units. Garments that are not found are left out, and told by the recall.
    """
    manifest = open_dataset(data)
    model, _ = checkpoint.load(url)
    counters = Counters(shared_labels(url, data), model.label, REPLICATES)
    task = _task(_count_detected, tasks)
    for vector in ray.get(
        [task.remote(url, detector, data, split, rank, tasks, mirror) for rank in range(tasks.number)]
    ):
        share = Counters(counters.labels, model.label, REPLICATES)
        share.load_vector(vector)
        counters += share
    return EndToEnd(detector, manifest.splits[split], counters.report())


def trained_report(url: str, data: str, tasks: Tasks) -> Report:
    """Return the scores on val of a checkpoint of a training's epoch, which has counted them already.

    Only where OKS applies are they evaluated: it needs all predictions, which a training does not keep.
    """
    model, card = checkpoint.load(url)
    of_landmarks = len(card.labels.landmark_set) and not model.detects
    if of_landmarks and oks.applies(open_dataset(data).landmark_set):
        return evaluate_checkpoint(url, data, "val", tasks)
    counters = Counters(card.labels, model.label, detects=model.detects)
    counters.load_vector(checkpoint.load_training(url)["val"])
    return counters.report()


def shared_labels(url: str, data: str) -> Labels:
    """Return the labels that a checkpoint was trained for and a data set has: the same ones only.

    Raises UserError if there is none that the checkpoint's system predicts.
    """
    model, card = checkpoint.load(url)
    labels = open_dataset(data).labels
    shared = card.labels.shared(labels)
    if model.detects:
        return shared  # boxes are there in any data set
    if MODELS[card.model].task == "landmarks":
        scored = bool(shared.landmark_set.landmarks)
    else:
        scored = bool(shared.classes(model.label) or shared.attributes)
    if not scored:
        raise UserError(
            f"the labels of {url} ({card.labels.summary()}) differ from those of {data} ({labels.summary()}): "
            "use the data set that it was trained on"
        )
    return shared


def draw_examples(url: str, data: str, split: Split, tasks: Tasks, mirror: bool = False) -> list[draw.Tile]:
    """Draw predictions and ground truth for rows spread over a split, in a task."""
    return ray.get(_task(draw_here, tasks).remote(url, data, split, tasks, mirror))


def draw_page(
    url: str,
    data: str,
    split: Split,
    tasks: Tasks,
    mirror: bool,
    report: Report,
    rows: Rows | None,
    baseline: Baselines,
    detected: EndToEnd | None,
    facts: Mapping[str, str],
) -> str:
    """Return an evaluation's page as HTML, with pictures of the worst rows, which a task draws.

    facts: what was scored and how, ``system`` and ``checkpoint`` among it.
    """
    chosen = worst_rows(rows)
    drawn: list[Example] = []
    if len(chosen):
        drawn = ray.get(_task(_draw_rows, tasks).remote(url, data, split, tasks, chosen, mirror))
    manifest = open_dataset(data)
    listed = np.sort(listed_rows(rows))
    ids: dict[int, str] = {}
    if len(listed):
        (table,) = SplitReader(data, manifest, split).read([listed], ["sample_id"])
        ids = dict(zip(listed.tolist(), table["sample_id"].to_pylist(), strict=True))
    labels = shared_labels(url, data)
    scored = Scored(manifest.title, split, labels, report, baseline, rows, detected, facts)
    return pages.html(page(scored, drawn, ids))


def baselines(data: str, split: Split, label: ClassLabel) -> Baselines:
    """Score the trivial baselines on a split: the train split's mean positions and most frequent labels."""
    manifest = open_dataset(data)
    parts = functools.partial(_truths, data)
    return fit_and_score(parts("train"), parts(split), manifest.labels, label)


def log_scores(
    log: "RunLog",
    scores: dict[str, Any],
    report: Report,
    baseline: Baselines,
    data: str,
    pictures: list[draw.Tile],
    detected: EndToEnd | None = None,
) -> None:
    """Log an evaluation to a run: the JSON from ``evaluation_json``, a table, charts and example pictures."""
    split = scores["split"]
    title = open_dataset(data).title
    log.log_dict(scores, f"{split}/evaluation.json")
    log.log_text(as_text(score_tables(title, report, baseline, detected)), f"{split}/table.txt")
    if report.ne is not None:
        log.log_figure(draw.ne_chart(title, report, baseline), f"{split}/ne_by_landmark.png")
    if report.confidence is not None:
        log.log_figure(draw.confidence_chart(title, report.confidence), f"{split}/confidence.png")
    sheet = draw.contact_sheet(
        pictures,
        columns=6,
        title="predictions beside the truth",
        legend="truth" if report.ne is not None else "none",
    )
    log.log_image(sheet, f"{split}/predictions.png")


def _truths(data: str, split: Split) -> Iterator[Truth]:
    manifest = open_dataset(data)
    for table in SplitReader(data, manifest, split).tables(TRUTH_COLUMNS):
        yield Truth.from_arrow(table, manifest.labels)


def _task(function: Callable[..., Any], tasks: Tasks) -> Any:
    return ray.remote(function).options(num_cpus=tasks.cpus, num_gpus=1 if tasks.gpu else 0)


@dataclasses.dataclass(frozen=True)
class _Share:
    """What a task has evaluated."""

    counters: Tensor
    rows: Rows | None
    """What its rows contribute, if there are any."""
    found: list[oks.Found]
    """The predictions of each of its batches, if OKS applies."""


def _count_share(url: str, data: str, split: Split, rank: int, tasks: Tasks, mirror: bool) -> _Share:
    """Evaluate one rank's share."""
    model, loader = _open(url, data, split, tasks)
    manifest = open_dataset(data)
    rows = SplitReader(data, manifest, split)
    labels = shared_labels(url, data)
    landmark_set = manifest.landmark_set
    parts: list[Rows] = []
    found: list[oks.Found] = []
    numbers = iter(shared(rows, rank, tasks.number))

    def keep(batch: Batch, answer: Answer) -> None:
        part = rows_of(model, batch, answer, labels, int(next(numbers)[0]))
        if part is not None:
            parts.append(part)
        if answer.points is not None and answer.scores is not None and oks.applies(landmark_set):
            own = oks.own_slots(batch.truth.garment_type.numpy(), landmark_set)
            score = np.nanmean(oks.take_own(answer.scores.double().numpy(), own), axis=1)
            found.append(oks.Found(oks.take_own(answer.points.numpy(), own), score))

    counters = evaluate(model, rows, loader, rank, tasks.number, labels, mirror, REPLICATES, keep)
    return _Share(counters.vector(), join(parts), found)


def _count_detected(
    url: str, detector: str, data: str, split: Split, rank: int, tasks: Tasks, mirror: bool
) -> Tensor:
    """Detect the garments of one rank's share, then evaluate their landmarks; returns the counters."""
    rows = SplitReader(data, open_dataset(data), split)
    finder, photos = _open(detector, data, split, tasks)
    boxes = detect_rows(finder, rows, photos, rank, tasks.number)
    model, loader = _open(url, data, split, tasks)
    labels = shared_labels(url, data)
    return evaluate(model, rows, loader, rank, tasks.number, labels, mirror, REPLICATES, boxes=boxes).vector()


def draw_here(url: str, data: str, split: Split, tasks: Tasks, mirror: bool = False) -> list[draw.Tile]:
    """Draw them in this process, on the resources of one task."""
    model, loader = _open(url, data, split, tasks)
    return examples(model, SplitReader(data, open_dataset(data), split), loader, EXAMPLES, mirror)


def _draw_rows(
    url: str, data: str, split: Split, tasks: Tasks, rows: np.ndarray, mirror: bool
) -> list[Example]:
    model, loader = _open(url, data, split, tasks)
    return draw_rows(model, SplitReader(data, open_dataset(data), split), loader, rows, mirror)


def _open(url: str, data: str, split: Split, tasks: Tasks) -> tuple[Model, BatchLoader]:
    """Load a checkpoint's model onto the task's device, and make the split's loader for it."""
    torch.set_num_threads(tasks.cpus)
    model, card = checkpoint.load(url)
    pipeline = InputPipeline(
        card.input_size, model.normalisation, EVAL_BATCH, 0 if tasks.gpu else None, tasks.cpus
    )
    model = model.to("cuda:0" if tasks.gpu else "cpu").to(memory_format=torch.channels_last)
    manifest = open_dataset(data)
    photos = PhotoBoxes.read(data, manifest, split) if model.detects else None
    return model, BatchLoader(manifest.labels, pipeline, photos)
