"""The person in a rendered photo: proportions, pose, and the projection of body points to the picture.

Lengths are in head heights. In a frontal picture x points right, y down from the base of the neck, and z towards the
viewer. ``yaw`` rotates the person about y: 0 is the front, +-90 degrees a side, 180 degrees the back. Side 0 is on the
left of a frontal picture, and is what the benchmarks call left. Side 1 is the other.
"""

import dataclasses
import math

import numpy as np

from glefld.synthetic.render.canvas import Canvas, Colour, Points, darker, ellipse, limb, spline

SIDES = (-1.0, 1.0)
HIP_Y, WAIST_Y, CROTCH_Y = 2.4, 1.65, 2.85
UPPER_ARM, FOREARM, THIGH, SHIN = 1.3, 1.15, 1.7, 1.65
SKINS: tuple[Colour, ...] = (
    (246, 217, 196),
    (236, 196, 168),
    (224, 176, 142),
    (196, 144, 108),
    (150, 104, 74),
    (104, 70, 50),
)
HAIRS: tuple[Colour, ...] = (
    (34, 28, 28),
    (66, 44, 32),
    (104, 70, 42),
    (158, 112, 60),
    (214, 178, 112),
    (150, 70, 40),
    (150, 148, 148),
)
HAIR_STYLES = ("short", "bob", "long", "bun", "ponytail")

#: Directions of upper arm and forearm: x away from the body, y down, z forwards.
ARM_POSES: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "relaxed": ((0.26, 0.96, 0.0), (0.12, 0.98, 0.12)),
    "bent": ((0.32, 0.94, -0.05), (-0.10, 0.95, 0.25)),
    "on_hip": ((0.68, 0.72, -0.12), (-0.74, 0.66, 0.10)),
    "out": ((0.72, 0.68, 0.05), (0.55, 0.80, 0.15)),
    "across": ((0.22, 0.95, 0.20), (-0.80, 0.22, 0.55)),
    "lifted": ((0.25, 0.95, 0.15), (0.05, -0.75, 0.65)),
    "raised": ((0.72, -0.68, 0.10), (-0.45, -0.88, 0.0)),
}
#: Arm poses by FLD variation_type: 1 normal, 2 medium pose, 3 large pose, 4 and 5 zoom-in.
ARM_CHOICES: dict[int, tuple[str, ...]] = {
    1: ("relaxed", "relaxed", "relaxed", "bent", "bent", "on_hip"),
    2: ("bent", "on_hip", "on_hip", "out", "across"),
    3: ("out", "across", "lifted", "raised", "raised"),
    4: ("relaxed", "bent", "on_hip"),
    5: ("relaxed", "bent", "on_hip"),
}


@dataclasses.dataclass(frozen=True)
class Body:
    """Half widths of the torso, its depth relative to its width, and the appearance."""

    shoulder: float
    chest: float
    waist: float
    hip: float
    depth: float
    skin: Colour
    hair: Colour
    hair_style: str
    hair_length: float
    shoes: Colour

    def half_width(self, y: Points) -> Points:
        """Return the torso's half width at each height; below the hips it is the hips'."""
        rows = (0.55, 0.8, WAIST_Y, HIP_Y)
        widths = (self.chest * 0.97, self.chest, self.waist, self.hip)
        return np.asarray(np.interp(y, rows, widths))

    def shoulder_line(self, x: float) -> float:
        """Return the height of the shoulder at a distance from the neck's axis."""
        return -0.03 + 0.22 * max(x - 0.19, 0) / (self.shoulder - 0.19)


