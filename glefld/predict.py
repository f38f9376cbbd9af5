"""Weights in, landmarks out: photos of any ordinary kind to landmarks in the upright photo's pixels.

Which of the K landmarks a garment has depends on its type, which is not known here: all K come with their scores.
K landmarks, S the square input's size. Frames: stored picture -> upright photo (EXIF) -> input.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from glefld import storage
from glefld.data.augmentation import box_to_input, compose, invert
from glefld.data.loader import InputPipeline, Picture, to_photo
from glefld.data.photos import is_whole_jpeg, open_photo, orient, orientation, to_rgb
from glefld.data.prefetch import ahead
from glefld.errors import BadBox, BadPhoto, UserError
from glefld.models import MODELS, checkpoint
from glefld.models.checkpoint import ModelCard
from glefld.models.precision import choose_precision
from glefld.recipe import Precision
from glefld.schema import LandmarkSet

#: Pixels decoded together: a batch of large photos is cut into smaller ones.
BATCH_PIXELS = 128_000_000
Bad = BadPhoto | BadBox


@dataclasses.dataclass(frozen=True)
class Crop:
    """A garment's part of a photo, ready for the model."""

    data: bytes
    picture: Picture
    box: tuple[float, ...]  # x1 y1 x2 y2, upright photo
    to_photo: np.ndarray  # [2, 3], affine, from the input to the upright photo


class Prediction(NamedTuple):
    """What the model says of one crop."""

    box: tuple[float, ...]  # x1 y1 x2 y2, upright photo's pixels
    landmarks: np.ndarray  # [K, 2] float32, upright photo's pixels
    score: np.ndarray  # [K] float32, the height of each landmark's heatmap: 1 at a sure one, 0 at none


def prepare(
    data: bytes, size: int, box: Sequence[float] | None = None, origin: Sequence[float] = (0.0, 0.0)
) -> Crop:
    """A photo's file and the garment's box in it to the crop that a model of this input size takes.

    box: x1 y1 x2 y2 in the upright photo, clipped to it; None takes the whole photo. origin: where the upright
    picture's corner lies, if the file holds a part of the photo only. BadPhoto or BadBox if there is none.
    """
    with open_photo(data) as image:
        plain = (
            image.format == "JPEG"
            and image.mode in ("RGB", "L")
            and image.info.get("adobe_transform") != 0  # RGB stored as such, which not every decoder expects
            and is_whole_jpeg(data)
        )
        if not plain:
            image.load()
        upright = orientation(image)
        encoded = data if plain else _as_ppm(image)
        width, height = image.size
    to_upright = compose(_moved(*origin), orient(upright, width, height))
    corners = (
        to_upright[:, :2] @ np.array([[0, width], [0, height]]) + to_upright[:, 2:]
    )  # [2, 2]: x, y of two
    low, high = corners.min(axis=1), corners.max(axis=1)
    box = (*low, *high) if box is None else box
    x1, y1, x2, y2 = (float(v) for v in box)
    if not (x2 > x1 and y2 > y1):  # also where one is NaN
        raise BadBox("empty_box", f"box {x1} {y1} {x2} {y2}")
    clipped = max(x1, low[0]), max(y1, low[1]), min(x2, high[0]), min(y2, high[1])
    if not (clipped[2] > clipped[0] and clipped[3] > clipped[1]):
        raise BadBox("box_outside_photo", f"box {x1} {y1} {x2} {y2}, photo {low} to {high}")
    to_input = box_to_input(np.array(clipped), size)
    return Crop(
        data=data,
        picture=Picture(np.frombuffer(encoded, np.uint8), width, height, compose(to_input, to_upright)),
        box=tuple(float(v) for v in clipped),
        to_photo=invert(to_input),
    )


def _moved(x: float, y: float) -> np.ndarray:
    return np.array([[1.0, 0, x], [0, 1, y]])


def _as_ppm(image: Image.Image) -> bytes:
    """Without loss and without work: the pixels behind a header, which DALI decodes like any format."""
    buffer = io.BytesIO()
    to_rgb(image).save(buffer, "PPM")
    return buffer.getvalue()


def checkpoint_hash(url: str) -> str:
    """16 hex digits that name a checkpoint's weights and model card."""
    files = storage.read_json(storage.join(url, "complete.json"))
    facts = [files[name]["sha256"] for name in ("model.safetensors", "model.json")]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def require_landmarks(url: str, card: ModelCard) -> None:
    """UserError if the checkpoint is a classifier's."""
    if MODELS[card.model].task != "landmarks":
        raise UserError(f"{url} is a classifier ({card.model}): give a checkpoint that finds landmarks")


