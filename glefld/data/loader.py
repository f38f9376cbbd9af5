"""The input pipeline: encoded bytes to batches on the device.

It decodes, shrinks, warps, adjusts colour and normalises: DALI on a GPU (``gpu``), a pool of threads on a CPU
(``host``). The matrix and colour factors of each sample are drawn on the host from the seed, the epoch and the row
number, so a sample does not depend on the worker that loads it.
Letters in shapes: b local batch, K landmarks, S the square input's size.
Frames: photo -> stored picture (a crop) -> input.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from glefld.data.augmentation import (
    Augmentation,
    Draw,
    box_to_input,
    compose,
    draw_augmentation,
    invert,
    square_around,
    transform,
    translation,
)
from glefld.data.garments import Garments, PhotoBoxes
from glefld.data.host import HostEngine, Loaded
from glefld.data.picture import Normalisation, Picture
from glefld.data.prefetch import ahead
from glefld.data.truth import Truth, visibility_class
from glefld.schema import Labels, Visibility

if TYPE_CHECKING:
    from glefld.data.gpu import DaliEngine

Item = TypeVar("Item")


@dataclass
class Batch:
    """A rank's share of a global batch. ``images`` is on the device, everything else on the host."""

    images: Tensor  # [b, 3, S, S], normalised
    landmarks: Tensor  # [b, K, 2] in input pixels, NaN where missing
    visibility: Tensor  # [b, K], swapped like the landmarks where mirrored
    to_photo: Tensor  # [b, 2, 3], affine, from the input to the photo
    truth: Truth  # ground truth, not augmented
    garments: Garments | None = None  # of the whole photos, if these are what the images show

    def weight(self, which: Literal["visible", "annotated"]) -> Tensor:
        """Return loss weights [b, K]: 1 for visible (or all annotated) landmarks inside the input, else 0."""
        most = Visibility.VISIBLE if which == "visible" else Visibility.OCCLUDED
        return ((self.visibility <= most) & self._within()).float()

    def seen(self) -> Tensor:
        """Return each landmark's index into ``truth.SEEN``, [b, K] int64; -1 where augmentation moved it outside."""
        found = visibility_class(self.visibility)
        return torch.where((self.visibility <= Visibility.OCCLUDED) & ~self._within(), -1, found)

    def _within(self) -> Tensor:
        size = self.images.shape[-1]
        return ((self.landmarks >= 0) & (self.landmarks <= size)).all(dim=-1)  # False for NaN


class InputPipeline:
    """Lists of pictures in, [b, 3, S, S] tensors on the device out, in order, each list while others are computed.

    It runs on the GPU ``device_id``, where DALI needs it, or on the CPU if that is None.
    """

    def __init__(
        self,
        size: int,
        normalisation: Normalisation,
        batch_size: int,
        device_id: int | None = None,
        threads: int = 2,
    ) -> None:
        self.size = size
        self.batch_size = batch_size
        self.threads = threads
        self._engine: HostEngine | DaliEngine = (
            HostEngine(size, normalisation, threads)
            if device_id is None
            else _gpu_engine(size, normalisation, batch_size, device_id, threads)
        )

    def load(self, batches: Iterable[tuple[Item, list[Picture]]]) -> Iterator[tuple[Item, Loaded]]:
        """Yield each item with its pictures loaded, at most ``batch_size`` of them; the next ones are begun before."""

        def checked() -> Iterator[tuple[Item, list[Picture]]]:
            for item, pictures in batches:
                assert len(pictures) <= self.batch_size
                yield item, pictures

        return self._engine.load(checked())

    def run(self, pictures: list[Picture]) -> Tensor:
        """Load one list as [b, 3, S, S]; RuntimeError if one of them cannot be decoded."""
        ((_, loaded),) = self.load([(None, pictures)])
        return _whole(loaded)


