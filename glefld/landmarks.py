"""Landmarks of garments in photos: load a trained model, give it photos, get typed answers. Without Ray and MLflow.

    from glefld import Landmarks

    model = Landmarks.load("glefld-data/runs/NAME")
    print(model("dress.jpg").garment.landmarks)

Letters in shapes: K landmarks, N garments of a photo. Coordinates are pixels of the upright photo (EXIF orientation
applied), continuous: pixel i covers [i, i + 1).
"""

import dataclasses
import itertools
import os
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeAlias, TypeGuard, Union, cast, overload

import numpy as np
from botocore.exceptions import BotoCoreError, ClientError
from PIL import Image

from glefld import storage
from glefld.coco_format import to_coco
from glefld.data.photos import open_photo, upright_rgb
from glefld.data.prefetch import in_threads
from glefld.errors import BadBox, BadInput, BadPhoto, NoGarment, UserError
from glefld.onnx_model import ENDING, OnnxDetector, OnnxPredictor, is_onnx
from glefld.prediction import (
    BATCH_SIZE,
    PRECISION,
    Bad,
    Crop,
    Detected,
    Photo,
    Prediction,
    open_pixels,
    open_upright,
)
from glefld.recipe import Precision
from glefld.redaction import public_url, redacted
from glefld.schema import MOST_GARMENTS, LandmarkSet, Visibility

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from glefld.detect import Detector
    from glefld.models.checkpoint import ModelCard
    from glefld.predict import Predictor

#: A photo: path or URL, a file's bytes, a picture of Pillow's, RGB pixels [H, W, 3] uint8, or [3, H, W] of PyTorch's.
Source: TypeAlias = Union[str, os.PathLike[str], bytes, Image.Image, np.ndarray, "Tensor"]
#: x1 y1 x2 y2 of one garment or of several; None takes the whole photo.
Boxes: TypeAlias = Union[Sequence[float], Sequence[Sequence[float] | None], np.ndarray, "Tensor", None]
#: Environment variable: the checkpoint of those who name none.
CHECKPOINT = "GLEFLD_CHECKPOINT"
#: One thread at a time decodes what callers have opened: they may give a picture twice, and Pillow reads it when asked.
_PILLOW = threading.Lock()


