"""Textures, backgrounds, occluding objects and camera effects of rendered photos."""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from glefld.synthetic.render.canvas import PERSON, SUPERSAMPLING, Canvas, Colour, Pixels, Points, darker

TILE = 128
PATTERNS = ("solid", "striped", "checked", "dotted", "floral", "zigzag", "mottled")
FABRICS = ("cotton", "denim", "knit", "wool", "leather", "chiffon")
COLOURS: dict[str, Colour] = {
    "white": (238, 236, 232),
    "cream": (232, 220, 196),
    "beige": (206, 184, 152),
    "tan": (180, 140, 98),
    "brown": (108, 74, 52),
    "black": (40, 40, 44),
    "charcoal": (74, 76, 82),
    "grey": (142, 144, 148),
    "silver": (192, 196, 202),
    "navy": (40, 50, 92),
    "blue": (58, 96, 172),
    "sky": (138, 184, 220),
    "teal": (36, 128, 134),
    "mint": (162, 212, 188),
    "green": (62, 128, 76),
    "olive": (112, 112, 62),
    "yellow": (228, 194, 78),
    "orange": (222, 132, 58),
    "coral": (232, 120, 104),
    "red": (186, 44, 50),
    "burgundy": (114, 34, 52),
    "pink": (230, 164, 184),
    "magenta": (176, 58, 122),
    "purple": (106, 72, 142),
}
#: Half of real garments have next to no colour.
_NEUTRAL = {
    "white": 0.2,
    "black": 0.17,
    "navy": 0.06,
    "grey": 0.05,
    "charcoal": 0.05,
    "cream": 0.05,
    "silver": 0.04,
}
COLOUR_SHARES = [
    _NEUTRAL.get(name, (1 - sum(_NEUTRAL.values())) / (len(COLOURS) - len(_NEUTRAL))) for name in COLOURS
]