def _gpu_engine(
    size: int, normalisation: Normalisation, batch_size: int, device_id: int, threads: int
) -> "DaliEngine":
    from glefld.data.gpu import DaliEngine  # DALI takes long to import

    return DaliEngine(size, normalisation, batch_size, device_id, threads)


def _whole(loaded: Loaded) -> Tensor:
    for position, bad in loaded.bad.items():
        raise RuntimeError(f"picture {position} of a batch cannot be decoded: {bad}")
    return loaded.images


class BatchLoader:
    """Turns tables of samples into batches: computes the geometry on the host and runs the DALI pipeline."""

    def __init__(self, labels: Labels, pipeline: InputPipeline, photos: PhotoBoxes | None = None) -> None:
        """photos: of a split whose whole photos are to be loaded, for a detector; None loads its garments' boxes."""
        self.labels = labels
        self.mirror = np.array(labels.landmark_set.mirror, np.int64)
        self.pipeline = pipeline
        self.photos = photos

    def run(
        self, tables: Iterable[pa.Table], augmentation: Augmentation, seeds: Iterable[tuple[int, ...]] = ()
    ) -> Iterator[Batch]:
        """Yield one batch per table of the sample schema, loaded ahead by a thread.

        ``seeds`` gives the seed of each row's random stream, in row order. Without seeds the augmentation must be
        ``NO_AUGMENTATION``.
        """
        streams = iter(seeds)

        def prepared() -> Iterator[tuple[Batch, list[Picture]]]:
            for table in tables:
                draws = [
                    draw_augmentation(
                        augmentation, self.pipeline.size, np.random.default_rng(next(streams, (0,)))
                    )
                    for _ in range(table.num_rows)
                ]
                yield self._prepare(table, draws)

        def batches() -> Iterator[Batch]:
            for batch, loaded in self.pipeline.load(prepared()):
                batch.images = _whole(loaded)
                yield batch

        return ahead(batches(), 2)

    def _prepare(self, table: pa.Table, draws: list[Draw]) -> tuple[Batch, list[Picture]]:
        truth = Truth.from_arrow(table, self.labels)
        size = self.pipeline.size
        region = truth.box.numpy()
        if self.photos is not None:
            sides = (table[f"source_{side}"].to_numpy() for side in ("width", "height"))
            region = square_around(*sides)
        to_input = compose(
            np.stack([d.affine for d in draws]), box_to_input(region, size)
        )  # from the photo, [b, 2, 3]
        mirrored = np.array([d.mirrored for d in draws])[:, None]
        names = np.where(
            mirrored, self.mirror, np.arange(len(self.mirror))
        )  # the landmark that each slot takes its coordinates from, [b, K]
        moved = transform(truth.points.numpy(), to_input)
        batch = Batch(
            images=torch.empty(0),
            landmarks=torch.from_numpy(np.take_along_axis(moved, names[..., None], axis=1)).float(),
            visibility=torch.from_numpy(np.take_along_axis(truth.visibility.numpy(), names, axis=1)),
            to_photo=torch.from_numpy(invert(to_input)),
            truth=truth,
            garments=self.photos.of(table, to_input, size) if self.photos is not None else None,
        )
        crop = table["crop_box"].combine_chunks().flatten().to_numpy().reshape(-1, 4)
        image = table["image"].combine_chunks()
        pictures = [
            Picture(np.frombuffer(image[i].as_buffer(), np.uint8), width, height, matrix, draws[i].colour)
            for i, (width, height, matrix) in enumerate(
                zip(
                    table["image_width"].to_pylist(),
                    table["image_height"].to_pylist(),
                    compose(to_input, translation(crop[:, :2])),
                    strict=True,
                )
            )
        ]
        return batch, pictures


def to_photo(points: Tensor, affine: Tensor) -> Tensor:
    """Map points [b, K, 2] of the input to the photo by affine maps [b, 2, 3], in float64."""
    return points.double() @ affine[..., :2].transpose(-1, -2) + affine[:, None, :, 2]
