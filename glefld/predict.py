"""Inference: photos in any common format to landmarks in pixels of the upright photo.

Which of the K landmarks a garment has depends on its type. A model that tells the type leaves out the others; of one
that does not, all K are answered. ``glefld.landmarks`` is the door for most users.
Letters in shapes: K landmarks, T garment types, S the square input's size. Frames: stored picture -> upright photo
(EXIF) -> input.
"""

import abc
import dataclasses
import hashlib
import itertools
import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from glefld.data.augmentation import box_to_input, compose, invert, square_around
from glefld.data.host import paint
from glefld.data.loader import InputPipeline, to_photo
from glefld.data.photos import decode_special, is_plain_jpeg, open_photo, orient, orientation
from glefld.data.picture import Decoding, Picture
from glefld.data.prefetch import ahead
from glefld.data.truth import SEEN_CODES
from glefld.errors import BadAnswer, BadBox, BadInput, BadPhoto, NoGarment, UserError
from glefld.models import MODELS, checkpoint
from glefld.models.checkpoint import ModelCard
from glefld.models.precision import choose_precision
from glefld.models.system import Model, Output
from glefld.recipe import Precision
from glefld.redaction import public_url
from glefld.schema import GarmentType, LandmarkSet, Visibility

#: Upper bound on the pixels decoded at once: a batch of large photos is split into smaller batches.
BATCH_PIXELS = 128_000_000
#: What can be wrong with a crop before the landmark model sees it.
Bad = BadPhoto | BadBox | NoGarment | BadAnswer
Damaged = Literal["error", "answer"]

#: What a predictor and the inference job take unless they are told: garments at a time, and how they are computed.
BATCH_SIZE = 32
PRECISION: Precision = "fp32"
#: Digits that JSON and CSV keep of pixels and scores.
DIGITS = 4


@dataclasses.dataclass(frozen=True)
class Photo:
    """An opened photo, or a part of one, from which crops are made."""

    encoded: np.ndarray  # uint8: a JPEG's bytes [n], or pixels [H, W, 3] RGB
    width: int  # as stored
    height: int
    to_upright: np.ndarray  # [2, 3], affine, from the stored picture to the upright photo
    bounds: tuple[float, ...]  # x1 y1 x2 y2 of the picture in the upright photo
    decoding: Decoding

    def crop(self, box: Sequence[float] | None, size: int) -> "Crop":
        """Return the crop of a garment for a model of this input size, as ``prepare`` does; BadBox as it does."""
        x1, y1, x2, y2 = (float(v) for v in (self.bounds if box is None else box))
        if not (x2 > x1 and y2 > y1):  # also true if one is NaN
            raise BadBox("empty_box", f"box {x1} {y1} {x2} {y2}")
        left, top, right, bottom = self.bounds
        clipped = max(x1, left), max(y1, top), min(x2, right), min(y2, bottom)
        if not (clipped[2] > clipped[0] and clipped[3] > clipped[1]):
            low, high = np.array(self.bounds).reshape(2, 2)
            raise BadBox("box_outside_photo", f"box {x1} {y1} {x2} {y2}, photo {low} to {high}")
        return self._input(clipped, np.array(clipped), size)

    def whole(self, size: int) -> "Crop":
        """Return the whole picture in its own shape, in the middle of a detector's input."""
        left, top, right, bottom = self.bounds
        square = square_around(right - left, bottom - top) + np.array([left, top, left, top])
        return self._input(self.bounds, square, size)

    def _input(self, box: Sequence[float], region: np.ndarray, size: int) -> "Crop":
        to_input = box_to_input(region, size)
        return Crop(
            picture=Picture(
                encoded=self.encoded,
                width=self.width,
                height=self.height,
                to_input=compose(to_input, self.to_upright),
                decoding=self.decoding,
            ),
            box=tuple(float(v) for v in box),
            to_photo=invert(to_input),
            photo=self,
        )


