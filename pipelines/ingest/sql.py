"""SQL on tables that need not fit into memory: DuckDB with a limit, which spills to a temporary folder."""

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from glefld import storage
from glefld.temporary import temporary_folder

#: Memory and threads of the database. Each thread needs some 100 MB of it.
MEMORY = "512MB"
THREADS = 4
#: Rows of the batches that go in and out.
BATCH_ROWS = 1 << 14


@contextlib.contextmanager
def database() -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield a database that spills to a temporary folder, which is removed at the end. OSError if that has no room."""
    with temporary_folder() as folder:
        config: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": MEMORY,
            "threads": str(min(THREADS, os.cpu_count() or 1)),
            "temp_directory": f"{folder}/spilled",
            "preserve_insertion_order": "false",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
        }
        try:
            with duckdb.connect(f"{folder}/tables", config=config) as connection:
                yield connection
        except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
            # Its memory has a limit, so what is lacking is room to spill.
            raise OSError(
                f"no space for temporary files in {tempfile.gettempdir()} ({str(error).splitlines()[0]}): free some, "
                "or set TMPDIR to another folder"
            ) from error


@contextlib.contextmanager
def registered(
    connection: duckdb.DuckDBPyConnection, name: str, schema: pa.Schema, rows: Iterable[pa.RecordBatch]
) -> Iterator[None]:
    """Have rows as a table that can be read once in the block. What their iterator raises is raised as it is."""
    raised: list[Exception] = []

    def read() -> Iterator[pa.RecordBatch]:
        try:
            yield from rows
        except Exception as error:
            raised.append(error)
            raise

    connection.register(name, pa.RecordBatchReader.from_batches(schema, read()))
    try:
        yield
    except duckdb.Error:
        if raised:
            raise raised[0] from None
        raise
    finally:
        connection.unregister(name)


def read_files(urls: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of Parquet files, of which a row group is in memory at a time."""
    for url in urls:
        with storage.open(url) as file:
            yield from pq.ParquetFile(file).iter_batches(BATCH_ROWS)


def batches(connection: duckdb.DuckDBPyConnection, query: str, schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield a query's rows as tables of the schema, some thousand rows at a time."""
    for batch in connection.sql(query).to_arrow_reader(BATCH_ROWS):
        yield pa.Table.from_batches([batch]).select(schema.names).cast(schema)