class Request(NamedTuple):
    """A photo to look at, the garments in it, and its name in the answers."""

    photo: Source
    boxes: Sequence[Sequence[float] | None] = (None,)
    """x1 y1 x2 y2 of each garment; None for the whole photo, or for the garments that the model's detector finds."""
    name: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """What the model says of one photo: an answer for each box that was asked for or found, or for the whole photo."""

    name: str
    """The photo's path or URL as given, or its number among those that were given."""
    size: tuple[int, int] | None
    """Width and height of the upright photo in pixels; None if it cannot be read."""
    answers: tuple[Prediction | BadInput, ...]
    """One for each garment, in the order of the boxes: a ``Prediction``, or what is wrong with photo or box."""
    landmark_set: LandmarkSet
    """Names of the K landmarks and of the garment types."""
    boxes: Sequence[Sequence[float] | None]
    """The boxes that were asked for or found, one for each answer; None for the whole photo."""
    photo: Source = dataclasses.field(repr=False)
    """The photo as given."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the K landmarks."""
        return self.landmark_set.landmarks

    @property
    def garments(self) -> tuple[Prediction, ...]:
        """The garments that could be answered."""
        return tuple(answer for answer in self.answers if isinstance(answer, Prediction))

    @property
    def errors(self) -> tuple[BadInput, ...]:
        """What is wrong with the photo (once for each box), a box, or the model's answer; empty if nothing is."""
        return tuple(answer for answer in self.answers if isinstance(answer, BadInput))

    @property
    def garment(self) -> Prediction:
        """The photo's only garment. Raises what is wrong with it, or UserError if there are several, or none."""
        if len(self.answers) != 1:
            raise UserError(
                f"{self.name} has answers for {len(self.answers)} garments: look into .garments and .errors"
            )
        (answer,) = self.answers
        if isinstance(answer, BadInput):
            raise answer
        return answer

    def picture(self) -> Image.Image:
        """Return the upright photo in RGB, read again from where it was given; BadPhoto if that is not possible."""
        if isinstance(self.photo, Image.Image):
            return upright_rgb(self.photo)
        if not isinstance(self.photo, str | os.PathLike | bytes):
            return Image.fromarray(_pixels(self.photo))
        with open_photo(_read(self.photo)) as image:
            return upright_rgb(image)

    def plot(self, *, names: bool = True, long_side: int = 768) -> Image.Image:
        """Return the photo with the garments' boxes, types and landmarks drawn on it, without absent landmarks.

        names: write the landmarks' names too. long_side: of the picture, in pixels. BadPhoto as ``picture``.
        """
        from glefld.scoring.draw import overlay  # what draws is not needed to predict

        picture = original = self.picture()
        for garment in self.garments:
            scale = np.array(picture.size) / original.size  # the first one scales the picture
            picture = overlay(
                picture,
                self.landmark_set,
                predicted=garment.landmarks * scale,
                score=garment.score,
                visibility=garment.visibility,
                box=(np.array(garment.box) * np.tile(scale, 2)).tolist(),
                names=names,
                label=_label(garment),
                long_side=long_side,
            )
        return picture

    def to_json(self) -> list[dict[str, Any]]:
        """Return what ``glefld predict`` prints of the photo: an object for each garment, or for what is wrong."""
        return [
            {"photo": self.name}
            | (answer.to_json(self.names) if isinstance(answer, Prediction) else {"error": str(answer)})
            for answer in self.answers
        ]

    def to_coco(self) -> dict[str, Any]:
        """Return the garments as ``to_coco`` does."""
        return to_coco([self], self.landmark_set)

    def to_supervision(self) -> Any:
        """Return the garments as ``supervision.KeyPoints``.

        xy [N, K, 2], keypoint_confidence [N, K], visible [N, K], class_id [N] and ``data["class_name"]``. Absent
        landmarks are at (0, 0), not visible and of confidence 0. ``class_id`` is an index into
        ``landmark_set.garment_types``; without it and the names if the model does not tell types.
        UserError if the package supervision is not installed, or is older than 0.29.
        """
        try:
            from supervision import KeyPoints
        except ImportError as error:
            raise UserError(
                "to_supervision needs the package supervision, which is not installed: pip install supervision"
            ) from error
        k, found = len(self.landmark_set), self.garments
        visible = np.array([present(garment) for garment in found], bool).reshape(-1, k)
        xy = np.array([garment.landmarks for garment in found], np.float32).reshape(-1, k, 2)
        score = np.array([garment.score for garment in found], np.float32).reshape(-1, k)
        numbers = {garment.name: i for i, garment in enumerate(self.landmark_set.garment_types)}
        types = [garment.garment_type for garment in found if garment.garment_type is not None]
        told = len(types) == len(found)
        try:
            return KeyPoints(
                xy=np.where(visible[..., None], xy, np.float32(0)),
                keypoint_confidence=np.where(visible, score, np.float32(0)),
                visible=visible,
                class_id=np.array([numbers[name] for name in types], int) if told else None,
                data={"class_name": np.array(types, str)} if told else {},
            )
        except TypeError as error:
            raise UserError("to_supervision needs supervision 0.29 or newer: update the package") from error


