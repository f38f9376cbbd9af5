"""DALI: encoded bytes in, batches on the device out. One pipeline a worker, the same graph on CPU and GPU.

Decode, resize, affine, mirror, colour and normalise run in DALI. What they are told (matrix and colour of each sample)
is drawn on the host from the seed, the epoch and the row's number, so a sample looks the same whoever loads it.

b local batch, K landmarks, S the square input's size. Frames: photo -> stored picture (a crop) -> input.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.pipeline import Pipeline
from torch import Tensor

from glefld.data.augmentation import (
    Augmentation,
    Draw,
    box_to_input,
    compose,
    draw_augmentation,
    invert,
    transform,
)
from glefld.data.prefetch import ahead
from glefld.data.truth import Truth
from glefld.schema import Labels, Visibility

#: ImageNet's channel statistics, which the papers' VGG16 expects. RGB, of 255.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Picture:
    """One encoded picture, and how it becomes an input."""

    encoded: np.ndarray  # uint8, the file's bytes
    width: int  # as stored: the graph does not turn a picture by its EXIF tag
    height: int
    to_input: np.ndarray  # [2, 3], affine, from the picture as stored
    colour: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 0.0)


@dataclass
class Batch:
    """A rank's share of a batch. ``images`` is on the device, the rest on the host."""

    images: Tensor  # [b, 3, S, S], normalised
    landmarks: Tensor  # [b, K, 2] in the input's pixels, NaN where there is none
    visibility: Tensor  # [b, K], swapped like the landmarks where the input is a mirror image
    to_photo: Tensor  # [b, 2, 3], affine, from the input to the photo
    truth: Truth  # as annotated

    def weight(self, which: Literal["visible", "annotated"]) -> Tensor:
        """[b, K]: 1 for the landmarks that train, visible (or also occluded) and within the input; else 0."""
        size = self.images.shape[-1]
        within = ((self.landmarks >= 0) & (self.landmarks <= size)).all(dim=-1)  # False for NaN
        most = Visibility.VISIBLE if which == "visible" else Visibility.OCCLUDED
        return ((self.visibility <= most) & within).float()


class InputPipeline:
    """The DALI graph: lists of pictures in, [b, 3, S, S] tensors on the device out.

    ``device_id`` None runs all of it on the CPU.
    """

    def __init__(self, size: int, batch_size: int, device_id: int | None = None, threads: int = 2) -> None:
        self.size = size
        self.batch_size = batch_size
        # Run by hand, one batch at a time: a prefetching pipeline would stall on a stream's last, smaller batch.
        self._pipeline: Pipeline = _graph(
            size=size,
            gpu=device_id is not None,
            batch_size=batch_size,
            num_threads=threads,
            device_id=device_id,
            prefetch_queue_depth=1,
            exec_async=False,
            exec_pipelined=False,
        )
        self._pipeline.build()
        self._stream = torch.cuda.Stream(device_id) if device_id is not None else None

    def run(self, pictures: list[Picture]) -> Tensor:
        """At most ``batch_size`` pictures to [b, 3, S, S]. RuntimeError if one of them cannot be decoded."""
        assert 0 < len(pictures) <= self.batch_size
        self._feed(pictures)
        (output,) = self._pipeline.run()
        images = torch.from_dlpack(output.as_tensor())
        # The pipeline's buffer is used again by the next run, so the batch is copied out of it.
        if self._stream is None:
            return images.clone()
        # Beside the training step's own work, which the copy must not wait for, and to its end.
        with torch.cuda.stream(self._stream):
            copy = images.clone()
        self._stream.synchronize()
        copy.record_stream(torch.cuda.current_stream(copy.device))
        return copy

    def _feed(self, pictures: list[Picture]) -> None:
        sizes, matrices = [], []
        for picture in pictures:
            # Shrinking goes through an antialiased resize; the affine map that follows then works near scale 1.
            scale = np.minimum(1, np.linalg.norm(picture.to_input[:, :2], axis=0))
            width = max(1, round(picture.width * scale[0]))
            height = max(1, round(picture.height * scale[1]))
            stretch = np.array([[picture.width / width, 0, 0], [0, picture.height / height, 0]])
            sizes.append(np.array([height, width], np.float32))
            matrices.append(compose(picture.to_input, stretch).astype(np.float32))
        self._pipeline.feed_input("encoded", [picture.encoded for picture in pictures])
        self._pipeline.feed_input("resized", sizes)
        self._pipeline.feed_input("matrix", matrices)
        self._pipeline.feed_input("colour", [np.array(picture.colour, np.float32) for picture in pictures])


