"""Rendering one photo of a garment, annotated as in FLD and DeepFashion.

There are three garment types, seen from the front, the side and the back. They are worn by a posed person or laid out
flat, before plain or cluttered backgrounds, and may be partly occluded or cut off. Everything is drawn with Pillow and
numpy; no photographs are used.
"""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from glefld.schema import FASHION8, VIEWS, Visibility
from glefld.synthetic.render.body import (
    Body,
    Camera,
    Figure,
    Pose,
    draw_arm,
    draw_back_hair,
    draw_head,
    draw_leg,
    draw_torso,
    sample_body,
    sample_pose,
)
from glefld.synthetic.render.canvas import OTHER_GARMENT, SUPERSAMPLING, TORSO, Canvas, Pixels, Points
from glefld.synthetic.render.cloth import Cloth, Landmarks
from glefld.synthetic.render.garment import draw_bodice, draw_skirt, draw_sleeve, draw_trousers, extent
from glefld.synthetic.render.scene import background, creases, develop, put_in_the_way, texture
from glefld.synthetic.render.wardrobe import Product, sample_product

VIEW_SHARES = (0.80, 0.08, 0.12)
#: Shares of FLD's variation types: 1 normal, 2 medium pose, 3 large pose, 4 medium zoom-in, 5 large zoom-in.
VARIATION_SHARES = (0.50, 0.16, 0.12, 0.14, 0.08)
#: Size of a zoomed-in garment, relative to the largest size that fits the picture.
ZOOM = {4: (1.05, 1.35), 5: (1.4, 1.9)}
LONG_SIDE = 300
ASPECTS = (0.66, 0.75, 0.75, 0.8, 1.0, 1.2)
#: How far a box reaches beyond its landmarks, as a share of their extent in x and y, as measured in DeepFashion's fine
#: lists: .20 and .10, exact to a pixel. It is at least so many pixels.
BOX_MARGIN, LEAST_MARGIN = (0.20, 0.10), 4
#: The parts of the annotated garment.
PARTS = range(TORSO, OTHER_GARMENT)
BACKGROUNDS, BACKGROUND_SHARES = ("studio", "wall", "room", "street"), (0.66, 0.12, 0.12, 0.10)


@dataclasses.dataclass(frozen=True)
class Photo:
    """A JPEG and its annotation: landmarks [8, 2] in whole pixels and visibility [8], in FASHION8's order."""

    jpeg: bytes
    width: int
    height: int
    box: tuple[int, int, int, int]
    landmarks: NDArray[np.int64]
    visibility: NDArray[np.int64]
    view: str
    variation: int


@dataclasses.dataclass(frozen=True)
class Scene:
    """The content of a photo, without the camera; ``other`` is the garment the person wears besides the product."""

    product: Product
    other: Product
    body: Body
    pose: Pose
    variation: int
    worn: bool
    tucked: bool
    light: float


def render_photo(rng: np.random.Generator, product: Product, view: str | None = None) -> Photo:
    """Render one photo of a product from one of ``schema.VIEWS``, by default a random one.

    Repeat until a landmark is visible.
    """
    while not ((photo := _render(rng, product, view)).visibility == Visibility.VISIBLE).any():
        pass
    return photo


def _render(rng: np.random.Generator, product: Product, view: str | None) -> Photo:
    view = view or str(rng.choice(VIEWS, p=VIEW_SHARES))
    variation = int(rng.choice((1, 2, 3, 4, 5), p=VARIATION_SHARES))
    code = product.garment.code
    scene = Scene(
        product=product,
        other=sample_product(rng, 1 if code == 2 else 2),
        body=sample_body(rng),
        pose=sample_pose(rng, view, variation),
        variation=variation,
        # A garment laid out flat has no side view.
        worn=bool(view == "side" or rng.random() < 0.88),
        tucked=bool(rng.random() < 0.8),
        light=float(rng.uniform(-1, 1)),
    )
    aspect = ASPECTS[rng.integers(len(ASPECTS))]
    width, height = round(LONG_SIDE * min(aspect, 1)), round(LONG_SIDE / max(aspect, 1))
    camera = place_camera(rng, scene, width, height)
    kind = str(rng.choice(BACKGROUNDS, p=BACKGROUND_SHARES))
    canvas = Canvas(background(rng, width, height, kind))
    landmarks = draw_scene(canvas, scene, camera)[0].landmarks
    present = FASHION8.garment_type(code).landmarks
    if rng.random() < 0.15:
        near = landmarks.points[present[rng.integers(len(present))]]
        put_in_the_way(rng, canvas, near, camera.scale * rng.uniform(0.5, 1.0))
    textures = dict.fromkeys(PARTS, cloth_texture(product, camera.scale))
    if OTHER_GARMENT in canvas.frames:
        textures[OTHER_GARMENT] = cloth_texture(scene.other, camera.scale)
    relief = creases(rng, width, height, camera.scale)
    picture = canvas.finish(textures, relief, softness=max(0.8, camera.scale * 0.035))
    points, visibility = annotate(canvas, landmarks, present)
    return Photo(
        jpeg=develop(rng, picture),
        width=width,
        height=height,
        box=landmark_box(landmarks.points[list(present)], width, height),
        landmarks=points,
        visibility=visibility,
        view=view,
        variation=variation,
    )


