"""Rendered garments: what a garment is, and how it is drawn on a figure with its landmarks.

A landmark is a point of the garment in space, so it turns with the person: in a frontal view the left collar is on the
picture's left, from behind on its right. What is drawn near a landmark is its mirror image's mirror image: nothing but
the person's context (face or hair, neckline, placket, fly, pockets, feet) tells left from right.
"""

import dataclasses

import numpy as np

from glefld.render_body import CROTCH_Y, HIP_Y, SIDES, WAIST_Y, Body, Figure, Points
from glefld.render_canvas import (
    DETAIL,
    LEGS,
    OTHER_GARMENT,
    PERSON,
    SLEEVES,
    TORSO,
    Canvas,
    Colour,
    darker,
    ellipse,
    limb,
    spline,
)
from glefld.schema import FASHION8

ARMPIT_Y = 0.78
#: Sleeve lengths: 1 is the elbow, 2 the wrist.
SLEEVE_LENGTHS = {"none": 0.0, "cap": 0.32, "short": 0.62, "elbow": 0.98, "three_quarter": 1.5, "long": 1.94}
COLLAR, SLEEVE, WAISTLINE, HEM = (
    tuple(FASHION8.landmarks.index(f"{side}_{name}") for side in ("left", "right"))
    for name in ("collar", "sleeve", "waistline", "hem")
)


@dataclasses.dataclass(frozen=True)
class Garment:
    """One garment; heights are the figure's y in head heights, widths are over the body's."""

    category: str
    code: int  # clothes_type: 1 upper, 2 lower, 3 full body
    colour: Colour
    accent: Colour
    sleeve: str = "none"
    cuff: float = 0.13  # the sleeve's half width at its end
    neckline: str = "crew"
    neck_width: float = 0.28
    neck_depth: float = 0.3
    back_depth: float = 0.1
    strap: float = 1.0  # where the shoulder ends, of the body's
    closure: str = "none"
    graphic: int = 0
    ease: float = 1.1
    waisted: bool = False
    flare: float = 0.0
    hem: float = 2.4
    top: float = WAIST_Y  # of a lower garment: where its waistband is
    legs: float = 0.0  # length of trouser legs: 1 is the knee, 2 the ankle; 0 is no trousers
    leg_width: float = 0.2
    belt: bool = False
    pleats: int = 0

    def half_width(self, body: Body, y: Points | float) -> Points:
        """The half width of torso and skirt at each height."""
        y = np.asarray(y)
        width = body.half_width(y) * self.ease
        if not self.waisted and self.code != 2:
            width = np.maximum(width, body.chest * self.ease)
        start = self.top if self.waisted or self.code == 2 else HIP_Y - 0.6
        return width + self.flare * np.maximum(y - start, 0)


@dataclasses.dataclass
class Landmarks:
    """The 8 landmarks while drawing: photo pixels, whether its side of the garment faces the viewer, which part it is on."""

    points: Points = dataclasses.field(default_factory=lambda: np.full((8, 2), np.nan))
    facing: list[bool] = dataclasses.field(default_factory=lambda: [False] * 8)
    part: list[int] = dataclasses.field(default_factory=lambda: [0] * 8)

    def put(self, index: int, point: Points, facing: bool, part: int) -> None:
        self.points[index], self.facing[index], self.part[index] = point, facing, part


