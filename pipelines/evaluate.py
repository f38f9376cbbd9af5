"""Evaluation over Ray tasks: each counts its share of a split, the driver adds up. Every row is counted once."""

import functools

import ray
import torch
from PIL import Image

from glefld import checkpoint, metrics
from glefld.dataset import open_dataset
from glefld.evaluation import EVAL_BATCH, evaluate, examples
from glefld.loader import BatchLoader, InputPipeline
from glefld.metrics import Baselines, Counters, Report, Truth
from glefld.reader import SplitReader
from glefld.schema import Split

#: What the mean-position baselines read of a row: no pictures.
TRUTH_COLUMNS = ["landmarks", "visibility", "box", "crop_box", "garment_type", "view"]


def evaluate_checkpoint(url: str, data: str, split: Split, workers: int = 1, cpus: int = 1) -> Report:
    """The scores of a checkpoint on a split, in fp32, the same on any number of workers.

    ValueError if the checkpoint's landmarks are not the data set's.
    """
    manifest = open_dataset(data)
    _, card = checkpoint.load(url)
    if card.landmark_set != manifest.landmark_set:
        raise ValueError(
            f"{url} predicts the landmarks {card.landmark_set.name!r}, {data} has {manifest.landmark_set.name!r}"
        )
    task = ray.remote(_count_share).options(num_cpus=cpus)
    counters = Counters(manifest.landmark_set)
    for vector in ray.get([task.remote(url, data, split, rank, workers, cpus) for rank in range(workers)]):
        share = Counters(manifest.landmark_set)
        share.load_vector(vector)
        counters += share
    report = counters.report()
    assert report.rows == manifest.splits[split], f"counted {report.rows} of {manifest.splits[split]} rows"
    return report


def draw_examples(
    url: str, data: str, split: Split, count: int, cpus: int = 1
) -> list[tuple[Image.Image, str]]:
    """Pictures of predictions beside the truth, of ``count`` rows spread over a split, with captions."""
    return ray.get(ray.remote(_draw).options(num_cpus=cpus).remote(url, data, split, count, cpus))


def mean_position(data: str, split: Split) -> Baselines:
    """What predicting the train split's mean positions scores on a split."""
    manifest = open_dataset(data)
    parts = functools.partial(_truths, data)
    return metrics.baselines(parts("train"), parts(split), manifest.landmark_set)


def _truths(data: str, split: Split) -> list[Truth]:
    manifest = open_dataset(data)
    reader = SplitReader(data, manifest, split)
    return [Truth.from_arrow(table, manifest.landmark_set) for table in reader.tables(TRUTH_COLUMNS)]


def _count_share(url: str, data: str, split: Split, rank: int, world: int, cpus: int) -> torch.Tensor:
    torch.set_num_threads(cpus)
    model, card = checkpoint.load(url)
    loader = BatchLoader(card.landmark_set, InputPipeline(card.input_size, EVAL_BATCH, threads=cpus))
    rows = SplitReader(data, open_dataset(data), split)
    model = model.to(memory_format=torch.channels_last)
    return evaluate(model, rows, loader, card.radius, rank, world).vector()


def _draw(url: str, data: str, split: Split, count: int, cpus: int) -> list[tuple[Image.Image, str]]:
    torch.set_num_threads(cpus)
    model, card = checkpoint.load(url)
    loader = BatchLoader(card.landmark_set, InputPipeline(card.input_size, EVAL_BATCH, threads=cpus))
    return examples(model, SplitReader(data, open_dataset(data), split), loader, card.radius, count)
