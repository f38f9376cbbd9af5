"""Readers of raw data set layouts. Each layout has its own file and becomes one Arrow table of annotations."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from glefld.datasets import (
    coco,
    csv_rows,
    deepfashion,
    deepfashion2,
    deepfashion_fine,
    fld,
    image_folder,
    table,
)
from glefld.datasets.lists import Annotations, ListFiles

Dataset = Literal[
    "fld", "deepfashion", "deepfashion-fine", "deepfashion2", "image-folder", "table", "coco", "csv"
]
#: Where a layout keeps its photos. img: an ``img`` archive or folder, or several archives. splits: one folder per
#: split. split-images: ``image`` inside each split's folder, next to ``annos`` with one JSON file per photo. table: as
#: img, beside Parquet files of annotations, or wherever the uris in these say. around: anywhere below the source, in
#: folders or archives, as the annotation files name them.
PhotoPlace = Literal["img", "splits", "split-images", "table", "around"]


class Layout(NamedTuple):
    """An entry of ``LAYOUTS``: the reader of the lists, and where the photos are.

    files: the extension of the annotation files, for layouts that take all of a kind; they may be named alone.
    upright: annotations are in the upright photo, its EXIF orientation applied, instead of in stored pixels.
    """

    read: Callable[[ListFiles], Annotations]
    photos: PhotoPlace = "img"
    files: str | None = None
    upright: bool = False

    @property
    def own(self) -> bool:
        """Whether the layout is for annotations of one's own, and takes ``OwnOptions``."""
        return self.photos == "around"


LAYOUTS: dict[Dataset, Layout] = {
    "fld": Layout(fld.read),
    "deepfashion": Layout(deepfashion.read),
    "deepfashion-fine": Layout(deepfashion_fine.read),
    "deepfashion2": Layout(deepfashion2.read, photos="split-images"),
    "image-folder": Layout(image_folder.read, photos="splits"),
    "table": Layout(table.read, photos="table"),
    "coco": Layout(coco.read, photos="around", files=".json", upright=True),
    "csv": Layout(csv_rows.read, photos="around", files=".csv", upright=True),
}


def read_annotations(dataset: Dataset, lists: ListFiles) -> Annotations:
    """Read all rows of a data set's lists; UserError names the missing list or the line that cannot be read."""
    return LAYOUTS[dataset].read(lists)
