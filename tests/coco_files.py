"""Tiny COCO keypoints files, for the tests of everything that reads them."""

import io
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from glefld.datasets import read_annotations
from glefld.datasets.lists import Annotations, ListFiles, OwnOptions

TOP = ("left_collar", "right_collar", "left_hem", "right_hem", "back")


def category(name: str = "top", keypoints: Sequence[str] = TOP, key: Any = 1, **more: Any) -> dict[str, Any]:
    return {
        "id": key,
        "name": name,
        "supercategory": "",
        "keypoints": list(keypoints),
        "skeleton": [[1, 2]],
        **more,
    }


def image(key: Any, name: str | None = None, **more: Any) -> dict[str, Any]:
    return {"id": key, "file_name": name or f"{key}.jpg", "width": 60, "height": 80, **more}


def annotation(key: Any, of: Any = 1, n: int = len(TOP), **more: Any) -> dict[str, Any]:
    """A garment whose keypoints lie on a diagonal, visible, occluded and absent by turns."""
    keypoints = [v for i in range(n) for v in (10.5 + i, 20.25 + i, 2 - i % 3)]
    found = {"id": key, "image_id": of, "category_id": 1, "bbox": [5, 10, 40, 60], "keypoints": keypoints}
    return {**found, "area": 1200.0, "iscrowd": 0, "segmentation": [], **more}


def coco(
    annotations: Sequence[Any],
    images: Sequence[Any] | None = None,
    categories: Sequence[Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A file with these annotations and, by default, the images that they are of."""
    of = list(dict.fromkeys(item.get("image_id") for item in annotations if isinstance(item, dict)))
    return {
        "images": [image(key) for key in of] if images is None else list(images),
        "annotations": list(annotations),
        "categories": [category()] if categories is None else list(categories),
        **more,
    }


def as_files(files: Mapping[str, Any], photos: Sequence[str], options: OwnOptions) -> ListFiles:
    data = {n: v if isinstance(v, bytes) else json.dumps(v).encode() for n, v in files.items()}
    return ListFiles(
        "raw", {}, photos, tables={n: partial(io.BytesIO, d) for n, d in data.items()}, own=options
    )


def read_coco(
    files: Mapping[str, Any] | dict[str, Any], photos: Sequence[str] | None = None, **options: Any
) -> Annotations:
    """Read files by name, or one file. All photos that they list are there by default."""
    files = {"all.json": files} if "annotations" in files else files
    if photos is None:
        photos = [i["file_name"] for f in files.values() if isinstance(f, dict) for i in f["images"]]
    return read_annotations("coco", as_files(files, photos, OwnOptions(**options)))
