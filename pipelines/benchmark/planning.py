"""Planning an ingest of many rows, without pictures: what a row costs the driver, and an entry of a zip its task."""

import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from glefld import storage
from glefld.datasets.table import LABELS
from glefld.schema import FASHION8
from glefld.temporary import temporary_file
from pipelines.archives import open_archive, read_index
from pipelines.benchmark.processes import Run, run_module
from pipelines.benchmark.timing import Measurement
from pipelines.ingest.run import output_at

#: Rows of each Parquet file of annotations, and entries of the zip whose index is read.
FILE_ROWS, ENTRIES = 1_000_000, 200_000
#: A directory's entry, whose name has ``NAME`` bytes, and a photo's declared bytes, so that offsets have 32 bits.
NAME, PHOTO_BYTES = 24, 9_000
_ENTRY = np.dtype(
    [
        ("signature", "S4"),
        ("versions", "<u4"),
        ("flags_method", "<u4"),
        ("time", "<u4"),
        ("crc", "<u4"),
        ("packed", "<u4"),
        ("size", "<u4"),
        ("name_length", "<u2"),
        ("more", "V12"),
        ("offset", "<u4"),
        ("name", f"S{NAME}"),
    ]
)


def write_source(url: str, rows: int) -> None:
    """Write annotations of so many garments as the layout ``table`` has them, whose photos have uris and are not there.

    Eight landmarks each, 70 % train, in an order that has nothing to do with that of the uris.
    """
    fields = {"landmark_set": FASHION8.to_json()}
    storage.write_json(storage.join(url, LABELS), fields)
    for number, first in enumerate(range(0, rows, FILE_ROWS)):
        with temporary_file() as file:
            pq.write_table(_annotations(first, min(FILE_ROWS, rows - first)), file, compression="zstd")
            storage.put_file(file, storage.join(url, f"part-{number:05d}.parquet"))


def _annotations(first: int, count: int) -> pa.Table:
    rng = np.random.default_rng(first)
    numbers = first + rng.permutation(count)
    uris = np.char.add(np.char.add("memory://bucket/photos/", np.char.zfill(numbers.astype("U"), 12)), ".jpg")
    points = rng.random(16 * count, np.float32) * 200
    codes = rng.integers(0, 2, 8 * count).astype(np.int8)
    corners = np.tile(np.array([0, 0, 200, 200], np.float32), count)
    return pa.table(
        {
            "uri": uris,
            "bytes": rng.integers(4_000, 14_000, count),
            "split": np.array(["train"] * 7 + ["val"] * 2 + ["test"])[numbers % 10],
            "box": pa.FixedSizeListArray.from_arrays(pa.array(corners), 4),
            "landmarks": pa.ListArray.from_arrays(
                np.arange(count + 1, dtype=np.int32) * 16, pa.array(points)
            ),
            "visibility": pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32) * 8, pa.array(codes)),
            "garment_type": pa.array(np.full(count, 3, np.int8)),
        }
    )


def write_zip(url: str, entries: int) -> None:
    """Write a zip of so many entries to a local path. It has a directory and, where the photos would be, a hole."""
    found = np.zeros(entries, _ENTRY)
    found["signature"], found["name_length"] = b"PK\x01\x02", NAME
    found["packed"] = found["size"] = PHOTO_BYTES
    found["offset"] = np.arange(entries) * (PHOTO_BYTES + 30 + NAME)
    found["name"] = [f"img/{i:016d}.jpg".encode() for i in range(entries)]
    start, data = entries * (PHOTO_BYTES + 30 + NAME), found.tobytes()
    number = entries.to_bytes(8, "little")
    record = b"PK\x06\x06" + (44).to_bytes(8, "little") + bytes(12) + 2 * number
    record += len(data).to_bytes(8, "little") + start.to_bytes(8, "little")
    locator = b"PK\x06\x07" + bytes(4) + (start + len(data)).to_bytes(8, "little") + (1).to_bytes(4, "little")
    end = b"PK\x05\x06" + bytes(4) + b"\xff" * 12 + bytes(2)
    with open(storage.local_path(url), "wb") as file:
        file.truncate(start)
        file.seek(start)
        file.write(data + record + locator + end)


def index_rate(url: str) -> float:
    """Return the microseconds that an entry of a zip takes to be listed in this process."""
    start = time.perf_counter()
    members = read_index(open_archive(url, "")).members
    return 1e6 * (time.perf_counter() - start) / len(members)


def measure(sizes: tuple[int, ...], repeats: int, work: str, local: str) -> Measurement:
    """Plan each number of rows, in turn, in processes of their own. work, local: folders for what is made."""
    zipped = storage.join(local, "entries.zip")
    write_zip(zipped, ENTRIES)
    runs: dict[int, list[Run]] = {rows: [] for rows in sizes}
    stored: dict[int, float] = {}
    entry = []
    for rows in sizes:
        write_source(storage.join(work, f"rows-{rows}"), rows)
    for _ in range(repeats):
        entry.append(index_rate(zipped))
        for rows in sizes:
            output = storage.join(work, f"planned-{rows}")
            runs[rows].append(
                run_module("pipelines.benchmark.plan_script", [storage.join(work, f"rows-{rows}"), output])
            )
            stored[rows] = (
                sum(state.size for state in storage.find(output_at(output).staging).values()) / rows
            )
            storage.remove_tree(output)
    return Measurement(
        "us/row",
        "lower",
        [1e6 * run.seconds / sizes[-1] for run in runs[sizes[-1]]],
        also=dict(_figures(runs, stored)) | {"an entry of a zip, us": entry},
        facts={"rows": list(sizes), "entries": ENTRIES},
    )


def _figures(runs: dict[int, list[Run]], stored: dict[int, float]) -> Iterator[tuple[str, list[float]]]:
    for rows, found in runs.items():
        yield f"{rows:_} rows, us/row", [1e6 * run.seconds / rows for run in found]
        yield f"{rows:_} rows: driver's peak memory, MiB", [run.driver_mib for run in found]
        yield f"{rows:_} rows: the plan's files, bytes/row", [stored[rows]]
