"""One rendered photo of a garment, with its annotation in the benchmarks' terms.

Three garment types, seen from the front, the side and the back, worn by a posed person or laid out alone, in front of
plain and cluttered backgrounds, partly covered or cut off. Everything is drawn (Pillow and numpy); nothing is a photograph.
"""

import dataclasses
import math

import numpy as np

from glefld.render_body import (
    HAIR_STYLES,
    Body,
    Camera,
    Figure,
    Points,
    Pose,
    draw_arm,
    draw_back_hair,
    draw_head,
    draw_leg,
    draw_torso,
    sample_body,
    sample_pose,
)
from glefld.render_canvas import OTHER_GARMENT, SUPERSAMPLING, TORSO, Canvas
from glefld.render_garment import SLEEVE_LENGTHS, Landmarks, Tailor
from glefld.render_scene import background, develop, put_in_the_way, texture
from glefld.render_wardrobe import Product, sample_product
from glefld.schema import FASHION8, VIEWS, Visibility

VIEW_SHARES = (0.65, 0.10, 0.25)
#: FLD variation_type: 1 normal, 2 medium pose, 3 large pose, 4 medium zoom-in, 5 large zoom-in.
VARIATION_SHARES = (0.50, 0.16, 0.12, 0.14, 0.08)
LONG_SIDE = 300
ASPECTS = (0.66, 0.75, 0.75, 0.8, 1.0, 1.2)
MIN_IN_PICTURE = 2


@dataclasses.dataclass(frozen=True)
class Photo:
    """A JPEG and its annotation; landmarks are [8, 2] whole pixels in FASHION8's order, visibility [8] codes."""

    jpeg: bytes
    width: int
    height: int
    box: tuple[int, int, int, int]
    landmarks: np.ndarray
    visibility: np.ndarray
    view: str
    variation: int


@dataclasses.dataclass(frozen=True)
class Scene:
    """All that a photo shows, but for the camera's place."""

    product: Product
    other: Product
    body: Body
    pose: Pose
    view: str
    variation: int
    worn: bool
    tucked: bool
    light: float


def render_photo(rng: np.random.Generator, product: Product, view: str | None = None) -> Photo:
    """Photograph a product once; the view is one of ``schema.VIEWS``, at random if none is given."""
    view = view or str(rng.choice(VIEWS, p=VIEW_SHARES))
    variation = int(rng.choice((1, 2, 3, 4, 5), p=VARIATION_SHARES))
    code = product.garment.code
    scene = Scene(
        product=product,
        other=sample_product(rng, {1: 2, 2: 1, 3: 2}[code]),
        body=sample_body(rng),
        pose=sample_pose(rng, view, variation),
        view=view,
        variation=variation,
        worn=bool(rng.random() < 0.88),
        tucked=bool(rng.random() < 0.8),
        light=float(rng.uniform(-1, 1)),
    )
    height, width = LONG_SIDE, LONG_SIDE
    aspect = ASPECTS[rng.integers(len(ASPECTS))]
    if aspect < 1:
        width = round(LONG_SIDE * aspect)
    else:
        height = round(LONG_SIDE / aspect)
    camera = frame(rng, scene, width, height)
    kind = str(rng.choice(("studio", "wall", "room", "street"), p=(0.38, 0.2, 0.27, 0.15)))
    canvas = Canvas(background(rng, width, height, kind))
    landmarks = draw_scene(canvas, scene, camera)
    present = FASHION8.garment_type(code).landmarks
    if rng.random() < 0.15:
        near = landmarks.points[present[rng.integers(len(present))]]
        put_in_the_way(rng, canvas, near, camera.scale * rng.uniform(0.5, 1.0))
    textures = {OTHER_GARMENT: _texture(scene.other, camera.scale)}
    textures |= dict.fromkeys(range(TORSO, OTHER_GARMENT), _texture(product, camera.scale))
    picture = canvas.finish(textures, softness=max(0.8, camera.scale * 0.035))
    points, visibility = annotate(canvas, landmarks, present)
    return Photo(
        jpeg=develop(rng, picture),
        width=width,
        height=height,
        box=bounding_box(rng, canvas, points[visibility < Visibility.CUT_OFF]),
        landmarks=points,
        visibility=visibility,
        view=view,
        variation=variation,
    )


def _texture(product: Product, scale: float) -> np.ndarray:
    rng = np.random.default_rng(product.texture_seed)
    garment = product.garment
    return texture(rng, product.pattern, product.fabric, garment.colour, garment.accent, scale)


