"""Resumable sharded output, shared by ingest and inference.

A plan fixes in advance which shards an output folder will hold, and a key that hashes everything that determines their
content. One Ray task writes each shard atomically, with a report in the Parquet footer. A restart reads the footers,
skips finished shards and writes the manifest last. Output without a manifest is not finished.

A marker file names the plan that the folder belongs to. Without one, a folder that holds anything is somebody else's:
nothing is written there, and nothing is removed.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import posixpath
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
from botocore.exceptions import BotoCoreError
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    NodeDiedError,
    OutOfMemoryError,
    WorkerCrashedError,
)
from ray.util.annotations import RayDeprecationWarning

from glefld import storage
from glefld.data.dataset import MANIFEST, read_manifest
from glefld.errors import UserError

#: Rows per Parquet row group, which is also what a task buffers of its output.
ROW_GROUP = 256
#: Retries of a shard's task after its worker or host died. Ray Data retries forever by default, so a single photo that
#: crashes the decoder would hang the job.
RETRIES = 4
#: The marker: whose folder this is.
MARKER = "_plan.json"
#: Folder of the rows that ingest rejects, beside the shards.
REJECTS = "_rejects"
_STAGING = "_staging"
#: Footers read at the same time.
READERS = 16

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ShardedOutput:
    """A job's output folder, with its shards and manifest."""

    url: str
    job: str
    """``ingest`` or ``infer``: part of the footer's key, and the job's name in error messages."""

    @property
    def staging(self) -> str:
        """Folder for temporary unpacked archives, removed when the job has finished."""
        return storage.join(self.url, _STAGING)

    def manifest(self) -> dict[str, Any] | None:
        """Return the manifest if the job has finished, else None."""
        return read_manifest(self.url)

    def finished(
        self,
        wanted: Mapping[str, Any],
        source: str,
        plan: Callable[[], str],
    ) -> dict[str, Any] | None:
        """Return the manifest if the job has finished with these options and its shards are whole, else None.

        wanted: the options now. source: the state of what is read, as ``source_state`` returns it. plan: makes the plan
        and returns its key; it is called only if the source looks different.
        Raises UserError if the options differ from those of the manifest, or if the source has changed.
        """
        if (manifest := self.manifest()) is None:
            return None
        options = manifest["options"]
        differing = [name for name in wanted if options.get(name) != wanted[name]]
        if differing:
            words = ", ".join(f"{name} {options.get(name)!r} (now {wanted[name]!r})" for name in differing)
            raise UserError(
                f"{self.url} is already finished, but with {words}: choose another --output, or delete it"
            )
        if manifest.get("source_state") != source and manifest.get("plan") != plan():
            raise UserError(
                f"{self.url} is already finished, but what it was made from has changed since: choose another "
                "--output, or delete it"
            )
        shards = {shard["path"]: shard["bytes"] for shard in manifest["shards"]}
        found = self._found(shards)
        damaged = [path for path, size in shards.items() if found.get(path, {}).get("bytes") != size]
        if damaged:
            logger.warning(
                "%d of the %d shards in %s are missing or damaged (first: %s): they are written again",
                *(len(damaged), len(shards), self.url, damaged[0]),
            )
            return None
        if (
            self._marker() is not None
        ):  # a run killed right after writing the manifest leaves its staging folder
            self.clean(shards)
        return manifest

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Take the folder for this job while its plan is made, and leave it as it was if that fails.

        Raises UserError if the folder holds anything and is not one of this job's.
        """
        new = self._claim()
        try:
            yield
        except BaseException:
            if new:
                storage.remove_tree(self.staging)
                storage.remove_file(storage.join(self.url, MARKER))
                storage.remove_empty_folder(self.url)
            raise

    def _claim(self) -> bool:
        """Write the marker unless it is there. Returns whether it was written."""
        if (marker := self._marker()) is not None:
            if marker["job"] != self.job:
                raise UserError(
                    f"{self.url} holds the output of jobs.{marker['job']}: choose another --output for jobs.{self.job}"
                )
            return False
        if storage.is_file(self.url):
            raise UserError(f"{self.url} is a file: --output must be a folder")
        if self.manifest() is None and (there := storage.entries(self.url)):
            raise UserError(
                f"{self.url} already holds {there[0].name}, which jobs.{self.job} has not written: choose a new or "
                "empty folder as --output"
            )
        self._mark("")
        return True

    def _marker(self) -> dict[str, Any] | None:
        url = storage.join(self.url, MARKER)
        return storage.read_json(url) if storage.exists(url) else None

    def _mark(self, key: str) -> None:
        storage.write_json(storage.join(self.url, MARKER), {"job": self.job, "plan": key})

    def begin(self, planned: Sequence[str], key: str) -> dict[str, dict[str, Any]]:
        """Return the reports of the shards that earlier runs of this plan finished, by path, each with its ``bytes``.

        Removes partial files of killed runs. Raises UserError if the folder is not ours, or holds shards of another
        plan.
        """
        self._claim()
        finished = self.reports(planned, key)
        self._mark(key)
        self._remove_unfinished(planned)
        return finished

    def reports(self, planned: Sequence[str], key: str) -> dict[str, dict[str, Any]]:
        """Like ``begin``, without writing or removing anything."""
        found = self._found(planned)
        others = [
            path for path, report in found.items() if report.get("plan") != key or path not in set(planned)
        ]
        if others:
            raise UserError(
                f"{self.url} holds {others[0]}, which another {self.job} run wrote (with other options, another or a "
                "changed source, or another release): choose another --output, or delete it"
            )
        return found

    def _found(self, planned: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return the report of each whole Parquet file by path, an empty one if it is not planned."""
        paths = set(planned)
        sizes = {
            path: state.size
            for path, state in storage.find(self.url).items()
            if path.endswith(".parquet") and not path.startswith("_")
        }
        with ThreadPoolExecutor(READERS) as pool:
            footers = pool.map(lambda path: self._footer(path) if path in paths else {}, sizes)
            return {
                path: {**report, "bytes": sizes[path]}
                for path, report in zip(sizes, footers, strict=True)
                if report is not None
            }

    def _footer(self, path: str) -> dict[str, Any] | None:
        """Return a shard's report; None for a truncated file, which some clients leave silently."""
        try:
            with storage.open(storage.join(self.url, path)) as file:
                metadata = pq.read_metadata(file).metadata or {}
        except pa.ArrowInvalid:
            return None
        return json.loads(metadata.get(self._footer_name, b"{}"))

    @property
    def _footer_name(self) -> bytes:
        return f"glefld.{self.job}".encode()

    def write(
        self,
        path: str,
        key: str,
        batches: Iterable[pa.RecordBatch],
        schema: pa.Schema,
        report: Callable[[], dict[str, Any]],
        *,
        unhashed: Sequence[str] = (),
        before: Callable[[], None] = lambda: None,
        **options: Any,
    ) -> None:
        """Write one shard atomically, with a footer of the plan's key, the report and a hash of the content.

        batches: row groups of ``schema``. report: called after the last batch. unhashed: columns to leave out of the
        hash. before: called just before the finished shard is put in place. options: passed to
        ``pyarrow.parquet.ParquetWriter``. Raises OSError if the storage fails.
        """
        digest = hashlib.sha256()
        # Unnamed, so a killed task leaves nothing behind.
        with tempfile.TemporaryFile() as file:
            with pq.ParquetWriter(file, schema, **options) as writer:
                for batch in batches:
                    content = batch.drop_columns(list(unhashed)) if unhashed else batch
                    digest.update(content.serialize())
                    writer.write_batch(batch, row_group_size=ROW_GROUP)
                footer = {"plan": key, **report(), "content_hash": digest.hexdigest()}
                writer.add_key_value_metadata({self._footer_name: json.dumps(footer).encode()})
            before()
            storage.put_file(file, storage.join(self.url, path))

    def complete(self, planned: Sequence[str], key: str) -> list[dict[str, Any]]:
        """Return the reports of all planned shards, in order, each with its ``path``.

        Raises OSError if a shard is missing: some object store clients lose a write silently.
        """
        reports = self.reports(planned, key)
        missing = [path for path in planned if path not in reports]
        if missing:
            raise OSError(
                f"{len(missing)} shards (first: {missing[0]}) were written to {self.url} but are missing or truncated: "
                "run the same command again to rewrite them"
            )
        return [{"path": path, **reports[path]} for path in planned]

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest, which marks the output as finished, and clean up."""
        storage.write_json(storage.join(self.url, MANIFEST), manifest)
        self.clean(shard["path"] for shard in manifest["shards"])

    def clean(self, shards: Iterable[str]) -> None:
        """Remove the staging folder, and the partial files of killed runs beside the shards of these paths."""
        storage.remove_tree(self.staging)
        self._remove_unfinished(shards)

    def _remove_unfinished(self, shards: Iterable[str]) -> None:
        for folder in {"", REJECTS, *(posixpath.dirname(path) for path in shards)}:
            storage.remove_unfinished(storage.join(self.url, folder))


def source_state(urls: Iterable[str]) -> str:
    """Hash the state of all files at and below these URLs, to notice that one has changed, is gone or is new."""
    digest = hashlib.sha256()
    for url in urls:
        files = {"": storage.state(url)} if storage.is_file(url) else storage.find(url)
        digest.update(json.dumps(sorted(files.items())).encode())
    return digest.hexdigest()


def content_hash(reports: Iterable[Mapping[str, Any]]) -> str:
    """Combine the shards' content hashes into one. It does not depend on timing or location."""
    return hashlib.sha256("".join(report["content_hash"] for report in reports).encode()).hexdigest()


