"""What a user would write instead of ``jobs.ingest``: a Pillow script that crops photos into Parquet, N processes.

    python -m pipelines.benchmark.crop_script ARCHIVE ROWS.parquet OUTPUT PROCESSES

It reads a zip or a folder of photos, and a table with the columns ``name`` and ``crop`` (x1 y1 x2 y2 in pixels).
It checks nothing, resumes nothing and ends at the first damaged photo. Imports neither PyTorch nor Ray.
"""

import io
import multiprocessing
import sys
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from glefld import storage

#: As jobs.ingest encodes a crop: quality 95, without chroma subsampling.
QUALITY = 95
#: A photo's bytes, and the part of it to store: x1 y1 x2 y2 in whole pixels, which may reach beyond the photo.
Cropped = tuple[bytes, tuple[int, int, int, int]]
Part = tuple[str, list[str], list[tuple[int, int, int, int]], str]


def recode_pillow(photo: Cropped) -> bytes:
    """Decode, crop and encode with Pillow's codec."""
    data, (x1, y1, x2, y2) = photo
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        inside = x1, y1, min(x2, image.width), min(y2, image.height)
        image.convert("RGB").crop(inside).save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return buffer.getvalue()


def crop_part(part: Part) -> int:
    """Crop one process's photos into one Parquet file. Returns their number."""
    archive, names, crops, output = part
    if archive.endswith(".zip"):
        with storage.open(archive) as file, zipfile.ZipFile(file) as photos:
            images = [
                recode_pillow((photos.read(name), crop)) for name, crop in zip(names, crops, strict=True)
            ]
    else:
        images = [
            recode_pillow((storage.read_bytes(storage.join(archive, name)), crop))
            for name, crop in zip(names, crops, strict=True)
        ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"name": names, "crop": crops, "image": images}), sink, compression="none")
    storage.write_bytes(output, sink.getvalue().to_pybytes())
    return len(images)


def main(archive: str, table: str, output: str, processes: str) -> None:
    """Crop all rows of the table."""
    with storage.open(table) as file:
        rows = pq.ParquetFile(file).read()
    count = int(processes)
    names, crops = rows["name"].to_pylist(), [tuple(crop) for crop in rows["crop"].to_pylist()]
    parts = [
        (archive, names[i::count], crops[i::count], storage.join(output, f"part-{i}.parquet"))
        for i in range(count)
    ]
    with multiprocessing.get_context("spawn").Pool(count) as pool:
        assert sum(pool.map(crop_part, parts)) == len(names)


if __name__ == "__main__":
    main(*sys.argv[1:])
