"""What goes into a landmark model and what comes out: opened photos, crops of garments, predictions. Without PyTorch.

``glefld.predict`` answers with PyTorch, ``glefld.onnx_model`` with ONNX Runtime.
Frames: stored picture -> upright photo (EXIF) -> input. Letters in shapes: K landmarks, n boxes, S the square input's
size.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from glefld.data.augmentation import box_to_input, compose, invert, square_around
from glefld.data.photos import decode_special, is_plain_jpeg, open_photo, orient, orientation
from glefld.data.picture import Decoding, Picture
from glefld.errors import BadAnswer, BadBox, BadInput, BadPhoto, NoGarment
from glefld.recipe import Precision
from glefld.schema import LandmarkSet, Visibility

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


class Detected(NamedTuple):
    """The garments found in one photo, best first."""

    photo: Photo
    boxes: np.ndarray  # [n, 4] float32 x1 y1 x2 y2, upright photo's pixels
    score: np.ndarray  # [n] float32, the probability that it is an annotated garment's, as on the val split

    def to_json(self) -> list[dict[str, Any]]:
        """Return the boxes and their scores as JSON-serialisable values."""
        return [
            {"box": [rounded(value) for value in box], "box_score": rounded(score)}
            for box, score in zip(self.boxes.tolist(), self.score.tolist(), strict=True)
        ]


def rounded(value: float | None) -> float | None:
    """Return the value with as many digits as JSON has."""
    return None if value is None else round(value, DIGITS)


def no_garment(least_score: float) -> NoGarment:
    """Return what is to be said of a photo in which a detector finds no box of this score."""
    return NoGarment("no_garment", f"no box has a score of {least_score:.3f} or more")


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
