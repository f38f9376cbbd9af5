"""DALI: encoded bytes in, batches on the device out. One pipeline a worker, the same graph on CPU and GPU.

Decode, resize, affine, mirror, colour and normalise run in DALI. What they are told (matrix and colour of each sample)
is drawn on the host from the seed, the epoch and the row's number, so a sample looks the same whoever loads it.

b local batch, K landmarks, S the square input's size. Frames: photo -> stored picture (a crop) -> input.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.pipeline import Pipeline
from torch import Tensor

from glefld.schema import VIEWS, LandmarkSet, Visibility

#: ImageNet's channel statistics, which the papers' VGG16 expects. RGB, of 255.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random affine map and colour; all zero leaves the picture as it is."""

    mirror: float = 0.5
    """Probability of a mirror image, with left and right landmarks swapped."""
    rotate: float = 15.0
    """Rotation, up to this many degrees either way."""
    scale: float = 0.2
    """Size, up to this factor more or less."""
    shift: float = 0.1
    """Shift, up to this part of the input's size either way."""
    colour: float = 0.3
    """Brightness, contrast and saturation, up to this factor more or less; hue up to 30 degrees times it."""

    def __post_init__(self) -> None:
        if not 0 <= self.mirror <= 1:
            raise ValueError(f"augmentation: mirror is a probability, not {self.mirror}")
        if not (0 <= self.scale < 1 and 0 <= self.colour < 1 and self.rotate >= 0 and self.shift >= 0):
            raise ValueError("augmentation: scale and colour must be in [0, 1), rotate and shift 0 or more")


NO_AUGMENTATION = Augmentation(mirror=0, rotate=0, scale=0, shift=0, colour=0)


@dataclass(frozen=True)
class Draw:
    """What one sample is told: ``affine`` [2, 3] acts on the S x S input frame; colour is brightness, contrast, saturation, hue."""

    affine: np.ndarray
    mirrored: bool
    colour: tuple[float, float, float, float]


def draw_augmentation(augmentation: Augmentation, size: int, rng: np.random.Generator) -> Draw:
    """Rotation, scale and shift about the input's centre, then perhaps a mirror."""
    angle = np.deg2rad(rng.uniform(-augmentation.rotate, augmentation.rotate))
    scale = np.exp(rng.uniform(-1, 1) * np.log1p(augmentation.scale))
    shift = rng.uniform(-augmentation.shift, augmentation.shift, 2) * size
    mirrored = bool(rng.random() < augmentation.mirror)
    factor = 1 + rng.uniform(-augmentation.colour, augmentation.colour, 3)
    hue = rng.uniform(-30, 30) * augmentation.colour

    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = np.full(2, size / 2)
    affine = np.concatenate([turn, (centre - turn @ centre + shift)[:, None]], axis=1)
    if mirrored:
        affine = compose(np.array([[-1.0, 0, size], [0, 1, 0]]), affine)
    return Draw(affine, mirrored, (float(factor[0]), float(factor[1]), float(factor[2]), float(hue)))


