"""Inference with ONNX Runtime instead of PyTorch: a file of ``glefld export`` answers as its checkpoint does.

Nothing here loads PyTorch, so the first answer comes in about a second. Letters in shapes: n boxes, K landmarks.
"""

import importlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from glefld import storage
from glefld.data.augmentation import compose, invert, transform
from glefld.data.decoding import SCRATCH, decode, turn
from glefld.data.prefetch import in_threads
from glefld.errors import BadAnswer, BadInput, BadPhoto, NoGarment, UserError, require_between
from glefld.prediction import BATCH_SIZE, Bad, Crop, Detected, Prediction, no_garment
from glefld.redaction import public_url
from glefld.schema import MOST_GARMENTS, Labels

if TYPE_CHECKING:
    from glefld.models.checkpoint import ModelCard

ENDING = ".onnx"
#: What exporting needs besides PyTorch; the last one is all that an exported file needs.
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
#: The key under which a file holds its checkpoint's card.
CARD = "glefld_card"
#: Errors and worse: a file of one's own is no news.
LOG_SEVERITY = 3


def is_onnx(url: str) -> bool:
    """Return whether a path or URL is one of an exported model."""
    return url.lower().endswith(ENDING)


def require_package(name: str) -> ModuleType:
    """Import one of the packages that exported models need; UserError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"exported models need the package {name}, which is not installed here: install it"
        ) from error


class OnnxModel:
    """An exported file, which runs on the CPU."""

    def __init__(self, url: str, threads: int | None) -> None:
        """Load the file at ``url``; UserError if it is no file of ``glefld export``, or onnxruntime is missing."""
        runtime = require_package("onnxruntime")
        self.url = url
        self.threads = threads or cpus()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1  # photos side by side keep the CPUs busier than parts of one
        options.log_severity_level = LOG_SEVERITY
        data = storage.read_bytes(url)
        try:
            self.session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own, which share no class
            words = " ".join(str(error).split())[:200]
            raise UserError(f"{public_url(url)} cannot be read by ONNX Runtime: {words}") from error
        self.facts: dict[str, str] = self.session.get_modelmeta().custom_metadata_map
        """What the file says of itself, as ``glefld.export.facts``."""
        if CARD not in self.facts:
            raise UserError(f"{public_url(url)} was not made by glefld export: it has no {CARD}")
        self.input_size = int(self.facts["input_size"])
        self._outputs = [output.name for output in self.session.get_outputs()]

    @property
    def card(self) -> "ModelCard":
        """The card of the checkpoint that it was made from. Imports PyTorch."""
        from glefld.models.checkpoint import ModelCard

        return ModelCard.parse(self.facts[CARD].encode(), public_url(self.url))

    @property
    def name(self) -> str:
        """The model's name in the predictions: the file's URL and the hash of the checkpoint it was made from."""
        return f"{public_url(self.url)}@{self.facts['checkpoint']}"

    def run(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs by name."""
        return dict(zip(self._outputs, self.session.run(None, inputs), strict=True))


class OnnxPredictor(OnnxModel):
    """Runs an exported landmark model: crops in, predictions out."""

    def __init__(self, url: str, batch_size: int = BATCH_SIZE, threads: int | None = None) -> None:
        """Load the file at ``url``.

        batch_size: garments of one photo at a time. threads: each takes a photo, decodes it and runs the model; by
        default one for each CPU.
        UserError if it is no landmark model of ``glefld export``, or onnxruntime is missing.
        """
        super().__init__(url, threads)
        if "landmarks" not in self.facts:
            raise UserError(f"{public_url(url)} is a detector: give a landmark model")
        self.batch_size = batch_size
        self.landmark_set = Labels.from_json(json.loads(self.facts[CARD])["labels"]).landmark_set
        self.mirror: bool = json.loads(self.facts["mirror"])
        """Whether answers are averaged with those for the mirror image."""

    def predict(self, crops: Iterable[Crop | Bad]) -> Iterator[Prediction | Bad]:
        """Yield one prediction per crop, in order. What is bad in place of a crop is passed through.

        A picture that cannot be decoded becomes a BadPhoto, one for which the model's output is not finite a BadAnswer.
        """
        for answers in in_threads(self._answers, _by_photo(crops, self.batch_size), self.threads):
            yield from answers

    def _answers(self, group: list[Crop] | Bad) -> list[Prediction | Bad]:
        """Answer the crops of one photo."""
        if isinstance(group, BadInput):
            return [group]
        try:
            pixels, to_pixels = upright_pixels(group)
        except BadPhoto as bad:
            return [bad] * len(group)
        corners = np.array([crop.box for crop in group]).reshape(-1, 2, 2)
        boxes = transform(corners, to_pixels).reshape(-1, 4).astype(np.float32)
        found = self.run(photo=pixels, boxes=boxes)
        found["landmarks"] = transform(found["landmarks"].astype(np.float64), invert(to_pixels)).astype(
            np.float32
        )
        rows = ({name: values[i] for name, values in found.items()} for i in range(len(group)))
        return [self._prediction(crop, row) for crop, row in zip(group, rows, strict=True)]

    def _prediction(self, crop: Crop, row: dict[str, Any]) -> Prediction | BadAnswer:
        """Return one garment's answer from its row of the outputs."""
        name, sure = None, None
        has = np.ones(len(self.landmark_set), bool)
        if "garment_type" in row:
            type_, sure = (
                self.landmark_set.garment_types[row["garment_type"]],
                float(row["garment_type_score"]),
            )
            if not math.isfinite(sure):
                return BadAnswer("not_finite", "the garment type, so the model has diverged")
            name = type_.name
            has[:] = False
            has[list(type_.landmarks)] = True
        if lost := int((~np.isfinite(row["scores"][has])).sum()):
            return BadAnswer("not_finite", f"{lost} of {has.sum()} heatmaps, so the model has diverged")
        return Prediction(crop.box, row["landmarks"], row["scores"], row.get("visibility"), name, sure)


