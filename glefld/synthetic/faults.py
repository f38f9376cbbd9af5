"""Faults to plant in a rendered data set: irregularities of the real archives, and damage from bad downloads."""

import dataclasses
import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from glefld.schema import Split, Visibility

LARGEST = 999  # the lists hold three digits per coordinate


@dataclasses.dataclass
class ListRow:
    """One row of the lists and its photo's file, None if the archive lacks it; ``member`` is its name there."""

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


def unreadable_photo(row: ListRow, rng: np.random.Generator) -> None:
    """Replace the photo by random bytes."""
    row.photo = rng.bytes(2000)


def truncated_photo(row: ListRow, rng: np.random.Generator) -> None:
    """Cut the file short, as a broken download does. Some decoders silently fill the rest with grey."""
    assert row.photo is not None
    row.photo = row.photo[: int(len(row.photo) * rng.uniform(0.5, 0.8))]


def missing_photo(row: ListRow, rng: np.random.Generator) -> None:
    """Leave the photo out of the archive."""
    row.photo = None


def empty_box(row: ListRow, rng: np.random.Generator) -> None:
    """Make the box zero pixels wide, or swap its corners."""
    x1, y1, x2, y2 = row.box
    row.box = (x1, y1, x1, y2) if rng.random() < 0.5 else (x2, y2, x1, y1)


def box_outside_photo(row: ListRow, rng: np.random.Generator) -> None:
    """Move the box to the right of the photo."""
    x1, y1, x2, y2 = row.box
    moved = row.width + int(rng.integers(5, 50))
    row.box = (moved, y1, moved + x2 - x1, y2)


def no_landmarks(row: ListRow, rng: np.random.Generator) -> None:
    """Cut off every landmark."""
    row.visibility[row.visibility != Visibility.ABSENT] = Visibility.CUT_OFF


def landmark_outside_box(row: ListRow, rng: np.random.Generator) -> None:
    """Move a landmark away from the box by more than the box's size."""
    x1, y1, x2, y2 = row.box
    slot = rng.choice(np.flatnonzero(row.visibility < Visibility.CUT_OFF))
    far = (x2 + int(1.5 * (x2 - x1)), y2 + int(1.5 * (y2 - y1)))
    row.landmarks[slot] = np.minimum(far, LARGEST)


def as_listed(row: ListRow, rng: np.random.Generator) -> None:
    """Leave the row unchanged; the caller lists it twice, or gives it another split's photo."""


def grey(row: ListRow, rng: np.random.Generator) -> None:
    """Encode the photo as a greyscale JPEG."""
    row.photo = _encoded(_decoded(row).convert("L"), "JPEG")


def cmyk(row: ListRow, rng: np.random.Generator) -> None:
    """Encode the photo as a CMYK JPEG."""
    row.photo = _encoded(_decoded(row).convert("CMYK"), "JPEG")


def png(row: ListRow, rng: np.random.Generator) -> None:
    """Encode the photo as a PNG, under a name that ends in .jpg."""
    row.photo = _encoded(_decoded(row), "PNG")


def exif_orientation(row: ListRow, rng: np.random.Generator) -> None:
    """Add an EXIF orientation. Annotations are in stored pixels, so ingest must ignore it."""
    exif = Image.Exif()
    exif[0x0112] = int(rng.integers(2, 9))
    row.photo = _encoded(_decoded(row), "JPEG", exif=exif)


def box_beyond_edge(row: ListRow, rng: np.random.Generator) -> None:
    """Extend the box slightly beyond the photo; ingest must clip it, not reject it."""
    x1, y1, _, y2 = row.box
    row.box = (x1, y1, row.width + int(rng.integers(2, 12)), y2)


def folder_capitals(row: ListRow, rng: np.random.Generator) -> None:
    """Write the folder in lower case in the archive, unlike in the lists."""
    row.member = row.name.lower()


#: Faults that ingest must reject, by the reason it must give.
REJECTED: dict[str, Callable[[ListRow, np.random.Generator], None]] = {
    "unreadable_photo": unreadable_photo,
    "truncated_photo": truncated_photo,
    "missing_photo": missing_photo,
    "empty_box": empty_box,
    "box_outside_photo": box_outside_photo,
    "no_landmarks": no_landmarks,
    "landmark_outside_box": landmark_outside_box,
    "duplicate_id": as_listed,
}
#: Irregularities that ingest must accept.
KEPT: dict[str, Callable[[ListRow, np.random.Generator], None]] = {
    "two_splits": as_listed,
    "grey": grey,
    "cmyk": cmyk,
    "png": png,
    "exif_orientation": exif_orientation,
    "box_beyond_edge": box_beyond_edge,
    "folder_capitals": folder_capitals,
}
KINDS = (*REJECTED, *KEPT)


def plant(kind: str, row: ListRow, rng: np.random.Generator) -> None:
    """Apply one of ``KINDS`` to a row."""
    (REJECTED | KEPT)[kind](row, rng)


def _decoded(row: ListRow) -> Image.Image:
    assert row.photo is not None
    return Image.open(io.BytesIO(row.photo))


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