class Landmarks:
    """A trained landmark model: photos in, ``Result`` out."""

    def __init__(
        self,
        predictor: "Predictor | OnnxPredictor",
        checkpoint: str,
        detector: "Detector | OnnxDetector | None" = None,
    ) -> None:
        """Use ``load``; this is for those who have a predictor of the checkpoint or exported file at this URL."""
        self.predictor = predictor
        self.checkpoint = checkpoint
        """URL of the checkpoint, or of the exported file."""
        self.detector = detector
        """Finds the garments of photos that are given without boxes; None takes these whole."""

    @classmethod
    def load(
        cls,
        checkpoint: str | os.PathLike[str] | None = None,
        *,
        root: str | None = None,
        device: "str | torch.device" = "auto",
        batch_size: int = BATCH_SIZE,
        threads: int | None = None,
        precision: Precision = PRECISION,
        mirror: bool = False,
        detector: str | os.PathLike[str] | None = None,
        most_garments: int = MOST_GARMENTS,
        least_score: float | None = None,
    ) -> Self:
        """Load a model.

        checkpoint: a run's folder (its best checkpoint) or a checkpoint's, path or URL; or a model in MLflow
        (``models:/NAME@ALIAS``, ``runs:/ID``), for which alone MLflow is imported; or a file of ``glefld export``, for
        which not even PyTorch is imported, and which runs on the CPU. Default: $GLEFLD_CHECKPOINT, else the newest run
        below the root. root: the folder of runs and of copies of MLflow's models. Default: $GLEFLD_ROOT, else
        ./glefld-data. device: ``auto`` (a GPU if there is one), ``cpu``, ``gpu`` or one of PyTorch's. batch_size:
        garments at a time. threads: that decode; by default as many as PyTorch computes with. precision: of the forward
        pass. mirror: average with the answers for mirror images, a little better at twice the time. detector: a run or
        checkpoint of a detector, named as ``checkpoint`` is, which finds the garments of photos that are given without
        boxes, at most so many of at least this score (by default what its training has chosen); None takes photos
        whole.
        UserError if there is no such checkpoint, it is not a landmark model's, there is no such device, or an exported
        file cannot do what an option asks for.
        """
        place = storage.absolute(root or os.environ.get("GLEFLD_ROOT") or "./glefld-data")
        given = os.fspath(checkpoint) if checkpoint is not None else default_checkpoint(place)[0]
        url = find_checkpoint(given, place)
        predictor = _load(url, device, batch_size, threads, precision, mirror)
        finder = None
        if detector is not None:
            found = find_checkpoint(os.fspath(detector), place)
            finder = _load_detector(found, device, batch_size, threads, precision, most_garments, least_score)
        return cls(predictor, url, finder)

    @property
    def card(self) -> "ModelCard":
        """The checkpoint's card: labels, input size, recipe, and scores on the val split."""
        return self.predictor.card

    @property
    def landmark_set(self) -> LandmarkSet:
        """The landmarks' names, and the garment types with the landmarks that each has."""
        return self.predictor.landmark_set

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the K landmarks."""
        return self.landmark_set.landmarks

    @overload
    def __call__(self, images: Source, boxes: Boxes = None) -> Result: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, images: Iterable[Source], boxes: Iterable[Boxes] | None = None) -> list[Result]: ...
    def __call__(
        self, images: Source | Iterable[Source], boxes: Boxes | Iterable[Boxes] = None
    ) -> Result | list[Result]:
        """Predict one photo, or each of several.

        images: one ``Source``, or an iterable of them, which gives a list. boxes: for one photo x1 y1 x2 y2 or several
        of these, in pixels of the upright photo; for several photos one such entry each. None takes the whole photo or,
        with a detector, the garments in it; a photo without any has the answer ``NoGarment``.
        A photo or box that cannot be used is an answer of its ``Result``, and raises nothing here. UserError for what
        is no photo at all, such as pixels of another shape or type, before anything is predicted.
        """
        if isinstance(images, str | os.PathLike | bytes | Image.Image) or _is_pixels(images):
            (result,) = self.stream([_request(images, cast(Boxes, boxes), 0)])
            return result
        photos = list(images)
        entries: list[Boxes] = [None] * len(photos) if boxes is None else list(cast(Iterable[Boxes], boxes))
        if len(entries) != len(photos):
            raise UserError(
                f"boxes has {len(entries)} entries for {len(photos)} photos: give one for each, None for the whole "
                "photo"
            )
        requests = [_request(*pair, i) for i, pair in enumerate(zip(photos, entries, strict=True))]
        return list(self.stream(requests))

    def stream(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Yield the result of each photo, in order and in constant memory; threads read and open photos ahead."""
        size, threads = self.predictor.input_size, self.predictor.threads
        asked: deque[_Asked] = deque()

        def crops() -> Iterator[Crop | Bad]:
            for request, opened, detected in self._detect(in_threads(_open, requests, threads)):
                boxes: Sequence[Sequence[float] | None] = request.boxes
                scores: Sequence[float | None] = [None] * len(boxes)
                if isinstance(detected, Detected):
                    boxes, scores = detected.boxes.tolist(), detected.score.tolist()
                    found = [_crop(opened, box, size) for box in boxes]
                elif detected is not None:
                    found = [detected]
                else:
                    found = [_crop(opened, box, size) for box in boxes]
                asked.append(_Asked(request, _size(opened), boxes, scores))
                yield from found

        answers = self.predictor.predict(crops())
        while (first := next(answers, None)) is not None:
            yield from self._without_garments(asked)
            photo = asked.popleft()
            rest = itertools.islice(answers, len(photo.boxes) - 1)
            yield self._result(photo, (first, *rest))
        yield from self._without_garments(asked)
        assert not asked

    def _without_garments(self, asked: "deque[_Asked]") -> Iterator[Result]:
        while asked and not asked[0].boxes:
            yield self._result(asked.popleft(), ())

    def _detect(
        self, opened: Iterable[tuple[Request, Photo | BadPhoto]]
    ) -> Iterator[tuple[Request, Photo | BadPhoto, Detected | Bad | None]]:
        """Yield each photo and what the detector says of it: its garments, or what is wrong; None if not asked."""
        if self.detector is None:
            yield from ((*pair, None) for pair in opened)
            return
        size = self.detector.input_size
        waiting: deque[tuple[Request, Photo | BadPhoto]] = deque()

        def wholes() -> Iterator[Crop | Bad]:
            for request, photo in opened:
                waiting.append((request, photo))
                if len(request.boxes) != 1 or request.boxes[0] is not None:
                    yield _GIVEN  # passes through the detector, so that all stay in order
                else:
                    yield photo.whole(size) if isinstance(photo, Photo) else photo

        for answer in self.detector.detect(wholes()):
            nothing = isinstance(answer, Detected) and not len(answer.boxes)
            told = self.detector.nothing() if nothing else answer
            yield (*waiting.popleft(), None if answer is _GIVEN else told)

    def _result(self, asked: "_Asked", answers: tuple[Prediction | Bad, ...]) -> Result:
        request = asked.request
        scored = tuple(
            dataclasses.replace(answer, box_score=score) if isinstance(answer, Prediction) else answer
            for answer, score in zip(answers, asked.scores, strict=True)
        )
        return Result(request.name, asked.size, scored, self.landmark_set, asked.boxes, request.photo)


