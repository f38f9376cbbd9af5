"""Whole photos with some garments: grey cards on a dark ground, each with two dots, which ``dots.network`` finds."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from glefld.data.augmentation import Augmentation
from glefld.recipe import Recipe
from glefld.schema import Manifest, Shard, sample_schema
from glefld.training import loop
from glefld.training.start import Job
from tests import dots

WIDTH, HEIGHT = 120, 90
SIZE = 64
CONFIG = {"backbone": "test_resnet", "width": 32, "layers": 1}
RECIPE = Recipe(
    input_size=SIZE,
    epochs=12,
    batch_size=8,
    learning_rate=4e-3,
    schedule="cosine",
    precision="fp32",
    augmentation=Augmentation(rotate=0, scale=0.1, shift=0.05, colour=0),
)


class Card(NamedTuple):
    """One garment."""

    box: np.ndarray  # [4] x1 y1 x2 y2, whole pixels
    points: np.ndarray  # [2, 2]


def make_photo(rng: np.random.Generator, garments: int | None = None) -> tuple[Image.Image, list[Card]]:
    """A photo of up to two garments side by side, by default one or two."""
    ground = rng.integers(10, 50, (HEIGHT, WIDTH, 3), np.uint8)
    photo = Image.fromarray(ground)
    cards = []
    count = int(rng.integers(1, 3)) if garments is None else garments
    halves = rng.permutation(2)[:count]
    for half in halves:
        width, height = rng.integers(36, 54, 2)
        x = half * WIDTH // 2 + rng.integers(1, WIDTH // 2 - width)
        y = rng.integers(1, HEIGHT - height)
        points = dots.random_points(rng, (0, 0, float(width), float(height)))
        photo.paste(dots.photo(points, int(width), int(height)), (int(x), int(y)))
        cards.append(Card(np.array([x, y, x + width, y + height], np.float64), points + np.array([x, y])))
    return photo, cards


def write_dataset(root: Path, splits: dict[str, int], *, seed: int = 0, margin: object = "full") -> str:
    """A data set of so many photos a split, as ``ingest --margin full`` stores it; its URL."""
    rng = np.random.default_rng(seed)
    shards, counts = [], {}
    for split, photos in splits.items():
        (root / f"split={split}").mkdir(parents=True)
        rows = [row for i in range(photos) for row in _rows(split, i, rng)]
        path = f"split={split}/part-00000.parquet"
        pq.write_table(pa.Table.from_pylist(rows, sample_schema(dots.DOTS)), root / path, row_group_size=7)
        shards.append(Shard(path, split, len(rows), (root / path).stat().st_size, split, 7))
        counts[split] = len(rows)
    manifest = Manifest(
        dataset="fld",
        landmark_set=dots.DOTS,
        rows_in=sum(counts.values()),
        splits=counts,
        rejects={},
        shards=tuple(shards),
        content_hash=f"cards-{seed}",
        options={"margin": margin},
        source={},
    )
    (root / "_manifest.json").write_text(json.dumps(manifest.to_json()))
    return str(root)


def _rows(split: str, number: int, rng: np.random.Generator) -> list[dict[str, object]]:
    photo, cards = make_photo(rng)
    image = dots.encoded(photo, "JPEG", quality=95, subsampling=0)
    return [
        {
            "sample_id": f"fld/{split}/{number:04d}#{garment}",
            "source_uri": f"{split}/{number}.jpg",
            "source_width": WIDTH,
            "source_height": HEIGHT,
            "photo_hash": number.to_bytes(16, "big"),
            "box": card.box.tolist(),
            "crop_box": (0, 0, WIDTH, HEIGHT),
            "image": image,
            "image_width": WIDTH,
            "image_height": HEIGHT,
            "garment_type": 1,
            "variation": None,
            "category": None,
            "attributes": None,
            "view": None,
            "area": None,
            "landmarks": card.points.ravel().tolist(),
            "visibility": [0, 0],
        }
        for garment, card in enumerate(cards)
    ]


def train_detector(data: str, run: str, recipe: Recipe = RECIPE) -> list[loop.EpochReport]:
    """Train a small detector here; the epochs' reports."""
    reports: list[loop.EpochReport] = []
    job = Job("fld", data, run, "fcos", CONFIG, recipe)
    loop.train(job, torch.device("cpu"), lambda metrics, step: None, reports.append)
    return reports