@dataclasses.dataclass(frozen=True)
class Crop:
    """A garment's crop of a photo, or a whole photo, ready for the model."""

    picture: Picture
    box: tuple[float, ...]  # x1 y1 x2 y2, upright photo
    to_photo: np.ndarray  # [2, 3], affine, from the input to the upright photo
    photo: Photo | None  # what it was cut from; None once it is painted

    def painted(self, size: int, fill: int) -> "Crop | BadPhoto":
        """Return the crop with its input's pixels in place of the photo's bytes: decoded, shrunk and warped.

        The CPU's pipeline makes the same input of it to the last bit, and DALI one that differs by rounding. size: the
        model's. fill: the level outside the photo.
        """
        try:
            pixels = paint(self.picture, size, fill).copy()
        except BadPhoto as bad:
            return bad
        whole = Picture(pixels, size, size, np.eye(2, 3), decoding=self.picture.decoding)
        return dataclasses.replace(self, picture=whole, photo=None)


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """The model's answer for one garment, in pixels of the upright photo (continuous: pixel i covers [i, i + 1)).

    A landmark that the garment's type does not have is NaN, its score too, and its visibility is ABSENT.
    """

    box: tuple[float, ...]
    """x1 y1 x2 y2: the part of the photo that the model saw."""
    landmarks: np.ndarray
    """[K, 2] float32: x, y."""
    score: np.ndarray
    """[K] float32: the probability that a landmark that is visible is within 0.1 of the box from here."""
    visibility: np.ndarray | None = None
    """[K] int8: codes of ``schema.Visibility``; None if the model does not tell."""
    garment_type: str | None = None
    """Name of the garment type; None if the model does not tell."""
    garment_type_score: float | None = None
    """Probability of the garment type among the T that the model knows, from 0 to 1; None without a type."""
    box_score: float | None = None
    """Probability that the box is an annotated garment's, as on the detector's val split; None if it was given."""

    def without(self, which: np.ndarray) -> "Prediction":
        """Return the answer without the places and scores of some landmarks, [K] bool."""
        return dataclasses.replace(
            self,
            landmarks=np.where(which[:, None], np.float32(math.nan), self.landmarks),
            score=np.where(which, np.float32(math.nan), self.score),
        )

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the answer as ``glefld predict`` prints it. Landmarks that the garment does not have are left out.

        names: of the K landmarks.
        """
        found: dict[str, dict[str, Any]] = {}
        for i, name in enumerate(names):
            if math.isnan(self.landmarks[i, 0]):
                continue
            x, y = self.landmarks[i].tolist()
            found[name] = {"x": rounded(x), "y": rounded(y), "score": rounded(self.score[i].item())}
            if self.visibility is not None:
                found[name]["visibility"] = Visibility(self.visibility[i]).name.lower()
        return {
            "box": [rounded(value) for value in self.box],
            **({"box_score": rounded(self.box_score)} if self.box_score is not None else {}),
            "garment_type": self.garment_type,
            "garment_type_score": rounded(self.garment_type_score),
            "landmarks": found,
        }


def rounded(value: float | None) -> float | None:
    """Return the value with as many digits as JSON has."""
    return None if value is None else round(value, DIGITS)


def prepare(
    data: bytes,
    size: int,
    box: Sequence[float] | None = None,
    origin: Sequence[float] = (0.0, 0.0),
    damaged: Damaged = "error",
) -> Crop:
    """Prepare the crop of one garment from the photo's encoded bytes, for a model of this input size.

    box: x1 y1 x2 y2 in the upright photo, clipped to it; None takes the whole photo. origin: the position of the
    picture's top left corner in the upright photo, if ``data`` holds only a part of the photo. damaged: ``error``
    refuses a JPEG that the decoder had to guess parts of, ``answer`` takes what the decoder makes of it.
    BadPhoto if the photo cannot be read, BadBox if the box is empty or does not overlap the photo. Plain JPEGs are
    decoded later, by ``Predictor``: only that tells which of them are damaged.
    """
    return open_upright(data, origin, damaged).crop(box, size)


def open_upright(data: bytes, origin: Sequence[float] = (0.0, 0.0), damaged: Damaged = "error") -> Photo:
    """Open a photo's encoded bytes, to make crops of it as ``prepare`` does. BadPhoto if it cannot be read."""
    with open_photo(data) as image:
        if is_plain_jpeg(image, data):
            encoded = np.frombuffer(data, np.uint8)
        else:
            encoded = np.array(decode_special(image, data, damaged=damaged == "answer"))
        upright = orientation(image)
        width, height = image.size
    to_upright = compose(_moved(*origin), orient(upright, width, height))
    corners = (
        to_upright[:, :2] @ np.array([[0, width], [0, height]]) + to_upright[:, 2:]
    )  # [2, 2]: x and y of two opposite corners
    bounds = (*corners.min(axis=1).tolist(), *corners.max(axis=1).tolist())
    decoding: Decoding = "strict" if damaged == "error" else "lenient"
    return Photo(encoded, width, height, to_upright, bounds, decoding)


def open_pixels(pixels: np.ndarray) -> Photo:
    """Return an upright photo of decoded pixels, [H, W, 3] uint8 RGB, which are copied."""
    height, width = pixels.shape[:2]
    bounds = (0.0, 0.0, float(width), float(height))
    return Photo(np.array(pixels), width, height, _moved(0, 0), bounds, "strict")


def _moved(x: float, y: float) -> np.ndarray:
    return np.array([[1.0, 0, x], [0, 1, y]])


