"""DeepFashion2's landmarks of rendered garments: pairs change places in a mirror, visible ones are on the cloth."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from glefld.datasets.deepfashion2_landmarks import CATEGORIES, DEEPFASHION2
from glefld.synthetic.render.body import Camera, Figure, Pose, sample_body, sample_pose
from glefld.synthetic.render.canvas import Canvas
from glefld.synthetic.render.cloth import Cloth
from glefld.synthetic.render.dense import Spot, category_of, dense_landmarks
from glefld.synthetic.render.outfit import outline_polygons, render_outfits, sample_worn

WIDTH, HEIGHT = 300, 400
NAMES = [name for name, _ in CATEGORIES]


def spots(cloth: Cloth) -> list[Spot]:
    category = category_of(cloth.garment, cloth.figure.body)
    assert category is not None
    return dense_landmarks(cloth, category)


def mirrored(pose: Pose) -> Pose:
    """What the person does in a mirror: arms and legs change sides."""
    limbs = {
        name: getattr(pose, name)[::-1] * [-1, 1, 1] for name in ("upper_arms", "forearms", "thighs", "shins")
    }
    turned = {name: -getattr(pose, name) for name in ("yaw", "lean", "sway", "shoulder_slope", "hip_slope")}
    return dataclasses.replace(pose, **turned, **limbs)


@pytest.mark.parametrize("view", ["front", "side", "back"])
def test_a_mirror_swaps_the_pairs(view: str) -> None:
    """The mirror image of a person has each landmark where the person has its partner, seen as well or as badly."""
    found = set()
    for seed in range(150):
        rng = np.random.default_rng((seed, 1))
        body = sample_body(rng)
        garment = sample_worn(rng, body).garment
        pose = sample_pose(rng, view, 1 + seed % 3)
        canvas = Canvas(Image.new("RGB", (2 * WIDTH, 2 * HEIGHT)))
        cloth, twin = (
            Cloth(canvas, Figure(body, p, camera), garment, light=0.0, target=True, worn=True, base=0)
            for p, camera in (
                (pose, Camera(50, 0.05, 140, 90)),
                (mirrored(pose), Camera(50, -0.05, WIDTH - 140, 90)),
            )
        )
        category = category_of(garment, body)
        found.add(category)
        own = DEEPFASHION2.garment_type(NAMES.index(str(category)) + 1).landmarks
        partner = [DEEPFASHION2.mirror[slot] - own[0] for slot in own]
        here, there = spots(cloth), spots(twin)
        flipped = np.array([spot.point for spot in here])[partner]
        flipped[:, 0] = WIDTH - flipped[:, 0]
        np.testing.assert_allclose([spot.point for spot in there], flipped, atol=1e-9)
        assert [spot.facing for spot in there] == [here[i].facing for i in partner]
    assert len(found) >= 12


def test_left_of_the_dense_landmarks_is_the_garments_left() -> None:
    """A pair's first landmark is on the picture's left in front, on its right behind."""
    for view, sign in (("front", 1), ("back", -1)):
        for seed in range(30):
            rng = np.random.default_rng((seed, 2))
            body = sample_body(rng)
            garment = sample_worn(rng, body).garment
            figure = Figure(body, sample_pose(rng, view, 1), Camera(50, 0, 150, 90))
            canvas = Canvas(Image.new("RGB", (2, 2)))
            cloth = Cloth(canvas, figure, garment, light=0.0, target=True, worn=True, base=0)
            points = spots(cloth)
            first, second = (0, 2) if garment.code == 2 else (1, 5)
            assert sign * (points[second].point[0] - points[first].point[0]) > 0


def test_most_landmarks_show_and_none_jumps_about() -> None:
    """Of the landmarks in the picture most are visible, in each category that turns up; the others hide behind."""
    shown: dict[str, list[float]] = {}
    for seed in range(60):
        photo = render_outfits(np.random.default_rng((seed, 3)))
        assert max(Image.open(io.BytesIO(photo.jpeg)).size) == 300
        for garment in photo.garments:
            labelled = garment.labels[garment.labels > 0]
            shown.setdefault(garment.category, []).append(float((labelled == 2).mean()))
    assert np.mean([np.mean(v) for v in shown.values()]) > 0.6
    assert len(shown) >= 9


def test_polygons_go_round_the_mask() -> None:
    """A rectangle at the picture's edge and another apart from it: their areas, and corners in annotated pixels."""
    mask = np.zeros((120, 160), bool)
    mask[0:60, 0:80] = True
    mask[80:100, 100:140] = True
    polygons = sorted(outline_polygons(mask), key=len, reverse=True)
    assert len(polygons) == 2
    first = np.array(polygons[0]).reshape(-1, 2)
    # 40 x 30 photo pixels from 0: pixel centres 0 to 39 and 0 to 29, the edge half a pixel outside.
    np.testing.assert_allclose(first.min(axis=0), [-0.5, -0.5], atol=0.01)
    np.testing.assert_allclose(first.max(axis=0), [39.5, 29.5], atol=0.01)
    x, y = first.T
    area = abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
    assert area == pytest.approx(1200, rel=0.01)
