"""The DALI input pipeline: encoded bytes to batches on the device, with the same graph on CPU and GPU.

DALI decodes, resizes, warps, adjusts colour and normalises. The matrix and colour factors of each sample are drawn on
the host from the seed, the epoch and the row number, so a sample does not depend on the worker that loads it.
Letters in shapes: b local batch, K landmarks, S the square input's size.
Frames: photo -> stored picture (a crop) -> input.
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

#: ImageNet's mean and standard deviation, RGB in 0 to 255, as torchvision's pretrained networks expect.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Picture:
    """One encoded picture and the transform that makes it an input."""

    encoded: np.ndarray  # uint8, the file's bytes
    width: int  # as stored: the graph ignores the EXIF orientation
    height: int
    to_input: np.ndarray  # [2, 3], affine, from the stored picture
    colour: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 0.0)


@dataclass
class Batch:
    """A rank's share of a global batch. ``images`` is on the device, everything else on the host."""

    images: Tensor  # [b, 3, S, S], normalised
    landmarks: Tensor  # [b, K, 2] in input pixels, NaN where missing
    visibility: Tensor  # [b, K], swapped like the landmarks where mirrored
    to_photo: Tensor  # [b, 2, 3], affine, from the input to the photo
    truth: Truth  # ground truth, not augmented

    def weight(self, which: Literal["visible", "annotated"]) -> Tensor:
        """Return loss weights [b, K]: 1 for visible (or all annotated) landmarks inside the input, else 0."""
        size = self.images.shape[-1]
        within = ((self.landmarks >= 0) & (self.landmarks <= size)).all(dim=-1)  # False for NaN
        most = Visibility.VISIBLE if which == "visible" else Visibility.OCCLUDED
        return ((self.visibility <= most) & within).float()


class InputPipeline:
    """The DALI graph: lists of pictures in, [b, 3, S, S] tensors on the device out.

    It runs on the GPU ``device_id``, or on the CPU if that is None.
    """

    def __init__(self, size: int, batch_size: int, device_id: int | None = None, threads: int = 2) -> None:
        self.size = size
        self.batch_size = batch_size
        # Run one batch at a time: with prefetching, the pipeline would stall on the smaller last batch of a stream.
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
        """Load at most ``batch_size`` pictures as [b, 3, S, S]; RuntimeError if one of them cannot be decoded."""
        assert 0 < len(pictures) <= self.batch_size
        self._feed(pictures)
        (output,) = self._pipeline.run()
        images = torch.from_dlpack(output.as_tensor())
        # The next run reuses the pipeline's buffer, so copy the batch out of it.
        if self._stream is None:
            return images.clone()
        # On its own stream the copy does not wait for the training step. Synchronise before the buffer is reused.
        with torch.cuda.stream(self._stream):
            copy = images.clone()
        self._stream.synchronize()
        copy.record_stream(torch.cuda.current_stream(copy.device))
        return copy

    def _feed(self, pictures: list[Picture]) -> None:
        sizes, matrices = [], []
        for picture in pictures:
            # Shrink with an antialiased resize first, so that the affine map works near scale 1 and does not alias.
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
        encoded,
        device="mixed" if gpu else "cpu",
        output_type=types.RGB,
        adjust_orientation=False,
        jpeg_fancy_upsampling=True,  # as the CPU's decoder does: otherwise the two differ by up to 12 levels
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
    """Turns tables of samples into batches: computes the geometry on the host and runs the DALI pipeline."""

    def __init__(self, labels: Labels, pipeline: InputPipeline) -> None:
        self.labels = labels
        self.mirror = np.array(labels.landmark_set.mirror, np.int64)
        self.pipeline = pipeline

    def run(
        self, tables: Iterable[pa.Table], augmentation: Augmentation, seeds: Iterable[tuple[int, ...]] = ()
    ) -> Iterator[Batch]:
        """Yield one batch per table of the sample schema, loaded ahead by a thread.

        ``seeds`` gives the seed of each row's random stream, in row order. Without seeds the augmentation must be
        ``NO_AUGMENTATION``.
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
    """Map points [b, K, 2] of the input to the photo by affine maps [b, 2, 3], in float64."""
    return points.double() @ affine[..., :2].transpose(-1, -2) + affine[:, None, :, 2]
