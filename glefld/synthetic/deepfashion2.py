"""Rendered data sets in DeepFashion2's raw layout: one zip per split, one JSON file of several garments per photo.

Photo i depends only on (seed, i), so a larger data set starts with the photos of a smaller one. Unlike the real
downloads, the zips have no password, and there is no test split, since its annotations were never published.
"""

import contextlib
import json
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from glefld import storage
from glefld.datasets.deepfashion2_landmarks import CATEGORIES
from glefld.errors import UserError, require_between
from glefld.synthetic.deepfashion import OUTFIT, Summary, in_processes
from glefld.synthetic.raw_lists import MARK
from glefld.synthetic.render.outfit import OCCLUDED, UNLABELLED, OutfitPhoto, WornGarment, render_outfits
from glefld.temporary import temporary_folder

#: Photos per split in the benchmark.
SPLIT_SIZES = {"train": 390_884, "validation": 33_669}
CATEGORY_IDS = {name: number for number, (name, _) in enumerate(CATEGORIES, 1)}
#: Thresholds between the codes 1, 2 and 3: of ``scale`` the box's share of the photo, of ``occlusion`` the share of
#: occluded landmarks.
SCALES, OCCLUSIONS = (0.1, 0.4), (0.2, 0.5)
ZOOM_IN = {4: 2, 5: 3}  # FLD's variation_type to zoom_in


def write_dataset(
    output: str,
    count: int,
    *,
    seed: int = 0,
    processes: int = 1,
    on_photo: Callable[[], object] = lambda: None,
) -> Summary:
    """Write ``count`` photos to a path or URL as ``train.zip`` and ``validation.zip``, each atomically.

    The summary counts garments. ``on_photo`` is called after each photo. UserError for a count below 1, or
    if there is an archive already.
    """
    require_between("--count", count, 1)
    require_between("--seed", seed, 0)
    require_between("--processes", processes, 1)
    archives = {split: storage.join(output, f"{split}.zip") for split in SPLIT_SIZES}
    if there := [url for url in archives.values() if storage.exists(url)]:
        raise UserError(f"{there[0]} already exists: choose another --output, or delete it")
    storage.write_json(storage.join(output, MARK), {"layout": "deepfashion2", "seed": seed, "photos": count})
    splits: Counter[str] = Counter()
    views: Counter[str] = Counter()
    categories: Counter[str] = Counter()
    written: Counter[str] = Counter()
    with temporary_folder() as folder, contextlib.ExitStack() as stack:
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
                # A fixed time, so that the archive's bytes depend only on the seed.
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
    """Return the split of each photo, in the benchmark's proportion at every count."""
    shares = np.array(list(SPLIT_SIZES.values())) / sum(SPLIT_SIZES.values())
    given = np.zeros(len(shares))
    names = []
    for index in range(count):
        split = int(np.argmax(shares * (index + 1) - given))
        given[split] += 1
        names.append(list(SPLIT_SIZES)[split])
    return names


def draw_one(task: tuple[int, int]) -> OutfitPhoto:
    """Draw one photo, given (seed, index)."""
    seed, index = task
    return render_outfits(np.random.default_rng((seed, OUTFIT, index)))


def annotation(photo: OutfitPhoto, number: int) -> bytes:
    """Return the photo's JSON file with the benchmark's keys; each photo gets its own pair id."""
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
