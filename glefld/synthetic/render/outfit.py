"""Rendering one photo of one or two people, with each garment annotated as in DeepFashion2.

All 13 categories occur. Slings are sleeveless tops or dresses with narrower straps, and short sleeve outwear is made
from jackets by shortening the sleeves. A person has either a dress or an upper and a lower garment annotated.
"""

import dataclasses

import numpy as np
from contourpy import FillType, contour_generator
from numpy.typing import NDArray

from glefld.schema import VIEWS
from glefld.synthetic.render.body import Body, sample_body, sample_pose
from glefld.synthetic.render.canvas import GARMENT, OTHER_GARMENT, SUPERSAMPLING, TORSO, Canvas, Pixels
from glefld.synthetic.render.cloth import Cloth
from glefld.synthetic.render.dense import SLING_STRAP, Spot, category_of, dense_landmarks
from glefld.synthetic.render.photo import (
    ASPECTS,
    BACKGROUND_SHARES,
    BACKGROUNDS,
    LONG_SIDE,
    VARIATION_SHARES,
    VIEW_SHARES,
    Scene,
    cloth_texture,
    draw_scene,
    place_camera,
)
from glefld.synthetic.render.scene import background, creases, develop, put_in_the_way
from glefld.synthetic.render.wardrobe import Product, sample_product

TWO_PEOPLE, WIDE = 0.2, 1.25
#: Smaller garments are not annotated: minimum pixels of the mask, and minimum landmarks in the picture.
LEAST_PIXELS, LEAST_LANDMARKS = 200, 3
VISIBLE, OCCLUDED, UNLABELLED = 2, 1, 0
CLOSED = 79  # contourpy's code of a polygon's last point


@dataclasses.dataclass(frozen=True)
class WornGarment:
    """One annotated garment: the n landmarks of its category, and polygons x1 y1 x2 y2 ... of its visible mask."""

    category: str
    box: tuple[int, int, int, int]
    landmarks: NDArray[np.int64]  # [n, 2] whole pixels, 0 where unlabelled
    labels: NDArray[np.int64]  # [n] 2 visible, 1 occluded, 0 not in the picture
    polygons: list[list[float]]
    view: str
    worn: bool
    variation: int


@dataclasses.dataclass(frozen=True)
class OutfitPhoto:
    """A JPEG and its annotated garments."""

    jpeg: bytes
    width: int
    height: int
    garments: tuple[WornGarment, ...]


def render_outfits(rng: np.random.Generator) -> OutfitPhoto:
    """Render one person or two side by side; repeat until at least one garment can be annotated."""
    while not (photo := _render(rng)).garments:
        pass
    return photo


