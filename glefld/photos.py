"""A photo's bytes to an RGB picture and a crop's pixels to bytes, with what may be wrong told apart."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TILELENGTH, TILEWIDTH, TiffImageFile

#: Larger pictures are refused before they are decoded: a few bytes can unpack to gigabytes.
MAX_PIXELS = 100_000_000
#: How the names of pictures end.
PICTURES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
#: What may be decoded. Pillow reads far more formats, some of which start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
JPEG_QUALITY = 95

BadPhotoReason = Literal["unreadable_photo", "truncated_photo", "missing_photo", "picture_too_large"]


class BadPhoto(Exception):
    """A photo that cannot be used: the reason (a constant) and the detail in words."""

    def __init__(self, reason: BadPhotoReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["BadPhoto"], tuple[str, str]]:
        return type(self), (self.reason, self.detail)


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
