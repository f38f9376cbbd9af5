"""Crops that ingest stores: cut without decoding they are the photo's own pixels, and damage is found all the same."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms, JpegImagePlugin

from glefld.data import lossless
from glefld.data.crops import Crops
from glefld.data.photos import decode_rgb, encode_jpeg
from glefld.errors import BadPhoto
from tests.natural import picture

needs_library = pytest.mark.skipif(
    lossless.library() is None, reason="pylibjxl has no wheel for this platform"
)
pytestmark = needs_library

ENCODINGS: dict[str, dict[str, object]] = {
    "4:2:0": {"subsampling": 2},
    "4:2:2": {"subsampling": 1},
    "4:4:4": {"subsampling": 0},
    "progressive": {"subsampling": 2, "progressive": True},
    "progressive 4:4:4": {"subsampling": 0, "progressive": True},
    "optimised": {"optimize": True},
    "restart every 3 blocks": {"restart_marker_blocks": 3},
    "restart every row": {"restart_marker_rows": 1, "progressive": True},
    "quality 10": {"quality": 10},
    "quality 100": {"quality": 100, "subsampling": 1},
}


def photo(seed: int, width: int, height: int, mode: str = "RGB") -> Image.Image:
    natural = picture(seed, 64, "4:4:4", width, height).encoded.tobytes()
    return Image.open(io.BytesIO(natural)).convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def boxes(rng: np.random.Generator, width: int, height: int) -> list[tuple[int, int, int, int]]:
    """The whole photo, the last pixel, one at each edge and one anywhere."""
    x1, y1 = (int(rng.integers(0, side)) for side in (width, height))
    x2, y2 = int(rng.integers(x1, width)) + 1, int(rng.integers(y1, height)) + 1
    last = (width - 1, height - 1, width, height)
    return [(0, 0, width, height), last, (x1, y1, width, y2), (x1, y1, x2, height), (x1, y1, x2, y2)]


@pytest.mark.parametrize("kind", ENCODINGS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_crop_is_the_photos_own_pixels(kind: str, mode: str) -> None:
    """In every encoding, at every edge and any size: equal, but for chroma at the outermost pixels of a cut side.

    There a decoder interpolates chroma from both sides, and the crop has only one. So grey and 4:4:4 are equal whole.
    """
    rng = np.random.default_rng(len(kind))
    for seed in range(6):
        width, height = (int(side) for side in rng.integers(1, 150, 2))
        data = encoded(photo(seed, width, height, mode), **ENCODINGS[kind])
        pixels = np.asarray(decode_rgb(data), int)
        cell = lossless.grid(data)
        assert cell is not None
        for box in boxes(rng, width, height):
            cut, (x1, y1, x2, y2) = Crops(data, lossless=True).cut(box)
            assert x1 <= box[0] < box[2] <= x2 <= width
            assert y1 <= box[1] < box[3] <= y2 <= height
            assert x1 % cell[0] == y1 % cell[1] == 0
            assert x2 == width or x2 % cell[0] == 0
            assert y2 == height or y2 % cell[1] == 0
            assert box[0] - x1 < cell[0] + (width - box[0] < cell[0]) * cell[0]
            assert x2 - box[2] < cell[0]
            assert max(box[1] - y1, y2 - box[3]) < cell[1]
            stored = np.asarray(decode_rgb(cut), int)
            photos = pixels[y1:y2, x1:x2]
            assert stored.shape == photos.shape
            if cell == (8, 8):
                np.testing.assert_array_equal(stored, photos)
            rows = slice(int(y1 > 0), y2 - y1 - int(y2 < height))
            columns = slice(int(x1 > 0), x2 - x1 - int(x2 < width))
            np.testing.assert_array_equal(stored[rows, columns], photos[rows, columns])


def test_a_crop_is_a_plain_jpeg_with_the_photos_tables_alone() -> None:
    """Baseline, which decodes twice as fast as progressive; no orientation, profile, thumbnail or comment."""
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    metadata = {"exif": exif, "icc_profile": profile, "comment": b"taken by"}
    data = encoded(photo(1, 100, 90), progressive=True, quality=71, **metadata)
    cut, box = Crops(data, lossless=True).cut((20, 20, 70, 70))
    assert box == (16, 16, 80, 80)
    whole, stored = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(cut))
    assert isinstance(whole, JpegImagePlugin.JpegImageFile)
    assert isinstance(stored, JpegImagePlugin.JpegImageFile)
    assert stored.quantization == whole.quantization
    assert JpegImagePlugin.get_sampling(stored) == JpegImagePlugin.get_sampling(whole)
    assert {"exif", "icc_profile", "comment", "progressive"} <= set(whole.info)
    assert not {"exif", "icc_profile", "comment", "progressive"} & set(stored.info)


def adobe_rgb() -> bytes:
    """A JPEG of red, green and blue without YCbCr, which its Adobe marker says."""
    return encoded(photo(2, 50, 40), keep_rgb=True)


DECODED = {
    "PNG": encoded(photo(3, 50, 40), "PNG"),
    "CMYK": encoded(photo(3, 50, 40).convert("CMYK")),
    "RGB": adobe_rgb(),
}


@pytest.mark.parametrize("kind", DECODED)
def test_what_is_no_plain_jpeg_is_decoded(kind: str) -> None:
    """Its crop is just the box, at quality 95 and 4:4:4."""
    box = (11, 7, 42, 33)
    cut, found = Crops(DECODED[kind], lossless=True).cut(box)
    assert found == box
    assert cut == encode_jpeg(decode_rgb(DECODED[kind]).crop(box))


def test_without_the_library_every_photo_is_decoded() -> None:
    data, box = encoded(photo(4, 50, 40)), (11, 7, 42, 33)
    assert Crops(data, lossless=False).cut(box) == (encode_jpeg(decode_rgb(data).crop(box)), box)


def damaged(rng: np.random.Generator, data: bytes) -> bytes:
    """A photo with changed, lost or added bytes anywhere behind its first marker, or without its end."""
    way = rng.integers(5)
    position = int(rng.integers(2, len(data)))
    noise = rng.bytes(int(rng.integers(1, 9)))
    if way == 0:
        return data[:position] + noise + data[position + len(noise) :]
    if way == 1:
        return data[:position] + noise + data[position:]
    if way == 2:
        return data[:position] + data[position + len(noise) :]
    if way == 3:
        return data[:position] + bytes(32) + data[position + 32 :]
    return data[:position] + (b"\xff\xd9" if rng.integers(2) else b"")


def reason(data: bytes, lossless: bool | None) -> str:
    """Why a photo is refused, empty if it is not. None: by decoding it whole."""
    try:
        if lossless is None:
            decode_rgb(data)
        else:
            photo = Crops(data, lossless)
            photo.cut((0, 0, min(10, photo.width), min(10, photo.height)))
    except BadPhoto as bad:
        return bad.reason
    return ""


def checked(data: bytes) -> str:
    try:
        Crops(data, lossless=True).check()
    except BadPhoto as bad:
        return bad.reason
    return ""


def test_damage_is_found_as_by_decoding() -> None:
    """Also outside the crop, and also if no crop is cut: the verdict is that of decoding the whole photo."""
    rng = np.random.default_rng(5)
    whole = [encoded(photo(seed, 130, 90), **options) for seed, options in enumerate(ENCODINGS.values())]
    verdicts = []
    for data in whole * 60:
        bad = damaged(rng, data)
        verdicts.append(reason(bad, None))
        assert reason(bad, True) == reason(bad, False) == checked(bad) == verdicts[-1]
    assert {"", "damaged_photo", "truncated_photo"} <= set(verdicts)
    assert not any(reason(data, True) for data in whole)


@pytest.mark.parametrize("optimize", [False, True])
def test_damaged_huffman_tables_give_no_crop_that_cannot_be_decoded(optimize: bool) -> None:
    """A symbol of more bits than pictures have may decode without a warning; TurboJPEG's encoder does not check it.

    Each symbol of each table in turn: the crop is decoded, or the photo is refused.
    """
    good = encoded(photo(3, 40, 56), quality=90, optimize=optimize)
    answered, places = 0, []
    found = good.find(b"\xff\xc4")
    while found >= 0:
        length = int.from_bytes(good[found + 2 : found + 4])
        places += range(found + 4 + 17, found + 2 + length)
        found = good.find(b"\xff\xc4", found + 2)
    for place in places:
        data = good[:place] + b"\xff" + good[place + 1 :]
        try:
            decode_rgb(data)
        except BadPhoto:
            continue
        for box in ((0, 0, 40, 56), (20, 30, 40, 56)):
            cut, (x1, y1, x2, y2) = Crops(data, lossless=True).cut(box)
            assert decode_rgb(cut).size == (x2 - x1, y2 - y1)
            answered += 1
    assert answered > 50
