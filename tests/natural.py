"""Pictures with a photo's spectrum, in the encodings that DALI takes different paths for."""

import io
from typing import Any

import numpy as np
from PIL import Image

from glefld.data.augmentation import box_to_input
from glefld.data.picture import Picture

#: Pillow's options for each encoding as JPEG; "pixels" is not encoded.
ENCODINGS: dict[str, dict[str, Any]] = {
    "4:2:0": {"quality": 92, "subsampling": 2},
    "4:4:4": {"quality": 92, "subsampling": 0},
    "progressive": {"quality": 92, "subsampling": 2, "progressive": True},
    "grey": {"quality": 92},
    "pixels": {},
}


def picture(seed: int, size: int, encoding: str = "4:2:0", width: int = 300, height: int = 400) -> Picture:
    """A picture of clouds at several scales, squashed to ``size``."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3))
    for cells, weight in ((4, 90), (16, 40), (64, 16)):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        pixels += (
            (np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), float) - 128) / 128 * weight
        )
    image = Image.fromarray((pixels + 128).clip(0, 255).astype(np.uint8))
    to_input = box_to_input(np.array([0, 0, width, height]), size)
    if encoding == "pixels":
        return Picture(np.array(image), width, height, to_input)
    buffer = io.BytesIO()
    (image.convert("L") if encoding == "grey" else image).save(buffer, "JPEG", **ENCODINGS[encoding])
    return Picture(np.frombuffer(buffer.getvalue(), np.uint8), width, height, to_input)
