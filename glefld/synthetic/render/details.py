"""Details that distinguish a garment's front from its back: necklines, closures, prints, flies and pockets."""

import numpy as np

from glefld.synthetic.render.body import CROTCH_Y, HIP_Y, SIDES, draw_neck
from glefld.synthetic.render.canvas import PERSON, darker, ellipse, spline
from glefld.synthetic.render.cloth import Cloth


def draw_neckline(cloth: Cloth) -> None:
    """Draw the neck opening with its rim, and a collar, hood or roll."""
    g, f = cloth.garment, cloth.figure
    if g.neckline == "turtle":
        _draw_roll(cloth)
        return
    neck_y = f.body.shoulder_line(g.neck_width)
    chest = f.body.chest * f.body.depth
    depth, z = (g.neck_depth, chest) if cloth.front else (g.back_depth, -chest)
    if g.neckline == "hood" and cloth.front:
        hood = ellipse(f.at(0.0, 0.0, -0.15), f.px(0.47), f.px(0.27))
        cloth.detail(hood, darker(g.colour, 0.9), cloth.edge)
    w = g.neck_width
    rims = {
        "v": [(w, neck_y), (0.0, depth + 0.12), (-w, neck_y)],
        "shirt": [(w, neck_y), (0.0, depth + 0.15), (-w, neck_y)],
        "square": [(w, neck_y), (w * 0.94, depth), (-w * 0.94, depth), (-w, neck_y)],
    }
    angles = np.linspace(0, np.pi, 9)
    round_rim = [(w * np.cos(t), neck_y + (depth - neck_y) * np.sin(t)) for t in angles]
    rim = rims.get(g.neckline, round_rim) if cloth.front else round_rim
    drop = max(y for _, y in rim) - neck_y
    line = np.stack([f.at(x, y, z * (y - neck_y) / max(drop, 0.05)) for x, y in rim])
    cloth.canvas.fill(line, f.body.skin if cloth.worn else darker(g.colour, 0.5), PERSON)
    if cloth.worn:
        draw_neck(cloth.canvas, f, neck_y + 0.02)
    cloth.stitch(line, 0.06 if g.neckline in ("crew", "hood") else 0.035)
    if g.neckline == "shirt":
        _draw_collar(cloth, neck_y)
    elif g.neckline == "hood":
        _draw_hood(cloth)


def _draw_roll(cloth: Cloth) -> None:
    """Draw a turtleneck's roll."""
    f = cloth.figure
    ys, widths = np.array([-0.3, -0.05, 0.12]), np.array([0.235, 0.25, 0.33])
    left, right = (f.outline(p, ys, widths, widths * 0.9) for p in SIDES)
    cloth.detail(np.concatenate([spline(left), spline(right)[::-1]]), cloth.garment.colour, cloth.edge)
    cloth.canvas.shade(ellipse(f.at(0.0, -0.22, 0.2), f.px(0.26), f.px(0.06)), -20)
    cloth.stitch(np.stack([left[1], f.at(0.0, 0.0), right[1]]), 0.02)


def _draw_collar(cloth: Cloth, neck_y: float) -> None:
    """Draw a shirt collar: two flaps at the front, one band at the back."""
    f, w = cloth.figure, cloth.garment.neck_width
    colour = darker(cloth.garment.colour, 1.06)
    if not cloth.front:
        top = [f.at(x, neck_y - 0.10 + 0.04 * np.cos(x * 4), -0.1) for x in np.linspace(-w, w, 5)]
        low = [f.at(x, neck_y + 0.17 - 0.5 * x * x, -0.2) for x in np.linspace(w, -w, 5)]
        cloth.detail(np.stack([*top, *low]), colour, cloth.edge)
        return
    depth = cloth.garment.neck_depth
    for g in SIDES:
        flap = [
            f.at(g * (w - 0.05), neck_y - 0.10, 0.02),
            f.at(g * 0.02, depth + 0.1, 0.33),
            f.at(g * w * 0.85, depth + 0.2, 0.33),
            f.at(g * (w + 0.07), neck_y + 0.03, 0.05),
        ]
        cloth.detail(np.stack(flap), colour, cloth.edge)


def _draw_hood(cloth: Cloth) -> None:
    """Draw a hood: the bag at the back, the cords at the front."""
    f = cloth.figure
    if cloth.front:
        for g in SIDES:
            cord = np.stack([f.at(g * 0.14, 0.32, 0.38), f.at(g * 0.17, 0.75, 0.4)])
            cloth.stitch(cord, 0.035, cloth.garment.accent)
        return
    bag = ((-0.46, -0.06), (-0.40, 0.42), (0.0, 0.72), (0.40, 0.42), (0.46, -0.06), (0.0, -0.14))
    shape = spline(np.stack([f.at(x, y, -0.4) for x, y in bag]))
    cloth.detail(shape, darker(cloth.garment.colour, 0.94), cloth.edge)
    cloth.canvas.shade(ellipse(f.at(0.0, 0.08, -0.4), f.px(0.3), f.px(0.1)), -40)


