"""The canvas of rendered photos: a supersampled picture, the owner of each pixel, and soft shading.

All coordinates are in continuous photo pixels: pixel i covers [i, i + 1). The owner of a pixel is the garment part,
person or object painted there last. It determines whether a landmark is visible.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Points = NDArray[np.float64]
Pixels = NDArray[np.float32]
Colour = tuple[int, ...]

SUPERSAMPLING = 2
BACKGROUND, TORSO, LEFT_SLEEVE, RIGHT_SLEEVE, LEFT_LEG, RIGHT_LEG, OTHER_GARMENT, PERSON = range(8)
SLEEVES = (LEFT_SLEEVE, RIGHT_SLEEVE)
LEGS = (LEFT_LEG, RIGHT_LEG)
#: Offset between the part numbers of two garments, where a photo distinguishes several.
GARMENT = 8
#: Added to a part's number under a button, seam or print, which the part's texture must not cover.
DETAIL = 64

_CIRCLE = np.stack([np.cos(t := np.linspace(0, 2 * np.pi, 33)), np.sin(t)], axis=-1)
_STEPS = np.linspace(0, 1, 6, endpoint=False)
# Catmull-Rom spline: four neighbouring points to six points between the middle two.
_SPLINE = np.stack([_STEPS**3, _STEPS**2, _STEPS, np.ones_like(_STEPS)], axis=-1) @ (
    np.array([[-1, 3, -3, 1], [2, -5, 4, -1], [-1, 0, 1, 0], [0, 2, 0, 0]]) / 2
)


def darker(colour: Colour, factor: float) -> Colour:
    """Scale a colour's brightness; a factor above 1 lightens it."""
    return tuple(min(255, int(v * factor)) for v in colour)


def spline(points: Points) -> Points:
    """Return a smooth open curve [m, 2] through points [n, 2]."""
    padded = np.concatenate([points[:1], points, points[-1:]])
    windows = np.stack([padded[i : len(padded) - 3 + i] for i in range(4)], axis=1)
    return np.concatenate([(_SPLINE @ windows).reshape(-1, 2), points[-1:]])


def ellipse(centre: Points, rx: float, ry: float, angle: float = 0.0) -> Points:
    """Return an ellipse [33, 2], clockwise in the picture from its right end, rotated by an angle in radians."""
    c, s = np.cos(angle), np.sin(angle)
    return (_CIRCLE * [rx, ry]) @ np.array([[c, s], [-s, c]]) + centre


def limb(joints: Points, radii: Sequence[float]) -> Points:
    """Return the outline [2m, 2] of a limb through joints [n, 2] with radii: down one side and up the other."""
    along = np.diff(joints, axis=0)
    along /= np.hypot(along[:, :1], along[:, 1:]) + 1e-9
    along = np.concatenate([along[:1], (along[:-1] + along[1:]) / 2, along[-1:]])
    along /= np.hypot(along[:, :1], along[:, 1:]) + 1e-9
    offset = np.stack([-along[:, 1], along[:, 0]], axis=-1) * np.asarray(radii)[:, None]
    return np.concatenate([spline(joints + offset), spline(joints - offset)[::-1]])


