"""Processes that are measured from outside, and what growth with the number of rows amounts to."""

import io
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from glefld.errors import UserError
from pipelines.benchmark.processes import Run, import_seconds, run_job, run_module
from pipelines.benchmark.whole_jobs import _Inference, grown
from tests.raw_layouts import jpeg


def run_of(seconds: float, mib: float) -> Run:
    return Run(0.0, seconds, 1.0, mib, {})


def test_a_process_is_timed_and_its_memory_and_output_are_seen(tmp_path: Path) -> None:
    """The script that crops with Pillow, on an archive of five photos: each crop has its box's size."""
    with zipfile.ZipFile(tmp_path / "img.zip", "w") as archive:
        for i in range(5):
            archive.writestr(f"{i}.jpg", jpeg(i, width=60, height=80))
    crops = [(5, 10, 45, 70)] * 4 + [(50, 50, 900, 900)]
    pq.write_table(
        pa.table({"name": [f"{i}.jpg" for i in range(5)], "crop": crops}), tmp_path / "crops.parquet"
    )
    output = tmp_path / "output"
    arguments = [str(tmp_path / "img.zip"), str(tmp_path / "crops.parquet"), str(output), "2"]
    run = run_module("pipelines.benchmark.crop_script", arguments, watch=str(output))
    assert run.seconds > 0
    assert 10 < run.driver_mib < run.mib
    assert set(run.seen) == {"part-0.parquet", "part-1.parquet"}
    assert all(run.began <= at <= run.ended + 1 for at in run.seen.values())
    rows = pa.concat_tables(pq.read_table(path) for path in sorted(output.iterdir())).to_pylist()
    sizes = {row["name"]: Image.open(io.BytesIO(row["image"])).size for row in rows}
    assert sizes == {f"{i}.jpg": (40, 60) for i in range(4)} | {"4.jpg": (10, 30)}


def test_a_job_that_fails_is_named_with_its_last_line() -> None:
    with pytest.raises(UserError, match=r"jobs\.ingest ended with status 1: error: .*/nowhere"):
        run_job("ingest", ["--dataset", "fld", "--source", "/nowhere", "--output", "/nowhere/either"])


def test_an_import_takes_time() -> None:
    assert import_seconds("json") > 0


def test_the_rate_of_inference_is_that_between_its_shards() -> None:
    """Loading ends 6 s after the start; from then on 10 rows a second; the job exits 2 s after its last shard."""
    seen = {f"part-{i}.parquet": 100 + 6 + 2 * (i + 1) for i in range(4)} | {"_manifest.json": 114.5}
    found = _Inference(Run(100, 116, 1, 1, seen), rows=80, shard_rows=20)
    assert found.rate == 10
    assert found.ready == 6
    assert found.exit == 2


def test_growth_is_flat_where_each_further_row_takes_as_long() -> None:
    """Ten seconds of start and 10 ms a row, at about the same memory."""
    runs = {rows: [run_of(10 + rows / 100, 1000 + rows / 100)] * 2 for rows in (100, 400, 1600)}
    found = grown((1, 4, 16), runs)
    assert found["time_flat"]
    assert found["memory_flat"]
    assert [size["rows"] for size in found["sizes"]] == [100, 400, 1600]
    assert found["sizes"][2]["rows_per_second"] == pytest.approx(100)
    assert found["sizes"][0]["seconds_a_row"] == pytest.approx(0.11)


def test_growth_is_not_flat_where_rows_get_slower_or_stay_in_memory() -> None:
    runs = {rows: [run_of(10 + rows**1.3 / 100, 1000 + rows)] for rows in (100, 400, 1600)}
    found = grown((1, 4, 16), runs)
    assert not found["time_flat"]
    assert not found["memory_flat"]
