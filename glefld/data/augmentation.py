"""Data augmentation, drawn on the host as one affine map and colour factors per sample, and affine map helpers.

Letters in shapes: K landmarks, S the square input's size. Frames: photo -> stored picture (a crop) -> input.
"""

import math
from dataclasses import dataclass

import numpy as np

from glefld.errors import require_between


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random geometry and colour; all zero leaves the picture unchanged. UserError if out of range."""

    mirror: float = 0.5
    """Probability of mirroring, which also swaps left and right landmarks."""
    rotate: float = 15.0
    """Maximum rotation in degrees, in either direction."""
    scale: float = 0.2
    """Maximum relative change of size: 0.2 scales by up to 1.2, up or down."""
    shift: float = 0.1
    """Maximum shift as a fraction of the input's size, in either direction."""
    stretch: float = 0.0
    """Maximum relative change of width over height, in either direction, at the same area: 0.5 is up to 1.5 times."""
    colour: float = 0.2
    """Maximum relative change of brightness, contrast and saturation. Hue changes by up to 30 degrees times this."""

    def __post_init__(self) -> None:
        limits = {"mirror": 1, "rotate": 180, "scale": 0.99, "shift": 1, "stretch": 3, "colour": 0.99}
        for name, most in limits.items():
            require_between(f"--augmentation.{name}", getattr(self, name), 0, most)


NO_AUGMENTATION = Augmentation(mirror=0, rotate=0, scale=0, shift=0, colour=0)


@dataclass(frozen=True)
class Draw:
    """The augmentation drawn for one sample."""

    affine: np.ndarray  # [2, 3], in the S x S input's frame
    mirrored: bool
    colour: tuple[float, float, float, float]  # brightness, contrast, saturation, hue in degrees


def draw_augmentation(augmentation: Augmentation, size: int, rng: np.random.Generator) -> Draw:
    """Draw one sample's augmentation: stretch, rotation, scale about the centre, shift, perhaps mirroring, colour."""
    turn, size_change, right, down, mirror, *colour, shape = rng.random(10).tolist()
    # Plain floats: a row's share of this is on the way of every row.
    angle = math.radians(augmentation.rotate) * (2 * turn - 1)
    scale = math.exp((2 * size_change - 1) * math.log1p(augmentation.scale))
    wide = math.exp((2 * shape - 1) * math.log1p(augmentation.stretch) / 2)  # the area stays what it was
    shift_x, shift_y = ((2 * v - 1) * augmentation.shift * size for v in (right, down))
    mirrored = mirror < augmentation.mirror
    brightness, contrast, saturation = (1 + (2 * v - 1) * augmentation.colour for v in colour[:3])
    hue = 30 * (2 * colour[3] - 1) * augmentation.colour

    cosine, sine, centre = scale * math.cos(angle), scale * math.sin(angle), size / 2
    x = [cosine * wide, -sine / wide]
    y = [sine * wide, cosine / wide]
    x.append(centre - (x[0] + x[1]) * centre + shift_x)
    y.append(centre - (y[0] + y[1]) * centre + shift_y)
    if mirrored:
        x = [-x[0], -x[1], size - x[2]]
    return Draw(np.array([x, y]), mirrored, (brightness, contrast, saturation, hue))


def compose(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Return the affine maps [..., 2, 3] that apply ``before``, then ``after``."""
    linear = after[..., :2]
    return np.concatenate([linear @ before[..., :2], linear @ before[..., 2:] + after[..., 2:]], axis=-1)


def invert(affine: np.ndarray) -> np.ndarray:
    """Return the inverses of affine maps [..., 2, 3]."""
    linear = np.linalg.inv(affine[..., :2])
    return np.concatenate([linear, -linear @ affine[..., 2:]], axis=-1)


def transform(points: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Apply affine maps [..., 2, 3] to points [..., K, 2]."""
    return points @ np.swapaxes(affine[..., :2], -1, -2) + affine[..., None, :, 2]


def translation(by: np.ndarray) -> np.ndarray:
    """Return the affine maps [..., 2, 3] that move points by [..., 2]."""
    affine = np.zeros((*by.shape[:-1], 2, 3))
    affine[..., 0, 0] = affine[..., 1, 1] = 1
    affine[..., 2] = by
    return affine


def box_to_input(box: np.ndarray, size: int) -> np.ndarray:
    """Return the maps [..., 2, 3] from boxes x1 y1 x2 y2 [..., 4] to the S x S input.

    Like the papers, they ignore the aspect ratio.
    """
    box = np.asarray(box, np.float64)
    scale = size / (box[..., 2:] - box[..., :2])
    affine = translation(-box[..., :2] * scale)
    affine[..., 0, 0], affine[..., 1, 1] = scale[..., 0], scale[..., 1]
    return affine


def square_around(width: np.ndarray | float, height: np.ndarray | float) -> np.ndarray:
    """Return the square x1 y1 x2 y2 around a whole photo, [..., 4] for sides [...]: its shape stays what it is."""
    width, height = np.asarray(width, np.float64), np.asarray(height, np.float64)
    side = np.maximum(width, height)
    x, y = (width - side) / 2, (height - side) / 2
    return np.stack([x, y, x + side, y + side], axis=-1)