class OnnxDetector(OnnxModel):
    """Runs an exported detector: photos in, boxes out."""

    def __init__(
        self,
        url: str,
        threads: int | None = None,
        most: int = MOST_GARMENTS,
        least_score: float | None = None,
    ) -> None:
        """Load the file at ``url``; threads: as of ``OnnxPredictor``.

        most: so many boxes of a photo at most. least_score: of each; by default the file's own.
        UserError if it is no detector of ``glefld export``, it does not put out so many boxes or such low scores, or
        onnxruntime is missing.
        """
        super().__init__(url, threads)
        if "least_score" not in self.facts:
            raise UserError(f"{public_url(url)} is no detector: give an exported one")
        own = float(self.facts["least_score"])
        self.most, self.least_score = most, own if least_score is None else least_score
        require_between("most_garments of an exported detector", most, 1, int(self.facts["most_garments"]))
        require_between("least_score of this exported detector", self.least_score, own, 1)

    def detect(self, photos: Iterable[Crop | Bad]) -> Iterator[Detected | Bad]:
        """Yield the boxes of each photo, in order; there may be none. What is bad is passed through in its place.

        photos: ``glefld.prediction.open_upright(data).whole(detector.input_size)``.
        """
        return in_threads(self._detected, photos, self.threads)

    def _detected(self, crop: Crop | Bad) -> Detected | Bad:
        if not isinstance(crop, Crop):
            return crop
        try:
            pixels, to_pixels = upright_pixels([crop])
        except BadPhoto as bad:
            return bad
        found = self.run(photo=pixels)
        assert crop.photo is not None
        if not np.isfinite(found["scores"]).all():
            return BadAnswer("not_finite", "the boxes, so the model has diverged")
        good = np.flatnonzero(found["scores"] >= self.least_score)[: self.most]
        corners = transform(found["boxes"][good].astype(np.float64).reshape(-1, 2, 2), invert(to_pixels))
        low, high = np.array(crop.photo.bounds).reshape(2, 2)
        boxes = corners.clip(low, high).reshape(-1, 4).astype(np.float32)
        return Detected(crop.photo, boxes, found["scores"][good])

    def nothing(self) -> NoGarment:
        """Return what is to be said of a photo without boxes."""
        return no_garment(self.least_score)


def cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _by_photo(crops: Iterable[Crop | Bad], most: int) -> Iterator[list[Crop] | Bad]:
    """Group consecutive crops of one photo, at most so many."""
    group: list[Crop] = []
    for crop in crops:
        together = isinstance(crop, Crop) and len(group) < most and group and group[0].photo is crop.photo
        if group and not together:
            yield group
            group = []
        if isinstance(crop, Crop):
            group = [*group, crop]
        else:
            yield crop
    if group:
        yield group


def upright_pixels(crops: list[Crop]) -> tuple[np.ndarray, np.ndarray]:
    """Decode the photo of some crops: its pixels [H, W, 3] uint8, upright, and the map [2, 3] from the photo to them.

    It is decoded as small as the largest of the crops needs. BadPhoto if it cannot be decoded.
    """
    (a, b), (c, d) = np.abs([crop.picture.to_input[:, :2] for crop in crops]).max(axis=0)
    photo = crops[0].photo
    assert photo is not None, "painted crops have lost their photo"
    shrink = min(1.0, math.hypot(a, c)), min(1.0, math.hypot(b, d))
    pixels, reduced = decode(crops[0].picture, shrink, SCRATCH)
    pixels, turned = turn(pixels, photo.to_upright[:, :2])
    turned[:, :2] /= reduced
    return pixels, compose(turned, invert(photo.to_upright))