def cloth_texture(product: Product, scale: float) -> Pixels:
    """Return a product's texture, which is added to its colour; scale is in pixels per head height."""
    rng = np.random.default_rng(product.texture_seed)
    garment = product.garment
    return texture(rng, product.pattern, product.fabric, garment.colour, garment.accent, scale)


def draw_scene(
    canvas: Canvas, scene: Scene, camera: Camera, bases: tuple[int | None, int | None] = (0, None)
) -> tuple[Cloth, Cloth]:
    """Draw the person and both garments back to front; return the product's cloth and the other garment's.

    ``bases`` are the part number bases of the two garments, as in ``Cloth``.
    """
    figure = Figure(scene.body, scene.pose, camera)
    shown, other = (
        Cloth(
            canvas,
            figure,
            product.garment,
            light=scene.light,
            target=product is scene.product,
            worn=scene.worn,
            base=base,
        )
        for product, base in zip((scene.product, scene.other), bases, strict=True)
    )
    code = shown.garment.code
    top, bottom = (other, shown) if code == 2 else (shown, shown if code == 3 else other)
    arm_depth = figure.depth(figure.arms[:, 1:].mean(1))
    far = [side for side in (0, 1) if arm_depth[side] < -0.12]
    near = [side for side in (0, 1) if side not in far]
    if scene.worn:
        draw_back_hair(canvas, figure)
    _dress_arms(top, far)
    if scene.worn:
        for side in np.argsort(figure.depth(figure.legs[:, 1])).tolist():
            draw_leg(canvas, figure, side)
        draw_torso(canvas, figure)
    layers = [(_dress_legs, bottom), (_dress_torso, top)]
    if code == 2 and scene.tucked:
        layers.reverse()
    for dress, cloth in layers:
        dress(cloth)
    _dress_arms(top, near)
    if scene.worn:
        draw_head(canvas, figure)
    return shown, other


def _dress_arms(top: Cloth, sides: list[int]) -> None:
    for side in sides:
        if top.worn:
            draw_arm(top.canvas, top.figure, side)
        if top.worn or top.target:
            draw_sleeve(top, side)


def _dress_torso(top: Cloth) -> None:
    if top.worn or top.target:
        draw_bodice(top)


def _dress_legs(bottom: Cloth) -> None:
    if not (bottom.worn or bottom.target):
        return
    if bottom.garment.legs:
        draw_trousers(bottom)
    elif bottom.garment.code == 2:
        draw_skirt(bottom)


def place_camera(rng: np.random.Generator, scene: Scene, width: int, height: int) -> Camera:
    """Place the camera so that the whole garment is in the picture, or only a part of it when zoomed in."""
    angle = float(rng.normal(0, 0.05 if scene.variation == 3 else 0.025))
    figure = Figure(scene.body, scene.pose, Camera(angle=angle))
    reach = extent(scene.product.garment, figure)
    low, high = reach.min(0), reach.max(0)
    picture, size = np.array([width, height]), high - low
    margin = 0.02 * LONG_SIDE
    scale = float(np.min(picture / size)) * rng.uniform(*ZOOM.get(scene.variation, (0.42, 0.88)))
    while True:
        # If the garment is larger than the picture, chance decides what is cut off.
        room = picture - size * scale
        corner = rng.uniform(np.minimum(room - margin, margin), np.maximum(room - margin, margin))
        offset = corner - low * scale
        seen = reach * scale + offset
        if np.all((seen > margin) & (seen < picture - margin), axis=1).sum() >= len(reach) // 2:
            return Camera(scale, angle, float(offset[0]), float(offset[1]))
        scale *= 0.97


def annotate(
    canvas: Canvas, landmarks: Landmarks, present: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return landmarks [8, 2] in whole pixels and their visibility [8], from the owner of the pixel at each."""
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
        around = owners[(y - 1) * s : (y + 2) * s, (x - 1) * s : (x + 2) * s]
        shows = landmarks.facing[index] and (around == landmarks.part[index]).mean() > 0.25
        visibility[index] = Visibility.VISIBLE if shows else Visibility.OCCLUDED
    return points, visibility


def landmark_box(points: Points, width: int, height: int) -> tuple[int, int, int, int]:
    """Return DeepFashion's box of landmarks [n, 2], hidden ones too: their extent and a margin, within the picture."""
    low, high = points.min(0), points.max(0)
    margin = np.maximum(np.multiply(BOX_MARGIN, high - low), LEAST_MARGIN)
    x1, y1 = np.floor(low - margin).astype(int).clip(1)
    x2, y2 = np.ceil(high + margin).astype(int).clip(max=(width, height))
    return int(x1), int(y1), int(x2), int(y2)
