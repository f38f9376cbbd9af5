"""Drawing garments on a figure, with their landmarks.

Landmarks are points of the garment in space, so they turn with the person: the left collar is on the picture's left in
front view, and on its right in back view. A landmark and its mirror partner look alike, mirrored. Front and back, and
so left and right, can only be told from other cues: face or hair, neckline, placket, fly, pockets, feet.
"""

import numpy as np

from glefld.schema import FASHION8
from glefld.synthetic.render.body import CROTCH_Y, HIP_Y, SIDES, Body, Figure
from glefld.synthetic.render.canvas import LEGS, SLEEVES, TORSO, Points, darker, ellipse, limb, spline
from glefld.synthetic.render.cloth import INSET, Cloth
from glefld.synthetic.render.details import draw_closure, draw_fly, draw_neckline
from glefld.synthetic.render.wardrobe import BARE, SLEEVE_LENGTHS, Garment

ARMPIT_Y = 0.82
BUST_Y = 0.62  # height of the upper edge of a garment that does not cover the shoulders
COLLAR, SLEEVE, WAISTLINE, HEM = (
    tuple(FASHION8.landmarks.index(f"{side}_{name}") for side in ("left", "right"))
    for name in ("collar", "sleeve", "waistline", "hem")
)


def shoulder_tip(g: Garment, body: Body) -> float:
    """Return the distance from the neck's axis to where an upper or full-body garment ends on the shoulder."""
    return body.shoulder * g.strap + (0.04 if g.sleeve != "none" else 0.0)


def draw_bodice(cloth: Cloth) -> None:
    """Draw torso, skirt, neckline and closure of an upper or full-body garment, without sleeves."""
    g, f, body = cloth.garment, cloth.figure, cloth.figure.body
    end = g.top + 0.12 if g.legs else g.hem
    tip = shoulder_tip(g, body)
    slope = body.shoulder_line
    bare = g.neckline in BARE
    ys = np.linspace(BUST_Y if bare else ARMPIT_Y, end, 7 if end < 3 else 11)
    widths = g.half_width(body, ys)
    depth = widths * body.depth
    sides = []
    for p in SIDES:
        ends = np.array([slope(g.neck_width), slope(tip)])
        shoulder = f.outline(p, ends, np.array([g.neck_width, tip]), np.array([0.16, 0.2]))
        hole = np.array([0.45, 0.64])
        halfway = np.array([tip * 0.96, (tip * 0.95 + widths[0]) / 2])
        armhole = f.outline(p, hole, halfway, np.array([0.28, 0.34]))
        rows = f.outline(p, ys, widths, depth)
        above = [] if bare else [shoulder]
        sides.append(np.concatenate([*above, spline(rows if bare else np.concatenate([armhole, rows]))]))
    left, right = sides
    hem = cloth.hem_curve(left[-1], right[-1], 0.0 if g.legs else g.flare)
    outline = np.concatenate([left, hem, right[::-1]])
    cloth.cover(outline, TORSO, f.camera.angle - f.pose.lean, f.at(0.0, 0.0), cloth.edge)
    cloth.round_off(left[2:], right[2:])
    cloth.fold(left[2:], right[2:], hem)
    cloth.side_seam(ys, widths)
    if not bare:
        draw_neckline(cloth)
    draw_closure(cloth, end)
    if g.neckline == "turtle":
        cloth.mark_pair(COLLAR, 0.2, -0.16)
    elif bare:
        # At the front edge, where a strap begins.
        cloth.mark_pair(COLLAR, body.chest * 0.6 + INSET, BUST_Y + 0.06)
    else:
        # Beside the neckline, just below the shoulder's edge.
        x = g.neck_width + min(0.02, (tip - g.neck_width) / 4)
        cloth.mark_pair(COLLAR, x + INSET, slope(x) + (0.12 if g.code == 1 else 0.06))
    if g.code == 3:
        _draw_waist(cloth)
    if not g.legs:
        # Annotators put an upper garment's well inside its outline, a dress's on it.
        cloth.mark_pair(HEM, float(widths[-1]) * (0.88 if g.code == 1 else 1.0), end - 0.04)
    if g.neckline == "straps":
        _draw_straps(cloth)
    elif g.sleeve == "none":
        for side, index in enumerate(SLEEVE):
            x, y = (float(widths[0]), BUST_Y) if bare else (tip, slope(tip))
            point = f.at(SIDES[side] * (x - 0.045), y + 0.07)
            cloth.landmarks.put(index, point, cloth.faces(side), cloth.part(TORSO))


def _draw_straps(cloth: Cloth) -> None:
    """Draw thin straps over the shoulders, and place the sleeves' landmarks on top of them."""
    body, f = cloth.figure.body, cloth.figure
    x, z = body.chest * 0.6, body.chest * body.depth * (1 if cloth.front else -1)
    top = body.shoulder_line(x)
    for side, index in enumerate(SLEEVE):
        strap = np.stack([f.at(SIDES[side] * x, BUST_Y + 0.03, z), f.at(SIDES[side] * x, top)])
        cloth.stitch(strap, 0.06, cloth.garment.colour)
        cloth.landmarks.put(index, strap[1] * 0.9 + strap[0] * 0.1, cloth.faces(side), cloth.part(TORSO))