def checkpoint_hash(url: str) -> str:
    """Return 16 hex digits that identify a checkpoint's weights and model card; UserError if it is incomplete."""
    files = checkpoint.complete(url)
    names = ("model.safetensors", "model.json")
    if missing := [name for name in names if name not in files]:
        raise UserError(f"the checkpoint {url} has no {missing[0]}")
    facts = [files[name]["sha256"] for name in names]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def model_name(url: str) -> str:
    """Return the model's name in the predictions: the checkpoint's URL and a hash of its content."""
    return f"{public_url(url)}@{checkpoint_hash(url)}"


def require_landmarks(url: str, card: ModelCard) -> None:
    """Raise UserError if the checkpoint's model is a classifier or a detector."""
    if (task := MODELS[card.model].task) != "landmarks":
        kind = {"classify": "classifier", "detect": "detector"}[task]
        raise UserError(f"{url} is a {kind} ({card.model}): give a checkpoint of a landmark model")


Answer = TypeVar("Answer")


class Runner(abc.ABC, Generic[Answer]):
    """Runs a checkpoint's model on one device: crops in, answers out, in order and in constant memory."""

    def __init__(
        self,
        model: Model,
        card: ModelCard,
        device: torch.device,
        batch_size: int,
        threads: int,
        precision: Precision,
    ) -> None:
        """``threads`` is the number of threads that decode."""
        self.card = card
        self.device = device
        self.batch_size = batch_size
        self.model = model.to(device).to(memory_format=torch.channels_last)
        self.dtype = choose_precision(
            precision, self.model, card.input_size, batch_size, training=False
        ).dtype
        device_id = (device.index or 0) if device.type == "cuda" else None
        self.pipeline = InputPipeline(card.input_size, model.normalisation, batch_size, device_id, threads)
        self.waited = 0.0  # seconds in which the model had no crops

    def answers(self, crops: Iterable[Crop | Bad]) -> Iterator[Answer | Bad]:
        """Yield one answer per crop, in order. What is bad in place of a crop is passed through.

        A thread reads ``crops``, and others decode them, ahead of the model. A picture that cannot be decoded becomes a
        BadPhoto, one for which the model's output is not finite a BadAnswer.
        """
        batches = ahead(load_crops(self.pipeline, crops, self.batch_size), 2)
        while True:
            started = time.perf_counter()
            loaded = next(batches, None)
            self.waited += time.perf_counter() - started
            if loaded is None:
                return
            batch, images = loaded
            good = [crop for crop in batch if isinstance(crop, Crop)]
            found = self._infer(images, good) if good else iter(())
            for crop in batch:
                yield next(found) if isinstance(crop, Crop) else crop

    @abc.abstractmethod
    def _infer(self, images: Tensor, crops: list[Crop]) -> Iterator[Answer | BadAnswer]:
        """Yield the answer for each of the crops, whose images are [b, 3, S, S]."""


