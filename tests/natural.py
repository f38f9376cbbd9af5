"""Pictures with a photo's spectrum, in the encodings that DALI takes different paths for."""

import io

import numpy as np
from PIL import Image

from glefld.data.augmentation import box_to_input
from glefld.data.loader import Picture

#: Pillow's name and options of each encoding.
ENCODINGS = {
    "4:2:0": ("JPEG", {"quality": 92, "subsampling": 2}),
    "4:4:4": ("JPEG", {"quality": 92, "subsampling": 0}),
    "progressive": ("JPEG", {"quality": 92, "subsampling": 2, "progressive": True}),
    "grey": ("JPEG", {"quality": 92}),
    "PPM": ("PPM", {}),
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
    format_, options = ENCODINGS[encoding]
    buffer = io.BytesIO()
    (image.convert("L") if encoding == "grey" else image).save(buffer, format_, **options)
    to_input = box_to_input(np.array([0, 0, width, height]), size)
    return Picture(np.frombuffer(buffer.getvalue(), np.uint8), width, height, to_input)
