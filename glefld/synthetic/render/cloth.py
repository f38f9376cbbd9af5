"""One garment being drawn on a figure: pixel ownership, texture, seams, shading and landmarks."""

import dataclasses

import numpy as np

from glefld.synthetic.render.body import SIDES, Figure
from glefld.synthetic.render.canvas import DETAIL, OTHER_GARMENT, TORSO, Canvas, Colour, Points, darker
from glefld.synthetic.render.wardrobe import Garment

#: Distance of a landmark from the drawn outline, in head heights, so that its pixel belongs to the cloth.
INSET = 0.02


@dataclasses.dataclass
class Landmarks:
    """The 8 landmarks: photo pixels [8, 2], whether each faces the viewer, and the part each is on."""

    points: Points = dataclasses.field(default_factory=lambda: np.full((8, 2), np.nan))
    facing: list[bool] = dataclasses.field(default_factory=lambda: [False] * 8)
    part: list[int] = dataclasses.field(default_factory=lambda: [0] * 8)

    def put(self, index: int, point: Points, facing: bool, part: int) -> None:
        """Set one landmark."""
        self.points[index], self.facing[index], self.part[index] = point, facing, part


class Cloth:
    """A garment on its figure.

    base: its parts own their pixels under numbers from ``base`` on; None owns all as OTHER_GARMENT. light: where the
    light comes from, -1 left to 1 right. worn: whether a person wears the garment. target: draw it even if not worn.
    """

    def __init__(
        self,
        canvas: Canvas,
        figure: Figure,
        garment: Garment,
        *,
        light: float,
        target: bool,
        worn: bool,
        base: int | None,
    ) -> None:
        self.canvas, self.figure, self.garment = canvas, figure, garment
        self.light, self.target, self.worn, self.base = light, target, worn, base
        self.landmarks = Landmarks()
        self.edge = darker(garment.colour, garment.edge)
        self.seam = darker(garment.colour, (1 + 2 * garment.edge) / 3)
        # Lines distinguish front from back, so they must be visible on dark cloth too.
        dark = sum(garment.colour) < 3 * 95
        self.mark = (
            tuple(v + 75 for v in garment.colour) if dark else darker(garment.colour, garment.edge - 0.15)
        )
        self.front = figure.cos > -0.2

    def part(self, named: int) -> int:
        """Return the number under which a named part owns its pixels."""
        return OTHER_GARMENT if self.base is None else self.base + named

    def cover(
        self, points: Points, named: int, angle: float, origin: Points, outline: Colour | None = None
    ) -> None:
        """Paint a part's polygon [n, 2], with its texture's origin and angle."""
        part = self.part(named)
        self.canvas.fill(points, self.garment.colour, part, outline=outline)
        self.canvas.frames[part] = origin, angle

    def detail(self, points: Points, colour: Colour, outline: Colour | None = None) -> None:
        """Paint a detail of the torso, which its texture does not cover."""
        self.canvas.fill(points, colour, self.part(TORSO) + DETAIL, outline=outline)

    def stitch(self, points: Points, width: float = 0.025, colour: Colour | None = None) -> None:
        """Draw a line on the torso; width in head heights."""
        part = self.part(TORSO) + DETAIL
        self.canvas.line(points, colour or self.seam, self.figure.px(width), part)

    def faces(self, side: int, tolerance: float = 0.6) -> bool:
        """Return whether a side faces the viewer, or turns away by at most the tolerance (a sine)."""
        return -SIDES[side] * self.figure.sin > -tolerance

    def mark_pair(self, pair: tuple[int, ...], x: float, y: float) -> None:
        """Place a pair of landmarks on the torso's side seams, slightly inside the outline."""
        for side, index in enumerate(pair):
            point = self.figure.at(SIDES[side] * (x - INSET), y)
            self.landmarks.put(index, point, self.faces(side), self.part(TORSO))

    def hem_curve(self, left: Points, right: Points, flare: float) -> Points:
        """Return a hem's curve from the picture's left to its right: sagging, and wavy with a large flare."""
        t = np.linspace(0, 1, 15)[1:-1, None]
        sag = self.figure.px(0.06 + 0.05 * min(flare, 1.0)) * (1 - (2 * t - 1) ** 2)
        wave = self.figure.px(0.05 * min(flare * 1.5, 1.0)) * np.sin(t * np.pi * 7)
        return left + (right - left) * t + np.concatenate([np.zeros_like(t), sag + wave], axis=1)

    def side_seam(self, ys: Points, widths: Points) -> None:
        """Draw the side seam if a side faces the viewer."""
        for side in (0, 1):
            if self.faces(side, -0.45):
                seam = [self.figure.at(SIDES[side] * w, y) for w, y in zip(widths, ys, strict=True)]
                self.stitch(np.stack(seam))

    def round_off(self, left: Points, right: Points, share: float = 0.18) -> None:
        """Shade a part on the side away from the light; its outlines run from top to bottom."""
        dark, bright = (right, left) if self.light < 0 else (left, right)
        across = bright - dark
        strength = abs(self.light)
        self.canvas.shade(_strip(dark, dark + across * share), -int(20 + 28 * strength))
        self.canvas.shade(_strip(bright - across * share * 0.4, bright), -int(14 * (1 - strength)))
        self.canvas.shade(_strip(bright - across * 0.34, bright - across * 0.24), int(6 + 12 * strength))

    def fold(self, left: Points, right: Points, hem: Points) -> None:
        """Shade folds that widen towards the hem; a pleated garment has many."""
        count = self.garment.pleats or 3
        start = len(left) * 5 // 8
        width = self.figure.px(0.05 + 0.06 * (self.garment.ease - 1) + 0.08 * min(self.garment.flare, 1))
        for i in range(count):
            t = (i + 0.5 + 0.13 * np.sin(i * 2.4)) / count
            head = left[start] + (right[start] - left[start]) * (0.12 + 0.76 * t)
            foot = hem[min(int(t * len(hem)), len(hem) - 1)]
            wedge = np.stack([head, foot, foot]) + np.array([[0, 0], [width, 0], [-width, 0]])
            self.canvas.shade(wedge, -26 if i % 2 else -18)

    def band(self, top: float, bottom: float) -> tuple[Points, Points]:
        """Return the upper and lower edges [n, 2] of a band around the torso between two heights."""
        ys = np.array([top, bottom])
        widths = self.garment.half_width(self.figure.body, ys) * 1.01
        depth = widths * self.figure.body.depth
        left, right = (self.figure.outline(p, ys, widths, depth) for p in SIDES)
        upper, lower = (
            np.concatenate([left[i : i + 1], self.hem_curve(left[i], right[i], 0), right[i : i + 1]])
            for i in (0, 1)
        )
        return upper, lower


def _strip(first: Points, second: Points) -> Points:
    return np.concatenate([first, second[::-1]])
