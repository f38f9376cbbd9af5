"""DeepFashion2's landmarks of a rendered garment: its category's 8 to 39 points, in the data set's order.

On upper and full-body garments the order starts at the back of the neck and goes around it, then from one shoulder
around sleeve, armpit and side to the hem, and up the other side. On lower garments it follows the waist, then one leg
down, the crotch, and the other leg up. Outwear also has the two front edges. The counts, mirror pairs and sigmas of the
data set agree with this order. Exact positions along an edge, such as on a sleeve, are this project's choice.

Each landmark is a point of the garment in space, as in ``garment``. The first side is the one on the left of a frontal
picture. A landmark and its mirror partner are computed by the same code, with the side as an argument.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from glefld.datasets.deepfashion2_landmarks import CATEGORIES
from glefld.synthetic.render.body import CROTCH_Y, HIP_Y, SIDES, Body
from glefld.synthetic.render.canvas import LEGS, SLEEVES, TORSO, Points
from glefld.synthetic.render.cloth import INSET, Cloth
from glefld.synthetic.render.garment import ARMPIT_Y, leg_shape, seat_shape, shoulder_tip, sleeve_shape
from glefld.synthetic.render.wardrobe import BARE, OUTWEAR, Garment

SHORT_SLEEVES = ("cap", "short", "elbow")
#: A top with straps narrower than this, in head heights, is a sling; otherwise it is a vest.
SLING_STRAP = 0.14
EDGE = 0.06  # distance of a front edge from the middle or the opening, in head heights
#: Positions of landmarks along a sleeve or leg, as fractions of its length.
END = 0.97
OUTER = {"short": (0.5,), "long": (0.25, 0.5, 0.75)}
INNER = {"short": (0.65,), "long": (0.8, 0.65, 0.5)}  # from the cuff up to the armpit
SIDE_POINTS = {"top": 2, "dress": 4, "vest": 1, "vest dress": 3}


class Spot(NamedTuple):
    """One landmark: photo pixels [2], whether it faces the viewer, and the parts that may show it."""

    point: Points
    facing: bool
    parts: tuple[int, ...]


def category_of(garment: Garment, body: Body) -> str | None:
    """Return the DeepFashion2 category of a garment on a body; None if it has none, such as a jumpsuit."""
    length = "short" if garment.sleeve in SHORT_SLEEVES else "long"
    if garment.code == 2:
        return "skirt" if not garment.legs else "shorts" if garment.legs < 1 else "trousers"
    if garment.legs or garment.neckline in BARE:
        return None
    if garment.category in OUTWEAR:
        return f"{length} sleeve outwear"
    kind = "dress" if garment.code == 3 else "top"
    if garment.sleeve != "none":
        return f"{length} sleeve {kind}"
    strap = shoulder_tip(garment, body) - garment.neck_width
    name = "sling" if strap < SLING_STRAP else "vest"
    return f"{name} dress" if kind == "dress" else name


def dense_landmarks(cloth: Cloth, category: str) -> list[Spot]:
    """Return the landmarks of a garment of this category, in DeepFashion2's order."""
    spots = _lower(cloth, category) if cloth.garment.code == 2 else _upper(cloth, category)
    assert len(spots) == dict(CATEGORIES)[category], (category, len(spots))
    return spots


def _upper(cloth: Cloth, category: str) -> list[Spot]:
    neck = _neck(cloth)
    left, right = (_upper_side(cloth, category, side) for side in (0, 1))
    if "outwear" not in category:
        return [*neck, *left, _hem_middle(cloth), *reversed(right)]
    edges = [_front_edge(cloth, side) for side in (0, 1)]
    neck[3] = edges[0][0]
    return [*neck, *left, edges[0][-1], *reversed(right), *edges[1], *edges[0][1:-1]]


def _lower(cloth: Cloth, category: str) -> list[Spot]:
    waist = [_waist(cloth, 0), _waist_middle(cloth), _waist(cloth, 1)]
    g = cloth.garment
    if category == "skirt":
        half = (g.top + g.hem) / 2
        left, right = ([_seam(cloth, side, half), _hem_corner(cloth, side)] for side in (0, 1))
        return [*waist, *left, _hem_middle(cloth), *reversed(right)]
    left, right = (_leg(cloth, category, side) for side in (0, 1))
    crotch = Spot(cloth.figure.at(0.0, CROTCH_Y + 0.05, 0.1), True, _parts(cloth, TORSO, *LEGS))
    return [*waist, *left, crotch, *reversed(right)]


