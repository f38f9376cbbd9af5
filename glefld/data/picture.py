"""One encoded picture on its way to the network, and the constants of the transform."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from glefld.errors import UserError


@dataclass(frozen=True)
class Normalisation:
    """The mean and standard deviation of each channel that a network was trained with, RGB in 0 to 255.

    UserError for a mean outside of that, or a standard deviation that is not above 0.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if not all(0 <= value <= 255 for value in self.mean):
            raise UserError(f"a mean must be from 0 to 255, and these are {self.mean}")
        if not all(0 < value < math.inf for value in self.std):
            raise UserError(f"a standard deviation must be above 0, and these are {self.std}")

    @property
    def fill(self) -> int:
        """The level of all three channels outside the picture: about 0 once normalised."""
        return round(sum(self.mean) / 3)


#: ImageNet's, as most pretrained networks expect it.
IMAGENET = Normalisation((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
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