def _render(rng: np.random.Generator) -> OutfitPhoto:
    people = 2 if rng.random() < TWO_PEOPLE else 1
    aspect = WIDE if people == 2 else ASPECTS[rng.integers(len(ASPECTS))]
    width, height = round(LONG_SIDE * min(aspect, 1)), round(LONG_SIDE / max(aspect, 1))
    canvas = Canvas(background(rng, width, height, str(rng.choice(BACKGROUNDS, p=BACKGROUND_SHARES))))
    shown: list[tuple[Cloth, Scene, str]] = []
    textures: dict[int, Pixels] = {}
    scale = 0.0
    for person in range(people):
        view = str(rng.choice(VIEWS, p=VIEW_SHARES))
        # No zoom-ins with two people.
        variation = int(rng.choice((1, 2, 3, 4, 5), p=VARIATION_SHARES)) if people == 1 else 1
        scene = _sample_scene(rng, view, variation)
        camera = place_camera(rng, scene, width // people, height)
        camera = dataclasses.replace(camera, x=camera.x + person * width / people)
        scale = max(scale, camera.scale)
        first = 2 * person * GARMENT
        cloths = draw_scene(canvas, scene, camera, (first, first + GARMENT))
        for cloth, product in zip(cloths, (scene.product, scene.other), strict=True):
            shown.append((cloth, scene, view))
            textures |= dict.fromkeys(_parts(cloth), cloth_texture(product, camera.scale))
    spots = [dense_landmarks(cloth, _category(cloth)) for cloth, _, _ in shown]
    if rng.random() < 0.15:
        near = spots[0][rng.integers(len(spots[0]))].point
        put_in_the_way(rng, canvas, near, scale * rng.uniform(0.5, 1.0))
    relief = creases(rng, width, height, scale)
    picture = canvas.finish(textures, relief, softness=max(0.8, scale * 0.035))
    garments = [
        _annotate(rng, canvas, cloth, scene, view, landmarks)
        for (cloth, scene, view), landmarks in zip(shown, spots, strict=True)
    ]
    jpeg = develop(rng, picture)
    return OutfitPhoto(jpeg, width, height, tuple(garment for garment in garments if garment is not None))


def _sample_scene(rng: np.random.Generator, view: str, variation: int) -> Scene:
    body = sample_body(rng)
    product = sample_worn(rng, body)
    return Scene(
        product=product,
        other=sample_worn(rng, body, 1 if product.garment.code == 2 else 2),
        body=body,
        pose=sample_pose(rng, view, variation),
        variation=variation,
        # A garment laid out flat has no side view.
        worn=bool(view == "side" or rng.random() < 0.93),
        tucked=bool(rng.random() < 0.8),
        light=float(rng.uniform(-1, 1)),
    )


def sample_worn(rng: np.random.Generator, body: Body, code: int | None = None) -> Product:
    """Draw a random product, of a clothes_type if given, that has one of the 13 categories on this body."""
    while True:
        product = sample_product(rng, code)
        garment = product.garment
        if garment.code != 2 and garment.sleeve == "none" and rng.random() < 0.5:
            strap = (garment.neck_width + rng.uniform(0.5, 0.95) * SLING_STRAP) / body.shoulder
            garment = dataclasses.replace(garment, strap=float(strap))
        elif garment.category == "Jacket" and rng.random() < 0.5:
            garment = dataclasses.replace(garment, sleeve="short", cuff=float(rng.uniform(0.2, 0.24)))
        if category_of(garment, body) is not None:
            return dataclasses.replace(product, garment=garment)


def _category(cloth: Cloth) -> str:
    category = category_of(cloth.garment, cloth.figure.body)
    assert category is not None, cloth.garment
    return category


def _parts(cloth: Cloth) -> range:
    return range(cloth.part(TORSO), cloth.part(OTHER_GARMENT))


def _annotate(
    rng: np.random.Generator, canvas: Canvas, cloth: Cloth, scene: Scene, view: str, spots: list[Spot]
) -> WornGarment | None:
    """Return a garment's annotation; None if too little of it is visible."""
    owners = canvas.owners()
    parts = _parts(cloth)
    mask = (owners >= parts.start) & (owners < parts.stop)
    landmarks, labels = _label(canvas, owners, spots)
    if mask.sum() < LEAST_PIXELS * SUPERSAMPLING**2 or (labels > UNLABELLED).sum() < LEAST_LANDMARKS:
        return None
    return WornGarment(
        category=_category(cloth),
        box=bounding_box(rng, canvas, landmarks[labels > UNLABELLED], parts),
        landmarks=landmarks,
        labels=labels,
        polygons=outline_polygons(mask),
        view=view,
        worn=scene.worn,
        variation=scene.variation,
    )


def _label(
    canvas: Canvas, owners: NDArray[np.uint8], spots: list[Spot]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return landmarks [n, 2] in whole pixels and their labels [n], from the owner of the pixel at each."""
    points = np.floor([spot.point for spot in spots]).astype(np.int64)
    labels = np.full(len(spots), OCCLUDED)
    inside: NDArray[np.bool_] = np.all((points >= 1) & (points < (canvas.width, canvas.height)), axis=1)
    for i, spot in enumerate(spots):
        x, y = points[i]
        s = SUPERSAMPLING
        around = owners[(y - 1) * s : (y + 2) * s, (x - 1) * s : (x + 2) * s]
        if inside[i] and spot.facing and np.isin(around, spot.parts).mean() > 0.25:
            labels[i] = VISIBLE
    labels[~inside] = UNLABELLED
    points[~inside] = 0
    return points, labels


def bounding_box(
    rng: np.random.Generator, canvas: Canvas, points: NDArray[np.int64], parts: range
) -> tuple[int, int, int, int]:
    """Return the box around the visible garment and its landmarks [n, 2], as loose as an annotator draws it."""
    owners = canvas.owners()
    garment = (owners >= parts.start) & (owners < parts.stop)
    rows, columns = np.flatnonzero(garment.any(1)), np.flatnonzero(garment.any(0))
    ends = np.array([[columns[0], rows[0]], [columns[-1], rows[-1]]]) // SUPERSAMPLING
    low = np.minimum(ends[0], points.min(0)) - rng.integers(0, 5, 2)
    high = np.maximum(ends[1], points.max(0)) + 1 + rng.integers(0, 5, 2)
    x1, y1 = (max(int(v), 1) for v in low)
    return x1, y1, min(int(high[0]), canvas.width), min(int(high[1]), canvas.height)


def outline_polygons(mask: NDArray[np.bool_]) -> list[list[float]]:
    """Return polygons x1 y1 x2 y2 ... around a supersampled mask, in annotated pixels; holes are filled."""
    s = SUPERSAMPLING
    height, width = mask.shape
    cover = mask.astype(np.float64).reshape(height // s, s, width // s, s).mean(axis=(1, 3))
    # Pad with background, so that every contour closes.
    generator = contour_generator(z=np.pad(cover, 1), fill_type=FillType.OuterCode)
    polygons = []
    for points, codes in zip(*generator.filled(0.5, 2.0), strict=True):
        outer = points[: int((codes == CLOSED).argmax())] - 1
        # Neighbouring points are about half a pixel apart, so every third is enough.
        thinned = outer[::3].round(1)
        if len(thinned) >= 3:
            polygons.append(thinned.ravel().tolist())
    return polygons
