"""Inference with PyTorch: photos in any common format to landmarks in pixels of the upright photo.

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
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from glefld.data.host import paint
from glefld.data.loader import InputPipeline, to_photo
from glefld.data.picture import Picture
from glefld.data.prefetch import ahead
from glefld.data.truth import SEEN_CODES
from glefld.errors import BadAnswer, BadPhoto, UserError
from glefld.models import MODELS, checkpoint
from glefld.models.checkpoint import ModelCard
from glefld.models.precision import choose_precision
from glefld.models.system import Model, Output
from glefld.prediction import BATCH_SIZE, PRECISION, Bad, Crop, Prediction
from glefld.recipe import Precision
from glefld.redaction import public_url
from glefld.schema import GarmentType, LandmarkSet, Visibility

#: Upper bound on the pixels decoded at once: a batch of large photos is split into smaller batches.
BATCH_PIXELS = 128_000_000


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

    @property
    def input_size(self) -> int:
        """S, which crops are made for."""
        return self.card.input_size

    @property
    def threads(self) -> int:
        """The number of threads that decode."""
        return self.pipeline.threads

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
        self.url = url

    @property
    def name(self) -> str:
        """The model's name in the predictions, as ``model_name`` returns it."""
        return model_name(self.url)

    @property
    def landmark_set(self) -> LandmarkSet:
        """The landmarks that it answers, and the garment types."""
        return self.card.labels.landmark_set

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


def painted(crop: Crop, size: int, fill: int) -> Crop | BadPhoto:
    """Return the crop with its input's pixels in place of the photo's bytes: decoded, shrunk and warped.

    The CPU's pipeline makes the same input of it to the last bit, and DALI one that differs by rounding. size: the
    model's. fill: the level outside the photo.
    """
    try:
        pixels = paint(crop.picture, size, fill).copy()
    except BadPhoto as bad:
        return bad
    whole = Picture(pixels, size, size, np.eye(2, 3), decoding=crop.picture.decoding)
    return dataclasses.replace(crop, picture=whole, photo=None)


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
