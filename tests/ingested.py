"""A small ingested data set of two-dot photos, written straight into the contract's Parquet."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from glefld.schema import Manifest, Shard, sample_schema
from tests.dots import DOTS, encoded, photo

WIDTH, HEIGHT = 90, 70


def write_dataset(
    root: Path, splits: dict[str, int], *, seed: int = 0, shard_rows: int = 20, hide: int = 0
) -> str:
    """A data set with so many rows a split, in shards of several row groups; its URL.

    Each row is the stored crop (10, 6, 90, 64) of a photo with a box in it. In the first ``hide`` rows of train the
    second dot is occluded, so that rows differ in their visible landmarks.
    """
    rng = np.random.default_rng(seed)
    shards = []
    for split, rows in splits.items():
        (root / f"split={split}").mkdir(parents=True)
        for number, first in enumerate(range(0, rows, shard_rows)):
            numbers = range(first, min(first + shard_rows, rows))
            made = [_row(split, i, rng, split == "train" and i < hide) for i in numbers]
            path = f"split={split}/part-{number:05d}.parquet"
            table = pa.Table.from_pylist(made, schema=sample_schema(DOTS))
            pq.write_table(table, root / path, row_group_size=7)
            shards.append(Shard(path, split, len(made), (root / path).stat().st_size, f"{split}{number}", 7))
    manifest = Manifest(
        dataset="fld",
        landmark_set=DOTS,
        rows_in=sum(splits.values()),
        splits=splits,
        rejects={},
        shards=tuple(shards),
        content_hash=f"dots-{seed}",
        options={},
        source={},
    )
    (root / "_manifest.json").write_text(json.dumps(manifest.to_json()))
    return str(root)


def _row(split: str, number: int, rng: np.random.Generator, hidden: bool) -> dict[str, object]:
    box = np.array([rng.integers(12, 18), rng.integers(8, 14), rng.integers(76, 86), rng.integers(52, 62)])
    # Dots apart from each other and from the box's border, so that each can be found by its colour.
    points = (
        box[:2] + (box[2:] - box[:2]) * rng.permutation([[0.3, 0.3], [0.7, 0.6]]) + rng.uniform(-5, 5, (2, 2))
    )
    crop = (10, 6, WIDTH, 64)
    picture = photo(points, WIDTH, HEIGHT, tuple(box)).crop(crop)
    return {
        "sample_id": f"fld/{split}/{number:04d}#0",
        "source_uri": f"{split}/{number}.jpg",
        "source_width": WIDTH,
        "source_height": HEIGHT,
        "photo_hash": number.to_bytes(16, "big"),
        "box": box.tolist(),
        "crop_box": crop,
        "image": encoded(picture, "JPEG", quality=97, subsampling=0),
        "image_width": picture.width,
        "image_height": picture.height,
        "garment_type": 1,
        "variation": None,
        "category": None,
        "attributes": None,
        "view": None,
        "area": None,
        "landmarks": (points - crop[:2]).ravel().tolist(),
        "visibility": [0, 1 if hidden else 0],
    }