def draw_closure(cloth: Cloth, end: float) -> None:
    """Draw placket, zip, pouch and print at the front, down to a height, or a yoke or seam at the back."""
    g, f = cloth.garment, cloth.figure
    if abs(f.cos) < 0.2:
        return
    z = f.body.chest * f.body.depth * g.ease
    if not cloth.front:
        if g.code == 3:
            zip_ends = [f.at(0.0, y, -z) for y in (g.back_depth + 0.25, min(end, HIP_Y))]
            cloth.stitch(np.stack(zip_ends), 0.07, cloth.mark)
        elif g.neckline != "hood":
            yoke = [f.at(x, 0.62 - 0.1 * x * x, -z) for x in np.linspace(-0.5, 0.5, 7)]
            cloth.stitch(np.stack(yoke), 0.05, cloth.mark)
            cloth.stitch(
                np.stack([f.at(0.0, y, -z) for y in (0.62, min(end, HIP_Y) - 0.15)]), 0.04, cloth.mark
            )
        return
    start = g.neck_depth + (0.15 if g.neckline in ("v", "shirt") else 0.02)
    if g.opening:
        # Open: what is worn below it shows.
        inside = [(g.neck_width * 0.6, 0.2), (g.opening, start), (g.opening, end + 0.03)]
        panel = [f.at(x, y, z) for x, y in (*inside, *((-x, y) for x, y in reversed(inside)))]
        cloth.canvas.fill(np.stack(panel), g.accent, outline=cloth.edge)
        return
    if g.closure != "none":
        line = np.stack([f.at(0.0, y, z) for y in np.linspace(start, end - 0.02, 6)])
        cloth.stitch(line, 0.04 if g.closure == "buttons" else 0.08, cloth.mark)
    if g.closure == "buttons":
        for y in np.linspace(start + 0.12, end - 0.2, max(4, int(end * 2))):
            cloth.detail(ellipse(f.at(0.06, y, z), f.px(0.055), f.px(0.055)), g.accent, cloth.mark)
    if g.closure == "none" and g.graphic:
        _draw_print(cloth, z)
    if g.neckline == "hood":
        pouch = ((-0.36, 1.62), (0.36, 1.62), (0.48, 2.1), (-0.48, 2.1), (-0.36, 1.62))
        cloth.stitch(np.stack([f.at(x, y, z) for x, y in pouch]), 0.05, cloth.mark)


def _draw_print(cloth: Cloth, z: float) -> None:
    """Draw a print on the chest: a ring, a row of bars or a diamond."""
    g, f = cloth.garment, cloth.figure
    centre = f.at(0.0, 0.95, z)
    wide, high = f.px(0.3) * abs(f.cos), f.px(0.32)
    if g.graphic == 1:
        cloth.detail(ellipse(centre, wide, high), g.accent)
        cloth.detail(ellipse(centre, wide * 0.55, high * 0.55), g.colour)
    elif g.graphic == 2:
        for i in range(-2, 3):
            ends = centre + np.array([[i * 0.42, -0.4], [i * 0.42 + 0.1, 0.4 - 0.15 * (i % 2)]]) * [
                wide,
                high,
            ]
            cloth.stitch(ends, 0.07, g.accent)
    else:
        cloth.detail(ellipse(centre, wide, high)[::8], g.accent)


def draw_fly(cloth: Cloth, top: float) -> None:
    """Draw the fly and slanted pockets at the front of trousers, or two patch pockets and a seam at the back."""
    f, hip = cloth.figure, cloth.figure.body.hip
    z = hip * f.body.depth
    if cloth.front:
        fly = ((0.0, top + 0.12, z), (0.0, CROTCH_Y - 0.1, z), (0.0, CROTCH_Y + 0.05, 0.1))
        stitched = ((0.13, top + 0.14, z), (0.13, CROTCH_Y - 0.5, z), (0.0, CROTCH_Y - 0.3, z))
        cloth.stitch(np.stack([f.at(*point) for point in fly]), 0.06, cloth.mark)
        cloth.stitch(np.stack([f.at(*point) for point in stitched]), 0.035, cloth.mark)
        for g in SIDES:
            slant = [f.at(g * hip * 0.62, top + 0.15, z * 0.75), f.at(g * hip * 0.96, top + 0.55, z * 0.3)]
            cloth.stitch(np.stack(slant), 0.05, cloth.mark)
        return
    cloth.stitch(np.stack([f.at(0.0, top + 0.12, -z), f.at(0.0, CROTCH_Y + 0.1, -z * 0.5)]), 0.04, cloth.mark)
    patch = ((-0.17, 0.0), (0.17, 0.0), (0.17, 0.34), (0.0, 0.42), (-0.17, 0.34), (-0.17, 0.0))
    for g in SIDES:
        pocket = [f.at(g * hip * 0.48 + x, top + 0.42 + y, -z * 0.85) for x, y in patch]
        cloth.detail(np.stack(pocket), cloth.seam)
        cloth.stitch(np.stack(pocket), 0.05, cloth.mark)
