"""Rendered photos in DeepFashion2's raw layout: a zip a split, with a JSON of several garments beside each photo.

Photo i of a seed comes from (seed, i) alone, so a larger count begins with the smaller one's photos. Unlike the real
downloads the zips have no password, and there is no test split: the real one's annotations were never published.
"""

import contextlib
import json
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from glefld import storage
from glefld.datasets.deepfashion2_landmarks import CATEGORIES
from glefld.errors import UserError
from glefld.synthetic.deepfashion import OUTFIT, Summary, in_processes
from glefld.synthetic.render.outfit import OCCLUDED, UNLABELLED, OutfitPhoto, WornGarment, render_outfits

#: Photos of the benchmark's splits.
SPLIT_SIZES = {"train": 390_884, "validation": 33_669}
CATEGORY_IDS = {name: number for number, (name, _) in enumerate(CATEGORIES, 1)}
#: Shares at which ``scale`` (of the photo, the box's) and ``occlusion`` (of the landmarks) go from 1 to 2 and 3.
SCALES, OCCLUSIONS = (0.1, 0.4), (0.2, 0.5)
ZOOM_IN = {4: 2, 5: 3}  # by FLD's variation_type


def write_dataset(
    output: str,
    count: int,
    *,
    seed: int = 0,
    processes: int = 1,
    on_photo: Callable[[], object] = lambda: None,
) -> Summary:
    """Write ``count`` photos to a path or URL as ``train.zip`` and ``validation.zip``, each whole or not at all.

    The summary counts garments. UserError for a count below 1, FileExistsError if there already is an archive.
    """
    if count < 1:
        raise UserError(f"count must be at least 1, not {count}")
    archives = {split: storage.join(output, f"{split}.zip") for split in SPLIT_SIZES}
    if there := [url for url in archives.values() if storage.exists(url)]:
        raise FileExistsError(f"{there[0]} is there already: name another output or remove it")
    splits: Counter[str] = Counter()
    views: Counter[str] = Counter()
    categories: Counter[str] = Counter()
    written: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="glefld-synthesize-") as folder, contextlib.ExitStack() as stack:
        local = {split: Path(folder) / f"{split}.zip" for split in SPLIT_SIZES}
        files = {split: stack.enter_context(zipfile.ZipFile(path, "w")) for split, path in local.items()}
        photos = in_processes(draw_one, [(seed, index) for index in range(count)], processes)
        for split, photo in zip(list_splits(count), photos, strict=True):
            written[split] += 1
            name = f"{written[split]:06d}"
            members = {
                f"image/{name}.jpg": photo.jpeg,
                f"annos/{name}.json": annotation(photo, written[split]),
            }
            for member, data in members.items():
                # A fixed time: the archive's bytes depend on the seed alone.
                files[split].writestr(zipfile.ZipInfo(f"{split}/{member}", (2019, 1, 1, 0, 0, 0)), data)
            splits[split] += len(photo.garments)
            views.update(garment.view for garment in photo.garments)
            categories.update(garment.category for garment in photo.garments)
            on_photo()
        stack.close()
        for split in written:
            storage.put(local[split], archives[split])
        size = sum(local[split].stat().st_size for split in written)
    return Summary(
        photos=count,
        splits=dict(splits),
        views=dict(views),
        planted={},
        archive_bytes=size,
        categories={name: categories[name] for name, _ in CATEGORIES if categories[name]},
    )


def list_splits(count: int) -> list[str]:
    """The split of each photo, in the benchmark's proportion at every count."""
    shares = np.array(list(SPLIT_SIZES.values())) / sum(SPLIT_SIZES.values())
    given = np.zeros(len(shares))
    names = []
    for index in range(count):
        split = int(np.argmax(shares * (index + 1) - given))
        given[split] += 1
        names.append(list(SPLIT_SIZES)[split])
    return names


def draw_one(task: tuple[int, int]) -> OutfitPhoto:
    """Photo number ``index`` of a seed, from (seed, index)."""
    seed, index = task
    return render_outfits(np.random.default_rng((seed, OUTFIT, index)))


def annotation(photo: OutfitPhoto, number: int) -> bytes:
    """The photo's JSON, its keys as the benchmark has them; each photo is a pair id of its own."""
    items = {f"item{i}": _item(garment, photo) for i, garment in enumerate(photo.garments, 1)}
    return json.dumps({**items, "source": "shop", "pair_id": number}).encode()


def _item(garment: WornGarment, photo: OutfitPhoto) -> dict[str, Any]:
    x1, y1, x2, y2 = garment.box
    labelled = garment.labels > UNLABELLED
    occluded = (garment.labels[labelled] == OCCLUDED).mean()
    covered = (x2 - x1) * (y2 - y1) / (photo.width * photo.height)
    viewpoint = 1 if not garment.worn else 2 if garment.view == "front" else 3
    return {
        "segmentation": garment.polygons,
        "scale": 1 + int(np.searchsorted(SCALES, covered)),
        "viewpoint": viewpoint,
        "zoom_in": ZOOM_IN.get(garment.variation, 1),
        "landmarks": np.column_stack([garment.landmarks, garment.labels]).ravel().tolist(),
        "style": 0,
        "bounding_box": list(garment.box),
        "category_id": CATEGORY_IDS[garment.category],
        "occlusion": 1 + int(np.searchsorted(OCCLUSIONS, occluded)),
        "category_name": garment.category,
    }