def _parts(cloth: Cloth, *named: int) -> tuple[int, ...]:
    return tuple(cloth.part(name) for name in named)


def _neck(cloth: Cloth) -> list[Spot]:
    """Return the six around the neck: the back, one side's shoulder and rim, the front, and the other side's two."""
    g, f, body = cloth.garment, cloth.figure, cloth.figure.body
    w, neck_y = g.neck_width, body.shoulder_line(g.neck_width)
    chest = body.chest * body.depth
    if g.neckline == "turtle":
        w, neck_y, front, behind, rim, chest = 0.2, -0.3, -0.17, -0.2, (0.13, -0.19), 0.21
    else:
        low = g.neck_depth + {"v": 0.12, "shirt": 0.15}.get(g.neckline, 0.0)
        front, behind = low + INSET, g.back_depth + INSET
        if g.neckline in ("v", "shirt"):
            rim = (w / 2 + 0.03, (neck_y + low) / 2 + 0.02)
        elif g.neckline == "square":
            rim = (w * 0.94 + 0.03, low + 0.03)
        else:
            rim = (w * np.sqrt(0.5) + 0.03, neck_y + (low - neck_y) * np.sqrt(0.5) + 0.03)
    torso, drop = _parts(cloth, TORSO), max(front - neck_y, 0.05)

    def rim_at(side: int) -> Spot:
        z = chest * (rim[1] - neck_y) / drop
        return Spot(f.at(SIDES[side] * rim[0], rim[1], z), cloth.front, torso)

    def shoulder(side: int) -> Spot:
        x = w if g.neckline == "turtle" else w + min(0.05, (shoulder_tip(g, body) - w) / 3)
        y = -0.22 if g.neckline == "turtle" else body.shoulder_line(x) + 0.045
        return Spot(f.at(SIDES[side] * x, y), cloth.faces(side), torso)

    return [
        Spot(f.at(0.0, behind, -chest), f.cos < 0.2, torso),
        shoulder(0),
        rim_at(0),
        Spot(f.at(0.0, front, chest), cloth.front, torso),
        rim_at(1),
        shoulder(1),
    ]


def _upper_side(cloth: Cloth, category: str, side: int) -> list[Spot]:
    """Return those from the shoulder around the sleeve, if any, down to the corner of the hem."""
    g, f, body = cloth.garment, cloth.figure, cloth.figure.body
    tip = shoulder_tip(g, body)
    below, inside = (0.05, 0.07) if g.sleeve != "none" else (0.07, min(0.045, (tip - g.neck_width) / 3))
    here = _parts(cloth, TORSO, SLEEVES[side])
    shoulder = f.at(SIDES[side] * (tip - inside), body.shoulder_line(tip) + below)
    spots = [Spot(shoulder, cloth.faces(side), here)]
    kind = "dress" if g.code == 3 and "outwear" not in category else "top"
    if g.sleeve == "none":
        kind = "vest" if kind == "top" else "vest dress"
    else:
        length = category.split()[0]
        path, radii = sleeve_shape(g, f, side)
        sleeve = _parts(cloth, SLEEVES[side])
        spots += [_on_limb(cloth, path, radii, side, 1, t, sleeve) for t in (*OUTER[length], END)]
        spots += [_on_limb(cloth, path, radii, side, -1, t, sleeve) for t in (END, *INNER[length])]
    armpit = _seam(cloth, side, ARMPIT_Y + 0.03)
    count = SIDE_POINTS[kind]
    heights = ARMPIT_Y + (g.hem - ARMPIT_Y) * np.arange(1, count + 1) / (count + 1)
    return [
        *spots,
        armpit._replace(parts=here),
        *(_seam(cloth, side, float(y)) for y in heights),
        _hem_corner(cloth, side),
    ]


def _seam(cloth: Cloth, side: int, y: float) -> Spot:
    """Return the point on the side seam of torso or skirt at a height."""
    x = float(cloth.garment.half_width(cloth.figure.body, np.array(y))) - INSET
    return Spot(cloth.figure.at(SIDES[side] * x, y), cloth.faces(side), _parts(cloth, TORSO))


