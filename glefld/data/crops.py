"""The crops that ingest stores: cut from a plain JPEG without decoding it, or decoded and encoded again."""

from PIL import Image

from glefld.data.lossless import crop, grid, on_grid
from glefld.data.photos import (
    decode_rgb,
    encode_jpeg,
    is_decodable_jpeg,
    is_plain_jpeg,
    open_photo,
    orientation,
    turned,
)


class Crops:
    """One photo, to cut crops from.

    data: the photo's file. lossless: cut without decoding where that is possible.
    upright: the photo is turned by its EXIF orientation, as annotation tools show it; the benchmarks' annotations are
    in stored pixels. It is left as stored if only that fits the size (width, height) of the annotated photo, where
    that is known. What is turned is decoded.
    Raises BadPhoto if the photo cannot be opened. Damage may be found only in ``cut`` or ``check``.
    """

    def __init__(
        self, data: bytes, lossless: bool, *, upright: bool = False, size: tuple[int, int] | None = None
    ) -> None:
        self._data = data
        self._pixels: Image.Image | None = None
        self._grid: tuple[int, int] | None = None
        with open_photo(data) as image:
            self.width, self.height = image.size
            # Pillow itself turns TIFFs.
            self._turn = orientation(image) if upright and image.format != "TIFF" else 1
            if self._turn >= 5:
                if size == image.size and size != image.size[::-1]:
                    self._turn = 1
                else:
                    self.width, self.height = image.size[::-1]
            if lossless and self._turn == 1 and is_plain_jpeg(image, data):
                self._grid = grid(data)
            # A progressive photo was made to be small: with the standard tables its crops would be a sixth larger.
            self._optimize = bool(image.info.get("progressive"))
        self._checked = False
        if self._grid is None:
            self._decode()

    def cut(self, box: tuple[int, int, int, int]) -> tuple[bytes, tuple[int, int, int, int]]:
        """Return the JPEG of a part of the photo that contains ``box``, and what it contains, x1 y1 x2 y2.

        What is decoded and encoded again has just the box; a lossless crop reaches to the grid of the photo's blocks.
        Raises BadPhoto if the photo is damaged.
        """
        if self._grid is not None:
            wider = on_grid(box, self._grid, self.width, self.height)
            if (cut := crop(self._data, wider, optimize=self._optimize)) is not None:
                self._checked = True
                return cut, wider
        return encode_jpeg(self._decode().crop(box)), box

    def check(self) -> None:
        """Raise BadPhoto if the photo is damaged: what ``cut`` would raise."""
        if not self._checked and not (self._pixels is None and is_decodable_jpeg(self._data)):
            self._decode()
        self._checked = True

    def _decode(self) -> Image.Image:
        if self._pixels is None:
            self._pixels = turned(decode_rgb(self._data), self._turn)
            self._checked = True
        return self._pixels
