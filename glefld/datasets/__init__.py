"""Raw layouts to one Arrow table of annotations: one file a layout, chosen by name."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from glefld.datasets import deepfashion, deepfashion2, deepfashion_fine, fld, image_folder
from glefld.datasets.lists import Annotations, ListFiles

Dataset = Literal["fld", "deepfashion", "deepfashion-fine", "deepfashion2", "image-folder"]
#: Where a layout has its photos, and from where on it names them: an ``img`` archive or folder, the splits' folders, or
#: ``image`` in each split's, whose ``annos`` has a JSON a photo.
PhotoPlace = Literal["img", "splits", "split-images"]


class Layout(NamedTuple):
    """A line of ``LAYOUTS``."""

    read: Callable[[ListFiles], Annotations]
    photos: PhotoPlace = "img"


LAYOUTS: dict[Dataset, Layout] = {
    "fld": Layout(fld.read),
    "deepfashion": Layout(deepfashion.read),
    "deepfashion-fine": Layout(deepfashion_fine.read),
    "deepfashion2": Layout(deepfashion2.read, photos="split-images"),
    "image-folder": Layout(image_folder.read, photos="splits"),
}


def read_annotations(dataset: Dataset, lists: ListFiles) -> Annotations:
    """Every row of the data set's lists; UserError names a missing list or the line that cannot be read."""
    return LAYOUTS[dataset].read(lists)
