"""The table for --boxes: which garments to predict, and where they are in their photos."""

import io
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from glefld import storage
from glefld.datasets.lists import LARGEST
from glefld.errors import UserError
from glefld.redaction import public_url

CORNERS = ("x1", "y1", "x2", "y2")
#: Limit on the rows of a Parquet file for --boxes: a few kilobytes of Parquet can hold billions of rows.
MAX_BOXES = 20_000_000


def read_boxes(url: str) -> pa.Table:
    """Read ``uri`` and ``box`` from a CSV or Parquet file. A box is null if all its corners are.

    Raises UserError for a file that cannot be used.
    """
    name, data = public_url(url), storage.read_bytes(url)
    try:
        table = _csv(data) if url.lower().endswith(".csv") else _parquet(data, name)
        columns = Counter(table.column_names)
    except UserError:
        raise
    # Not the storage's: the file is in memory. Damaged files raise all of these.
    except (pa.ArrowException, ValueError, OSError, MemoryError) as error:
        raise UserError(f"--boxes {name} is not a readable CSV or Parquet file: {error}") from error
    if not columns["uri"] or not (columns["box"] or all(columns[c] for c in CORNERS)) or not len(table):
        raise UserError(
            f"{name} must have rows with the columns uri and {', '.join(CORNERS)} (or box, a list of these four); it "
            f"has {len(table)} rows with the columns {', '.join(columns)}"
        )
    for column in ("uri", *(("box",) if columns["box"] else CORNERS)):
        if columns[column] > 1:
            raise UserError(f"{name} has {columns[column]} columns {column}: remove all but one")
    uris = texts(table["uri"], name)
    corners = _corners(table, name)
    # Those of a photo are far smaller; infinity is what remains of a number that does not fit.
    if (beyond := np.flatnonzero((np.abs(corners) > LARGEST).any(axis=1))).size:
        row = beyond[0]
        raise UserError(
            f"{name}, row {row + 1}: a corner of the box {corners[row].tolist()} is beyond any photo"
        )
    box = pa.FixedSizeListArray.from_arrays(
        pa.array(corners.astype(np.float32).ravel()), 4, mask=pa.array(np.isnan(corners).all(axis=1))
    )
    return pa.table({"uri": uris, "box": box})


def _csv(data: bytes) -> pa.Table:
    types = {"uri": pa.string()} | dict.fromkeys(CORNERS, pa.float64())
    options = pyarrow.csv.ConvertOptions(column_types=types)
    return pyarrow.csv.read_csv(io.BytesIO(data), convert_options=options)


def _parquet(data: bytes, name: str) -> pa.Table:
    file = pq.ParquetFile(io.BytesIO(data))
    if file.metadata.num_rows > MAX_BOXES:
        raise UserError(
            f"{name} has {file.metadata.num_rows} rows, more than the {MAX_BOXES} that one run accepts: split it into "
            "several files"
        )
    return file.read()


def texts(column: pa.ChunkedArray, name: str) -> pa.Array:
    """Return the column uri as strings; UserError if it holds anything else."""
    type_ = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_)):
        raise UserError(f"{name}: the column uri must be text, not {column.type}")
    if column.null_count:
        raise UserError(f"{name} has {column.null_count} rows without a uri: fill in or remove them")
    texts = column.cast(pa.string())
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid as error:
        raise UserError(f"{name}: the column uri holds text that is not UTF-8 ({error})") from error
    return texts


def _corners(table: pa.Table, name: str) -> np.ndarray:
    """Return the boxes [N, 4] as float64, NaN where null; UserError unless all are numbers, four to a box."""
    if "box" not in table.column_names:
        return np.stack([_numbers(table[corner], corner, name) for corner in CORNERS], axis=1)
    boxes = table["box"].combine_chunks()
    corners = np.full((len(boxes), 4), np.nan)
    if pa.types.is_null(boxes.type):
        return corners
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    lengths = pc.list_value_length(boxes) if any(check(boxes.type) for check in lists) else pa.array([0])
    if not pc.all(pc.equal(lengths, 4), min_count=0).as_py():
        raise UserError(f"{name}: each box must be a list of four numbers, x1 y1 x2 y2")
    listed = pc.is_valid(boxes).to_numpy(zero_copy_only=False)
    corners[listed] = _numbers(pc.list_flatten(boxes), "box", name).reshape(-1, 4)
    return corners


def _numbers(column: pa.ChunkedArray | pa.Array, what: str, name: str) -> np.ndarray:
    """Return a column as float64, NaN where null; UserError if it does not hold numbers."""
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)
    if not any(is_kind(column.type) for is_kind in kinds):
        raise UserError(f"{name}: the column {what} must hold numbers, not {column.type}")
    return column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