class _Asked(NamedTuple):
    """A photo whose garments are on their way through the model."""

    request: Request
    size: tuple[int, int] | None
    boxes: Sequence[Sequence[float] | None]
    scores: Sequence[float | None]


#: In a detector's input, in place of a photo that it need not look at.
_GIVEN = NoGarment("not_asked", "the photo was given with boxes")


def default_checkpoint(root: str) -> tuple[str, str]:
    """Return the checkpoint of those who name none, and why it is that one, in words; UserError if there is none."""
    if named := os.environ.get(CHECKPOINT):
        return named, f"${CHECKPOINT}"
    from glefld.models import checkpoint  # with PyTorch

    if (run := checkpoint.newest_run(root)) is not None:
        return run, "the newest run"
    raise UserError(
        f"no checkpoint is named, and {storage.join(public_url(root), 'runs')} has no run of a landmark model with a "
        f"best checkpoint: name one, set {CHECKPOINT} or GLEFLD_ROOT, or train a model"
    )


def find_checkpoint(given: str, root: str) -> str:
    """Return the URL of a checkpoint: of a run its best one, of a model in MLflow a copy below the root.

    An exported file is one too. UserError if there is none, or its place cannot be accessed.
    """
    if given.startswith(("models:/", "runs:/")):
        from glefld import tracking  # with MLflow, which takes seconds to import

        uri = tracking.tracking_uri(root, on_cluster=False)
        tracking.require_answer(uri)
        return tracking.fetch(given, uri, storage.join(root, "models"))
    url = storage.absolute(given)
    storage.require_access(url)
    if is_onnx(url):
        if not storage.is_file(url):
            raise UserError(f"{public_url(url)}: there is no such file")
        return url
    from glefld.models import checkpoint  # with PyTorch

    return checkpoint.resolve(url)