def _hem_corner(cloth: Cloth, side: int) -> Spot:
    y = cloth.garment.hem
    spot = _seam(cloth, side, y)
    return spot._replace(point=spot.point + cloth.figure.at(0.0, y - 0.04) - cloth.figure.at(0.0, y))


def _hem_middle(cloth: Cloth) -> Spot:
    """Return the middle of the hem, at the front or at the back, whichever faces the viewer."""
    g, body = cloth.garment, cloth.figure.body
    # The middle of ``Cloth.hem_curve``.
    flare = 0.0 if g.legs else g.flare
    sag = 0.06 + 0.05 * min(flare, 1.0) - 0.05 * min(flare * 1.5, 1.0)
    z = float(g.half_width(body, np.array(g.hem))) * body.depth
    return _middle(cloth, g.hem + sag - INSET, z)


def _middle(cloth: Cloth, y: float, z: float) -> Spot:
    return Spot(cloth.figure.at(0.0, y, z if cloth.front else -z), True, _parts(cloth, TORSO))


def _front_edge(cloth: Cloth, side: int) -> list[Spot]:
    """Return the four along one front edge of outwear, from the neckline to the hem."""
    g, f = cloth.garment, cloth.figure
    top = g.neck_depth + (0.15 if g.neckline in ("v", "shirt") else 0.02) + INSET
    z = f.body.chest * f.body.depth * g.ease
    heights = np.linspace(top, g.hem, 4).tolist()
    torso = _parts(cloth, TORSO)
    return [Spot(f.at(SIDES[side] * (g.opening + EDGE), y, z), cloth.front, torso) for y in heights]


def _waist(cloth: Cloth, side: int) -> Spot:
    return _seam(cloth, side, cloth.garment.top + 0.04)


def _waist_middle(cloth: Cloth) -> Spot:
    """Return the middle of the waistband's upper edge, which sags as in ``Cloth.band``."""
    g, body = cloth.garment, cloth.figure.body
    return _middle(cloth, g.top + 0.06 + INSET, float(g.half_width(body, np.array(g.top))) * body.depth)


def _leg(cloth: Cloth, category: str, side: int) -> list[Spot]:
    """Return those from the hip down the outside of a trouser leg and up its inside."""
    g, f = cloth.garment, cloth.figure
    path, radii = leg_shape(g, f, side)
    leg = _parts(cloth, LEGS[side])
    width = float(np.interp(HIP_Y, *seat_shape(g, f.body, g.top))) - INSET
    hip = Spot(f.at(SIDES[side] * width, HIP_Y), cloth.faces(side), _parts(cloth, TORSO, LEGS[side]))
    outer = (END,) if category == "shorts" else (0.5, END)
    return [
        hip,
        *(_on_limb(cloth, path, radii, side, 1, t, leg) for t in outer),
        *(_on_limb(cloth, path, radii, side, -1, t, leg) for t in reversed(outer)),
    ]


def _on_limb(
    cloth: Cloth,
    path: Points,
    radii: Sequence[float],
    side: int,
    outwards: int,
    part_of_length: float,
    parts: tuple[int, ...],
) -> Spot:
    """Return a point on the outer (``outwards`` 1) or inner (-1) edge of a sleeve or leg along joints [n, 3]."""
    along = np.diff(path, axis=0)[:, :2]
    along /= np.hypot(along[:, :1], along[:, 1:]) + 1e-9
    along = np.concatenate([along[:1], (along[:-1] + along[1:]) / 2, along[-1:]])
    along /= np.hypot(along[:, :1], along[:, 1:]) + 1e-9
    # Perpendicular to the limb; away from the body if the limb hangs down.
    across = SIDES[side] * outwards * np.stack([along[:, 1], -along[:, 0], np.zeros(len(path))], axis=-1)
    edge = path + across * (np.asarray(radii)[:, None] - INSET)
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    at = part_of_length * length[-1]
    point, normal = (np.array([np.interp(at, length, v) for v in values.T]) for values in (edge, across))
    facing = float(cloth.figure.depth(normal)) > -0.6
    return Spot(cloth.figure.project(point), facing, parts)
