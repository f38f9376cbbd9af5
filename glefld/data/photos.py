"""Decoding photos and encoding crops, with one error reason per kind of bad photo.

Most damage to a JPEG does not stop a decoder: it warns, guesses and goes on, and part of the picture is wrong. Here
every warning of libjpeg-turbo makes the photo bad (``damaged_photo``).
"""

import contextlib
import io
import re
import struct
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
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
#: A progressive JPEG may have any number of scans, each of which costs a pass over the picture: about 0.6 ms per
#: megapixel. Files of 43 kB were seen to take 3 s. Encoders make some ten scans.
MAX_SCANS = 500
MAX_SCANNED_PIXELS = 2_000_000_000
#: A JPEG marker with a length. In entropy-coded data FF is followed only by 0 or a restart marker, which this does not
#: match. It has to skip what decoders skip: they take FF 01 for a marker without a length wherever it stands.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_JPEG_END, _JPEG_SCAN = 0xD9, 0xDA


def is_picture(path: str) -> bool:
    """Return whether a path has a picture's extension. The metadata files that macOS adds to archives do not count."""
    *folders, name = path.split("/")
    return name.lower().endswith(PICTURES) and not name.startswith("._") and "__MACOSX" not in folders


@contextlib.contextmanager
def open_photo(data: bytes) -> Iterator[Image.Image]:
    """Open a photo without decoding its pixels yet.

    BadPhoto if it cannot be opened or is too large. Errors raised in the ``with`` block become BadPhoto too.
    """
    with _bad_photos(f"{len(data)} bytes"):
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        _require_size(image.size)
        if isinstance(image, TiffImageFile):
            # Tiles are decoded whole, even if they are larger than the picture.
            width, height = (int(image.tag_v2.get(tag, 0)) for tag in (TILEWIDTH, TILELENGTH))
            _require_size((width, height), "tiles of ")
        yield image


def upright_rgb(image: Image.Image) -> Image.Image:
    """Return a picture of Pillow's as 8-bit RGB, upright by its EXIF, transparency over white.

    BadPhoto if it cannot be decoded or is too large.
    """
    with _bad_photos(f"a picture of mode {image.mode}"):
        _require_size(image.size)
        return to_rgb(upright(image))


@contextlib.contextmanager
def _bad_photos(what: str) -> Iterator[None]:
    """Make a BadPhoto of whatever Pillow raises on a picture. what: the picture, in words."""
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except BadPhoto:
        raise
    except Image.DecompressionBombError as error:
        raise BadPhoto("picture_too_large", str(error)) from error
    except UnidentifiedImageError as error:
        # Pillow's message contains a memory address, which differs between runs.
        raise BadPhoto("unreadable_photo", f"{what}: not a picture in a known format") from error
    # On damaged files Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more.
    except Exception as error:
        detail = f"{what}: {' '.join(str(error).split())}"
        truncated = "truncated" in str(error).lower()
        raise BadPhoto("truncated_photo" if truncated else "unreadable_photo", detail) from error


def _require_size(size: tuple[int, int], what: str = "") -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise BadPhoto("picture_too_large", f"{what}{width} x {height} pixels")


def decode_rgb(data: bytes) -> Image.Image:
    """Decode a photo to 8-bit RGB as stored, without EXIF rotation, transparency over white; BadPhoto if it fails."""
    with open_photo(data) as image:
        if is_plain_jpeg(image, data) and (pixels := decode_jpeg(data, "RGB")) is not None:
            return Image.fromarray(pixels)
        return decode_special(image, data)


def decode_special(image: Image.Image, data: bytes, *, damaged: bool = False) -> Image.Image:
    """Decode an open photo that is no plain JPEG to 8-bit RGB; BadPhoto if it is a damaged JPEG, unless ``damaged``."""
    if isinstance(image, JpegImageFile) and not damaged:
        # For the verdict alone: Pillow decodes, and tells of no warning. JPEGs of four colours have no grey.
        decode_jpeg(data, "CMYK" if image.mode == "CMYK" else "GRAY", min_height=1, min_width=1, fastdct=True)
    image.load()
    return to_rgb(image)


