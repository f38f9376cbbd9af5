"""Copies: by their bytes, and by how they look."""

import io

import numpy as np
from PIL import Image, ImageEnhance

from glefld.inspection import copies
from tests.natural import picture


def hashed(data: bytes) -> np.ndarray:
    return copies.perceptual_hash(copies.thumbnail(data))


def saved(image: Image.Image, quality: int = 90, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind, quality=quality)
    return file.getvalue()


def test_exact_copies_are_photos_of_several_names() -> None:
    content = np.array([1, 1, 2, 2, 3, 4, 4, 5], np.uint64)
    photo = np.array([10, 10, 20, 21, 30, 40, 41, 50], np.uint64)  # 1 is one photo with two garments
    split = np.array([0, 0, 0, 1, 0, 1, 1, 1])
    across, within = copies.exact(content, photo, split)
    assert [group.tolist() for group in across] == [[2, 3]]
    assert [group.tolist() for group in within] == [[5, 6]]


def test_the_same_photo_in_two_splits_under_one_name_is_a_copy() -> None:
    across, _ = copies.exact(np.array([1, 1], np.uint64), np.array([9, 9], np.uint64), np.array([0, 1]))
    assert [group.tolist() for group in across] == [[0, 1]]


def test_a_photo_saved_again_is_alike_and_others_are_not() -> None:
    """Other sizes, qualities, formats and brightness."""
    originals = [
        Image.open(io.BytesIO(picture(seed, 64).encoded.tobytes())).convert("RGB") for seed in range(12)
    ]
    first = np.stack([hashed(saved(image)) for image in originals])
    for change in (
        lambda image: saved(image.resize((150, 200)), 60),
        lambda image: saved(ImageEnhance.Brightness(image).enhance(1.2)),
        lambda image: saved(image, 90, "PNG"),
        lambda image: saved(image.convert("L")),
    ):
        second = np.stack([hashed(change(image)) for image in originals])
        assert [(a, b) for a, b, _ in copies.near(first, second)] == [(i, i) for i in range(12)]


def test_bits_are_counted_across_blocks() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 2**63, (n, 4), np.int64).astype(np.uint64) for n in (1030, 5))
    a[1029] = b[3]
    a[1029, 2] ^= np.uint64(0b111)
    assert list(copies.near(a, b, 3)) == [(1029, 3, 3)]
    assert not list(copies.near(a, b, 2))