def draw_scene(canvas: Canvas, scene: Scene, camera: Camera) -> Landmarks:
    """Draw the person and what they wear, furthest first; the landmarks of the scene's product."""
    figure = Figure(scene.body, scene.pose, camera)
    tailor = Tailor(canvas, figure, scene.product.garment, scene.light, target=True, worn=scene.worn)
    other = Tailor(canvas, figure, scene.other.garment, scene.light, target=False, worn=scene.worn)
    code = scene.product.garment.code
    top, bottom = (other, tailor) if code == 2 else (tailor, tailor if code == 3 else other)
    arm_depth = figure.depth(figure.arms[:, 1:].mean(1))
    far = [side for side in (0, 1) if arm_depth[side] < -0.12]
    legs = np.argsort(figure.depth(figure.legs[:, 1]))

    def dress_arm(side: int) -> None:
        if scene.worn:
            draw_arm(canvas, figure, side)
        if scene.worn or top is tailor:
            top.draw_sleeve(side)

    def dress_bottom() -> None:
        if bottom.garment.legs:
            bottom.draw_trousers()
        elif bottom.garment.code == 2:
            bottom.draw_skirt()

    if scene.worn:
        draw_back_hair(canvas, figure)
    for side in far:
        dress_arm(side)
    if scene.worn:
        for side in legs:
            draw_leg(canvas, figure, int(side))
        draw_torso(canvas, figure)
    over = code == 2 and scene.tucked
    if scene.worn and over:
        top.draw_bodice()
    if scene.worn or bottom is tailor:
        dress_bottom()
    if (scene.worn or top is tailor) and not over:
        top.draw_bodice()
    for side in (0, 1):
        if side not in far:
            dress_arm(side)
    if scene.worn:
        draw_head(canvas, figure)
    return tailor.landmarks


def frame(rng: np.random.Generator, scene: Scene, width: int, height: int) -> Camera:
    """Where the camera stands: the whole garment somewhere in the picture, or for a zoom-in a part of it."""
    angle = float(rng.normal(0, 0.05 if scene.variation == 3 else 0.025))
    reach = extent(Figure(scene.body, scene.pose, Camera(angle=angle)), scene)
    low, high = reach.min(0), reach.max(0)
    size = high - low
    fit = float(min(width / size[0], height / size[1]))
    shares = {4: (1.05, 1.35), 5: (1.4, 1.9)}.get(scene.variation, (0.5, 0.95))
    scale = fit * rng.uniform(*shares)
    room = np.array([width, height]) - size * scale
    margin = 0.02 * LONG_SIDE
    while True:
        # Where the garment is larger than the picture the room is negative, and what is cut off is at random.
        corner = rng.uniform(np.minimum(room - margin, margin), np.maximum(room - margin, margin))
        offset = corner - low * scale
        seen = reach * scale + offset
        inside = np.all((seen > margin) & (seen < [width - margin, height - margin]), axis=1)
        if inside.sum() >= min(2 * MIN_IN_PICTURE, len(reach) - 1):
            return Camera(scale, angle, float(offset[0]), float(offset[1]))
        scale *= 0.97
        room = np.array([width, height]) - size * scale


def extent(figure: Figure, scene: Scene) -> Points:
    """Points [n, 2] that the scene's product reaches to, in the figure's camera."""
    garment = scene.product.garment
    points = []
    if garment.code != 2:
        points += [figure.at(g * figure.body.shoulder, 0.0) for g in (-1, 1)]
        if SLEEVE_LENGTHS[garment.sleeve] > 0:
            points += list(figure.project(figure.arms[:, 1]))
        if SLEEVE_LENGTHS[garment.sleeve] > 1:
            points += list(figure.project(figure.arms[:, 2]))
    else:
        points += [figure.at(g * figure.body.hip, garment.top) for g in (-1, 1)]
    if garment.legs:
        points += list(figure.project(figure.legs[:, 1 if garment.legs <= 1 else 2]))
    else:
        y = np.array([garment.hem])
        width = garment.half_width(figure.body, y)
        points += [figure.outline(p, y, width, width * figure.body.depth)[0] for p in (-1.0, 1.0)]
    return np.stack(points)


def annotate(canvas: Canvas, landmarks: Landmarks, present: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Whole-pixel landmarks [8, 2] and their visibility [8], read from what was painted last at each."""
    owners = canvas.owners()
    points = np.zeros((8, 2), dtype=np.int64)
    visibility = np.full(8, Visibility.ABSENT, dtype=np.int64)
    for index in present:
        x, y = (math.floor(v) for v in landmarks.points[index])
        if not (1 <= x < canvas.width and 1 <= y < canvas.height):
            visibility[index] = Visibility.CUT_OFF
            continue
        points[index] = x, y
        s = SUPERSAMPLING
        around = owners[max(y - 1, 0) * s : (y + 2) * s, max(x - 1, 0) * s : (x + 2) * s]
        on_part = (around == landmarks.part[index]).mean() > 0.25
        shows = landmarks.facing[index] and on_part
        visibility[index] = Visibility.VISIBLE if shows else Visibility.OCCLUDED
    return points, visibility


def bounding_box(rng: np.random.Generator, canvas: Canvas, points: np.ndarray) -> tuple[int, int, int, int]:
    """The box round what shows of the garment and its landmarks, drawn as loosely as an annotator does."""
    owners = canvas.owners()
    garment = (owners >= TORSO) & (owners < OTHER_GARMENT)
    rows, columns = np.flatnonzero(garment.any(1)), np.flatnonzero(garment.any(0))
    ends = np.array([[columns[0], rows[0]], [columns[-1], rows[-1]]]) // SUPERSAMPLING
    low = np.minimum(ends[0], points.min(0, initial=canvas.width)) - rng.integers(0, 5, 2)
    high = np.maximum(ends[1], points.max(0, initial=0)) + 1 + rng.integers(0, 5, 2)
    x1, y1 = (max(int(v), 1) for v in low)
    return x1, y1, min(int(high[0]), canvas.width), min(int(high[1]), canvas.height)
