"""A checkpoint as MLflow serves it: photos in, what ``glefld predict`` prints of them out. Imports no MLflow.

``mlflow models serve`` and ``mlflow.pyfunc.load_model`` import this module by the name that it has in a model's file
``MLmodel`` (``glefld.tracking.pyfunc`` writes it) and call ``_load_pyfunc``. A request is a table with a row for each
photo: its file in ``photo``, as base64 or bytes, and perhaps in ``boxes`` where its garments are. A request can name no
file and no URL, and a row that cannot be used is an answer of its own and stops no other.
"""

import abc
import base64
import binascii
import math
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from glefld.detect import Detector
from glefld.errors import BadBox, BadInput, BadPhoto
from glefld.landmarks import Landmarks, Request, choose_device
from glefld.models import MODELS, checkpoint
from glefld.prediction import Bad, Crop, Detected, open_upright

#: A photo's file may have so many bytes, and be asked about so many boxes.
MOST_BYTES = 32 << 20
MOST_BOXES = 100

#: What is said of one garment, or what is wrong with a photo or box.
Answer = dict[str, Any]


class Served(abc.ABC):
    """What MLflow calls ``predict`` of, from any thread."""

    def __init__(self) -> None:
        self._one_request = threading.Lock()  # each uses all threads and, on a GPU, the memory of a batch

    def predict(self, table: Any) -> list[dict[str, list[Answer]]]:
        """Return for each row what its photo's garments are: ``{"garments": [...]}``, with an object for each box.

        table: pandas.DataFrame with ``photo`` (base64 or bytes) and perhaps ``boxes`` (a list of x1 y1 x2 y2 in pixels
        of the upright photo; None takes the whole photo, or what a detector finds).
        """
        asked = [_asked(row.get("photo"), row.get("boxes")) for row in table.to_dict("records")]
        with self._one_request:
            answers = self.answers(one for one in asked if isinstance(one, Request))
            found = [[_error(one)] if isinstance(one, BadInput) else next(answers) for one in asked]
        return [{"garments": garments} for garments in found]

    @abc.abstractmethod
    def answers(self, asked: Iterable[Request]) -> Iterator[list[Answer]]:
        """Yield what is said of each photo, which is given as bytes."""


class ServedLandmarks(Served):
    """A landmark model: each garment's landmarks."""

    def __init__(self, model: Landmarks) -> None:
        super().__init__()
        self.model = model

    def answers(self, asked: Iterable[Request]) -> Iterator[list[Answer]]:
        for result in self.model.stream(asked):
            yield [
                _error(answer) if isinstance(answer, BadInput) else answer.to_json(result.names)
                for answer in result.answers
            ]


class ServedDetector(Served):
    """A detector: the garments' boxes, best first. It takes no ``boxes``."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def answers(self, asked: Iterable[Request]) -> Iterator[list[Answer]]:
        for found in self.detector.detect(self._whole(one) for one in asked):
            if not isinstance(found, Detected):
                yield [_error(found)]
            elif not len(found.boxes):
                yield [_error(self.detector.nothing())]
            else:
                yield found.to_json()

    def _whole(self, asked: Request) -> Crop | Bad:
        assert isinstance(asked.photo, bytes)
        try:
            return open_upright(asked.photo).whole(self.detector.card.input_size)
        except BadPhoto as bad:
            return bad


def _load_pyfunc(path: str, settings: dict[str, Any]) -> Served:
    """Load the checkpoint in a model's folder; called by MLflow. UserError if it or a setting cannot be used.

    settings: options of ``Landmarks.load`` by name, for a detector those that it has too.
    """
    if MODELS[checkpoint.read_card(path).model].task == "landmarks":
        return ServedLandmarks(Landmarks.load(path, **settings))
    most, least_score = settings["most_garments"], settings["least_score"]
    device = choose_device(settings["device"])
    threads = torch.get_num_threads()
    return ServedDetector(Detector(path, device, threads=threads, most=most, least_score=least_score))


def _asked(photo: Any, boxes: Any) -> Request | BadInput:
    """Return what a row asks, or what is wrong with it."""
    try:
        return Request(_file(photo), _boxes(boxes))
    except BadInput as bad:
        return bad


def _file(photo: Any) -> bytes:
    if isinstance(photo, str):
        _require_size(len(photo) * 3 // 4)
        if photo.startswith("data:"):  # as browsers and their canvases give a file
            photo = photo.partition(",")[2]
        try:
            photo = base64.b64decode("".join(photo.split()), validate=True)
        except (binascii.Error, ValueError) as error:  # ValueError: letters beyond ASCII
            raise BadPhoto(
                "not_base64", "a photo is its file's content as base64, not a path or URL"
            ) from error
    if not isinstance(photo, bytes):
        raise BadPhoto("not_base64", f"a photo is its file's content as base64, not {type(photo).__name__}")
    _require_size(len(photo))
    return photo


def _require_size(size: int) -> None:
    if size > MOST_BYTES:
        raise BadPhoto("file_too_large", f"{size:,} bytes, and {MOST_BYTES:,} are taken")


def _boxes(value: Any) -> list[list[float] | None]:
    if value is None or (isinstance(value, float) and math.isnan(value)):  # pandas' mark of a row without
        return [None]
    try:
        boxes = np.asarray(value, float)
    except (TypeError, ValueError, OverflowError):
        boxes = np.empty(0)
    if boxes.ndim == 1:
        boxes = boxes[None]
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not 1 <= len(boxes) <= MOST_BOXES:
        raise BadBox("not_boxes", f"boxes are a list of 1 to {MOST_BOXES} lists of x1 y1 x2 y2")
    return boxes.tolist()


def _error(bad: BadInput) -> Answer:
    return {"error": str(bad)}