def _draw_waist(cloth: Cloth) -> None:
    """Draw the belt or waist seam of a full-body garment, and place its waistline landmarks."""
    g = cloth.garment
    upper, lower = cloth.band(g.top - 0.07, g.top + 0.07)
    if g.belt:
        cloth.detail(np.concatenate([upper, lower[::-1]]), g.accent, darker(g.accent, 0.7))
    elif g.waisted:
        cloth.stitch((upper + lower) / 2, 0.035)
    cloth.mark_pair(WAISTLINE, float(g.half_width(cloth.figure.body, np.array(g.top))), g.top)


def sleeve_shape(g: Garment, f: Figure, side: int) -> tuple[Points, list[float]]:
    """Return the joints [n, 3] in space along a sleeve, and its half width at each."""
    length = SLEEVE_LENGTHS[g.sleeve]
    shoulder, elbow, wrist = f.arms[side]
    start = 0.205 * float(np.sqrt(g.ease))
    if length <= 1:
        return np.stack([shoulder, shoulder + (elbow - shoulder) * length]), [start, g.cuff]
    path = np.stack([shoulder, elbow, elbow + (wrist - elbow) * (length - 1)])
    return path, [start, (0.18 * g.ease + g.cuff) / 2, g.cuff]


def draw_sleeve(cloth: Cloth, side: int) -> None:
    """Draw a sleeve along its arm, with the landmark at its end, outside of the middle."""
    g, f = cloth.garment, cloth.figure
    length = SLEEVE_LENGTHS[g.sleeve]
    if length == 0:
        return
    path, radii = sleeve_shape(g, f, side)
    start = radii[0]
    joints = f.project(path)
    part = SLEEVES[side]
    along = joints[-1] - joints[-2]
    along /= np.hypot(*along) + 1e-9
    edges = limb(joints, [f.px(r) for r in radii])
    first, second = np.split(edges, 2)
    second = second[::-1]
    # The shoulder has no outline, so that sleeve and torso look like one piece of cloth.
    cloth.canvas.fill(ellipse(joints[0], f.px(start), f.px(start)), g.colour, cloth.part(part))
    cloth.cover(edges, part, float(np.arctan2(-along[0], along[1])), joints[0])
    if length > 1:
        cloth.canvas.fill(ellipse(joints[1], f.px(radii[1]), f.px(radii[1])), g.colour, cloth.part(part))
    cloth.round_off(first, second, 0.3) if first[-1, 0] < second[-1, 0] else cloth.round_off(
        second, first, 0.3
    )
    below = len(first) // 4
    for edge in (first[below:], second[below:]):
        cloth.canvas.line(edge, cloth.edge, 1.0)
    across = np.array([-along[1], along[0]]) * f.px(g.cuff)
    end = joints[-1]
    cloth.canvas.line(np.stack([end + across, end - across]), cloth.edge, 1.0)
    cuff = end - along * f.px(0.1)
    cloth.canvas.line(np.stack([cuff + across, cuff - across]), cloth.seam, f.px(0.025))
    outside = across * (-SIDES[side] if cloth.front else SIDES[side])
    cloth.landmarks.put(SLEEVE[side], end - along * f.px(0.03) + outside * 0.35, True, cloth.part(part))


def seat_shape(g: Garment, body: Body, top: float) -> tuple[Points, Points]:
    """Return heights [6] of trousers from the waistband to the legs, and the half width at each."""
    ys = np.linspace(top, CROTCH_Y, 6)
    # Slightly slimmer than a skirt, and as wide as the legs where they meet.
    widths = g.half_width(body, ys) * np.linspace(1, 0.95, 6)
    widths[-1] = body.hip * (0.49 + 0.48 * g.ease)
    return ys, widths


def leg_shape(g: Garment, f: Figure, side: int) -> tuple[Points, list[float]]:
    """Return the joints [n, 3] in space along a trouser leg, and its half width at each."""
    hip, knee, ankle = f.legs[side]
    thigh = f.body.hip * 0.5 * g.ease
    if g.legs <= 1:
        return np.stack([hip, hip + (knee - hip) * g.legs]), [thigh, g.leg_width]
    path = np.stack([hip, (hip + knee) / 2, knee, knee + (ankle - knee) * (g.legs - 1)])
    knee_width = max(0.2 * g.ease, (0.25 + g.leg_width) / 2)
    return path, [thigh, max(0.84 * thigh, knee_width), knee_width, g.leg_width]