@pipeline_def
def _graph(size: int, gpu: bool) -> object:
    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
    resized = fn.external_source(name="resized", dtype=types.FLOAT, ndim=1)
    matrix = fn.external_source(name="matrix", dtype=types.FLOAT, ndim=2)
    colour = fn.external_source(name="colour", dtype=types.FLOAT, ndim=1)
    images = fn.decoders.image(
        encoded, device="mixed" if gpu else "cpu", output_type=types.RGB, adjust_orientation=False
    )
    images = fn.resize(images, size=resized, interp_type=types.INTERP_LINEAR, antialias=True)
    images = fn.warp_affine(
        images,
        matrix=matrix,
        size=(size, size),
        inverse_map=False,
        interp_type=types.INTERP_LINEAR,
        fill_value=round(sum(MEAN) / 3),
    )
    images = fn.color_twist(
        images, brightness=colour[0], contrast=colour[1], saturation=colour[2], hue=colour[3]
    )
    return fn.crop_mirror_normalize(
        images, mean=list(MEAN), std=list(STD), output_layout="CHW", dtype=types.FLOAT
    )


class BatchLoader:
    """Tables of samples to batches: the host's side of the geometry, and the DALI pipeline behind it."""

    def __init__(self, labels: Labels, pipeline: InputPipeline) -> None:
        self.labels = labels
        self.mirror = np.array(labels.landmark_set.mirror, np.int64)
        self.pipeline = pipeline

    def run(
        self, tables: Iterable[pa.Table], augmentation: Augmentation, seeds: Iterable[tuple[int, ...]] = ()
    ) -> Iterator[Batch]:
        """Batches for tables of the sample schema; ``seeds`` gives each row, in order, its random stream's seed.

        Without seeds the augmentation must be ``NO_AUGMENTATION``.
        """
        streams = iter(seeds)

        def batches() -> Iterator[Batch]:
            for table in tables:
                draws = [
                    draw_augmentation(
                        augmentation, self.pipeline.size, np.random.default_rng(next(streams, (0,)))
                    )
                    for _ in range(table.num_rows)
                ]
                batch, pictures = self._prepare(table, draws)
                batch.images = self.pipeline.run(pictures)
                yield batch

        return ahead(batches(), 2)

    def _prepare(self, table: pa.Table, draws: list[Draw]) -> tuple[Batch, list[Picture]]:
        size = self.pipeline.size
        truth = Truth.from_arrow(table, self.labels)
        squash = np.stack([box_to_input(box, size) for box in truth.box.numpy()])
        to_input = np.stack(
            [compose(d.affine, s) for d, s in zip(draws, squash, strict=True)]
        )  # from the photo
        mirrored = np.array([d.mirrored for d in draws])[:, None]
        names = np.where(
            mirrored, self.mirror, np.arange(len(self.mirror))
        )  # whose coordinates each slot takes
        moved = transform(truth.points.numpy(), to_input)
        batch = Batch(
            images=torch.empty(0),
            landmarks=torch.from_numpy(np.take_along_axis(moved, names[..., None], axis=1)).float(),
            visibility=torch.from_numpy(np.take_along_axis(truth.visibility.numpy(), names, axis=1)),
            to_photo=torch.from_numpy(invert(to_input)),
            truth=truth,
        )
        image = table["image"].combine_chunks()
        pictures = [
            Picture(
                encoded=np.frombuffer(image[i].as_buffer(), np.uint8),
                width=width,
                height=height,
                to_input=compose(to_input[i], np.array([[1, 0, x], [0, 1, y]])),
                colour=draws[i].colour,
            )
            for i, (width, height, (x, y, _, _)) in enumerate(
                zip(*(table[c].to_pylist() for c in ("image_width", "image_height", "crop_box")), strict=True)
            )
        ]
        return batch, pictures


def to_photo(points: Tensor, affine: Tensor) -> Tensor:
    """Points [b, K, 2] of the input through [b, 2, 3] to the photo, in float64."""
    return points.double() @ affine[..., :2].transpose(-1, -2) + affine[:, None, :, 2]