def sample_body(rng: np.random.Generator) -> Body:
    """Draw a random body."""
    build = rng.uniform(0.76, 1.12)
    style = HAIR_STYLES[rng.integers(len(HAIR_STYLES))]
    tone = rng.uniform(0.9, 1.05)
    skin = SKINS[rng.integers(len(SKINS))]
    return Body(
        shoulder=rng.uniform(0.60, 0.76) * math.sqrt(build),
        chest=rng.uniform(0.50, 0.63) * build,
        waist=rng.uniform(0.40, 0.54) * build,
        hip=rng.uniform(0.54, 0.66) * build,
        depth=rng.uniform(0.58, 0.72),
        skin=darker(skin, tone),
        hair=darker(HAIRS[rng.integers(len(HAIRS))], rng.uniform(0.85, 1.15)),
        hair_style=style,
        hair_length=rng.uniform(0.35, 1.35),
        shoes=tuple(int(v) for v in rng.integers(20, 240, 3)) if rng.random() < 0.5 else (38, 34, 36),
    )


@dataclasses.dataclass(frozen=True)
class Pose:
    """The person's orientation, torso and limbs; limb arrays hold unit vectors, [side, xyz].

    Slopes are how far shoulders and hips are from level in the picture: y per x.
    """

    yaw: float
    lean: float
    sway: float
    shoulder_slope: float
    hip_slope: float
    upper_arms: Points
    forearms: Points
    thighs: Points
    shins: Points


def sample_pose(rng: np.random.Generator, view: str, variation: int) -> Pose:
    """Draw a random pose for one of ``schema.VIEWS`` and an FLD variation_type; 2 and 3 have stronger poses."""
    turn = float(np.clip(rng.normal(0, 15), -34, 34))
    if view == "side":
        turn = rng.uniform(50, 100) * rng.choice(SIDES)
    elif view == "back":
        turn += 180
    strength = {2: 1.7, 3: 2.6}.get(variation, 1.0)
    choices = ARM_CHOICES[variation]
    arms = np.array([ARM_POSES[choices[rng.integers(len(choices))]] for _ in SIDES])
    if rng.random() < 0.45:
        arms[1] = arms[0]
    arms = arms + rng.normal(0, 0.1, arms.shape)
    legs = np.zeros((2, 2, 3))
    legs[..., 0] = rng.uniform(-0.06, 0.08) + rng.normal(0, 0.05 * strength, (2, 2))
    legs[..., 1] = 1
    legs[..., 2] = rng.normal(0, 0.12 * strength, (2, 2))
    outward = np.array(SIDES)[:, None]
    arms[..., 0] *= outward
    legs[..., 0] *= outward
    arms /= np.linalg.norm(arms, axis=-1, keepdims=True)
    legs /= np.linalg.norm(legs, axis=-1, keepdims=True)
    return Pose(
        yaw=math.radians(turn),
        lean=float(rng.normal(0, 0.025 * strength)),
        sway=float(rng.normal(0, 0.045 * strength)),
        shoulder_slope=float(rng.normal(0, 0.07)),
        hip_slope=float(rng.normal(0, 0.07 * strength)),
        upper_arms=arms[:, 0],
        forearms=arms[:, 1],
        thighs=legs[:, 0],
        shins=legs[:, 1],
    )


@dataclasses.dataclass(frozen=True)
class Camera:
    """A similarity transform from x, y of the rotated body, in head heights, to continuous photo pixels."""

    scale: float = 1.0
    angle: float = 0.0
    x: float = 0.0
    y: float = 0.0