def draw_trousers(cloth: Cloth) -> None:
    """Draw trousers or shorts, alone or as the lower part of a jumpsuit, with the further leg first."""
    g, f, body = cloth.garment, cloth.figure, cloth.figure.body
    for side in np.argsort(f.depth(f.legs[:, 1])).tolist():
        _draw_trouser_leg(cloth, side, f.at(0.0, g.top))
    ys, widths = seat_shape(g, body, g.top)
    left, right = (spline(f.outline(p, ys, widths, widths * body.depth)) for p in SIDES)
    crotch = f.at(0.0, CROTCH_Y + 0.1, 0.1)[None]
    cloth.cover(np.concatenate([left, crotch, right[::-1]]), TORSO, f.camera.angle, f.at(0.0, g.top))
    for edge in (left, right):
        cloth.canvas.line(edge, cloth.edge, 1.0)
    cloth.round_off(left, right)
    cloth.side_seam(ys, widths)
    if g.code == 2:
        _draw_waistband(cloth)
    draw_fly(cloth, g.top)


def _draw_trouser_leg(cloth: Cloth, side: int, origin: Points) -> None:
    g, f = cloth.garment, cloth.figure
    path, radii = leg_shape(g, f, side)
    joints = f.project(path)
    edges = limb(joints, [f.px(r) for r in radii])
    cloth.cover(edges, LEGS[side], f.camera.angle, origin, cloth.edge)
    first, second = np.split(edges, 2)
    second = second[::-1]
    left, right = (first, second) if first[-1, 0] < second[-1, 0] else (second, first)
    cloth.round_off(left, right, 0.28)
    if g.legs > 1:
        crease = (first + second)[2:-3] / 2
        cloth.canvas.line(crease, darker(g.colour, 0.88), f.px(0.02))
    outer = path[-1] + np.array([SIDES[side] * (g.leg_width - INSET), -0.04, 0.0])
    cloth.landmarks.put(HEM[side], f.project(outer), cloth.faces(side), cloth.part(LEGS[side]))


def draw_skirt(cloth: Cloth) -> None:
    """Draw a skirt with its waistband, a zip at the back and sometimes buttons in front."""
    g, f, body = cloth.garment, cloth.figure, cloth.figure.body
    ys = np.linspace(g.top, g.hem, 9)
    widths = g.half_width(body, ys)
    left, right = (spline(f.outline(p, ys, widths, widths * body.depth)) for p in SIDES)
    hem = cloth.hem_curve(left[-1], right[-1], g.flare)
    outline = np.concatenate([left, hem, right[::-1]])
    cloth.cover(outline, TORSO, f.camera.angle, f.at(0.0, g.top), cloth.edge)
    cloth.round_off(left, right)
    cloth.fold(left, right, hem)
    cloth.side_seam(ys, widths)
    _draw_waistband(cloth)
    z = body.hip * body.depth
    if not cloth.front:
        cloth.stitch(np.stack([f.at(0.0, y, -z) for y in (g.top, g.top + 0.8)]), 0.08, cloth.mark)
    else:
        # Pockets, in front only.
        for side in SIDES:
            slant = [f.at(side * body.hip * x, g.top + y, z * 0.6) for x, y in ((0.45, 0.2), (0.8, 0.6))]
            cloth.stitch(np.stack(slant), 0.06, cloth.mark)
    if cloth.front and g.belt:
        buckle = ((-0.1, 0.0), (0.1, 0.0), (0.1, 0.14), (-0.1, 0.14))
        cloth.detail(np.stack([f.at(x, g.top + y, z) for x, y in buckle]), (212, 190, 120), (120, 100, 50))
    cloth.mark_pair(HEM, float(widths[-1]), g.hem - 0.04)


def _draw_waistband(cloth: Cloth) -> None:
    g = cloth.garment
    colour = g.accent if g.belt else darker(g.colour, 0.88)
    upper, lower = cloth.band(g.top, g.top + 0.14)
    cloth.detail(np.concatenate([upper, lower[::-1]]), colour, darker(colour, 0.7))
    cloth.mark_pair(WAISTLINE, float(g.half_width(cloth.figure.body, np.array(g.top))), g.top + 0.03)


def extent(g: Garment, f: Figure) -> Points:
    """Return points [n, 2] in photo pixels that span a garment on a figure, without drawing it."""
    points = []
    if g.code == 2:
        points += [f.at(side * f.body.hip, g.top) for side in SIDES]
    else:
        points += [f.at(side * f.body.shoulder, 0.0) for side in SIDES]
        reached = int(np.ceil(SLEEVE_LENGTHS[g.sleeve]))
        points += list(f.project(f.arms[:, 1 : 1 + reached]).reshape(-1, 2))
    if g.legs:
        points += list(f.project(f.legs[:, int(np.ceil(g.legs))]))
        points += [f.at(side * f.body.hip, HIP_Y) for side in SIDES]
    else:
        y = np.array([g.hem])
        width = g.half_width(f.body, y)
        points += [f.outline(p, y, width, width * f.body.depth)[0] for p in SIDES]
    return np.stack(points)
