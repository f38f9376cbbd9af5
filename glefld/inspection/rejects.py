"""The rows that ingest set aside: how many for which reason, and the photos of some."""

import io
import lzma
import zipfile
import zlib
from collections import defaultdict
from typing import NamedTuple

import pyarrow.parquet as pq
from PIL import Image, ImageFile, ImageOps

from glefld import storage
from glefld.data.photos import FORMATS, MAX_PIXELS

FOLDER = "_rejects"
#: Files that are read. Each shard has one, so a few tell enough of a large data set; counts come from the manifest.
MOST_FILES = 64
#: A larger file is not opened, for a picture.
MOST_BYTES = 64 << 20
SIDE = 320
#: Errors of a damaged archive, and RuntimeError of an encrypted member or an unknown compression.
DAMAGED_ARCHIVE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError)


class Reject(NamedTuple):
    """One row that was set aside."""

    sample_id: str
    split: str
    uri: str
    reason: str
    detail: str


def read(data: str, each: int) -> dict[str, list[Reject]]:
    """Return some rejects of each reason, at most ``each``, from the first files of a data set's rejects."""
    folder = storage.join(data, FOLDER)
    names = sorted(entry.name for entry in storage.entries(folder) if entry.name.endswith(".parquet"))
    found: dict[str, list[Reject]] = defaultdict(list)
    for name in names[:MOST_FILES]:
        table = pq.read_table(io.BytesIO(storage.read_bytes(storage.join(folder, name))))
        for row in table.select(["sample_id", "split", "source_uri", "reason", "detail"]).to_pylist():
            if len(found[row["reason"]]) < each:
                found[row["reason"]].append(Reject(*row.values()))
    return dict(found)


def picture(uri: str) -> Image.Image | None:
    """Return a photo in small, as far as it can be decoded; None if it is not there, lies in a tar or on a server.

    Whatever a disk or a store raises that does not give it is raised: that is no reason why it was rejected.
    """
    if storage.is_http(uri):
        return None
    try:
        data = _bytes(uri)
    except (FileNotFoundError, LookupError, *DAMAGED_ARCHIVE):
        return None  # it is gone, or its archive or its place in there is damaged, which may be why it was rejected
    if data is None:
        return None
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            return None
        image.draft("RGB", (SIDE, SIDE))
        return ImageOps.contain(_decoded(image).convert("RGB"), (SIDE, SIDE))
    # Whatever is wrong with it is why it was rejected: Pillow's decoders raise anything on damaged files.
    except Exception:
        return None


def _decoded(image: Image.Image) -> Image.Image:
    """Decode as much as there is."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
    try:
        image.load()
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
    return image


def _bytes(uri: str) -> bytes | None:
    archive, inside, member = uri.partition("::")
    if not inside:
        return storage.read_bytes(uri) if storage.state(uri).size <= MOST_BYTES else None
    if not archive.lower().endswith(".zip"):
        return None  # a tar has no directory: all of it would be read
    with storage.open(archive) as file, zipfile.ZipFile(file) as opened:
        return opened.read(member) if opened.getinfo(member).file_size <= MOST_BYTES else None
