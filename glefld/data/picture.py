"""One encoded picture on its way to the network, and the constants of the transform."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

#: ImageNet's mean and standard deviation, RGB in 0 to 255, as torchvision's pretrained networks expect.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
#: The level of all three channels outside the picture.
FILL = round(sum(MEAN) / 3)
#: Brightness, contrast, saturation and hue in degrees that change nothing.
PLAIN_COLOUR = (1.0, 1.0, 1.0, 0.0)

#: How to decode a JPEG. strict: it is bad if the decoder warns. stored: likewise, but ingest has checked it already.
#: lenient: the decoder may guess parts of it.
Decoding = Literal["stored", "strict", "lenient"]


@dataclass(frozen=True)
class Picture:
    """One picture and the transform that makes it an input."""

    encoded: np.ndarray  # uint8: a JPEG's bytes [n], or pixels [H, W, 3] RGB
    width: int  # as stored: the EXIF orientation is ignored
    height: int
    to_input: np.ndarray  # [2, 3], affine, from the stored picture
    colour: tuple[float, float, float, float] = PLAIN_COLOUR
    decoding: Decoding = "stored"