def to_bytes(table: pa.Table) -> bytes:
    """Serialise a table as an Arrow stream, to pass it to a Ray task."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def from_bytes(data: bytes) -> pa.Table:
    """Read a table back from ``to_bytes``."""
    return pa.ipc.open_stream(data).read_all()


def run_tasks(shards: list[dict[str, Any]], write: Any, **options: Any) -> Iterator[int]:
    """Write the shards as Ray Data tasks, and yield the row count of each as it finishes.

    write: a function, or an actor class, that takes an item of ``shards`` and returns ``counted(...)``. options: passed
    to Ray Data's ``map``. Raises UserError if a shard's worker died too often, and OSError if a shard could not be
    written.
    """
    if not shards:
        return
    # One block per shard, so that Ray retries exactly the shard whose worker died.
    graph = ray.data.from_items(shards, override_num_blocks=len(shards))
    with warnings.catch_warnings():
        # As of Ray 2.63 there is no other way to limit the retries.
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated", RayDeprecationWarning)
        graph = graph.map(write, **options)
    try:
        for result in graph.iter_rows():
            if result["error"]:
                raise OSError(result["error"])
            yield result["count"]
    except (
        ActorDiedError,
        ActorUnavailableError,
        NodeDiedError,
        OutOfMemoryError,
        WorkerCrashedError,
    ) as error:
        raise UserError(
            f"the worker of one shard died {RETRIES + 1} times ({type(error).__name__}): see the log of its host. "
            "Finished shards are kept; run the same command again to continue"
        ) from error


def counted(write: Callable[[], int]) -> dict[str, Any]:
    """Call ``write`` and return its row count, or its storage error as text: Ray Data loses an exception's cause."""
    try:
        return {"count": write(), "error": ""}
    except (OSError, BotoCoreError) as error:
        return {"count": 0, "error": f"{type(error).__name__}: {error}"}
