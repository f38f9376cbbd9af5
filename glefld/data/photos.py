"""A photo's bytes to an RGB picture and a crop's pixels to bytes, with what may be wrong told apart."""

import contextlib
import io
import re
import struct
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TILELENGTH, TILEWIDTH, TiffImageFile

from glefld.data.augmentation import compose
from glefld.errors import BadPhoto

#: Larger pictures are refused before they are decoded: a few bytes can unpack to gigabytes.
MAX_PIXELS = 100_000_000
#: How the names of pictures end.
PICTURES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
#: What may be decoded. Pillow reads far more formats, some of which start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
JPEG_QUALITY = 95
#: EXIF orientation: whether width and height change places, then whether x, then whether y is turned round.
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
#: A marker of a JPEG file, among whose entropy-coded bytes FF is followed by 0 or a restart marker.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_JPEG_END = 0xD9


def is_picture(path: str) -> bool:
    """Whether a file's name is a picture's. What macOS puts beside each file of an archive bears the file's name."""
    *folders, name = path.split("/")
    return name.lower().endswith(PICTURES) and not name.startswith("._") and "__MACOSX" not in folders


@contextlib.contextmanager
def open_photo(data: bytes) -> Iterator[Image.Image]:
    """The photo's header read, its pixels not yet; BadPhoto, also for what goes wrong with it in the block."""
    try:
        with warnings.catch_warnings(action="ignore"):
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise BadPhoto("picture_too_large", f"{image.width} x {image.height} pixels")
            if isinstance(image, TiffImageFile):
                # A tile is decoded whole, however little of it the picture shows.
                width, height = (int(image.tag_v2.get(tag, 0)) for tag in (TILEWIDTH, TILELENGTH))
                if width * height > MAX_PIXELS:
                    raise BadPhoto("picture_too_large", f"tiles of {width} x {height} pixels")
            yield image
    except BadPhoto:
        raise
    except Image.DecompressionBombError as error:
        raise BadPhoto("picture_too_large", str(error)) from error
    except UnidentifiedImageError as error:
        # Pillow's own words name an address in memory, which is another one in each run.
        raise BadPhoto("unreadable_photo", f"{len(data)} bytes: no picture in a known format") from error
    # Pillow's decoders answer damage with OSError, SyntaxError, ValueError, struct.error and more.
    except Exception as error:
        detail = f"{len(data)} bytes: {' '.join(str(error).split())}"
        truncated = "truncated" in str(error).lower()
        raise BadPhoto("truncated_photo" if truncated else "unreadable_photo", detail) from error


def decode_rgb(data: bytes) -> Image.Image:
    """The photo as stored (no EXIF rotation) in 8-bit RGB, transparency over white; else BadPhoto."""
    with open_photo(data) as image:
        image.load()
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """A loaded picture in 8-bit RGB: 16-bit grey scaled down, transparency over white."""
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit grey to 255, which turns it white.
        grey = (np.asarray(image, np.int32).clip(0, 65535) + 128) // 257
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def encode_jpeg(image: Image.Image) -> bytes:
    """The picture as JPEG, quality 95, colour at full resolution (4:4:4)."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def is_whole_jpeg(data: bytes) -> bool:
    """Whether a JPEG's markers lead to its end: a decoder may fill up a truncated one with grey."""
    position = 2
    while (found := _JPEG_MARKER.search(data, position)) is not None:
        if data[found.end() - 1] == _JPEG_END:
            return True
        # A segment may hold a thumbnail with an end of its own: it is stepped over.
        position = found.end() + max(2, int.from_bytes(data[found.end() : found.end() + 2]))
    return False


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 (upright as stored) where there is none that can be read, as viewers take it."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except (SyntaxError, ValueError, TypeError, KeyError, struct.error):  # Pillow's answers to damaged EXIF
        return 1
    return value if value in ORIENTATIONS else 1


def orient(upright: int, width: int, height: int) -> np.ndarray:
    """The affine map [2, 3] from a stored picture of this size to the upright one."""
    swap, flip_x, flip_y = ORIENTATIONS[upright]
    affine = np.array([[0.0, 1, 0], [1, 0, 0]] if swap else [[1.0, 0, 0], [0, 1, 0]])
    if swap:
        width, height = height, width
    flip = np.array([[-1.0 if flip_x else 1, 0, width * flip_x], [0, -1.0 if flip_y else 1, height * flip_y]])
    return compose(flip, affine)


def upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says; as stored where that cannot be read."""
    # ImageOps.exif_transpose alone would raise for damaged EXIF.
    return ImageOps.exif_transpose(image) if orientation(image) != 1 else image