class Figure:
    """A posed body in front of a camera: the joints in space, and the projection to the picture."""

    def __init__(self, body: Body, pose: Pose, camera: Camera) -> None:
        self.body, self.pose, self.camera = body, pose, camera
        self.cos, self.sin = math.cos(pose.yaw), math.sin(pose.yaw)
        c, s = math.cos(camera.angle) * camera.scale, math.sin(camera.angle) * camera.scale
        self._affine = np.array([[c, s], [-s, c]])
        self._offset = np.array([camera.x, camera.y])
        shoulders = np.array([[g * body.shoulder * 0.86, 0.38, 0.0] for g in SIDES])
        shoulders[:, 0] += self.shift(shoulders[:, 1])
        elbows = shoulders + UPPER_ARM * pose.upper_arms
        self.arms = np.stack([shoulders, elbows, elbows + FOREARM * pose.forearms], axis=1)
        hips = np.array([[g * body.hip * 0.5, CROTCH_Y - 0.25, 0.0] for g in SIDES])
        hips[:, 0] += self.shift(hips[:, 1])
        knees = hips + THIGH * pose.thighs
        self.legs = np.stack([hips, knees, knees + SHIN * pose.shins], axis=1)

    def shift(self, y: Points) -> Points:
        """Return how far lean and sway move the body's axis sideways at each height."""
        sway = self.pose.sway * np.sin(np.pi * np.clip(y / HIP_Y, 0, 1))
        return sway + self.pose.lean * np.maximum(HIP_Y - y, 0)

    def depth(self, points: Points) -> Points:
        """Return the depth towards the viewer of points [..., 3] in space."""
        return -points[..., 0] * self.sin + points[..., 2] * self.cos

    def project(self, points: Points) -> Points:
        """Project points [..., 3] in space to photo pixels [..., 2]."""
        return self._flat(points[..., 0] * self.cos + points[..., 2] * self.sin, points[..., 1])

    def at(self, x: float, y: float, z: float = 0.0) -> Points:
        """Return a torso point, moved by lean and sway, in photo pixels [2]."""
        return self.project(np.array([x + float(self.shift(np.asarray(y))), y, z]))

    def outline(self, side: float, y: Points, width: Points, depth: Points) -> Points:
        """Return the torso's outline [n, 2] in photo pixels at heights y, on the picture's left (-1) or right (+1)."""
        half = np.hypot(width * self.cos, depth * self.sin)
        return self._flat(self.shift(y) * self.cos + side * half, y)

    def _flat(self, x: Points, y: Points) -> Points:
        """Return x, y of the turned body in photo pixels, with its shoulders and hips tilted."""
        slope = np.interp(y, (0.4, HIP_Y), (self.pose.shoulder_slope, self.pose.hip_slope))
        # Below the hips the legs stand straight again.
        slope = slope * np.interp(y, (HIP_Y, HIP_Y + 3), (1.0, 0.3))
        return np.stack([x, y + slope * x], axis=-1) @ self._affine + self._offset

    def px(self, length: float) -> float:
        """Convert a length from head heights to photo pixels."""
        return length * self.camera.scale


def draw_leg(canvas: Canvas, figure: Figure, side: int) -> None:
    """Draw a bare leg and its shoe."""
    body, px = figure.body, figure.px
    joints = figure.project(figure.legs[side])
    thigh = limb(joints, [px(body.hip * 0.48), px(0.19), px(0.11)])
    canvas.fill(thigh, body.skin, outline=darker(body.skin, 0.86))
    canvas.fill(ellipse(joints[1], px(0.18), px(0.2)), body.skin)
    first, second = np.split(thigh, 2)
    canvas.shade(np.concatenate([second, first * 0.3 + second[::-1] * 0.7]), -26)
    # Feet point forwards: down in the picture in front view, up in back view.
    ankle = figure.legs[side, 2]
    toe = ankle + np.array([SIDES[side] * 0.10, 0.0, 0.42])
    flat = figure.project(np.stack([ankle, toe]))
    flat[0, 1] += px(0.06)
    flat[1, 1] += px(0.13 + 0.15 * max(figure.cos, -0.4))
    sole = limb(flat, [px(0.125), px(0.15 if figure.cos > 0 else 0.12)])
    canvas.fill(sole, body.shoes)
    canvas.fill(ellipse(flat[0], px(0.125), px(0.13)), body.shoes)
    canvas.fill(ellipse(flat[1], px(0.14), px(0.10)), body.shoes)


