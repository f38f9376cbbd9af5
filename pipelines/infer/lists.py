"""Photos that are listed in a file instead of a folder: a table of uris, or an inventory that S3 has made of a bucket.

Tables are read in pieces. Of a photo that is listed more than once, the first row counts.
"""

import array
import gzip
import posixpath
import urllib.parse
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from glefld import storage
from glefld.errors import UserError
from glefld.redaction import public_url
from pipelines.infer.boxes import texts
from pipelines.photo_table import ABSOLUTE, require_access, with_secrets

#: A photo's URL. Size and version are null where the list does not tell them.
LISTED = pa.schema([("uri", pa.string()), ("size", pa.int64()), ("version", pa.string())])
LISTS = (".csv", ".parquet")
INVENTORY = "manifest.json"
#: Limit on the rows of a list: a few kilobytes of Parquet can hold billions of rows.
MAX_LISTED = 200_000_000
REPEATED = "listed before"
NOT_CURRENT = "not the current version of its key"
#: Rows that are read at a time.
_ROWS = 1 << 16
#: The columns of an inventory by their names in Parquet and, without a header, in the manifest of one in CSV.
_COLUMNS = {
    "bucket": "Bucket",
    "key": "Key",
    "size": "Size",
    "e_tag": "ETag",
    "is_latest": "IsLatest",
    "is_delete_marker": "IsDeleteMarker",
}
#: What Python raises for a damaged gzip file, and not for a storage that fails.
_DAMAGED = (gzip.BadGzipFile, EOFError, zlib.error)


def is_list(url: str) -> bool:
    """Return whether the name of a file is that of a list of photos or of an inventory's manifest."""
    return url.lower().endswith(LISTS) or posixpath.basename(url) == INVENTORY


def read_list(url: str, skipped: Counter[str]) -> Iterator[pa.Table]:
    """Yield the photos of a list or an inventory as tables of ``LISTED``, in the order of the file.

    What is left out is counted in ``skipped``. Raises UserError for a file that cannot be used.
    """
    if posixpath.basename(url) == INVENTORY:
        inventory = _Inventory(url)
        yield from _once(inventory.name, inventory.read, skipped)
        skipped[NOT_CURRENT] += inventory.old
    else:
        yield from _once(public_url(url), lambda: _read_uris(url), skipped)


def _once(name: str, read: Callable[[], Iterator[pa.Table]], skipped: Counter[str]) -> Iterator[pa.Table]:
    """Yield the tables of ``read``, which is called twice, without the rows whose uri an earlier one has.

    Raises UserError if there are too many rows, or if what they name cannot be used. ``name`` is the list's.
    """
    found = array.array("q")  # grows without a copy
    asked: set[str] = set()
    for table in read():
        if len(found) + len(table) > MAX_LISTED:
            raise UserError(f"{name} has more than the {MAX_LISTED} rows that one run accepts: split it")
        _require_usable(name, table["uri"], asked)
        found.frombytes(_hashes(table).tobytes())
    hashes: np.ndarray = np.frombuffer(found, np.int64)
    hashes.sort()
    repeated = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
    del hashes, found
    seen: set[str] = set()
    for table in read():
        suspects = np.flatnonzero(np.isin(_hashes(table), repeated)).tolist() if len(repeated) else []
        again: list[int] = []
        for i in suspects:
            uri = table["uri"][i].as_py()
            again += [i] if uri in seen else []
            seen.add(uri)
        skipped[REPEATED] += len(again)
        yield table.take(np.setdiff1d(np.arange(len(table)), again)) if again else table


def _hashes(table: pa.Table) -> np.ndarray:
    return np.fromiter(map(hash, table["uri"].to_pylist()), np.int64, len(table))


def _read_uris(url: str) -> Iterator[pa.Table]:
    """Yield a list's uris as URLs: one that is relative is taken from the list's folder."""
    name, folder = public_url(url), f"{posixpath.dirname(url)}/"
    for table in _pieces(url):
        uris = texts(table["uri"], name)
        if pc.any(pc.equal(uris, "")).as_py():
            raise UserError(f"{name} has rows with an empty uri: fill in or remove them")
        whole = pc.if_else(
            pc.match_substring_regex(uris, ABSOLUTE), uris, pc.binary_join_element_wise(folder, uris, "")
        )
        n = len(whole)
        yield pa.table([whole, pa.nulls(n, pa.int64()), pa.nulls(n, pa.string())], LISTED)


def _require_usable(name: str, uris: pa.ChunkedArray, asked: set[str]) -> None:
    """Raise UserError for URLs that predictions may not repeat, and as ``require_access``. ``name`` is the list's."""
    if found := with_secrets(uris):
        raise UserError(
            f"{name} names {public_url(found[0])} with a password or a query, which predictions would repeat: list the "
            "photos by URLs without"
        )
    require_access(uris, asked)


def _pieces(url: str) -> Iterator[pa.Table]:
    """Yield a list's column ``uri``. Raises UserError for a file without it."""
    name = public_url(url)
    try:
        with storage.open(url) as file:
            if url.lower().endswith(".csv"):
                with storage.open(url) as header:
                    _require_uri(name, pyarrow.csv.open_csv(header).schema.names)
                options = pyarrow.csv.ConvertOptions(
                    include_columns=["uri"], column_types={"uri": pa.string()}
                )
                yield from _tables(pyarrow.csv.open_csv(file, convert_options=options))
            else:
                parquet = pq.ParquetFile(file)
                _require_uri(name, parquet.schema_arrow.names)
                yield from _tables(parquet.iter_batches(_ROWS, columns=["uri"]))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(f"{name} is not a readable CSV or Parquet file: {error}") from error


