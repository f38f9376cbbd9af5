"""Photos of rejected rows: shown as far as they can be, and a disk that refuses is told of."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glefld.inspection import rejects


def jpeg() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (60, 40, 3), np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "jpeg")
    return encoded.getvalue()


def in_a_zip(folder: Path, data: bytes, compression: int = zipfile.ZIP_STORED) -> str:
    with zipfile.ZipFile(folder / "photos.zip", "w", compression) as archive:
        archive.writestr("a.jpg", data)
    return f"{folder}/photos.zip::a.jpg"


def plain(folder: Path, data: bytes) -> str:
    (folder / "a.jpg").write_bytes(data)
    return str(folder / "a.jpg")


@pytest.mark.parametrize("place", [plain, in_a_zip])
@pytest.mark.parametrize(("share", "shown"), [(1.0, True), (0.6, True), (0.02, False)])
def test_as_much_as_there_is(
    place: Callable[[Path, bytes], str], share: float, shown: bool, tmp_path: Path
) -> None:
    """Of a photo that was cut off its beginning, unless not even its size is known."""
    data = jpeg()
    image = rejects.picture(place(tmp_path, data[: int(len(data) * share)]))
    assert (image is not None) == shown
    if image is not None:
        assert max(image.size) == rejects.SIDE


@pytest.mark.parametrize(
    "uri", ["{}/missing.jpg", "{}/photos.zip::missing.jpg", "{}/a.jpg::b.jpg", "{}/x.zip::b"]
)
def test_what_is_not_there_has_no_picture(uri: str, tmp_path: Path) -> None:
    in_a_zip(tmp_path, jpeg())
    plain(tmp_path, jpeg())
    (tmp_path / "x.zip").write_bytes(b"no archive")
    assert rejects.picture(uri.format(tmp_path)) is None


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_what_is_damaged_in_its_archive_has_no_picture(compression: int, tmp_path: Path) -> None:
    uri = in_a_zip(tmp_path, jpeg(), compression)
    data = bytearray((tmp_path / "photos.zip").read_bytes())
    for i in range(60, 400):
        data[i] ^= 0xA5
    (tmp_path / "photos.zip").write_bytes(data)
    assert rejects.picture(uri) is None


def test_a_disk_that_refuses_is_no_missing_photo(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="too long"):
        rejects.picture(f"{tmp_path}/{'x' * 300}.jpg")