class Tailor:
    """Draws one garment on a figure; a target's parts own their pixels by name, any other's as OTHER_GARMENT."""

    def __init__(
        self, canvas: Canvas, figure: Figure, garment: Garment, light: float, target: bool, worn: bool
    ) -> None:
        self.canvas, self.figure, self.garment = canvas, figure, garment
        self.light, self.target, self.worn = light, target, worn
        self.landmarks = Landmarks()
        self.edge = darker(garment.colour, 0.68)
        self.seam = darker(garment.colour, 0.76)
        self.front = figure.cos > -0.2

    def part(self, named: int) -> int:
        return named if self.target else OTHER_GARMENT

    def cover(self, points: Points, named: int, angle: float, origin: Points) -> None:
        """Paint a part of cloth and hang its texture."""
        part = self.part(named)
        self.canvas.fill(points, self.garment.colour, part, outline=self.edge)
        self.canvas.frames[part] = origin, angle

    def detail(self, points: Points, colour: Colour, outline: Colour | None = None) -> None:
        """Paint something of the torso that its texture does not run over."""
        self.canvas.fill(points, colour, self.part(TORSO) + DETAIL, outline=outline)

    def stitch(self, points: Points, width: float = 0.025, colour: Colour | None = None) -> None:
        part = self.part(TORSO) + DETAIL
        self.canvas.line(points, colour or self.seam, self.figure.px(width), part)

    def side_mark(self, pair: tuple[int, ...], x: float, y: float, part: int) -> None:
        """A pair of landmarks on the side seams, just inside the outline."""
        for side, index in enumerate(pair):
            g = SIDES[side]
            self.landmarks.put(
                index, self.figure.at(g * (x - 0.035), y), self.faces(side, 0.35), self.part(part)
            )

    def faces(self, side: int, tolerance: float) -> bool:
        """Whether the outside of a side faces the viewer, or turns away by no more than the tolerance (a sine)."""
        return -SIDES[side] * self.figure.sin > -tolerance

    # -- torso ----------------------------------------------------------------------------------------------

    def draw_bodice(self) -> None:
        """Torso (and skirt) of an upper or full-body garment, its neckline and details, without sleeves."""
        g, f, body = self.garment, self.figure, self.figure.body
        end = g.hem if not g.legs else CROTCH_Y - 0.1
        tip = body.shoulder * g.strap + (0.05 if g.sleeve != "none" else 0.0)
        neck_y = self.slope(g.neck_width)
        ys = np.linspace(ARMPIT_Y, end, 7 if end < 3 else 11)
        widths = g.half_width(body, ys)
        sides = []
        for p in SIDES:
            shoulder = f.outline(
                p,
                np.array([neck_y, self.slope(tip)]),
                np.array([g.neck_width, tip]),
                np.array([0.16, 0.2]),
            )
            hole = np.array([0.45, 0.62])
            armhole = f.outline(
                p, hole, np.array([tip * 0.96, tip * 0.97 * 0.5 + widths[0] * 0.5]), np.array([0.28, 0.34])
            )
            rows = f.outline(p, ys, widths, widths * body.depth)
            sides.append(np.concatenate([shoulder, spline(np.concatenate([armhole, rows]))]))
        hem = self.hem_curve(sides[0][-1], sides[1][-1], g.flare)
        angle = f.camera.angle - f.pose.lean
        self.cover(np.concatenate([sides[0], hem, sides[1][::-1]]), TORSO, angle, f.at(0.0, 0.0))
        self.fold_cloth(sides[0][2:], sides[1][2:], hem)
        self.side_seam(ys, widths)
        self.draw_neckline(neck_y)
        self.draw_closure(end)
        inset = 0.05 if g.strap > 0.75 else 0.03
        if g.neckline == "turtle":
            collar_x, collar_y = 0.2, -0.16
        else:
            collar_x, collar_y = g.neck_width + inset + 0.035, self.slope(g.neck_width + inset) + 0.04
        self.side_mark(COLLAR, collar_x, collar_y, TORSO)
        if g.code == 3:
            waist = g.half_width(body, WAIST_Y)
            self.side_mark(WAISTLINE, float(waist), WAIST_Y, TORSO)
            if g.belt or g.waisted:
                self.band(WAIST_Y - 0.07, WAIST_Y + 0.07, g.accent if g.belt else self.seam, not g.belt)
        if not g.legs:
            self.side_mark(HEM, float(widths[-1]), end - 0.04, TORSO)
        if g.sleeve == "none":
            for side, index in enumerate(SLEEVE):
                x, y = SIDES[side] * (tip - 0.05), self.slope(tip) + 0.07
                self.landmarks.put(index, f.at(x, y), self.faces(side, 0.35), self.part(TORSO))

    def slope(self, x: float) -> float:
        """The shoulder line's height at x."""
        return -0.03 + 0.24 * max(x - 0.19, 0) / (self.figure.body.shoulder - 0.19)

    def hem_curve(self, left: Points, right: Points, flare: float) -> Points:
        """The lower edge from the picture's left to its right: sagging, and wavy where there is much cloth."""
        t = np.linspace(0, 1, 13)[1:-1, None]
        sag = self.figure.px(0.06 + 0.05 * min(flare, 1.0)) * (1 - (2 * t - 1) ** 2)
        wave = self.figure.px(0.05 * min(flare * 1.5, 1.0)) * np.sin(t * np.pi * 7)
        return left + (right - left) * t + np.concatenate([np.zeros_like(t), sag + wave], axis=1)

    def side_seam(self, ys: Points, widths: Points) -> None:
        for side in (0, 1):
            if self.faces(side, -0.45):
                line = np.stack([self.figure.at(SIDES[side] * w, y) for w, y in zip(widths, ys, strict=True)])
                self.stitch(line)

    def fold_cloth(self, left: Points, right: Points, hem: Points) -> None:
        """Round the cloth with shade at its outlines and folds that run down it."""
        n = min(len(left), len(right))
        left, right = left[:n], right[:n]
        across = right - left
        dark, bright = (right, left) if self.light < 0 else (left, right)
        inward = across if dark is left else -across
        strength = abs(self.light)
        self.canvas.shade(np.concatenate([dark, (dark + inward * 0.17)[::-1]]), -int(20 + 30 * strength))
        self.canvas.shade(np.concatenate([bright, (bright - inward * 0.08)[::-1]]), -int(16 * (1 - strength)))
        middle = bright - inward * 0.3
        self.canvas.shade(
            np.concatenate([middle - inward * 0.06, (middle + inward * 0.06)[::-1]]), int(8 + 14 * strength)
        )
        folds = self.garment.pleats or 3
        for i in range(folds):
            t = (i + 0.5 + 0.13 * np.sin(i * 2.4)) / folds
            foot = hem[min(int(t * len(hem)), len(hem) - 1)]
            head = left[n * 5 // 8] + across[n * 5 // 8] * (0.12 + 0.76 * t)
            width = self.figure.px(0.05 + 0.06 * (self.garment.ease - 1) + 0.08 * min(self.garment.flare, 1))
            self.canvas.shade(np.stack([head, foot + [width, 0], foot - [width, 0]]), -26 if i % 2 else -18)

    def band(self, top: float, bottom: float, colour: Colour, seam_only: bool = False) -> None:
        """A belt or a waist seam round the torso."""
        f, g = self.figure, self.garment
        ys = np.array([top, bottom])
        widths = g.half_width(f.body, ys) * 1.01
        left, right = (f.outline(p, ys, widths, widths * f.body.depth) for p in SIDES)
        upper = np.concatenate([left[:1], self.hem_curve(left[0], right[0], 0), right[:1]])
        lower = np.concatenate([left[1:], self.hem_curve(left[1], right[1], 0), right[1:]])
        if seam_only:
            self.stitch((upper + lower) / 2, 0.035)
        else:
            self.detail(np.concatenate([upper, lower[::-1]]), colour, darker(colour, 0.7))

    # -- neckline and closure -------------------------------------------------------------------------------

    def draw_neckline(self, neck_y: float) -> None:
        g, f = self.garment, self.figure
        chest = f.body.chest * f.body.depth
        depth, z = (g.neck_depth, chest) if self.front else (g.back_depth, -chest)
        if g.neckline == "turtle":
            self.draw_turtle()
            return
        if g.neckline == "hood" and self.front:
            self.detail(
                ellipse(f.at(0.0, 0.0, -0.15), f.px(0.47), f.px(0.27)), darker(g.colour, 0.9), self.edge
            )
        w = g.neck_width
        rim = {
            "v": [(w, neck_y), (0.0, depth + 0.12), (-w, neck_y)],
            "square": [(w, neck_y), (w * 0.94, depth), (-w * 0.94, depth), (-w, neck_y)],
            "shirt": [(w, neck_y), (0.0, depth + 0.15), (-w, neck_y)],
        }
        round_rim = [(w * np.cos(t), neck_y + (depth - neck_y) * np.sin(t)) for t in np.linspace(0, np.pi, 9)]
        shape = rim.get(g.neckline, round_rim) if self.front else round_rim
        deepest = max(y for _, y in shape)
        line = np.stack([f.at(x, y, z * max(y - neck_y, 0) / max(deepest - neck_y, 0.05)) for x, y in shape])
        inside = f.body.skin if self.worn else darker(g.colour, 0.5)
        self.canvas.fill(line, inside, PERSON)
        if self.front and self.worn:
            self.canvas.shade(ellipse(f.at(0.0, 0.05, 0.1), f.px(0.2), f.px(0.1)), -26)
        self.stitch(line, 0.06 if g.neckline in ("crew", "hood") else 0.035)
        if g.neckline == "shirt":
            self.draw_collar(neck_y)
        elif g.neckline == "hood":
            self.draw_hood()

    def draw_turtle(self) -> None:
        f = self.figure
        ys = np.array([-0.3, -0.05, 0.12])
        left, right = (
            f.outline(p, ys, np.array([0.235, 0.25, 0.33]), np.array([0.22, 0.24, 0.26])) for p in SIDES
        )
        roll = np.concatenate([spline(left), spline(right)[::-1]])
        self.detail(roll, self.garment.colour, self.edge)
        self.canvas.shade(ellipse(f.at(0.0, -0.22, 0.2), f.px(0.26), f.px(0.06)), -20)
        self.stitch(np.stack([left[1], f.at(0.0, 0.0, 0.2 * f.cos), right[1]]), 0.02)

    def draw_collar(self, neck_y: float) -> None:
        """A shirt's collar: two flaps in front, one band behind."""
        f, w = self.figure, self.garment.neck_width
        shade = darker(self.garment.colour, 1.06)
        if not self.front:
            top = [f.at(x, neck_y - 0.10 + 0.04 * np.cos(x * 4), -0.1) for x in np.linspace(-w, w, 5)]
            low = [f.at(x, neck_y + 0.17 - 0.5 * x * x, -0.2) for x in np.linspace(w, -w, 5)]
            self.detail(np.stack([*top, *low]), shade, self.edge)
            return
        for g in SIDES:
            flap = [
                f.at(g * (w - 0.05), neck_y - 0.10, 0.02),
                f.at(g * 0.02, self.garment.neck_depth + 0.1, 0.33),
                f.at(g * (w * 0.85), self.garment.neck_depth + 0.2, 0.33),
                f.at(g * (w + 0.07), neck_y + 0.03, 0.05),
            ]
            self.detail(np.stack(flap), shade, self.edge)

    def draw_hood(self) -> None:
        f = self.figure
        if not self.front:
            bag = [(-0.46, -0.06), (-0.40, 0.42), (0.0, 0.72), (0.40, 0.42), (0.46, -0.06), (0.0, -0.14)]
            shape = spline(np.stack([f.at(x, y, -0.4) for x, y in bag]))
            self.detail(shape, darker(self.garment.colour, 0.94), self.edge)
            self.canvas.shade(ellipse(f.at(0.0, 0.08, -0.4), f.px(0.3), f.px(0.1)), -40)
            return
        for g in SIDES:
            cord = np.stack([f.at(g * 0.14, 0.32, 0.38), f.at(g * 0.17, 0.75, 0.4)])
            self.stitch(cord, 0.035, self.garment.accent)

    def draw_closure(self, end: float) -> None:
        """Placket, zip, pouch and print in front; a seam, a yoke or a zip behind."""
        g, f = self.garment, self.figure
        chest = f.body.chest * f.body.depth * g.ease
        z = chest if self.front else -chest
        if abs(f.cos) < 0.2:
            return
        if not self.front:
            if g.neckline == "shirt":
                self.stitch(np.stack([f.at(x, 0.55 - 0.1 * x * x, z) for x in np.linspace(-0.56, 0.56, 7)]))
            elif g.code == 3 and g.closure == "none":
                self.stitch(np.stack([f.at(0.0, y, z) for y in (g.back_depth + 0.04, 1.2, HIP_Y)]), 0.03)
            return
        start = g.neck_depth + (0.15 if g.neckline in ("v", "shirt") else 0.02)
        if g.closure != "none":
            line = np.stack([f.at(0.0, y, z) for y in np.linspace(start, end - 0.02, 6)])
            self.stitch(line, 0.03 if g.closure == "buttons" else 0.06, self.edge)
            if g.closure == "buttons":
                for y in np.linspace(start + 0.12, end - 0.25, max(4, int(end * 2))):
                    self.detail(ellipse(f.at(0.05, y, z), f.px(0.04), f.px(0.04)), g.accent)
        elif g.graphic and g.code != 2:
            self.draw_graphic(z)
        if g.neckline == "hood":
            pouch = ((-0.36, 1.62), (0.36, 1.62), (0.48, 2.1), (-0.48, 2.1), (-0.36, 1.62))
            self.stitch(np.stack([f.at(x, y, z) for x, y in pouch]), 0.04)

    def draw_graphic(self, z: float) -> None:
        """A print on the chest: a disc, a bar of letters or a diamond."""
        g, f = self.garment, self.figure
        centre = f.at(0.0, 0.95, z)
        wide = f.px(0.3) * max(abs(f.cos), 0.3)
        if g.graphic == 1:
            self.detail(ellipse(centre, wide, f.px(0.3)), g.accent)
            self.detail(ellipse(centre, wide * 0.55, f.px(0.165)), g.colour)
        elif g.graphic == 2:
            for i in range(5):
                x = centre[0] + wide * (i - 2) * 0.42
                bar = np.stack(
                    [[x, centre[1] - f.px(0.12)], [x + wide * 0.1, centre[1] + f.px(0.12 - 0.05 * (i % 2))]]
                )
                self.stitch(bar, 0.07, g.accent)
        else:
            corners = ellipse(centre, wide, f.px(0.36))[::8]
            self.detail(corners, g.accent)

    # -- sleeves and trousers -------------------------------------------------------------------------------

    def draw_sleeve(self, side: int) -> None:
        """One sleeve along its arm, with the landmark in the middle of its end."""
        g, f = self.garment, self.figure
        length = SLEEVE_LENGTHS[g.sleeve]
        if length == 0:
            return
        shoulder, elbow, wrist = f.arms[side]
        if length <= 1:
            path = np.stack([shoulder, shoulder + (elbow - shoulder) * length])
            radii = [0.24 * g.ease, g.cuff]
        else:
            path = np.stack([shoulder, elbow, elbow + (wrist - elbow) * (length - 1)])
            radii = [0.24 * g.ease, (0.19 * g.ease + g.cuff) / 2, g.cuff]
        flat = f.project(path)
        part = SLEEVES[side]
        along = flat[-1] - flat[-2]
        angle = float(np.arctan2(-along[0], along[1]))
        edges = limb(flat, [f.px(r) for r in radii])
        half = len(edges) // 2
        # The shoulder's cap joins the torso without an outline of its own.
        self.canvas.fill(
            ellipse(flat[0], f.px(radii[0] * 0.97), f.px(radii[0] * 0.97)), g.colour, self.part(part)
        )
        self.cover(edges, part, angle, flat[0])
        if length > 1:
            self.canvas.fill(ellipse(flat[1], f.px(radii[1]), f.px(radii[1])), g.colour, self.part(part))
        dark = edges[:half] if self.light > 0 else edges[half:][::-1]
        core = (edges[:half] + edges[half:][::-1]) / 2
        self.canvas.shade(
            np.concatenate([dark, (dark * 0.6 + core * 0.4)[::-1]]), -int(20 + 26 * abs(self.light))
        )
        if length > 1:
            crease = np.stack([flat[1], flat[1] + (edges[half // 2] - flat[1]) * 1.0])
            self.canvas.line(crease, self.seam, f.px(0.025))
        back = along / (np.hypot(*along) + 1e-9)
        normal = np.array([-back[1], back[0]]) * f.px(g.cuff)
        cuff = flat[-1] - back * f.px(0.1)
        self.canvas.line(np.stack([cuff + normal, cuff - normal]), self.seam, f.px(0.025))
        self.landmarks.put(SLEEVE[side], flat[-1] - back * f.px(0.05), True, self.part(part))

    def draw_trousers(self) -> None:
        """Trousers or shorts, alone or under the bodice of a jumpsuit; the further leg first."""
        g, f, body = self.garment, self.figure, self.figure.body
        order = (0, 1) if f.depth(f.legs[0, 1]) < f.depth(f.legs[1, 1]) else (1, 0)
        for side in order:
            hip, knee, ankle = f.legs[side]
            if g.legs <= 1:
                path = np.stack([hip, hip + (knee - hip) * g.legs])
                radii = [body.hip * 0.56 * g.ease, g.leg_width]
            else:
                path = np.stack([hip, knee, knee + (ankle - knee) * (g.legs - 1)])
                radii = [body.hip * 0.54 * g.ease, max(0.23, (0.25 + g.leg_width) / 2), g.leg_width]
            flat = f.project(path)
            edges = limb(flat, [f.px(r) for r in radii])
            half = len(edges) // 2
            self.cover(edges, LEGS[side], f.camera.angle, flat[0])
            core = (edges[:half] + edges[half:][::-1]) / 2
            dark = edges[:half] if self.light > 0 else edges[half:][::-1]
            self.canvas.shade(
                np.concatenate([dark, (dark * 0.55 + core * 0.45)[::-1]]), -int(18 + 26 * abs(self.light))
            )
            self.canvas.line(core[: max(half - 2, 2)], darker(g.colour, 0.9), f.px(0.02))
            outer = path[-1] + np.array([SIDES[side] * (g.leg_width - 0.035), -0.04, 0.0])
            self.landmarks.put(HEM[side], f.project(outer), self.faces(side, 0.35), self.part(LEGS[side]))
        top = g.top if g.code == 2 else WAIST_Y
        ys = np.linspace(top, CROTCH_Y, 6)
        widths = g.half_width(body, ys) if g.code == 2 else body.half_width(ys) * g.ease
        widths[-1] *= 0.97
        left, right = (spline(f.outline(p, ys, widths, widths * body.depth)) for p in SIDES)
        seat = f.at(0.0, CROTCH_Y + 0.12, 0.1)[None]
        self.cover(np.concatenate([left, seat, right[::-1]]), TORSO, f.camera.angle, f.at(0.0, top))
        dark = (left, right) if self.light > 0 else (right, left)
        self.canvas.shade(
            np.concatenate([dark[0], (dark[0] * 0.8 + dark[1] * 0.2)[::-1]]), -int(20 + 26 * abs(self.light))
        )
        self.side_seam(ys, widths)
        if g.code == 2:
            self.draw_waistband(top)
        self.draw_fly(top)

    def draw_skirt(self) -> None:
        g, f, body = self.garment, self.figure, self.figure.body
        ys = np.linspace(g.top, g.hem, 9)
        widths = g.half_width(body, ys)
        left, right = (spline(f.outline(p, ys, widths, widths * body.depth)) for p in SIDES)
        hem = self.hem_curve(left[-1], right[-1], g.flare)
        self.cover(np.concatenate([left, hem, right[::-1]]), TORSO, f.camera.angle, f.at(0.0, g.top))
        self.fold_cloth(left, right, hem)
        self.side_seam(ys, widths)
        self.draw_waistband(g.top)
        z = body.hip * body.depth
        if not self.front:
            self.stitch(np.stack([f.at(0.0, y, -z) for y in (g.top, g.top + 0.75)]), 0.035)
        elif g.closure == "buttons":
            for y in np.linspace(g.top + 0.25, g.hem - 0.2, 6):
                self.detail(ellipse(f.at(0.0, y, z), f.px(0.045), f.px(0.045)), g.accent)
        self.side_mark(HEM, float(widths[-1]), g.hem - 0.04, TORSO)

    def draw_waistband(self, top: float) -> None:
        self.band(
            top,
            top + 0.14,
            darker(self.garment.colour, 0.88) if not self.garment.belt else self.garment.accent,
        )
        self.side_mark(WAISTLINE, float(self.garment.half_width(self.figure.body, top)), top + 0.06, TORSO)

    def draw_fly(self, top: float) -> None:
        """What tells trousers' front from their back: fly and slanted pockets, or two patches and a seam."""
        f, body = self.figure, self.figure.body
        z = body.hip * body.depth
        if self.front:
            fly = np.stack(
                [f.at(0.0, top + 0.12, z), f.at(0.0, CROTCH_Y - 0.1, z), f.at(0.0, CROTCH_Y + 0.05, 0.1)]
            )
            self.stitch(fly, 0.035)
            j = np.stack(
                [f.at(0.13, top + 0.14, z), f.at(0.13, CROTCH_Y - 0.5, z), f.at(0.0, CROTCH_Y - 0.3, z)]
            )
            self.stitch(j, 0.02)
            for g in SIDES:
                slant = [
                    f.at(g * body.hip * 0.62, top + 0.15, z * 0.75),
                    f.at(g * body.hip * 0.96, top + 0.55, z * 0.3),
                ]
                self.stitch(np.stack(slant), 0.035)
            return
        self.stitch(np.stack([f.at(0.0, top + 0.12, -z), f.at(0.0, CROTCH_Y + 0.1, -z * 0.5)]), 0.03)
        for g in SIDES:
            x, y = g * body.hip * 0.48, top + 0.42
            corners = ((-0.15, 0), (0.15, 0), (0.15, 0.3), (0, 0.37), (-0.15, 0.3), (-0.15, 0))
            self.stitch(np.stack([f.at(x + dx, y + dy, -z * 0.85) for dx, dy in corners]), 0.035)
