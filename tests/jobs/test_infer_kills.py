"""Inference killed at any moment and run again: each photo exactly once, finished work kept.

GLEFLD_KILL_MOMENTS says how many moments are tried; the last of them lies between the last shard and the manifest.
"""

import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import dots
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glefld import storage

MOMENTS = int(os.environ.get("GLEFLD_KILL_MOMENTS", "2"))
PHOTOS, SHARD_ROWS = 60, 5


def start(model: str, source: Path, output: Path, log: Path) -> subprocess.Popen[bytes]:
    """The job in a process group of its own, Ray and its workers included."""
    command = [sys.executable, "-m", "jobs.infer", "--checkpoint", model, "--input", str(source)]
    command += [
        "--output",
        str(output),
        "--shard-rows",
        str(SHARD_ROWS),
        "--threads",
        "1",
        "--num-workers",
        "2",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    root = Path(__file__).parents[2]
    with log.open("ab") as sink:
        return subprocess.Popen(
            command, cwd=root, env=environment, stdout=sink, stderr=sink, start_new_session=True
        )


def shards(output: Path) -> dict[str, int]:
    """Finished shards and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in output.glob("part-*.parquet")}


@pytest.mark.slow
@pytest.mark.timeout(240 * max(1, MOMENTS))
def test_killed_at_any_moment(tmp_path: Path) -> None:
    """The whole process group gets SIGKILL; run again, the output is the undisturbed one."""
    seed = random.randrange(1 << 31)
    print("seed", seed)
    rng = np.random.default_rng(seed)
    model = dots.write_checkpoint(str(tmp_path / "checkpoint"))
    source, log = tmp_path / "photos.zip", tmp_path / "log"
    with zipfile.ZipFile(source, "w") as archive:
        for i in range(PHOTOS):
            points = dots.random_points(rng, (0, 0, 90, 120))
            archive.writestr(f"{i:03d}.jpg", dots.encoded(dots.photo(points, 90, 120), "JPEG"))
        archive.writestr("zzz.jpg", b"no picture")
    count = -(-(PHOTOS + 1) // SHARD_ROWS)
    after = [*rng.integers(0, count, MOMENTS - 1).tolist(), count]
    output = tmp_path / "output0"
    assert start(model, source, output, log).wait() == 0, log.read_text()
    expected = storage.read_json(str(output / "manifest.json"))
    for i, shards_then in enumerate(after):
        output = tmp_path / f"output{i + 1}"
        job = start(model, source, output, log)
        while len(shards(output)) < shards_then and job.poll() is None:
            time.sleep(0.002)
        if shards_then < count:
            time.sleep(rng.uniform(0, 0.3))
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
        print(f"killed after {len(shards(output))} shards, manifest {(output / 'manifest.json').exists()}")
        # A worker outlives its driver for a moment, and may still put a shard, whole.
        time.sleep(1)
        kept = shards(output)
        assert start(model, source, output, log).wait() == 0, log.read_text()
        assert kept.items() <= shards(output).items()
        manifest = storage.read_json(str(output / "manifest.json"))
        assert manifest["content_hash"] == expected["content_hash"]
        table = pa.concat_tables(pq.read_table(path) for path in sorted(output.glob("part-*.parquet")))
        names = [uri.rpartition("::")[2] for uri in table["uri"].to_pylist()]
        assert sorted(names) == [*(f"{i:03d}.jpg" for i in range(PHOTOS)), "zzz.jpg"]
        assert sorted(path.name for path in output.iterdir()) == sorted([*shards(output), "manifest.json"])