def present(garment: Prediction) -> np.ndarray:
    """Return which landmarks a garment has, as far as the model tells: [K] bool."""
    known = ~np.isnan(garment.landmarks).any(axis=1)
    return known if garment.visibility is None else known & (garment.visibility <= Visibility.OCCLUDED)


def _label(garment: Prediction) -> str:
    if garment.garment_type is None or garment.garment_type_score is None:
        return ""
    return f"{garment.garment_type} {garment.garment_type_score:.2f}"


def _load(
    url: str,
    device: "str | torch.device",
    batch_size: int,
    threads: int | None,
    precision: Precision,
    mirror: bool,
) -> "Predictor | OnnxPredictor":
    if is_onnx(url):
        _require_cpu(device, precision)
        exported = OnnxPredictor(url, batch_size, threads)
        if mirror and not exported.mirror:
            raise UserError(f"mirror: {public_url(url)} was exported without it: glefld export --mirror")
        return exported
    import torch  # it takes seconds to import, and an exported model does without it

    from glefld.predict import Predictor

    return Predictor(
        url, choose_device(device), batch_size, threads or torch.get_num_threads(), precision, mirror
    )


def _load_detector(
    url: str,
    device: "str | torch.device",
    batch_size: int,
    threads: int | None,
    precision: Precision,
    most_garments: int,
    least_score: float | None,
) -> "Detector | OnnxDetector":
    if is_onnx(url):
        _require_cpu(device, precision)
        return OnnxDetector(url, threads, most_garments, least_score)
    import torch  # as above

    from glefld.detect import Detector

    count = threads or torch.get_num_threads()
    return Detector(url, choose_device(device), batch_size, count, precision, most_garments, least_score)


def _require_cpu(device: "str | torch.device", precision: Precision) -> None:
    """UserError for what exported files cannot do."""
    if str(device) not in ("auto", "cpu"):
        raise UserError(f"device {device}: {ENDING} files run on the CPU: load their checkpoint for a GPU")
    if precision == "bf16":
        raise UserError(f"precision bf16: {ENDING} files compute in fp32: load their checkpoint for bf16")


def choose_device(device: "str | torch.device") -> "torch.device":
    """Return the device of this name: ``auto``, ``cpu``, ``gpu`` or one of PyTorch's; UserError if there is none."""
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device("cuda" if device == "gpu" else device)
    except RuntimeError as error:
        words = str(error).partition("\n")[0]
        raise UserError(f"device {device!r}: {words}: give auto, cpu, gpu or one of PyTorch's") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {device}: this machine has {torch.cuda.device_count() or 'no'} GPU: choose cpu"
        )
    return chosen