def compose(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """The affine map [2, 3] that does ``before``, then ``after``."""
    linear = after[:, :2] @ before[:, :2]
    return np.concatenate([linear, (after[:, :2] @ before[:, 2] + after[:, 2])[:, None]], axis=1)


def invert(affine: np.ndarray) -> np.ndarray:
    """The inverse of affine maps [..., 2, 3]."""
    linear = np.linalg.inv(affine[..., :2])
    return np.concatenate([linear, -linear @ affine[..., 2:]], axis=-1)


def transform(points: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Points [..., K, 2] through affine maps [..., 2, 3]."""
    return points @ np.swapaxes(affine[..., :2], -1, -2) + affine[..., None, :, 2]


def box_to_input(box: np.ndarray, size: int) -> np.ndarray:
    """The map that squashes a box (x1, y1, x2, y2 of the picture) to the S x S input, as the papers do: [2, 3]."""
    x1, y1, x2, y2 = np.asarray(box, np.float64)
    return np.array([[size / (x2 - x1), 0, -x1 * size / (x2 - x1)], [0, size / (y2 - y1), -y1 * size / (y2 - y1)]])


@dataclass(frozen=True)
class Picture:
    """One encoded picture and how it becomes an input: its size upright, the affine map [2, 3] to the input, its colour."""

    encoded: np.ndarray
    width: int
    height: int
    to_input: np.ndarray
    colour: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 0.0)


@dataclass
class Batch:
    """A rank's share of a batch. ``images`` is on the device, the rest on the host.

    images [b, 3, S, S] normalised; landmarks [b, K, 2] in the input's pixels (NaN: none); visibility [b, K];
    to_photo [b, 2, 3] from the input to the photo; photo_landmarks [b, K, 2] and box [b, 4] in the photo's pixels;
    garment_type, view [b], -1 where unknown; sample_id b names.
    """

    images: Tensor
    landmarks: Tensor
    visibility: Tensor
    to_photo: Tensor
    photo_landmarks: Tensor
    box: Tensor
    garment_type: Tensor
    view: Tensor
    sample_id: list[str]

    def weight(self) -> Tensor:
        """[b, K]: 1 for the landmarks that train, visible and within the input; else 0."""
        size = self.images.shape[-1]
        within = ((self.landmarks >= 0) & (self.landmarks <= size)).all(dim=-1)  # False for NaN
        return ((self.visibility == Visibility.VISIBLE) & within).float()


class InputPipeline:
    """The DALI graph. ``run`` takes lists of pictures and yields [b, 3, S, S] tensors on the device, in order.

    ``device_id`` None runs all of it on the CPU. RuntimeError for a batch with an undecodable picture.
    """

    def __init__(self, size: int, batch_size: int, device_id: int | None = None, threads: int = 2) -> None:
        self.size = size
        self.device_id = device_id
        self.max_batch_size = batch_size
        self._ahead = 2
        self._pipeline: Pipeline = _graph(
            size=size,
            gpu=device_id is not None,
            batch_size=batch_size,
            num_threads=threads,
            device_id=device_id,
            prefetch_queue_depth=self._ahead,
        )
        self._pipeline.build()

    def run(self, batches: Iterable[list[Picture]]) -> Iterator[Tensor]:
        """Inputs for each list of pictures; while one is used, the next is being made."""
        under_way = 0
        for pictures in batches:
            self._feed(pictures)
            self._pipeline.schedule_run()
            under_way += 1
            if under_way == self._ahead:
                yield self._collect()
                under_way -= 1
        for _ in range(under_way):
            yield self._collect()

    def _feed(self, pictures: list[Picture]) -> None:
        assert 0 < len(pictures) <= self.max_batch_size
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

    def _collect(self) -> Tensor:
        (output,) = self._pipeline.share_outputs()
        # The pipeline's buffer is used again once released, so the batch is copied out of it.
        images = torch.utils.dlpack.from_dlpack(output.as_tensor()).clone()
        self._pipeline.release_outputs()
        return images


@pipeline_def
def _graph(size: int, gpu: bool) -> object:
    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
    resized = fn.external_source(name="resized", dtype=types.FLOAT, ndim=1)
    matrix = fn.external_source(name="matrix", dtype=types.FLOAT, ndim=2)
    colour = fn.external_source(name="colour", dtype=types.FLOAT, ndim=1)
    images = fn.decoders.image(
        encoded, device="mixed" if gpu else "cpu", output_type=types.RGB, adjust_orientation=True
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

    def __init__(self, landmark_set: LandmarkSet, pipeline: InputPipeline) -> None:
        self.mirror = np.array(landmark_set.mirror)
        self.pipeline = pipeline

    def run(
        self, tables: Iterable[pa.Table], augmentation: Augmentation, seeds: Iterable[tuple[int, ...]] = ()
    ) -> Iterator[Batch]:
        """Batches for tables of the sample schema; ``seeds`` gives each row, in order, its random stream's seed.

        Without seeds the augmentation must be ``NO_AUGMENTATION``.
        """
        waiting: deque[Batch] = deque()
        streams = iter(seeds)

        def pictures() -> Iterator[list[Picture]]:
            for table in tables:
                draws = [
                    draw_augmentation(
                        augmentation, self.pipeline.size, np.random.default_rng(next(streams, (0,)))
                    )
                    for _ in range(table.num_rows)
                ]
                batch, encoded = self._prepare(table, draws)
                waiting.append(batch)
                yield encoded

        for images in self.pipeline.run(pictures()):
            batch = waiting.popleft()
            batch.images = images
            yield batch

    def _prepare(self, table: pa.Table, draws: list[Draw]) -> tuple[Batch, list[Picture]]:
        rows, size = table.num_rows, self.pipeline.size
        box = _matrix(table, "box")
        crop = _matrix(table, "crop_box")
        landmarks = _matrix(table, "landmarks").reshape(rows, -1, 2)
        visibility = _matrix(table, "visibility").astype(np.int64)
        squash = np.stack([box_to_input(b, size) for b in box - np.tile(crop[:, :2], 2)])
        to_input = np.stack([compose(d.affine, s) for d, s in zip(draws, squash, strict=True)])

        moved = transform(landmarks, to_input)
        mirrored = np.array([d.mirrored for d in draws])[:, None]
        names = np.where(mirrored, self.mirror, np.arange(len(self.mirror)))  # whose coordinates each slot takes
        offset = np.zeros((rows, 2, 3))
        offset[:, :, :2] = np.eye(2)
        offset[:, :, 2] = crop[:, :2]
        to_photo = np.stack([compose(o, i) for o, i in zip(offset, invert(to_input), strict=True)])

        image = table.column("image").combine_chunks()
        width, height = table.column("image_width").to_pylist(), table.column("image_height").to_pylist()
        pictures = [
            Picture(np.frombuffer(image[i].as_buffer(), np.uint8), width[i], height[i], to_input[i], draws[i].colour)
            for i in range(rows)
        ]
        view = [VIEWS.index(v) if v is not None else -1 for v in table.column("view").to_pylist()]
        batch = Batch(
            images=torch.empty(0),
            landmarks=torch.from_numpy(np.take_along_axis(moved, names[..., None], axis=1)).float(),
            visibility=torch.from_numpy(np.take_along_axis(visibility, names, axis=1)),
            to_photo=torch.from_numpy(to_photo),
            photo_landmarks=torch.from_numpy(landmarks + crop[:, None, :2]),
            box=torch.from_numpy(box),
            garment_type=torch.tensor(
                [-1 if t is None else t for t in table.column("garment_type").to_pylist()], dtype=torch.int64
            ),
            view=torch.tensor(view, dtype=torch.int64),
            sample_id=table.column("sample_id").to_pylist(),
        )
        return batch, pictures


def to_photo(points: Tensor, affine: Tensor) -> Tensor:
    """Points [b, K, 2] of the input through [b, 2, 3] to the photo, in float64."""
    return points.double() @ affine[..., :2].transpose(-1, -2) + affine[:, None, :, 2]


def _matrix(table: pa.Table, column: str) -> np.ndarray:
    """A list column whose rows have one length, as float64 [rows, length]."""
    return np.stack(table.column(column).to_numpy()).astype(np.float64)
