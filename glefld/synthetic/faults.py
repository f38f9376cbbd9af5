"""Irregularities to plant in a rendered data set: what real archives hold, what a bad download does."""

import dataclasses
import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from glefld.schema import Split, Visibility

LARGEST = 999  # three digits are what the lists have room for


@dataclasses.dataclass
class Row:
    """One row of the lists and the file that goes with it; the photo is None where the archive lacks it."""

    name: str
    member: str
    split: Split
    number: int
    photo: bytes | None
    width: int
    height: int
    box: tuple[int, int, int, int]
    landmarks: np.ndarray  # [8, 2] whole pixels
    visibility: np.ndarray  # [8]
    garment_type: int
    category: int
    attributes: list[int]
    variation: int
    view: str


def unreadable_photo(row: Row, rng: np.random.Generator) -> None:
    """Bytes that are no picture."""
    row.photo = rng.bytes(2000)


def truncated_photo(row: Row, rng: np.random.Generator) -> None:
    """A download that broke off: some decoders fill the rest with grey and say nothing."""
    assert row.photo is not None
    row.photo = row.photo[: int(len(row.photo) * rng.uniform(0.5, 0.8))]


def missing_photo(row: Row, rng: np.random.Generator) -> None:
    """Listed, but not in the archive."""
    row.photo = None


def empty_box(row: Row, rng: np.random.Generator) -> None:
    """A box without width, or with its corners changed over."""
    x1, y1, x2, y2 = row.box
    row.box = (x1, y1, x1, y2) if rng.random() < 0.5 else (x2, y2, x1, y1)


def box_outside_photo(row: Row, rng: np.random.Generator) -> None:
    """A box that begins to the right of the photo."""
    x1, y1, x2, y2 = row.box
    moved = row.width + int(rng.integers(5, 50))
    row.box = (moved, y1, moved + x2 - x1, y2)


def no_landmarks(row: Row, rng: np.random.Generator) -> None:
    """Every landmark cut off: nothing to learn from."""
    row.visibility[row.visibility != Visibility.ABSENT] = Visibility.CUT_OFF


def landmark_outside_box(row: Row, rng: np.random.Generator) -> None:
    """A landmark more than the box's own size away from it."""
    x1, y1, x2, y2 = row.box
    slot = rng.choice(np.flatnonzero(row.visibility < Visibility.CUT_OFF))
    far = (x2 + int(1.5 * (x2 - x1)), y2 + int(1.5 * (y2 - y1)))
    row.landmarks[slot] = np.minimum(far, LARGEST)


def as_listed(row: Row, rng: np.random.Generator) -> None:
    """Nothing of the row itself changes: it is listed a second time, or shows another split's photo."""


def grey(row: Row, rng: np.random.Generator) -> None:
    """A JPEG of one channel."""
    row.photo = _encoded(_decoded(row).convert("L"), "JPEG")


def cmyk(row: Row, rng: np.random.Generator) -> None:
    """A JPEG of four channels."""
    row.photo = _encoded(_decoded(row).convert("CMYK"), "JPEG")


def png(row: Row, rng: np.random.Generator) -> None:
    """A PNG under a name that ends in .jpg."""
    row.photo = _encoded(_decoded(row), "PNG")


def exif_orientation(row: Row, rng: np.random.Generator) -> None:
    """A tag that asks for a turn; the annotation is in stored pixels, so ingest must not obey it."""
    exif = Image.Exif()
    exif[0x0112] = int(rng.integers(2, 9))
    row.photo = _encoded(_decoded(row), "JPEG", exif=exif)


def box_beyond_edge(row: Row, rng: np.random.Generator) -> None:
    """A box that reaches a little further than the photo: to be clipped, not turned away."""
    x1, y1, _, y2 = row.box
    row.box = (x1, y1, row.width + int(rng.integers(2, 12)), y2)


def folder_capitals(row: Row, rng: np.random.Generator) -> None:
    """A folder whose capitals in the archive are not the lists'."""
    row.member = row.name.lower()


#: The first eight are for ingest to turn away, each under the reason of this name.
REJECTED: dict[str, Callable[[Row, np.random.Generator], None]] = {
    "unreadable_photo": unreadable_photo,
    "truncated_photo": truncated_photo,
    "missing_photo": missing_photo,
    "empty_box": empty_box,
    "box_outside_photo": box_outside_photo,
    "no_landmarks": no_landmarks,
    "landmark_outside_box": landmark_outside_box,
    "duplicate_id": as_listed,
}
KEPT: dict[str, Callable[[Row, np.random.Generator], None]] = {
    "two_splits": as_listed,
    "grey": grey,
    "cmyk": cmyk,
    "png": png,
    "exif_orientation": exif_orientation,
    "box_beyond_edge": box_beyond_edge,
    "folder_capitals": folder_capitals,
}
KINDS = (*REJECTED, *KEPT)


def plant(kind: str, row: Row, rng: np.random.Generator) -> None:
    """Make a row irregular in one of ``KINDS``."""
    (REJECTED | KEPT)[kind](row, rng)


def _decoded(row: Row) -> Image.Image:
    assert row.photo is not None
    return Image.open(io.BytesIO(row.photo))


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