class Canvas:
    """A picture being drawn on a supersampled background."""

    def __init__(self, background: Image.Image) -> None:
        self._image = background
        self.width, self.height = (size // SUPERSAMPLING for size in background.size)
        self._owner = Image.new("L", background.size, BACKGROUND)
        self._shade = Image.new("L", (self.width, self.height), 128)
        self._draw = ImageDraw.Draw(self._image)
        self._draw_owner = ImageDraw.Draw(self._owner)
        self._draw_shade = ImageDraw.Draw(self._shade)
        #: The origin [2] and angle (radians) of each textured part's texture.
        self.frames: dict[int, tuple[Points, float]] = {}

    def fill(
        self, points: Points, colour: Colour, part: int = PERSON, *, outline: Colour | None = None
    ) -> None:
        """Paint a polygon [n, 2]; it replaces the shading below it."""
        fine = _flat(points * SUPERSAMPLING)
        self._draw.polygon(fine, fill=colour)
        self._draw_owner.polygon(fine, fill=part)
        self._draw_shade.polygon(_flat(points), fill=128)
        if outline is not None:
            self._draw.line([*fine, *fine[:2]], fill=outline, width=2)

    def line(self, points: Points, colour: Colour, width: float, part: int | None = None) -> None:
        """Draw an open line [n, 2]; without ``part`` the pixels keep their owner."""
        fine = _flat(points * SUPERSAMPLING)
        thick = max(1, round(width * SUPERSAMPLING))
        self._draw.line(fine, fill=colour, width=thick, joint="curve")
        if part is not None:
            self._draw_owner.line(fine, fill=part, width=thick)

    def shade(self, points: Points, level: int) -> None:
        """Softly lighten or darken a polygon [n, 2]; level -128 is black, 0 has no effect."""
        self._draw_shade.polygon(_flat(points), fill=128 + level)

    def owners(self) -> NDArray[np.uint8]:
        """Return the owner of each supersampled pixel, [height * 2, width * 2]; details count as their part."""
        return np.bitwise_and(np.asarray(self._owner), np.uint8(DETAIL - 1))

    def finish(self, textures: dict[int, Pixels], relief: Pixels, softness: float) -> Pixels:
        """Return the antialiased picture [height, width, 3], 0 to 255, with shading and textures.

        textures: by part, a seamless tile [size, size, 3] that is added to the plain colour. relief: what lightens
        and darkens all that is painted, [height, width], -1 to 1. softness: the blur of the shading.
        """
        picture = np.asarray(self._image.reduce(SUPERSAMPLING), dtype=np.float32)
        owner = np.asarray(self._owner)
        for part, texture in textures.items():
            if part in self.frames:
                _lay(picture, owner == part, texture, *self.frames[part])
        shade = np.asarray(self._shade.filter(ImageFilter.BoxBlur(softness)), dtype=np.float32)
        painted = _coverage(owner != BACKGROUND)
        picture *= (1 + painted * ((shade - 128) / 128 + relief))[..., None]
        return picture


def _lay(picture: Pixels, owned: NDArray[np.bool_], texture: Pixels, origin: Points, angle: float) -> None:
    """Add a texture with the given origin and angle inside a supersampled mask."""
    rows, columns = np.flatnonzero(owned.any(1)), np.flatnonzero(owned.any(0))
    if not len(rows):
        return
    top, left = rows[0] // SUPERSAMPLING, columns[0] // SUPERSAMPLING
    bottom, right = rows[-1] // SUPERSAMPLING + 1, columns[-1] // SUPERSAMPLING + 1
    s = SUPERSAMPLING
    cover = _coverage(owned[top * s : bottom * s, left * s : right * s])
    y = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(origin[1])
    x = np.arange(left, right, dtype=np.float32)[None] - np.float32(origin[0])
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    size = len(texture)
    assert size & (size - 1) == 0, "a tile's size must be a power of two"
    u = np.floor(x * cos + y * sin).astype(np.int32) & (size - 1)
    v = np.floor(y * cos - x * sin).astype(np.int32) & (size - 1)
    pattern = texture.reshape(-1, 3).take(v * size + u, axis=0)
    picture[top:bottom, left:right] += pattern * cover[..., None]


def _coverage(owned: NDArray[np.bool_]) -> Pixels:
    """Return the fraction of each photo pixel, 0 to 1, that a supersampled mask covers."""
    reduced = Image.fromarray(owned.astype(np.uint8) * np.uint8(255)).reduce(SUPERSAMPLING)
    return np.asarray(reduced, dtype=np.float32) / np.float32(255)


def _flat(points: Points) -> list[float]:
    # Pixel centres are integers in Pillow, and halves in continuous coordinates.
    return (points - 0.5).ravel().tolist()