def _request(photo: Any, boxes: Boxes, number: int) -> Request:
    """Check what kind of photo and boxes these are; UserError if it is none."""
    if isinstance(photo, str | os.PathLike):
        name = public_url(os.fspath(photo))
    else:
        name = f"photo {number + 1}"
        if _is_pixels(photo):
            _require_pixels(photo)
        elif not isinstance(photo, bytes | Image.Image):
            raise UserError(
                f"{name} is of type {type(photo).__name__}: give a path, a URL, bytes, a picture of Pillow's, or "
                "pixels of NumPy's or PyTorch's"
            )
    if boxes is None:
        return Request(photo, name=name)
    entries: list[Any] = boxes.tolist() if _is_pixels(boxes) else list(boxes)
    entries = [box.tolist() if _is_tensor(box) else box for box in entries]
    if _is_box(entries):
        entries = [entries]
    for box in entries:
        if box is not None and not _is_box(box):
            raise UserError(f"{name}: a box is x1 y1 x2 y2, not {box}")
    return Request(photo, entries, name)


def _is_box(value: Any) -> bool:
    """Whether these are four numbers."""
    if isinstance(value, float | int | np.number | str) or len(value) != 4:
        return False
    return all(isinstance(corner, float | int | np.number) for corner in value)


def _is_tensor(value: object) -> "TypeGuard[Tensor]":
    """Whether it is a tensor. Who has made one has loaded PyTorch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _is_pixels(value: object) -> "TypeGuard[np.ndarray | Tensor]":
    return isinstance(value, np.ndarray) or _is_tensor(value)


def _require_pixels(pixels: "np.ndarray | Tensor") -> None:
    """UserError unless these are [H, W, 3] uint8 of NumPy's or [3, H, W] uint8 of PyTorch's, with a pixel at least."""
    numpys = isinstance(pixels, np.ndarray)
    shape, kind = tuple(pixels.shape), str(pixels.dtype)
    channels = shape[-1 if numpys else 0] if len(shape) == 3 else None
    if channels != 3 or kind not in ("uint8", "torch.uint8") or 0 in shape:
        wanted = "[height, width, 3]" if numpys else "[3, height, width]"
        several = ": give several photos as a list of them" if len(shape) == 4 else ""
        raise UserError(
            f"pixels of {'NumPy' if numpys else 'PyTorch'}'s must be {wanted} of uint8, RGB from 0 to 255, not "
            f"{list(shape)} of {kind}{several}"
        )


def _pixels(pixels: "np.ndarray | Tensor") -> np.ndarray:
    """Return [H, W, 3] uint8."""
    return pixels if isinstance(pixels, np.ndarray) else pixels.permute(1, 2, 0).cpu().numpy()


def _open(request: Request) -> tuple[Request, Photo | BadPhoto]:
    photo = request.photo
    try:
        if isinstance(photo, Image.Image):
            with _PILLOW:
                return request, open_pixels(np.asarray(upright_rgb(photo)))
        if not isinstance(photo, str | os.PathLike | bytes):
            return request, open_pixels(_pixels(photo))
        return request, open_upright(_read(photo))
    except BadPhoto as bad:
        return request, bad


def _read(photo: str | os.PathLike[str] | bytes) -> bytes:
    """Return a photo's file; BadPhoto if it cannot be read."""
    if isinstance(photo, bytes):
        return photo
    try:
        return storage.read_bytes(storage.absolute(os.fspath(photo)))
    except FileNotFoundError as error:
        raise BadPhoto("missing_photo", "there is no such file") from error
    except (OSError, BotoCoreError, ClientError, UserError) as error:
        detail = redacted(" ".join(str(error).split())) or type(error).__name__
        raise BadPhoto("unreadable_photo", detail) from error


def _size(photo: Photo | BadPhoto) -> tuple[int, int] | None:
    """Return the upright photo's width and height."""
    if isinstance(photo, BadPhoto):
        return None
    left, top, right, bottom = photo.bounds
    return round(right - left), round(bottom - top)


def _crop(photo: Photo | BadPhoto, box: Sequence[float] | None, size: int) -> Crop | Bad:
    if isinstance(photo, BadPhoto):
        return photo
    try:
        return photo.crop(box, size)
    except BadBox as bad:
        return bad
