"""Raw layouts to one Arrow table of annotations: one file a layout, chosen by name."""

from typing import Literal

from glefld.datasets import deepfashion, deepfashion2, deepfashion_fine, fld
from glefld.datasets.lists import Annotations, ListFiles

Dataset = Literal["fld", "deepfashion", "deepfashion-fine", "deepfashion2"]


def read_annotations(dataset: Dataset, lists: ListFiles) -> Annotations:
    """Every row of the data set's lists; ValueError names a missing list or the line that cannot be read."""
    if dataset == "fld":
        return fld.read(lists)
    if dataset == "deepfashion":
        return deepfashion.read(lists)
    if dataset == "deepfashion-fine":
        return deepfashion_fine.read(lists)
    return deepfashion2.read(lists)