class Predictor:
    """A model at work on one device: crops in, predictions out, in order and in constant memory."""

    def __init__(
        self,
        url: str,
        device: torch.device,
        batch_size: int = 32,
        threads: int = 1,
        precision: Precision = "fp32",
    ) -> None:
        """``url`` names a checkpoint; ``threads`` are DALI's. UserError if the checkpoint is not whole."""
        model, self.card = checkpoint.load(url)
        require_landmarks(url, self.card)
        self.device = device
        self.batch_size = batch_size
        self.threads = threads
        self.dtype = choose_precision(precision, device)
        self.model = model.to(device).to(memory_format=torch.channels_last)
        self.pipeline = self._new_pipeline()

    def predict(self, crops: Iterable[Crop | Bad]) -> Iterator[Prediction | Bad]:
        """One prediction for each crop, in order; what stands in a crop's place (BadPhoto, BadBox) stays there.

        A thread reads ``crops`` and decodes ahead of the model. A picture that does not decode becomes a BadPhoto.
        """
        for batch, images in ahead(self._load(crops), 2):
            good = [crop for crop in batch if isinstance(crop, Crop)]
            answers = self._infer(images, good) if images is not None else iter(())
            for crop in batch:
                yield next(answers) if isinstance(crop, Crop) else crop

    def _infer(self, images: Tensor, crops: list[Crop]) -> Iterator[Prediction]:
        with (
            torch.no_grad(),  # not inference_mode: attention by Grad-CAM differentiates
            torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32),
            # cuDNN's convolutions would round fp32 to TF32 by default.
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
        ):
            heatmaps = self.model(images.contiguous(memory_format=torch.channels_last)).heatmaps
        landmarks, score = self.model.codec.decode(heatmaps)
        affine = torch.from_numpy(np.stack([crop.to_photo for crop in crops]))
        points = to_photo(landmarks.cpu(), affine).float().numpy()
        for crop, xy, height in zip(crops, points, score.cpu().numpy(), strict=True):
            yield Prediction(crop.box, xy, height)

    def _load(self, crops: Iterable[Crop | Bad]) -> Iterator[tuple[list[Crop | Bad], Tensor | None]]:
        """Batches with the images [b, 3, S, S] of those of their crops that decode."""
        for batch in _batches(crops, self.batch_size):
            good = [crop for crop in batch if isinstance(crop, Crop)]
            if not good:
                yield batch, None
                continue
            try:
                yield batch, self.pipeline.run([crop.picture for crop in good])
            except RuntimeError:
                # One picture that DALI refuses fails its batch and ends the pipeline.
                self.pipeline = self._new_pipeline()
                loaded = [self._load_one(crop) if isinstance(crop, Crop) else crop for crop in batch]
                images = [image for image in loaded if isinstance(image, Tensor)]
                yield (
                    [x if isinstance(x, BadPhoto) else crop for crop, x in zip(batch, loaded, strict=True)],
                    torch.cat(images) if images else None,
                )

    def _load_one(self, crop: Crop) -> Tensor | BadPhoto:
        """[1, 3, S, S], by Pillow if DALI refuses: it reads more kinds of JPEG, and what it refuses is bad."""
        try:
            return self.pipeline.run([crop.picture])
        except RuntimeError:
            self.pipeline = self._new_pipeline()
        try:
            with open_photo(crop.data) as image:
                image.load()
                encoded = np.frombuffer(_as_ppm(image), np.uint8)
        except BadPhoto as bad:
            return bad
        return self.pipeline.run([dataclasses.replace(crop.picture, encoded=encoded)])

    def _new_pipeline(self) -> InputPipeline:
        device_id = (self.device.index or 0) if self.device.type == "cuda" else None
        return InputPipeline(self.card.input_size, self.batch_size, device_id, self.threads)


def _batches(crops: Iterable[Crop | Bad], batch_size: int) -> Iterator[list[Crop | Bad]]:
    """Consecutive items, at most ``batch_size`` and, where more than one, ``BATCH_PIXELS`` together."""
    batch: list[Crop | Bad] = []
    pixels = 0
    for crop in crops:
        size = crop.picture.width * crop.picture.height if isinstance(crop, Crop) else 0
        if batch and (len(batch) == batch_size or pixels + size > BATCH_PIXELS):
            yield batch
            batch, pixels = [], 0
        batch.append(crop)
        pixels += size
    if batch:
        yield batch


def prediction_schema(landmark_set: LandmarkSet) -> pa.Schema:
    """The Arrow schema of predictions: a row a garment, photos that could not be used among them."""

    def field(name: str, type_: pa.DataType, unit: str, nullable: bool = True) -> pa.Field:
        return pa.field(name, type_, nullable, {"unit": unit})

    return pa.schema(
        [
            field("uri", pa.string(), "the photo; archive_uri::member inside an archive", nullable=False),
            field("garment", pa.int32(), "its number in the photo, from 0", nullable=False),
            # NaN for a photo that could not be read: Parquet readers refuse fixed-size lists that are null.
            field("box", pa.list_(pa.float32(), 4), "x1 y1 x2 y2, upright photo's pixels", nullable=False),
            field("landmarks", pa.list_(pa.float32()), "2K: x y, upright photo's pixels; null for an error"),
            field("score", pa.list_(pa.float32()), "K: height of the heatmap's peak, about 1 where sure"),
            field("visibility", pa.list_(pa.int8()), "K, where the model says it, else null"),
            field("status", pa.string(), "ok or error", nullable=False),
            field("error", pa.string(), "reason: detail"),
            field("model", pa.string(), "checkpoint@hash", nullable=False),
        ],
        metadata={"glefld.landmark_set": json.dumps(landmark_set.to_json(), separators=(",", ":"))},
    )