def _require_uri(name: str, columns: list[str]) -> None:
    if (count := columns.count("uri")) > 1:
        raise UserError(f"{name} has {count} columns uri: remove all but one")
    if not count:
        raise UserError(f"{name} must have a column uri, with the photos' paths or URLs")


def _tables(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    return (pa.Table.from_batches([batch]) for batch in batches)


class _Inventory:
    """An S3 Inventory: its manifest names the data files, each with one row per object of a bucket.

    In CSV the files are gzipped and have no header, and keys are encoded as in the query of a URL, blanks as ``+``.
    https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory-location.html
    """

    def __init__(self, url: str) -> None:
        """Read the manifest. Raises UserError if it is none, or of a format that is not read."""
        self.name = public_url(url)
        self.old = 0
        manifest = storage.read_json(url)
        needed = ("fileFormat", "fileSchema", "destinationBucket", "files")
        if not isinstance(manifest, dict) or any(key not in manifest for key in needed):
            raise UserError(
                f"{self.name} is not the manifest of an S3 Inventory: it needs {', '.join(needed)}"
            )
        self.format, schema = str(manifest["fileFormat"]).lower(), str(manifest["fileSchema"])
        if self.format not in ("csv", "parquet"):
            raise UserError(
                f"{self.name} is an inventory in {manifest['fileFormat']}: configure it as CSV or Parquet"
            )
        self.columns = [column.strip() for column in schema.split(",")] if self.format == "csv" else []
        try:
            keys = [file["key"] for file in manifest["files"]]
            self.urls = [_data_file(url, manifest["destinationBucket"], key) for key in keys]
        except (TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{self.name} names its data files in an unknown way") from error

    def read(self) -> Iterator[pa.Table]:
        """Yield tables of ``LISTED`` with the keys of the bucket, in the order of the files."""
        self.old = 0
        for url in self.urls:
            try:
                with storage.open(url) as file:
                    for table in self._csv(file) if self.format == "csv" else self._parquet(file):
                        yield self._photos(table)
            except (
                pa.ArrowInvalid,
                pa.ArrowNotImplementedError,
                KeyError,
                UnicodeDecodeError,
                *_DAMAGED,
            ) as error:
                raise UserError(
                    f"{public_url(url)} is not readable as {self.format} with the columns that {self.name} names: "
                    f"{error}"
                ) from error

    def _csv(self, packed: Any) -> Iterator[pa.Table]:
        wanted = {ours: theirs for ours, theirs in _COLUMNS.items() if theirs in self.columns}
        convert = pyarrow.csv.ConvertOptions(
            include_columns=list(wanted.values()), column_types=dict.fromkeys(wanted.values(), pa.string())
        )
        read = pyarrow.csv.ReadOptions(column_names=self.columns)
        with gzip.open(packed) as file:
            if not file.peek(1):
                return
            for table in _tables(pyarrow.csv.open_csv(file, read_options=read, convert_options=convert)):
                found = table.rename_columns(list(wanted))
                encoded = found["key"].combine_chunks()
                changed = pc.match_substring_regex(encoded, "[%+]")
                keys = [
                    urllib.parse.unquote_plus(key, errors="strict")
                    for key in encoded.filter(changed).to_pylist()
                ]
                decoded = pc.replace_with_mask(encoded, changed, pa.array(keys, pa.string()))
                yield found.set_column(found.column_names.index("key"), "key", decoded)

    def _parquet(self, file: Any) -> Iterator[pa.Table]:
        parquet = pq.ParquetFile(file)
        wanted = [column for column in _COLUMNS if column in parquet.schema_arrow.names]
        return _tables(parquet.iter_batches(_ROWS, columns=wanted))

    def _photos(self, table: pa.Table) -> pa.Table:
        current: np.ndarray = np.ones(len(table), bool)
        for column, wanted in (("is_latest", "true"), ("is_delete_marker", "false")):
            if column in table.column_names:
                current &= np.array(pc.equal(table[column].cast(pa.string()), wanted).fill_null(True))
        self.old += int((~current).sum())
        found = table.filter(pa.array(current))
        uris = pc.binary_join_element_wise("s3://", found["bucket"].cast(pa.string()), "")
        uris = pc.binary_join_element_wise(uris, found["key"].cast(pa.string()), "/")
        uris.validate(full=True)  # that the keys are UTF-8
        columns = [
            found[c].cast(t) if c in found.column_names else pa.nulls(len(found), t)
            for c, t in (("size", pa.int64()), ("e_tag", pa.string()))
        ]
        return pa.table([uris, *columns], LISTED)


def _data_file(manifest: str, bucket: str, key: str) -> str:
    """Return the URL of an inventory's data file; of one that was copied off S3, where the copy has it."""
    if storage.is_s3(manifest):
        return f"s3://{bucket.rpartition(':')[2]}/{key}"
    above = posixpath.dirname(posixpath.dirname(manifest))
    return storage.join(above, "data", posixpath.basename(key))
