"""Data augmentation, drawn on the host as one affine map and colour factors per sample, and affine map helpers.

Letters in shapes: K landmarks, S the square input's size. Frames: photo -> stored picture (a crop) -> input.
"""

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
    colour: float = 0.2
    """Maximum relative change of brightness, contrast and saturation. Hue changes by up to 30 degrees times this."""

    def __post_init__(self) -> None:
        for name, most in (("mirror", 1), ("rotate", 180), ("scale", 0.99), ("shift", 1), ("colour", 0.99)):
            require_between(f"--augmentation.{name}", getattr(self, name), 0, most)


NO_AUGMENTATION = Augmentation(mirror=0, rotate=0, scale=0, shift=0, colour=0)


@dataclass(frozen=True)
class Draw:
    """The augmentation drawn for one sample."""

    affine: np.ndarray  # [2, 3], in the S x S input's frame
    mirrored: bool
    colour: tuple[float, float, float, float]  # brightness, contrast, saturation, hue in degrees


def draw_augmentation(augmentation: Augmentation, size: int, rng: np.random.Generator) -> Draw:
    """Draw one sample's augmentation: rotation and scale about the input's centre, shift, perhaps mirroring, colour."""
    angle = np.deg2rad(rng.uniform(-augmentation.rotate, augmentation.rotate))
    scale = np.exp(rng.uniform(-1, 1) * np.log1p(augmentation.scale))
    shift = rng.uniform(-augmentation.shift, augmentation.shift, 2) * size
    mirrored = bool(rng.random() < augmentation.mirror)
    factor = 1 + rng.uniform(-augmentation.colour, augmentation.colour, 3)
    hue = rng.uniform(-30, 30) * augmentation.colour

    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = np.full(2, size / 2)
    affine = np.concatenate([turn, (centre - turn @ centre + shift)[:, None]], axis=1)
    if mirrored:
        affine = compose(np.array([[-1.0, 0, size], [0, 1, 0]]), affine)
    return Draw(affine, mirrored, (float(factor[0]), float(factor[1]), float(factor[2]), float(hue)))


def compose(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Return the affine map [2, 3] that applies ``before``, then ``after``."""
    linear = after[:, :2] @ before[:, :2]
    return np.concatenate([linear, (after[:, :2] @ before[:, 2] + after[:, 2])[:, None]], axis=1)


def invert(affine: np.ndarray) -> np.ndarray:
    """Return the inverses of affine maps [..., 2, 3]."""
    linear = np.linalg.inv(affine[..., :2])
    return np.concatenate([linear, -linear @ affine[..., 2:]], axis=-1)


def transform(points: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Apply affine maps [..., 2, 3] to points [..., K, 2]."""
    return points @ np.swapaxes(affine[..., :2], -1, -2) + affine[..., None, :, 2]


def box_to_input(box: np.ndarray, size: int) -> np.ndarray:
    """Return the map [2, 3] from a box x1 y1 x2 y2 to the S x S input; like the papers, it ignores the aspect ratio."""
    x1, y1, x2, y2 = np.asarray(box, np.float64)
    return np.array(
        [[size / (x2 - x1), 0, -x1 * size / (x2 - x1)], [0, size / (y2 - y1), -y1 * size / (y2 - y1)]]
    )
