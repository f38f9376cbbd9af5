"""Crops of JPEGs without decoding them: the crop keeps the photo's own DCT coefficients, so nothing is lost.

TurboJPEG's transform copies the blocks of the crop and codes them anew. It is bound here with ctypes, because of the
packages on PyPI one brings no library and another leaks memory at each damaged photo (docs/experiments.md). The library
is the libjpeg-turbo within pylibjxl's extension, which exports its functions.
"""

import ctypes
import functools
import importlib.metadata
import importlib.util
from pathlib import Path

import simplejpeg

#: Width and height of a block of the grid (an MCU) in pixels, by chroma subsampling.
GRIDS = {
    "Gray": (8, 8),
    "444": (8, 8),
    "422": (16, 8),
    "440": (8, 16),
    "420": (16, 16),
    "411": (32, 8),
    "441": (8, 32),
}
#: What Huffman tables code, by class (DC, AC): categories, and run lengths with categories (T.81, F.1.2).
SYMBOLS = (bytes(range(12)), bytes(symbol for symbol in range(256) if symbol % 16 <= 10))
# Names and values of turbojpeg.h, which are the same in all of libjpeg-turbo 3.
_INIT_TRANSFORM = 2
_PARAM_STOP_ON_WARNING = 0
_OPTION_CROP, _OPTION_COPY_NONE, _OPTION_OPTIMIZE = 4, 64, 256


class _Transform(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int) for name in ("x", "y", "width", "height", "operation", "options")),
        *((name, ctypes.c_void_p) for name in ("data", "filter")),
    )


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return TurboJPEG; None on a platform that pylibjxl has no wheel for."""
    if (package := importlib.util.find_spec("pylibjxl")) is None or package.origin is None:
        return None
    (path,) = Path(package.origin).parent.glob("_pylibjxl*.so")
    found = ctypes.CDLL(str(path))
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    found.tj3Init.argtypes, found.tj3Init.restype = [ctypes.c_int], pointer
    found.tj3Set.argtypes = [pointer, ctypes.c_int, ctypes.c_int]
    found.tj3Transform.argtypes = [
        *(pointer, ctypes.c_char_p, size, ctypes.c_int),
        *(ctypes.POINTER(pointer), ctypes.POINTER(size), ctypes.POINTER(_Transform)),
    ]
    for free in (found.tj3Free, found.tj3Destroy):
        free.argtypes, free.restype = [pointer], None
    return found


def version() -> str:
    """Return what the bytes of a crop depend on besides the photo's: the package of the library; empty without one."""
    return f"pylibjxl {importlib.metadata.version('pylibjxl')}" if library() is not None else ""


def grid(data: bytes) -> tuple[int, int] | None:
    """Return width and height of a JPEG's MCUs, at whose corners its crops begin; None if it must be decoded.

    Any JPEG may be asked for that Pillow opens. Only YCbCr and grey of 8 bits in the usual subsamplings have a grid,
    and none whose Huffman tables are damaged.
    """
    assert library() is not None, "this machine has no pylibjxl, unlike the one that started the job"
    try:
        _, _, colour, subsampling = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return GRIDS.get(subsampling) if colour in ("YCbCr", "Gray") and _has_usual_tables(data) else None


def _has_usual_tables(data: bytes) -> bool:
    """Return whether all Huffman tables code ``SYMBOLS`` only.

    Others make coefficients of more bits than 8-bit pictures have. Decoders take them, but TurboJPEG's encoder does not
    check, and writes what is no JPEG.
    """
    found = data.find(b"\xff\xc4")  # in entropy code 0xff is followed by 0
    while found >= 0:
        if not _are_usual(data[found + 4 : found + 2 + int.from_bytes(data[found + 2 : found + 4])]):
            return False
        found = data.find(b"\xff\xc4", found + 2)
    return True


@functools.lru_cache(256)  # most photos have the same ones
def _are_usual(tables: bytes) -> bool:
    while tables:
        kind, symbols = tables[0] >> 4, sum(tables[1:17])
        if kind >= len(SYMBOLS) or tables[17 : 17 + symbols].translate(None, SYMBOLS[kind]):
            return False
        tables = tables[17 + symbols :]
    return True


def on_grid(
    box: tuple[int, int, int, int], cell: tuple[int, int], width: int, height: int
) -> tuple[int, int, int, int]:
    """Move the corners of a box, x1 y1 x2 y2, outwards to a grid, but not out of a photo of this size.

    A strip of less than a cell at the right edge gets the cell beside it too: in pictures of up to four pixels' width
    decoders do not interpolate chroma at all.
    """
    x1, y1, x2, y2 = box
    w, h = cell
    left = x1 // w * w
    if width - left < w <= left:
        left -= w
    return left, y1 // h * h, min(width, -(-x2 // w) * w), min(height, -(-y2 // h) * h)


def crop(data: bytes, box: tuple[int, int, int, int], *, optimize: bool = False) -> bytes | None:
    """Return the crop of a JPEG as a baseline JPEG without metadata; None if the library finds anything amiss.

    It reads the whole photo's entropy code, and refuses on the first warning: where there is a crop, the photo decodes
    without one too. Decoded, the crop equals that part of the decoded photo, except for the chroma of its outermost
    pixels where the photo goes on: decoders interpolate subsampled chroma from both sides.

    box: x1 y1 x2 y2, on the photo's grid. optimize: fit the Huffman tables to the crop: 6 % smaller, twice the time.
    """
    turbo = library()
    assert turbo is not None
    x1, y1, x2, y2 = box
    options = _OPTION_CROP | _OPTION_COPY_NONE | (_OPTION_OPTIMIZE if optimize else 0)
    transform = _Transform(x1, y1, x2 - x1, y2 - y1, 0, options, None, None)
    made, size = ctypes.c_void_p(), ctypes.c_size_t()
    # With a new handle each time nothing can remain of the photo before.
    handle = turbo.tj3Init(_INIT_TRANSFORM)
    if handle is None:
        raise MemoryError("TurboJPEG cannot start")
    try:
        turbo.tj3Set(handle, _PARAM_STOP_ON_WARNING, 1)
        if turbo.tj3Transform(handle, data, len(data), 1, made, size, transform):
            return None
        cut = ctypes.string_at(made, size.value)
    finally:
        turbo.tj3Free(made)
        turbo.tj3Destroy(handle)
    # Of rare sampling factors the grid is coarser than their subsampling says. The crop is then larger.
    found_height, found_width, *_ = simplejpeg.decode_jpeg_header(cut)
    return cut if (found_width, found_height) == (x2 - x1, y2 - y1) else None