class Predictor(Runner[Prediction]):
    """Runs a landmark model: crops in, predictions out."""

    def __init__(
        self,
        url: str,
        device: torch.device,
        batch_size: int = BATCH_SIZE,
        threads: int = 1,
        precision: Precision = PRECISION,
        mirror: bool = False,
    ) -> None:
        """Load the checkpoint at ``url``; ``threads`` is the number of threads that decode.

        mirror: average with the prediction for the mirror image, at twice the time.
        UserError if the checkpoint is incomplete or its model is a classifier.
        """
        model, card = checkpoint.load(url)
        require_landmarks(url, card)
        super().__init__(model, card, device, batch_size, threads, precision)
        self.mirror = mirror

    def predict(self, crops: Iterable[Crop | Bad]) -> Iterator[Prediction | Bad]:
        """Yield one prediction per crop, as ``answers`` does."""
        return self.answers(crops)

    def _infer(self, images: Tensor, crops: list[Crop]) -> Iterator[Prediction | BadAnswer]:
        output = run_model(self.model, images, self.dtype, self.mirror)
        assert output.heatmaps is not None
        landmarks, score = self.model.codec.decode(output.heatmaps)
        score = self.model.calibration(score)
        affine = torch.from_numpy(np.stack([crop.to_photo for crop in crops]))
        points = to_photo(landmarks.cpu(), affine).float().numpy()
        seen: Iterable[np.ndarray | None] = itertools.repeat(None, len(crops))
        if output.visibility is not None:
            seen = np.array(SEEN_CODES, np.int8)[output.visibility.float().argmax(dim=-1).cpu().numpy()]
        types = self._garment_types(output, len(crops))
        for crop, xy, probability, codes, (type_, sure) in zip(
            crops, points, score.cpu().numpy(), seen, types, strict=True
        ):
            if lost := int((~np.isfinite(probability)).sum()):
                yield BadAnswer(
                    "not_finite", f"{lost} of {len(probability)} heatmaps, so the model has diverged"
                )
            elif type_ is None:
                yield Prediction(crop.box, xy, probability, codes)
            elif not math.isfinite(sure):
                yield BadAnswer("not_finite", "the garment type, so the model has diverged")
            else:
                lacks = np.ones(len(xy), bool)
                lacks[list(type_.landmarks)] = False
                if codes is not None:
                    codes[lacks] = Visibility.ABSENT
                yield Prediction(crop.box, xy, probability, codes, type_.name, sure).without(lacks)

    def _garment_types(self, output: Output, count: int) -> Iterable[tuple[GarmentType | None, float]]:
        """Return each garment's type and its probability. A set of one type needs no answer of the model."""
        types = self.card.labels.landmark_set.garment_types
        if output.garment_type is not None:
            best = output.garment_type.float().softmax(dim=-1).max(dim=-1)
            return [(types[i], p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
        return [(types[0], 1.0) if len(types) == 1 else (None, math.nan)] * count


def run_model(model: Model, images: Tensor, dtype: torch.dtype, mirror: bool = False) -> Output:
    """Run a model on images [b, 3, S, S] without gradients, in fp32 or autocast to ``dtype``."""
    with (
        torch.no_grad(),  # not inference_mode: Grad-CAM attention needs gradients
        torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32),
        # By default cuDNN's convolutions round fp32 to TF32.
        torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
    ):
        images = images.contiguous(memory_format=torch.channels_last)
        return model.both_ways(images) if mirror else model(images)


def load_crops(
    pipeline: InputPipeline, crops: Iterable[Crop | Bad], batch_size: int
) -> Iterator[tuple[list[Crop | Bad], Tensor]]:
    """Yield batches, each with the images [b, 3, S, S] of its crops that could be decoded."""
    batches = (
        (batch, [crop.picture for crop in batch if isinstance(crop, Crop)])
        for batch in _batches(crops, batch_size)
    )
    for batch, loaded in pipeline.load(batches):
        if loaded.bad:
            good = [i for i, crop in enumerate(batch) if isinstance(crop, Crop)]
            for position, bad in loaded.bad.items():
                batch[good[position]] = bad
        yield batch, loaded.images


def _batches(crops: Iterable[Crop | Bad], batch_size: int) -> Iterator[list[Crop | Bad]]:
    """Group consecutive items: at most ``batch_size``, and at most ``BATCH_PIXELS`` unless a single item has more."""
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
    """Return the Arrow schema of predictions: one row per garment, and one error row per unusable photo or box."""

    def field(name: str, type_: pa.DataType, unit: str, nullable: bool = True) -> pa.Field:
        return pa.field(name, type_, nullable, {"unit": unit})

    return pa.schema(
        [
            field("uri", pa.string(), "the photo; archive_uri::member inside an archive", nullable=False),
            field("garment", pa.int32(), "0-based number of the garment in the photo", nullable=False),
            # NaN for an unreadable photo: some Parquet readers cannot handle null fixed-size lists.
            field("box", pa.list_(pa.float32(), 4), "x1 y1 x2 y2, upright photo's pixels", nullable=False),
            field(
                "box_score", pa.float32(), "probability that it is a garment's; null unless it was detected"
            ),
            field("garment_type", pa.string(), "its name; null if the model does not tell"),
            field("garment_type_score", pa.float32(), "probability of the garment type"),
            field(
                "landmarks",
                pa.list_(pa.float32()),
                "2K: x y, upright photo's pixels, NaN where the garment type has none; null for an error",
            ),
            field(
                "score",
                pa.list_(pa.float32()),
                "K: probability that it is within 0.1 of the box, as on the val split; NaN as the landmark",
            ),
            field("visibility", pa.list_(pa.int8()), "K; null if the model does not predict it"),
            field("status", pa.string(), "ok or error", nullable=False),
            field("error", pa.string(), "reason: detail"),
            field("model", pa.string(), "checkpoint@hash", nullable=False),
        ],
        metadata={"glefld.landmark_set": json.dumps(landmark_set.to_json(), separators=(",", ":"))},
    )


def answer_columns(answer: Prediction | BadInput, box: Sequence[float] | None) -> dict[str, Any]:
    """Return what a row of ``prediction_schema`` says of an answer: all but uri, garment and model.

    box: the one that was asked for, which an error keeps.
    """
    if not isinstance(answer, Prediction):
        return {"box": box or [math.nan] * 4, "status": "error", "error": str(answer)}
    columns = {field.name: getattr(answer, field.name) for field in dataclasses.fields(answer)}
    return columns | {"landmarks": answer.landmarks.ravel(), "status": "ok"}
