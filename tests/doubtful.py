"""A data set with known mistakes: exchanged sides, a landmark far off, and photos that are in two splits."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from glefld.schema import FASHION8, REJECT_SCHEMA, LandmarkSet, Manifest, Shard, sample_schema
from tests import dots
from tests.natural import picture

WIDTH, HEIGHT = 48, 64
#: Of a front view of an upper garment, within the box: its left is on the right. Waistlines are no landmarks of it.
UPPER = np.array(
    [[0.6, 0.1], [0.4, 0.1], [0.9, 0.5], [0.1, 0.5], [np.nan] * 2, [np.nan] * 2, [0.7, 0.9], [0.3, 0.9]]
)
#: Rows of train by what is done to them.
EXCHANGED, FAR, WRONG_VIEW, TWICE, SIMILAR = 5, 9, 13, 17, 21
BACKS = range(30, 40)


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    return dots.encoded(image, "JPEG", quality=quality)


def garment(split: str, number: int, rng: np.random.Generator) -> dict[str, Any]:
    """A row of an upper garment whose annotation is right."""
    box = np.array([6, 4, WIDTH - 6, HEIGHT - 4], float)
    points = box[:2] + (box[2:] - box[:2]) * (UPPER + rng.normal(0, 0.02, UPPER.shape))
    if split == "train" and number in BACKS:
        points = points[list(FASHION8.mirror)]
    image = Image.open(
        io.BytesIO(picture(7919 * len(split) + number, 64, width=WIDTH, height=HEIGHT).encoded.tobytes())
    )
    return row(f"fld/{split}/{number:04d}#0", f"{split}/{number}.jpg", jpeg(image), box, points, 1)


def row(
    sample_id: str, uri: str, image: bytes, box: np.ndarray, points: np.ndarray, garment_type: int
) -> dict[str, Any]:
    """A row whose whole photo is stored."""
    with Image.open(io.BytesIO(image)) as opened:
        width, height = opened.size
    return {
        "sample_id": sample_id,
        "source_uri": uri,
        "source_width": width,
        "source_height": height,
        "photo_hash": hashlib.blake2b(image, digest_size=16).digest(),
        "box": box.tolist(),
        "crop_box": [0, 0, width, height],
        "image": image,
        "image_width": width,
        "image_height": height,
        "garment_type": garment_type,
        "variation": None,
        "category": None,
        "attributes": None,
        "view": "back" if "train/0030" in sample_id else None,
        "area": None,
        "landmarks": points.ravel().tolist(),
        "visibility": [3 if np.isnan(x) else 0 for x in points[:, 0]],
    }


def write(
    root: Path,
    landmark_set: LandmarkSet,
    splits: dict[str, list[dict[str, Any]]],
    rejects: list[dict[str, Any]],
) -> str:
    """Write rows as a finished data set; its URL."""
    shards = []
    for split, rows in splits.items():
        (root / f"split={split}").mkdir(parents=True)
        path = f"split={split}/part-00000.parquet"
        pq.write_table(
            pa.Table.from_pylist(rows, sample_schema(landmark_set)), root / path, row_group_size=16
        )
        shards.append(Shard(path, split, len(rows), (root / path).stat().st_size, split, 16))
    if rejects:
        (root / "_rejects").mkdir()
        pq.write_table(
            pa.Table.from_pylist(rejects, REJECT_SCHEMA), root / "_rejects" / "train-00000.parquet"
        )
    reasons = [reject["reason"] for reject in rejects]
    manifest = Manifest(
        dataset="fld",
        landmark_set=landmark_set,
        rows_in=sum(map(len, splits.values())) + len(rejects),
        splits={split: len(rows) for split, rows in splits.items()},
        rejects={reason: reasons.count(reason) for reason in sorted(set(reasons))},
        shards=tuple(shards),
        content_hash="doubtful",
        options={},
        source={},
    )
    (root / "_manifest.json").write_text(json.dumps(manifest.to_json()))
    return str(root)


def write_dataset(root: Path) -> str:
    """120 train and 40 val garments with the mistakes above, and three rejects, of which one has a photo; its URL."""
    rng = np.random.default_rng(0)
    train = [garment("train", i, rng) for i in range(120)]
    val = [garment("val", i, rng) for i in range(40)]
    points = np.array(train[EXCHANGED]["landmarks"]).reshape(-1, 2)
    points[[0, 1]] = points[[1, 0]]
    train[EXCHANGED]["landmarks"] = points.ravel().tolist()
    train[FAR]["landmarks"][2 * 6 + 1] -= 20  # left hem
    train[WRONG_VIEW]["view"] = "back"
    for name in ("image", "photo_hash"):
        val[3][name] = train[TWICE][name]
    with Image.open(io.BytesIO(train[SIMILAR]["image"])) as image:
        val[4]["image"] = jpeg(image.resize((WIDTH, HEIGHT)).convert("RGB"), quality=50)
    whole = root / "photos" / "whole.jpg"
    whole.parent.mkdir(parents=True)
    whole.write_bytes(jpeg(Image.new("RGB", (30, 40), "red")))
    rejects = [
        {
            "sample_id": f"fld/{reason}#0",
            "split": "train",
            "source_uri": uri,
            "reason": reason,
            "detail": "<b>as it is</b>",
            "photo_hash": None,
        }
        for reason, uri in (
            ("no_landmarks", str(whole)),
            ("missing_photo", str(root / "nowhere.jpg")),
            ("unreadable_photo", f"{root}/{'x' * 300}.jpg"),  # the disk takes no such name
        )
    ]
    return write(root / "data", FASHION8, {"train": train, "val": val}, rejects)


def write_dots(root: Path, exchanged: set[int], far: set[int]) -> str:
    """60 photos of two dots, of some of which the annotation is wrong; its URL."""
    rng = np.random.default_rng(1)
    rows = []
    for number in range(60):
        box = np.array([0, 0, 64, 64], float)
        points = dots.random_points(rng, (8, 8, 56, 56))
        while np.linalg.norm(points[0] - points[1]) < 16:
            points = dots.random_points(rng, (8, 8, 56, 56))
        image = jpeg(dots.photo(points, 64, 64), 95)
        if number in exchanged:
            points = points[::-1]
        if number in far:
            points[0, 0] += 20 if points[0, 0] < 32 else -20
        rows.append(row(f"fld/val/{number:04d}#0", f"{number}.jpg", image, box, points, 1))
    return write(root / "data", dots.DOTS, {"val": rows}, [])