def decode_any(data: bytes) -> Image.Image:
    """Like ``decode_rgb``, but Pillow decodes also plain JPEGs."""
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


def is_plain_jpeg(image: Image.Image, data: bytes) -> bool:
    """Return whether an open photo is a whole JPEG in YCbCr or grey, which every JPEG decoder understands.

    Of a file with several pictures, as phones write them (MPO), the first one counts, as for all decoders.
    BadPhoto if it has so many scans that decoding it would take seconds.
    """
    if not isinstance(image, JpegImageFile):
        return False
    scans, whole = _jpeg_scans(data)
    if scans > MAX_SCANS or scans * image.width * image.height > MAX_SCANNED_PIXELS:
        raise BadPhoto("too_many_scans", f"{scans} scans of {image.width} x {image.height} pixels")
    # RGB without YCbCr (transform 0) is rare, and few decoders expect it.
    return whole and image.mode in ("RGB", "L") and image.info.get("adobe_transform") != 0


def is_decodable_jpeg(data: bytes | np.ndarray) -> bool:
    """Decode a plain JPEG without keeping its pixels. Returns False if only Pillow can tell what it is.

    BadPhoto if the decoder warns. Nearly all of the time goes into the entropy code, where damage shows: the picture is
    decoded at an eighth of its size and grey.
    """
    return decode_jpeg(data, "GRAY", min_height=1, min_width=1, fastdct=True) is not None


def decode_jpeg(
    data: bytes | np.ndarray, colour: str, *, damaged: bool = False, **options: Any
) -> np.ndarray | None:
    """Return the pixels, [H, W, channels] uint8; None for a JPEG that cannot be decoded.

    BadPhoto if it is damaged, unless ``damaged`` ones are wanted: then the decoder guesses.
    """
    if not damaged:
        try:
            return simplejpeg.decode_jpeg(data, colour, strict=True, **options)
        except ValueError as error:
            warning = str(error)
    try:
        pixels = simplejpeg.decode_jpeg(data, colour, strict=False, **options)
    except ValueError:
        return None
    if damaged:
        return pixels
    reason = "truncated_photo" if "premature end" in warning.lower() else "damaged_photo"
    raise BadPhoto(reason, f"{len(data)} bytes: {' '.join(warning.split())}")


def _jpeg_scans(data: bytes) -> tuple[int, bool]:
    """Return a JPEG's number of scans, and whether it reaches its end marker.

    Some decoders silently fill a truncated one with grey.
    """
    position, scans = 2, 0
    while (found := _JPEG_MARKER.search(data, position)) is not None:
        marker = data[found.end() - 1]
        if marker == _JPEG_END:
            return scans, True
        scans += marker == _JPEG_SCAN
        # Skip the whole segment: it may hold a thumbnail with an end marker of its own.
        position = found.end() + max(2, int.from_bytes(data[found.end() : found.end() + 2]))
    return scans, False


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


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """Return a picture as it is stored, of this EXIF orientation, upright."""
    swap, flip_x, flip_y = ORIENTATIONS[orientation]
    for done, method in (
        (swap, Image.Transpose.TRANSPOSE),
        (flip_x, Image.Transpose.FLIP_LEFT_RIGHT),
        (flip_y, Image.Transpose.FLIP_TOP_BOTTOM),
    ):
        image = image.transpose(method) if done else image
    return image


def upright(image: Image.Image) -> Image.Image:
    """Rotate a picture upright by its EXIF orientation; unchanged if that is unreadable."""
    # ImageOps.exif_transpose alone would raise on damaged EXIF.
    return ImageOps.exif_transpose(image) if orientation(image) != 1 else image
