"""Rendered photos: their annotation says what the picture shows."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from glefld.schema import FASHION8, Visibility
from glefld.synthetic.render.photo import LONG_SIDE, Photo, render_photo
from glefld.synthetic.render.wardrobe import Product, sample_product

PAIRS = {FASHION8.landmarks[left][5:]: (left, left + 1) for left in (0, 2, 4, 6)}


def photos(count: int, seed: int, view: str | None = None) -> list[tuple[Product, Photo]]:
    drawn = []
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        product = sample_product(rng)
        drawn.append((product, render_photo(rng, product, view)))
    return drawn


@pytest.fixture(scope="module")
def many() -> list[tuple[Product, Photo]]:
    return photos(120, seed=11)


def test_the_same_random_state_draws_the_same_bytes() -> None:
    """Data sets must come out the same wherever and whenever they are made."""
    first, again, other = photos(3, seed=5), photos(3, seed=5), photos(3, seed=6)
    assert [photo.jpeg for _, photo in first] == [photo.jpeg for _, photo in again]
    assert all(a.jpeg != b.jpeg for (_, a), (_, b) in zip(first, other, strict=True))


def test_the_picture_has_the_stated_size(many: list[tuple[Product, Photo]]) -> None:
    """The benchmark's photos have a long side of 300 pixels."""
    for _, photo in many:
        assert Image.open(io.BytesIO(photo.jpeg)).size == (photo.width, photo.height)
        assert max(photo.width, photo.height) == LONG_SIDE


def test_landmarks_lie_in_the_box_and_the_box_in_the_picture(many: list[tuple[Product, Photo]]) -> None:
    """Boxes begin at 1 and end at the picture's size at most, as the benchmark's do; no row is bad by accident."""
    for _, photo in many:
        x1, y1, x2, y2 = photo.box
        assert 1 <= x1 < x2 <= photo.width
        assert 1 <= y1 < y2 <= photo.height
        there = photo.landmarks[photo.visibility < Visibility.CUT_OFF]
        assert len(there) >= 1
        assert ((there >= (x1, y1)) & (there < (x2, y2))).all()


def test_boxes_are_drawn_as_the_benchmarks_are(many: list[tuple[Product, Photo]]) -> None:
    """A fifth of the landmarks' width beyond them and a tenth of their height, hidden ones too, within the picture."""
    seen = 0
    for _, photo in many:
        if (photo.visibility == Visibility.CUT_OFF).any():
            continue
        points = photo.landmarks[photo.visibility < Visibility.CUT_OFF]
        low, high = points.min(0), points.max(0)
        margin = np.maximum((high - low) * (0.2, 0.1), 4)
        x1, y1, x2, y2 = photo.box
        size = (photo.width, photo.height)
        np.testing.assert_allclose((x1, y1), (low - margin).clip(1), atol=2)
        np.testing.assert_allclose((x2, y2), (high + margin).clip(max=size), atol=2)
        seen += (photo.visibility == Visibility.OCCLUDED).any()
    assert seen > 10


def test_each_type_has_its_landmarks(many: list[tuple[Product, Photo]]) -> None:
    """A slot that the garment's type does not have is absent, never cut off, and the other way round."""
    for product, photo in many:
        present = set(FASHION8.garment_type(product.garment.code).landmarks)
        assert {i for i in range(8) if photo.visibility[i] != Visibility.ABSENT} == present


@pytest.mark.parametrize(("view", "left_first"), [("front", True), ("back", False)])
def test_left_is_the_garments_left(view: str, left_first: bool) -> None:
    """In a frontal view the left landmark is on the picture's left, from behind on its right."""
    compared = 0
    for _, photo in photos(30, seed=3, view=view):
        for name in ("collar", "waistline", "hem"):
            left, right = PAIRS[name]
            if (photo.visibility[[left, right]] < Visibility.CUT_OFF).all():
                compared += 1
                assert (photo.landmarks[left, 0] < photo.landmarks[right, 0]) == left_first, name
    assert compared > 30


def test_from_the_side_only_one_of_a_pair_shows() -> None:
    """What is on the far side of the body is occluded."""
    hidden = 0
    for _, photo in photos(20, seed=4, view="side"):
        for name in ("collar", "waistline", "hem"):
            pair = photo.visibility[list(PAIRS[name])]
            assert (pair == Visibility.VISIBLE).sum() <= 1, name
            hidden += (pair == Visibility.OCCLUDED).sum()
    assert hidden > 20


def test_visible_landmarks_are_on_the_cloth() -> None:
    """A garment in a green that nothing else has is green at each visible landmark."""
    seen = 0
    for index in range(30):
        rng = np.random.default_rng((8, index))
        product = sample_product(rng)
        green = (20, 200, 20)
        garment = dataclasses.replace(product.garment, colour=green, accent=green, graphic=0)
        product = dataclasses.replace(product, garment=garment, pattern="solid", fabric="leather")
        photo = render_photo(rng, product)
        picture = np.asarray(Image.open(io.BytesIO(photo.jpeg)).convert("RGB"), dtype=int)
        greenness = picture[..., 1] - np.maximum(picture[..., 0], picture[..., 2])
        for x, y in photo.landmarks[photo.visibility == Visibility.VISIBLE]:
            seen += 1
            assert greenness[y - 1 : y + 2, x - 1 : x + 2].max() > 25, (index, x, y)
    assert seen > 100


def test_zoomed_in_photos_cut_landmarks_off(many: list[tuple[Product, Photo]]) -> None:
    """variation_type 4 and 5 are zoom-ins: there landmarks are cut off, elsewhere the garment is in the picture."""
    share = {
        zoomed: np.concatenate(
            [p.visibility[p.visibility < Visibility.ABSENT] for _, p in many if (p.variation >= 4) == zoomed]
        )
        for zoomed in (False, True)
    }
    cut_off = {zoomed: (codes == Visibility.CUT_OFF).mean() for zoomed, codes in share.items()}
    assert cut_off[True] > 0.1
    assert cut_off[False] < 0.01


def test_every_visibility_occurs(many: list[tuple[Product, Photo]]) -> None:
    """Occlusion and cutting off must be there to be learnt and scored, yet most landmarks are visible."""
    codes = np.concatenate([photo.visibility for _, photo in many])
    there = codes[codes != Visibility.ABSENT]
    assert 0.6 < (there == Visibility.VISIBLE).mean() < 0.95
    assert (there == Visibility.OCCLUDED).mean() > 0.03
    assert (there == Visibility.CUT_OFF).mean() > 0.01