def texture(
    rng: np.random.Generator, pattern: str, fabric: str, colour: Colour, accent: Colour, scale: float
) -> Pixels:
    """Return a seamless texture [TILE, TILE, 3] to add to the colour; scale is in pixels per head height."""
    y, x = (np.asarray(axis / TILE) for axis in np.ogrid[0:TILE, 0:TILE])
    repeats = int(np.clip(round(TILE / (scale * rng.uniform(0.16, 0.5))), 2, 24))
    soft = TILE / repeats / 2  # pixels per half period, so that edges are one pixel wide
    wave_x, wave_y = (np.abs((v * repeats) % 1 - 0.5) * 4 - 1 for v in (x, y))

    def step(value: Points | Pixels) -> Points:
        return np.clip(value * soft / 2 + 0.5, 0, 1)

    share = rng.uniform(-0.4, 0.4)
    match pattern:
        case "striped":
            amount = step((wave_y if rng.random() < 0.65 else wave_x) - share) * np.ones((TILE, TILE))
        case "checked":
            amount = (step(wave_x - share) + step(wave_y - share)) / 2
        case "dotted":
            amount = step(rng.uniform(0.5, 0.9) - np.hypot(wave_x + 1, wave_y + 1))
        case "zigzag":
            amount = step(np.abs((y * repeats + np.abs(wave_x) * 0.5) % 1 - 0.5) * 4 - 1 - share)
        case "floral":
            amount = _flowers(rng, max(repeats // 2, 2))
        case "mottled":
            coarse = rng.random((repeats * 2, repeats * 2)).astype(np.float32)
            smooth = Image.fromarray(np.tile(coarse, (3, 3))).resize(
                (TILE * 3, TILE * 3), Image.Resampling.BILINEAR
            )
            amount = step((np.asarray(smooth)[TILE : 2 * TILE, TILE : 2 * TILE] - 0.55) * 2)
        case _:
            amount = np.zeros((TILE, TILE))
    difference = amount[..., None] * (np.array(accent) - np.array(colour))
    grain = {"denim": 5.0, "knit": 3.0, "wool": 7.0, "leather": 1.0, "chiffon": 1.0}.get(fabric, 2.0)
    weave = rng.normal(0, grain, (TILE, TILE))
    if fabric == "knit":
        ribs = int(np.clip(round(TILE / (scale * 0.11)), 8, 40))
        weave += 9 * np.cos(2 * np.pi * ribs * x)
    return (difference + weave[..., None]).astype(np.float32)


def _flowers(rng: np.random.Generator, repeats: int) -> Points:
    """Return the fraction of each pixel [TILE, TILE] that is covered by a flower."""
    tile = Image.new("L", (TILE * 2, TILE * 2))
    draw = ImageDraw.Draw(tile)
    cell = 2 * TILE / repeats
    radius = cell * rng.uniform(0.16, 0.24)
    for i in range(repeats):
        for j in range(repeats):
            x, y = (i + 0.5) * cell, (j + 0.5) * cell
            turn = rng.uniform(0, 1)
            for petal in range(5):
                angle = 2 * np.pi * (petal / 5 + turn)
                px, py = x + radius * np.cos(angle), y + radius * np.sin(angle)
                draw.ellipse(
                    (px - radius * 0.6, py - radius * 0.6, px + radius * 0.6, py + radius * 0.6), fill=255
                )
            draw.ellipse((x - radius * 0.4, y - radius * 0.4, x + radius * 0.4, y + radius * 0.4), fill=90)
    return np.asarray(tile.reduce(2)) / 255


def dye(rng: np.random.Generator, name: str) -> Colour:
    """Return a random shade of a named colour: paler, and lighter or darker."""
    colour = np.array(COLOURS[name])
    pale = colour + (colour.mean() - colour) * rng.uniform(0, 0.6)
    return tuple(int(v) for v in (pale * rng.uniform(0.75, 1.12)).clip(0, 255))


def creases(rng: np.random.Generator, width: int, height: int, scale: float) -> Pixels:
    """Return how folds and wrinkles lighten and darken cloth, [height, width]; scale is in pixels per head height."""
    relief = np.zeros((height, width), dtype=np.float32)
    strength = rng.uniform(0.02, 0.25)
    # Long folds, hanging more often than lying, and finer wrinkles.
    long, across = rng.uniform(0.6, 2.0), rng.uniform(0.15, 0.5)
    sizes = ((across, long), (long, across * 2), (0.35, 0.35), (0.12, 0.16))
    for (x, y), share in zip(sizes, (0.35, 0.2, 0.3, 0.15), strict=True):
        cells = [max(3, round(extent / max(scale * size, 2))) for extent, size in ((height, y), (width, x))]
        noise = Image.fromarray(rng.integers(0, 256, cells, dtype=np.uint8))
        smooth = noise.resize((width, height), Image.Resampling.BICUBIC)
        relief += (np.asarray(smooth, dtype=np.float32) - 128) * np.float32(share * strength / 64)
    return relief.clip(-0.6, 0.6, out=relief)


def background(rng: np.random.Generator, width: int, height: int, kind: str) -> Image.Image:
    """Draw a supersampled background of width x height photo pixels; kind is studio, wall, room or street."""
    w, h = width * SUPERSAMPLING, height * SUPERSAMPLING
    white = kind == "studio" and rng.random() < 0.75
    tone = 252 if white else 255 * (rng.uniform(0.7, 1.0) if kind == "studio" else rng.uniform(0.3, 0.95))
    top = np.clip(tone + rng.normal(0, 2 if white else 5 if kind == "studio" else 14, 3), 20, 255)
    gradient = top * (1 - np.linspace(0, rng.uniform(0, 0.02 if white else 0.22), h)[:, None, None])
    picture = Image.fromarray(gradient.astype(np.uint8).repeat(w, axis=1))
    draw = ImageDraw.Draw(picture)
    if kind != "studio":
        floor = int(h * rng.uniform(0.68, 0.92))
        draw.rectangle((0, floor, w, h), fill=_near(rng, top * 0.72, 18))
        if kind == "wall":
            draw.rectangle((0, floor - h // 60, w, floor), fill=_near(rng, top * 0.9, 10))
        elif kind == "room":
            _furnish(rng, draw, w, floor)
        else:
            _street(rng, draw, w, floor)
    if kind != "studio" and rng.random() < 0.6:
        # Out of focus.
        picture = picture.reduce(int(rng.integers(2, 14))).resize((w, h), Image.Resampling.BILINEAR)
    return picture


def _near(rng: np.random.Generator, colour: Points, spread: float) -> Colour:
    return tuple(int(v) for v in np.clip(colour + rng.normal(0, spread, 3), 0, 255))


def _any(rng: np.random.Generator) -> Colour:
    """Return a random colour from the clothes' range, so that colour does not separate clothes from the background."""
    colour = np.array(list(COLOURS.values())[rng.integers(len(COLOURS))])
    return _near(rng, colour * rng.uniform(0.75, 1.1), 8)


def _furnish(rng: np.random.Generator, draw: ImageDraw.ImageDraw, w: int, floor: int) -> None:
    """Draw frames, doors, shelves and clothes on hangers, whose edges resemble a garment's."""
    for _ in range(int(rng.integers(2, 6))):
        x, width = rng.uniform(-0.1, 0.9) * w, rng.uniform(0.12, 0.35) * w
        kind = rng.integers(4)
        if kind == 0:
            y = rng.uniform(0.02, 0.4) * floor
            frame = (x, y, x + width, y + width * rng.uniform(0.7, 1.4))
            draw.rectangle(frame, fill=_any(rng), outline=_any(rng), width=6)
        elif kind == 1:
            draw.rectangle(
                (x, floor * rng.uniform(0.0, 0.2), x + width, floor),
                fill=_any(rng),
                outline=_any(rng),
                width=4,
            )
        elif kind == 2:
            y = rng.uniform(0.15, 0.8) * floor
            draw.rectangle((x, y, x + width * 1.5, y + 8), fill=_any(rng))
            for i in range(4):
                left, tall = x + i * width * 0.35, rng.uniform(0.1, 0.35) * width
                draw.rectangle((left, y - tall, left + width * 0.26, y), fill=_any(rng))
        else:
            y = rng.uniform(0.02, 0.45) * floor
            colour = _any(rng)
            shirt = np.array(
                [
                    (-0.15, 0),
                    (-0.5, 0.25),
                    (-0.38, 0.5),
                    (-0.27, 0.4),
                    (-0.3, 1.2),
                    (0.3, 1.2),
                    (0.27, 0.4),
                    (0.38, 0.5),
                    (0.5, 0.25),
                    (0.15, 0),
                    (0, 0.1),
                ]
            )
            outline = (shirt * width + [x + width / 2, y]).ravel().tolist()
            draw.polygon(outline, fill=colour, outline=darker(colour, 0.7))


def _street(rng: np.random.Generator, draw: ImageDraw.ImageDraw, w: int, floor: int) -> None:
    """Draw house fronts with windows, and bushes."""
    x = -rng.uniform(0, 0.2) * w
    while x < w:
        width = rng.uniform(0.2, 0.45) * w
        roof = rng.uniform(-0.1, 0.4) * floor
        wall = _any(rng)
        draw.rectangle((x, roof, x + width, floor), fill=wall)
        pane = darker(wall, rng.choice((0.6, 1.25)))
        for i in range(3):
            for j in range(4):
                left, top = x + width * (0.12 + 0.3 * i), roof + (floor - roof) * (0.06 + 0.24 * j)
                draw.rectangle((left, top, left + width * 0.16, top + (floor - roof) * 0.14), fill=pane)
        x += width * rng.uniform(1.0, 1.2)
    for _ in range(int(rng.integers(0, 4))):
        x, r = rng.uniform(0, 1) * w, rng.uniform(0.06, 0.16) * w
        green = (int(rng.integers(40, 110)), int(rng.integers(90, 150)), int(rng.integers(40, 90)))
        draw.ellipse((x - r, floor - 2 * r, x + r, floor + r * 0.2), fill=green)


def put_in_the_way(rng: np.random.Generator, canvas: Canvas, near: Points, size: float) -> None:
    """Occlude part of the garment with a bag, leaves or a plain object, of the given size in photo pixels."""
    colour = _any(rng)
    centre = near + rng.normal(0, size * 0.35, 2)
    kind = rng.integers(3)
    if kind == 0:
        w, h = size * rng.uniform(0.4, 0.6), size * rng.uniform(0.35, 0.5)
        bag = np.array([(-0.8, -1), (0.8, -1), (1, 1), (-1, 1)]) * [w, h] + centre
        handle = np.array([(-0.5, -1), (-0.4, -1.8), (0.4, -1.8), (0.5, -1)]) * [w, h] + centre
        canvas.line(handle, darker(colour, 0.6), size * 0.06, PERSON)
        canvas.fill(bag, colour, outline=darker(colour, 0.6))
        flap = np.array([(-0.8, -1), (0.8, -1), (0.7, 0.1), (-0.7, 0.1)]) * [w, h] + centre
        canvas.fill(flap, darker(colour, 0.88), outline=darker(colour, 0.6))
    elif kind == 1:
        for angle in rng.uniform(-0.9, 0.9, 5):
            tip = centre + size * np.array([np.sin(angle), -np.cos(angle)]) * rng.uniform(0.6, 1.0)
            side = (tip - centre)[::-1] * [0.16, -0.16]
            leaf = np.stack([centre, (centre + tip) / 2 + side, tip, (centre + tip) / 2 - side])
            green = (40, int(rng.integers(80, 150)), 50)
            canvas.fill(leaf, green, outline=darker(green, 0.7))
    else:
        w, h = size * rng.uniform(0.25, 0.5), size * rng.uniform(0.3, 0.6)
        canvas.fill(
            np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * [w, h] + centre,
            colour,
            outline=darker(colour, 0.7),
        )


def develop(rng: np.random.Generator, picture: Pixels) -> bytes:
    """Add lighting from one side, a colour cast, noise and blur, and encode as JPEG. Overwrites ``picture``."""
    height, width = picture.shape[:2]
    slope_x, slope_y = rng.normal(0, 0.05, 2)
    light = 1 + slope_x * np.linspace(-1, 1, width)[None, :] + slope_y * np.linspace(-1, 1, height)[:, None]
    cast = rng.uniform(0.94, 1.12) * (1 + rng.normal(0, 0.022, 3))
    picture *= light.astype(np.float32)[..., None]
    picture *= cast.astype(np.float32)
    noise = rng.integers(-128, 128, (height, width, 1), dtype=np.int8).astype(np.float32)
    picture += noise * np.float32(rng.uniform(0.0, 0.04))
    image = Image.fromarray(picture.clip(0, 255, out=picture).astype(np.uint8)).point(_tone_curve(rng) * 3)
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.3, 1.2)))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(rng.integers(60, 96)))
    return file.getvalue()


def _tone_curve(rng: np.random.Generator) -> list[int]:
    """Return a camera's output for each input 0 to 255: a random exposure and contrast that leave black and white."""
    value = (np.arange(256) / 255) ** rng.uniform(0.75, 1.5)
    steep = value * value * (3 - 2 * value)
    share = rng.uniform(-0.2, 0.9)
    return [round(v) for v in (255 * (value + (steep - value) * share)).tolist()]