def draw_arm(canvas: Canvas, figure: Figure, side: int) -> None:
    """Draw a bare arm and its hand."""
    skin, px = figure.body.skin, figure.px
    joints = figure.project(figure.arms[side])
    edge = darker(skin, 0.86)
    canvas.fill(ellipse(joints[0], px(0.17), px(0.17)), skin, outline=edge)
    canvas.fill(limb(joints, [px(0.17), px(0.135), px(0.085)]), skin, outline=edge)
    canvas.fill(ellipse(joints[1], px(0.13), px(0.13)), skin)
    reach = joints[2] - joints[1]
    reach = reach / (np.hypot(*reach) + 1e-9) * px(0.30)
    canvas.fill(limb(np.stack([joints[2], joints[2] + reach]), [px(0.09), px(0.075)]), skin)
    canvas.fill(ellipse(joints[2] + reach * 0.75, px(0.105), px(0.105)), skin, outline=edge)


def draw_torso(canvas: Canvas, figure: Figure) -> None:
    """Draw the bare neck, shoulders and trunk."""
    body = figure.body
    ys = np.array([0.2, 0.35, 0.8, WAIST_Y, HIP_Y, CROTCH_Y])
    widths = body.half_width(ys)
    widths[:2] = body.shoulder * 0.97
    depths = widths * body.depth
    depths[:2] = 0.18, 0.26
    sides = [spline(figure.outline(p, ys, widths, depths)) for p in SIDES]
    canvas.fill(np.concatenate([sides[0], sides[1][::-1]]), body.skin)
    ys, widths = np.array([-0.02, 0.08, 0.22]), np.array([0.2, 0.4, body.shoulder * 0.97])
    slopes = [figure.outline(p, ys, widths, np.full(3, 0.18)) for p in SIDES]
    canvas.fill(np.concatenate([slopes[0], slopes[1][::-1]]), body.skin)
    draw_neck(canvas, figure, 0.1)


def draw_neck(canvas: Canvas, figure: Figure, bottom: float) -> None:
    """Draw the neck from the head down to a height, in the shadow of the head."""
    ys = np.array([-0.55, -0.15, bottom])
    left, right = (figure.outline(p, ys, np.array([0.2, 0.185, 0.2]), np.full(3, 0.19)) for p in SIDES)
    canvas.fill(np.concatenate([left, right[::-1]]), figure.body.skin)
    canvas.shade(ellipse(figure.at(0.0, -0.2, 0.1), figure.px(0.24), figure.px(0.12)), -34)


def draw_back_hair(canvas: Canvas, figure: Figure) -> None:
    """Draw the hair behind the shoulders in front view; call this before the torso is drawn."""
    body = figure.body
    if figure.cos < -0.3 or body.hair_style not in ("long", "bob"):
        return
    length = body.hair_length if body.hair_style == "long" else 0.0
    _hair_curtain(canvas, figure, -0.12, min(length, 0.5), 0.47)


def draw_head(canvas: Canvas, figure: Figure) -> None:
    """Draw the head and the hair over it: a face in front view, only hair in back view, both in side view."""
    body, px, sin, cos = figure.body, figure.px, figure.sin, figure.cos
    turn = -figure.camera.angle
    bulk = {"short": 0.03, "bun": 0.02, "ponytail": 0.02}.get(body.hair_style, 0.07)
    hair_edge = darker(body.hair, 0.8)
    if body.hair_style == "bun":
        canvas.fill(ellipse(figure.at(0.0, -1.32, -0.16), px(0.2), px(0.18)), body.hair, outline=hair_edge)
    skull = figure.at(0.0, -0.76, -0.05)
    canvas.fill(ellipse(skull, px(0.38 + bulk), px(0.50 + bulk), turn), body.hair, outline=hair_edge)
    canvas.shade(ellipse(figure.at(-0.12, -1.0, 0.1), px(0.14), px(0.18)), 22)
    if cos > -0.3:
        _draw_face(canvas, figure, turn)
    if cos <= -0.3:
        if body.hair_style == "short":
            canvas.fill(ellipse(figure.at(0.0, -0.33, -0.1), px(0.21), px(0.14)), body.skin)
        elif body.hair_style == "ponytail":
            _hair_curtain(canvas, figure, -0.75, body.hair_length, 0.13, back=0.3)
        elif body.hair_style in ("long", "bob"):
            length = body.hair_length if body.hair_style == "long" else -0.02
            _hair_curtain(canvas, figure, -0.75, length, 0.45)
    elif body.hair_style == "long" and abs(sin) < 0.9:
        # Strands in front of the shoulders, which sometimes cover a collar.
        for g in SIDES:
            tip = min(body.hair_length, 1.0)
            middle = (tip - 0.5) / 2
            strand = ((0.28, -1.05, 0.1), (0.41, -0.5, 0.12), (0.43, middle, 0.16), (0.36, tip, 0.2))
            roots = np.stack([figure.at(g * x, y, z) for x, y, z in strand])
            canvas.fill(limb(roots, [px(0.05), px(0.10), px(0.11), px(0.015)]), body.hair, outline=hair_edge)


