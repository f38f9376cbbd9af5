"""All garments of each photo: a detector sees whole photos, and the rows of a data set are single garments.

Of each row are held its box and two hashes, 32 bytes: of its photo's uri and of its own id.
Letters in shapes: b rows, G garments of a row's photo.
"""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from glefld.data.augmentation import transform
from glefld.data.reader import SplitReader
from glefld.errors import UserError
from glefld.schema import Manifest, Split

#: The columns that ``PhotoBoxes`` is made from.
COLUMNS = ["sample_id", "source_uri", "box"]
#: A box of which augmentation leaves less than this part of its area in the input is no garment to be found.
LEAST_LEFT = 0.3


class Garments(NamedTuple):
    """The garments in the photos of b rows."""

    boxes: list[Tensor]
    """By row, [G, 4] float32 x1 y1 x2 y2 in input pixels, clipped to the input; without those that are cut off."""
    in_photo: list[Tensor]
    """By row, [G, 4] float64 in photo pixels, not augmented."""
    first: list[bool]
    """By row, whether it is its photo's first one, so that each photo counts once."""
    own: list[int]
    """By row, which of ``in_photo`` is its own."""
    sides: list[tuple[int, int]]
    """By row, width and height of its photo in pixels."""


class PhotoBoxes:
    """The boxes of all garments of a split by photo."""

    def __init__(self, tables: Iterable[pa.Table]) -> None:
        """tables: ``COLUMNS`` of all rows of a split, in order."""
        photos: list[np.ndarray] = [np.empty(0, np.uint64)]
        rows: list[np.ndarray] = [np.empty(0, np.uint64)]
        boxes: list[np.ndarray] = [np.empty((0, 4), np.float32)]
        for table in tables:
            photos.append(hashes(table["source_uri"]))
            rows.append(hashes(table["sample_id"]))
            boxes.append(_boxes(table))
        found = np.concatenate(photos)
        order = np.argsort(found, kind="stable")
        self._photos = found[order]
        self._rows = np.concatenate(rows)[order]
        self._boxes = np.concatenate(boxes)[order]

    @classmethod
    def read(cls, root: str, manifest: Manifest, split: Split) -> Self:
        """Read those of a split; UserError if the data set does not hold whole photos."""
        require_whole_photos(root, manifest)
        return cls(SplitReader(root, manifest, split).tables(COLUMNS))

    def __len__(self) -> int:
        """The number of garments."""
        return len(self._rows)

    def of(self, table: pa.Table, to_input: np.ndarray, size: int) -> Garments:
        """Return the garments of the photos of a table's rows; to_input: affine maps [b, 2, 3] from these photos."""
        photos, ids = hashes(table["source_uri"]), hashes(table["sample_id"])
        starts = np.searchsorted(self._photos, photos, side="left")
        ends = np.searchsorted(self._photos, photos, side="right")
        sides = (table[f"source_{side}"].to_pylist() for side in ("width", "height"))
        result = Garments([], [], [], [], list(zip(*sides, strict=True)))
        for start, end, row, affine in zip(starts, ends, ids, to_input, strict=True):
            here = self._rows[start:end]
            assert row in here, "a row of another split"
            found = self._boxes[start:end].astype(np.float64)
            result.in_photo.append(torch.from_numpy(found))
            result.boxes.append(torch.from_numpy(boxes_to_input(found, affine, size)))
            result.own.append(int(np.flatnonzero(here == row)[0]))
            result.first.append(result.own[-1] == 0)
        return result


def boxes_to_input(boxes: np.ndarray, affine: np.ndarray, size: int) -> np.ndarray:
    """Map boxes [G, 4] by an affine map [2, 3] to what is left of them in the input: [at most G, 4] float32.

    A box that was turned becomes the extent of its corners.
    """
    corners = transform(boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2), affine)
    whole = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    left = whole.clip(0, size)
    kept = _area(left) >= LEAST_LEFT * _area(whole)
    return left[kept & (left[:, 2:] > left[:, :2]).all(axis=1)].astype(np.float32)


def require_whole_photos(url: str, manifest: Manifest) -> None:
    """Raise UserError if a data set does not hold whole photos but crops of its garments."""
    if manifest.options.get("margin") != "full":
        raise UserError(
            f"the data set {url} holds crops of its garments, and a detector needs whole photos: ingest it with "
            "--margin full"
        )


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)


def _boxes(table: pa.Table) -> np.ndarray:
    return table["box"].combine_chunks().flatten().to_numpy().reshape(-1, 4)


def hashes(texts: pa.ChunkedArray) -> np.ndarray:
    """Return 64 bits of a hash of each text, [b] uint64. Of a million, two are the same in one set of 37 million."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts.to_pylist())
    return np.frombuffer(digests, np.uint64)
