"""Resumable sharded output, shared by ingest and inference.

A plan fixes in advance which shards an output folder will hold, and a key that hashes everything that determines their
content. One Ray task writes each shard atomically, with a report in the Parquet footer. A restart reads the footers,
skips finished shards and writes the manifest last. Output without a manifest is not finished.
"""

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from glefld.data.dataset import MANIFEST
from glefld.errors import UserError

#: Rows per Parquet row group, which is also what a task buffers of its output.
ROW_GROUP = 256
#: Retries of a shard's task after its worker or host died. Ray Data retries forever by default, so a single photo that
#: crashes the decoder would hang the job.
RETRIES = 4
_STAGING = "_staging"


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
        url = storage.join(self.url, MANIFEST)
        return storage.read_json(url) if storage.exists(url) else None

    def require_same(self, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        """Check that the finished output was made with these options, and clean up what a killed run left.

        found: options from the manifest. wanted: the options now. Raises UserError if they differ.
        """
        differing = [name for name in wanted if found.get(name) != wanted[name]]
        if differing:
            words = ", ".join(f"{name} {found.get(name)!r} (now {wanted[name]!r})" for name in differing)
            raise UserError(
                f"{self.url} is already finished, but with {words}: choose another --output, or delete it"
            )
        self.clean()  # a run killed right after writing the manifest leaves its staging folder

    def begin(self, planned: Sequence[str], key: str) -> dict[str, dict[str, Any]]:
        """Return the reports of the shards that earlier runs of this plan finished, by path, each with its ``bytes``.

        Removes partial files of killed runs. Raises UserError if the folder holds shards of another plan.
        """
        finished = self.reports(planned, key)
        storage.remove_unfinished(self.url)
        return finished

    def reports(self, planned: Sequence[str], key: str) -> dict[str, dict[str, Any]]:
        """Like ``begin``, without removing anything."""
        paths = set(planned)
        reports = {}
        for path, size in storage.find(self.url).items():
            if not path.endswith(".parquet") or path.startswith("_"):
                continue
            report = self._footer(path) if path in paths else {}
            if report is None:
                continue
            if report.get("plan") != key:
                raise UserError(
                    f"{self.url} holds {path}, which another {self.job} run wrote (with other options, another source "
                    "or another release): choose another --output, or delete it"
                )
            reports[path] = {**report, "bytes": size}
        return reports

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
        with storage.temporary_file() as file:
            with storage.temporary_space(), pq.ParquetWriter(file, schema, **options) as writer:
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
        self.clean()

    def clean(self) -> None:
        """Remove the staging folder and the partial files of killed runs."""
        storage.remove_tree(self.staging)
        storage.remove_unfinished(self.url)


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
