"""Ground truth as tensors, in pixels of the photo.

Letters in shapes: B rows, K landmarks, A attributes, T garment types of the landmark set.
"""

import math
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from glefld.schema import VIEWS, ClassLabel, Labels, Visibility


class Truth(NamedTuple):
    """Ground truth of B garments, in photo pixels."""

    points: Tensor  # [B, K, 2] float64, NaN where missing
    visibility: Tensor  # [B, K] int64, codes of schema.Visibility
    box: Tensor  # [B, 4] float64, x1 y1 x2 y2
    garment_type: Tensor  # [B] int64, code of the garment type, -1 if unknown
    view: Tensor  # [B] int64, index into schema.VIEWS, -1 if unknown
    category: Tensor  # [B] int64, index into the categories, -1 if unknown
    attributes: Tensor  # [B, A] float32, 1 yes, 0 no, NaN if unknown

    def label(self, label: ClassLabel, labels: Labels) -> Tensor:
        """Return each garment's index into ``labels.classes(label)``: [B] int64, -1 if unknown."""
        if label == "category":
            return self.category
        codes = torch.tensor([t.code for t in labels.landmark_set.garment_types])
        slot = type_slot(self.garment_type, codes)
        return torch.where(slot < len(codes), slot, -1)

    @classmethod
    def from_arrow(cls, table: pa.Table, labels: Labels) -> Self:
        """Convert stored samples (``schema.sample_schema``, images optional), moving landmarks from crop to photo."""

        def numbers(name: str, *shape: int) -> Tensor:
            flat = table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            return torch.tensor(flat.astype(np.float64)).view(table.num_rows, *shape)

        def codes(name: str, first: int = 0) -> Tensor:
            return torch.tensor([-1 if v is None else v - first for v in table[name].to_pylist()]).long()

        k = len(labels.landmark_set)
        views = {name: i for i, name in enumerate(VIEWS)}
        return cls(
            points=numbers("landmarks", k, 2) + numbers("crop_box", 4)[:, None, :2],
            visibility=numbers("visibility", k).long(),
            box=numbers("box", 4),
            garment_type=codes("garment_type"),
            view=torch.tensor([views.get(v, -1) for v in table["view"].to_pylist()]).long(),
            category=codes("category", first=1),
            attributes=_many_hot(table["attributes"].to_pylist(), len(labels.attributes)),
        )


#: The classes of a landmark's visibility that a system tells apart: cut off and absent ones are nowhere to be seen.
SEEN = ("visible", "occluded", "absent")
#: The code that is answered for each of them.
SEEN_CODES = (Visibility.VISIBLE, Visibility.OCCLUDED, Visibility.ABSENT)


def visibility_class(visibility: Tensor) -> Tensor:
    """Return the index into ``SEEN`` of codes of ``schema.Visibility``: [...] int64 -> [...] int64"""
    return visibility.clamp(max=len(SEEN) - 1)


def _many_hot(rows: list[list[int] | None], count: int) -> Tensor:
    """Return lists of indices as rows of ones and zeros, [B, A]; a row without a list is NaN."""
    result = torch.zeros(len(rows), count)
    for row, indices in zip(result, rows, strict=True):
        if indices is None:
            row.fill_(math.nan)
        elif count:
            row[indices] = 1
    return result


def type_slot(garment_type: Tensor, codes: Tensor) -> Tensor:
    """Return the position of each garment type [B] among the T codes [T]; T if unknown."""
    known = garment_type[:, None] == codes
    return torch.cat([known, ~known.any(dim=1, keepdim=True)], dim=1).int().argmax(dim=1)
