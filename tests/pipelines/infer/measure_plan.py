"""Memory and time of an inference's plan by its number of photos, of which there are only names:

python -m tests.pipelines.infer.measure_plan {folder,list,inventory} 1000000
"""

import gzip
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from glefld import storage
from pipelines.infer.run import InferOptions, Task, make_plan, output_at
from tests import dots

FOLDERS = 4096


def name(number: int) -> str:
    return f"{number:09d}-front-view.jpg"


class Names(fsspec.AbstractFileSystem):
    """Folders of photos that are not there. Each listing takes no time but Python's."""

    protocol = "names"
    cachable = False

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        count = int(self._strip_protocol(path).split("/")[0])
        below = self._strip_protocol(path).partition("/")[2]
        if not below:
            return [{"name": f"{count}/{i:04x}", "type": "directory", "size": 0} for i in range(FOLDERS)]
        first = int(below, 16) * (count // FOLDERS)
        return [
            {"name": f"{path}/{name(i)}", "type": "file", "size": 200_000, "ETag": f"{i:032x}"}
            for i in range(first, first + count // FOLDERS)
        ]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        if path.endswith("json"):
            raise FileNotFoundError(path)
        return {"name": path, "type": "directory", "size": 0}

    def _open(self, path: str, *args: Any, **kwargs: Any) -> Any:
        raise FileNotFoundError(path)


def write_list(folder: Path, count: int) -> str:
    with pq.ParquetWriter(folder / "photos.parquet", pa.schema([("uri", pa.string())])) as writer:
        for some in pieces(count):
            writer.write_table(
                pa.table({"uri": [f"s3://bucket/photos/{i % FOLDERS:04x}/{name(i)}" for i in some]})
            )
    return str(folder / "photos.parquet")


def write_inventory(folder: Path, count: int) -> str:
    (folder / "data").mkdir()
    with gzip.open(folder / "data" / "0.csv.gz", "wt", compresslevel=1) as file:
        for some in pieces(count):
            file.write(
                "".join(f'"bucket","photos/{i % FOLDERS:04x}/{name(i)}","200000","{i:032x}"\n' for i in some)
            )
    (folder / "now").mkdir()
    manifest = {
        "fileFormat": "CSV",
        "fileSchema": "Bucket, Key, Size, ETag",
        "destinationBucket": "arn:aws:s3:::bucket",
        "files": [{"key": "x/data/0.csv.gz"}],
    }
    (folder / "now" / "manifest.json").write_text(json.dumps(manifest))
    return str(folder / "now" / "manifest.json")


def pieces(count: int) -> Iterator[range]:
    return (range(i, min(i + 100_000, count)) for i in range(0, count, 100_000))


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(kind: str, count: int, folder: Path) -> None:
    storage.require_access = lambda url: None  # there is no such bucket
    fsspec.register_implementation("names", Names)
    make = {"folder": lambda *_: f"names://{count}", "list": write_list, "inventory": write_inventory}
    url = make[kind](folder, count)
    checkpoint = dots.write_checkpoint(str(folder / "checkpoint"))
    make_plan(InferOptions(checkpoint, f"names://{FOLDERS}"), str(folder / "warm"))
    before, start, cpu = peak_mib(), time.monotonic(), time.process_time()
    output = str(folder / "output")
    plan = make_plan(InferOptions(checkpoint, url), output)
    seconds, cpu = time.monotonic() - start, time.process_time() - cpu
    rows = plan.input.rows
    rows.upload(file := f"{output_at(output).staging}/rows")
    tasks = [
        {**Task(path, group)._asdict(), "rows": rows.stretch(group, file)}
        for group, path in enumerate(plan.paths())
    ]
    print(
        f"{kind} {len(rows):,} photos, {len(tasks):,} shards: {seconds:.1f} s ({cpu:.1f} s of CPU), "
        f"{Path(file).stat().st_size / len(rows):.1f} bytes a photo on disk, memory {before:.0f} MiB before, "
        f"{peak_mib():.0f} MiB at most"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        measure(sys.argv[1], int(sys.argv[2]), Path(place))