def _draw_face(canvas: Canvas, figure: Figure, turn: float) -> None:
    body, px, sin = figure.body, figure.px, figure.sin
    side_on = abs(sin) > 0.75
    width = 0.27 if side_on else 0.345 - 0.05 * abs(sin)
    face = figure.at(0.0, -0.64, 0.15)
    canvas.fill(ellipse(face, px(width), px(0.42), turn), body.skin)
    canvas.shade(ellipse(figure.at(0.22, -0.59, 0.15), px(0.1), px(0.3)), -16)
    if side_on:
        nose = np.stack(
            [figure.at(0.0, -0.74, 0.40), figure.at(0.0, -0.60, 0.50), figure.at(0.0, -0.54, 0.36)]
        )
        canvas.fill(nose, body.skin)
    # The fringe: hair with a parting covers the upper part of the face.
    brow = [
        figure.at(x, y, 0.15)
        for x, y in ((-0.37, -0.72), (-0.22, -0.98), (0.02, -1.04), (0.22, -0.97), (0.37, -0.72))
    ]
    crown = ellipse(figure.at(0.0, -0.8, 0.06), px(0.40), px(0.46), turn)[16:33]
    canvas.fill(np.concatenate([spline(np.stack(brow)), crown[::-1]]), body.hair)
    dark, lips = darker(body.skin, 0.35), (186, 92, 88)
    for g in SIDES:
        if not side_on or g * sin < 0:
            eye = figure.at(g * 0.14, -0.68, 0.36 if not side_on else 0.3)
            canvas.fill(ellipse(eye, px(0.045), px(0.03)), dark)
            canvas.line(eye + px(1) * np.array([[-0.08, -0.09], [0.08, -0.1]]), dark, px(0.03))
    mouth = figure.at(0.0, -0.42, 0.36)
    canvas.fill(ellipse(mouth, px(0.05 if side_on else 0.1), px(0.03)), lips)
    if not side_on:
        nose = np.stack(
            [figure.at(0.0, -0.66, 0.42), figure.at(0.03, -0.54, 0.46), figure.at(-0.02, -0.53, 0.44)]
        )
        canvas.line(nose, darker(body.skin, 0.75), px(0.025))


def _hair_curtain(
    canvas: Canvas, figure: Figure, top: float, bottom: float, half: float, back: float = 0.2
) -> None:
    """Draw hair hanging behind the head from one height to another."""
    ys = np.array([top, (top + bottom) / 2, bottom])
    sides = [
        np.stack([figure.at(g * half * w, y, -back) for y, w in zip(ys, (1.0, 1.08, 0.85), strict=True)])
        for g in SIDES
    ]
    tip = figure.at(0.0, bottom + 0.1, -back)
    shape = np.concatenate([spline(sides[0]), [tip], spline(sides[1])[::-1]])
    canvas.fill(shape, figure.body.hair, outline=darker(figure.body.hair, 0.8))
    for x in (-0.45, 0.1, 0.5):
        strand = np.stack([figure.at(half * x, top + 0.1, -back), figure.at(half * x * 0.9, bottom, -back)])
        canvas.line(strand, darker(figure.body.hair, 0.85), figure.px(0.02))
