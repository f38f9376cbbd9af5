"""Other programs read an output folder as it is, whatever else the jobs have put there."""

from collections.abc import Callable
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow.dataset
import pytest
import ray.data

from pipelines.infer.overlays import write_overlays
from pipelines.infer.run import InferOptions
from pipelines.ingest.plan import IngestOptions
from tests import dots
from tests.pipelines.outputs import INFER, INGEST
from tests.raw_layouts import photos, rows, write_fld

#: How many rows each finds.
READERS: dict[str, Callable[[str], int]] = {
    "pandas": lambda folder: len(pd.read_parquet(folder)),
    "pyarrow": lambda folder: pyarrow.dataset.dataset(folder, partitioning="hive").count_rows(),
    "ray": lambda folder: ray.data.read_parquet(folder).count(),
}
#: Ingest's rejects are Parquet as well, so DuckDB, which skips nothing, is given the shards.
PATTERNS = {"data": "split=*/*.parquet", "predictions": "*.parquet"}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, int]]:
    """A data set with rejects and predictions with pictures: folder and rows of each."""
    folder = tmp_path_factory.mktemp("outputs")
    listed = rows(20)
    images = photos(listed) | {listed[0].photo: b"no picture"}
    source = write_fld(folder / "raw", listed, images)
    data, predictions = str(folder / "data"), str(folder / "predictions")
    manifest = INGEST.finish(IngestOptions("fld", str(source)), data)
    assert list(Path(data).glob("_rejects/*.parquet"))
    options = InferOptions(dots.write_checkpoint(str(folder / "checkpoint")), str(source / "img.zip"))
    INFER.finish(options, predictions)
    assert write_overlays(options, predictions, 2) is not None
    return {"data": (data, sum(manifest.splits.values())), "predictions": (predictions, 20)}


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("output", PATTERNS)
def test_the_folder_is_read_as_it_is(outputs: dict[str, tuple[str, int]], output: str, reader: str) -> None:
    folder, count = outputs[output]
    assert READERS[reader](folder) == count


@pytest.mark.parametrize("output", PATTERNS)
def test_duckdb_reads_the_shards(outputs: dict[str, tuple[str, int]], output: str) -> None:
    folder, count = outputs[output]
    found = duckdb.sql(f"SELECT count(*) FROM read_parquet('{folder}/{PATTERNS[output]}')").fetchall()
    assert found == [(count,)]
