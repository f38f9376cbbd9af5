"""Decoding photos and encoding crops, with one error reason per kind of bad photo."""

import contextlib
import io
import re
import struct
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    PHOTOMETRIC_INTERPRETATION,
    TILELENGTH,
    TILEWIDTH,
    TiffImageFile,
)

from glefld.data.augmentation import compose
from glefld.errors import BadPhoto

#: Larger pictures are rejected before decoding, since a small file can decode to gigabytes.
MAX_PIXELS = 100_000_000
#: File name extensions of pictures.
PICTURES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
#: The formats that may be decoded. Pillow supports many more, some of which run external programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
JPEG_QUALITY = 95
#: EXIF orientation: whether to transpose, then whether to flip x, and whether to flip y.
ORIENTATIONS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}
#: A JPEG marker. In entropy-coded data FF is followed only by 0 or a restart marker, which this does not match.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_JPEG_END = 0xD9


def is_picture(path: str) -> bool:
    """Return whether a path has a picture's extension. The metadata files that macOS adds to archives do not count."""
    *folders, name = path.split("/")
    return name.lower().endswith(PICTURES) and not name.startswith("._") and "__MACOSX" not in folders


@contextlib.contextmanager
def open_photo(data: bytes) -> Iterator[Image.Image]:
    """Open a photo without decoding its pixels yet.

    BadPhoto if it cannot be opened or is too large. Errors raised in the ``with`` block become BadPhoto too.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise BadPhoto("picture_too_large", f"{image.width} x {image.height} pixels")
            if isinstance(image, TiffImageFile):
                # Tiles are decoded whole, even if they are larger than the picture.
                width, height = (int(image.tag_v2.get(tag, 0)) for tag in (TILEWIDTH, TILELENGTH))
                if width * height > MAX_PIXELS:
                    raise BadPhoto("picture_too_large", f"tiles of {width} x {height} pixels")
            yield image
    except BadPhoto:
        raise
    except Image.DecompressionBombError as error:
        raise BadPhoto("picture_too_large", str(error)) from error
    except UnidentifiedImageError as error:
        # Pillow's message contains a memory address, which differs between runs.
        raise BadPhoto("unreadable_photo", f"{len(data)} bytes: not a picture in a known format") from error
    # On damaged files Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more.
    except Exception as error:
        detail = f"{len(data)} bytes: {' '.join(str(error).split())}"
        truncated = "truncated" in str(error).lower()
        raise BadPhoto("truncated_photo" if truncated else "unreadable_photo", detail) from error


def decode_rgb(data: bytes) -> Image.Image:
    """Decode a photo to 8-bit RGB as stored, without EXIF rotation, transparency over white; BadPhoto if it fails."""
    with open_photo(data) as image:
        image.load()
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a loaded picture to 8-bit RGB: grey of 12 or 16 bits is scaled down, transparency is drawn over white.

    BadPhoto for grey of 32 bits or floats: such files do not say which number is white.
    """
    if image.mode in ("F", "I"):
        numbers = "floating-point" if image.mode == "F" else "32-bit or signed"
        raise BadPhoto("unreadable_photo", f"{numbers} grey: save it with 8 or 16 bits per channel")
    if image.mode.startswith("I;16"):
        return _grey(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _grey(image: Image.Image) -> Image.Image:
    """Scale 12- or 16-bit grey to 8 bits. Pillow would clip it at 255 and make it white."""
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    white = 4095 if tags.get(BITSPERSAMPLE) == (12,) else 65535
    grey = ((np.asarray(image, np.int32) * 255 + white // 2) // white).clip(max=255)
    # Pillow inverts a TIFF whose white is 0 only if it has 8 bits or fewer.
    inverted = tags.get(PHOTOMETRIC_INTERPRETATION) == 0
    return Image.fromarray((255 - grey if inverted else grey).astype(np.uint8))


def encode_jpeg(image: Image.Image) -> bytes:
    """Encode a picture as JPEG: quality 95, no chroma subsampling (4:4:4)."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def is_whole_jpeg(data: bytes) -> bool:
    """Return whether a JPEG reaches its end marker: some decoders silently fill a truncated one with grey."""
    position = 2
    while (found := _JPEG_MARKER.search(data, position)) is not None:
        if data[found.end() - 1] == _JPEG_END:
            return True
        # Skip the whole segment: it may hold a thumbnail with an end marker of its own.
        position = found.end() + max(2, int.from_bytes(data[found.end() : found.end() + 2]))
    return False


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 (upright as stored) if it is missing or unreadable, as viewers assume."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except (SyntaxError, ValueError, TypeError, KeyError, struct.error):  # what Pillow raises on damaged EXIF
        return 1
    return value if value in ORIENTATIONS else 1


def orient(upright: int, width: int, height: int) -> np.ndarray:
    """Return the affine map [2, 3] from a stored picture of this size and EXIF orientation to the upright one."""
    swap, flip_x, flip_y = ORIENTATIONS[upright]
    affine = np.array([[0.0, 1, 0], [1, 0, 0]] if swap else [[1.0, 0, 0], [0, 1, 0]])
    if swap:
        width, height = height, width
    flip = np.array([[-1.0 if flip_x else 1, 0, width * flip_x], [0, -1.0 if flip_y else 1, height * flip_y]])
    return compose(flip, affine)


def upright(image: Image.Image) -> Image.Image:
    """Rotate a picture upright by its EXIF orientation; unchanged if that is unreadable."""
    # ImageOps.exif_transpose alone would raise on damaged EXIF.
    return ImageOps.exif_transpose(image) if orientation(image) != 1 else image
