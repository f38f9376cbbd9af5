"""Decoding a picture to pixels, as small as its input allows: what the host's engine and exported models share."""

import math
import threading
from typing import Any

import numpy as np

from glefld.data.photos import decode_any, decode_jpeg
from glefld.data.picture import Picture

#: A JPEG is decoded at 1/2, 1/4 or 1/8 if that leaves this many times the pixels needed along each side. What the
#: reduced decoding blurs differently is then mostly removed by the antialiasing that follows.
REDUCED_OVERSAMPLING = 2
#: The shortest side that a reduced picture may have.
MIN_REDUCED = 64


class Scratch(threading.local):
    """Each thread's own memory for steps in between: the system takes long to hand out new memory."""

    #: Larger pictures get memory of their own, so that a huge one does not stay.
    most = 16 << 20

    def __init__(self) -> None:
        self._held: dict[str, np.ndarray] = {}

    def get(self, name: str, *shape: int) -> np.ndarray:
        """Return a uint8 array of this shape with any content, valid until the name is asked for again."""
        count = math.prod(shape)
        if count > self.most:
            return np.empty(shape, np.uint8)
        if name not in self._held or self._held[name].size < count:
            self._held[name] = np.empty(count, np.uint8)
        return self._held[name][:count].reshape(shape)


SCRATCH = Scratch()


def decode(
    picture: Picture, shrink: tuple[float, float] = (1, 1), scratch: Scratch | None = None
) -> tuple[np.ndarray, int]:
    """Return a picture's pixels, [H, W, 3] uint8 RGB, and the factor by which they are reduced: 1, 2, 4 or 8.

    shrink: the share of the width and of the height that is needed. scratch: where to decode a JPEG to.
    BadPhoto if the picture cannot be decoded.
    """
    data = picture.encoded
    if data.ndim == 3:
        return data, 1
    most = min(1 / max(shrink) / REDUCED_OVERSAMPLING, min(picture.width, picture.height) / MIN_REDUCED)
    reduced = next((factor for factor in (8, 4, 2) if factor <= most), 1)
    width, height = -(-picture.width // reduced), -(-picture.height // reduced)
    options: dict[str, Any] = {"min_width": width, "min_height": height} if reduced > 1 else {}
    if scratch is not None:
        options["buffer"] = scratch.get("decoded", height * width * 3)
    pixels = decode_jpeg(data, "RGB", damaged=picture.decoding == "lenient", **options)
    if pixels is not None:
        return pixels, reduced
    # Pillow supports more kinds of JPEG and has the last word.
    return np.array(decode_any(data.tobytes())), 1


def turn(pixels: np.ndarray, linear: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Exchange and mirror a picture's axes as a map does: pixels [H, W, 3], linear [2, 2] -> pixels and map to them.

    Sums of whole levels are rounded after each axis, so a filter gives the upright picture's result only once the
    picture is upright. linear: of the map; zero off one of the diagonals.
    """
    height, width = pixels.shape[:2]
    signs = np.sign(linear)
    if signs[0, 0] == 0:  # x and y change places
        pixels, height, width = pixels.swapaxes(0, 1), width, height
    flip_x, flip_y = signs.sum(axis=1) < 0
    pixels = pixels[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
    return np.ascontiguousarray(pixels), np.column_stack([signs, [width * flip_x, height * flip_y]])
