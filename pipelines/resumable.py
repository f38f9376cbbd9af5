"""Resumable shards, the mechanism under ingest and inference.

A plan fixes beforehand which shards an output folder will hold, and a key that hashes everything that decides their
content. Each shard is written by one Ray task, whole or not at all, with a report in its footer. A restart reads the
footers, skips the finished shards, and writes the manifest last. Without a manifest the output is not finished.
"""

import dataclasses
import hashlib
import json
import tempfile
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

#: Rows per Parquet row group, and so how much of its output a task holds at a time.
ROW_GROUP = 256
#: How often the task of a shard is retried after its worker or host died. Ray Data's own default is for ever, and so
#: one photo that crashes its decoder would hang the job.
RETRIES = 4
_STAGING = "_staging"


@dataclasses.dataclass(frozen=True)
class ShardedOutput:
    """The folder that a job writes its shards and its manifest to."""

    url: str
    job: str
    """``ingest`` or ``infer``: names the report in a shard's footer, and the job in error lines."""

    @property
    def staging(self) -> str:
        """Where the job keeps what it must unpack; removed when the job has finished."""
        return storage.join(self.url, _STAGING)

    def manifest(self) -> dict[str, Any] | None:
        """The manifest of a job that has finished, else None."""
        url = storage.join(self.url, MANIFEST)
        return storage.read_json(url) if storage.exists(url) else None

    def require_same(self, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        """UserError if the finished job was given other options than are wanted now. Cleans up after a kill."""
        differing = [name for name in wanted if found.get(name) != wanted[name]]
        if differing:
            words = ", ".join(f"{name} {found.get(name)!r} (now {wanted[name]!r})" for name in differing)
            raise UserError(
                f"{self.url} is finished already, made with {words}: give another --output, or delete it"
            )
        self.clean()  # a kill between the manifest and the clean-up leaves the staging folder

    def begin(self, planned: Sequence[str], key: str) -> dict[str, dict[str, Any]]:
        """The reports of the shards that an earlier run of this plan has finished, by path, each with its ``bytes``.

        Removes what a killed run had begun to write. UserError if the folder holds shards of another plan.
        """
        finished = self.reports(planned, key)
        storage.remove_unfinished(self.url)
        return finished

    def reports(self, planned: Sequence[str], key: str) -> dict[str, dict[str, Any]]:
        """As ``begin``, and removes nothing."""
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
                    f"{self.url} holds {path}, which another {self.job} run wrote (other options, another source "
                    "or another release): give another --output, or delete it"
                )
            reports[path] = {**report, "bytes": size}
        return reports

    def _footer(self, path: str) -> dict[str, Any] | None:
        """None for a file that is cut short, as some clients leave one silently: it is written again."""
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
        """Write one shard, whole or not at all.

        batches: row groups of ``schema``. report: called after the last batch; what the footer tells of the shard
        besides the plan's key and the hash of the content, which leaves out the columns ``unhashed``. before: called
        when the shard is complete and before it is there. options: those of ``pyarrow.parquet.ParquetWriter``.
        """
        digest = hashlib.sha256()
        # Without a name, so that a task that is killed leaves nothing behind.
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
        """The report of every planned shard, in order, each with its ``path``.

        OSError if one is not there: some object stores' clients lose a write silently.
        """
        reports = self.reports(planned, key)
        missing = [path for path in planned if path not in reports]
        if missing:
            raise OSError(
                f"{len(missing)} shards ({missing[0]} is the first) were written to {self.url} but are not complete "
                "there: the same command writes them again"
            )
        return [{"path": path, **reports[path]} for path in planned]

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest, which makes the output a finished one, and remove what only the job needed."""
        storage.write_json(storage.join(self.url, MANIFEST), manifest)
        self.clean()

    def clean(self) -> None:
        """Remove the staging folder and what a killed run had begun to write."""
        storage.remove_tree(self.staging)
        storage.remove_unfinished(self.url)


def content_hash(reports: Iterable[Mapping[str, Any]]) -> str:
    """One hash of all shards' content, which does not depend on timing or on where the shards are."""
    return hashlib.sha256("".join(report["content_hash"] for report in reports).encode()).hexdigest()


def to_bytes(table: pa.Table) -> bytes:
    """A table as an Arrow stream, in which form Ray carries it; ``from_bytes`` reads it."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def from_bytes(data: bytes) -> pa.Table:
    return pa.ipc.open_stream(data).read_all()


def run_tasks(shards: list[dict[str, Any]], write: Any, **options: Any) -> Iterator[int]:
    """Write the shards as tasks of a Ray Data graph; yields what ``write`` counted in each as it is done.

    write: a function, or an actor class, that takes one of ``shards`` and returns ``counted(...)``. options: those of
    Ray Data's ``map``. UserError if the worker of a shard died too often, OSError for a shard that could not be
    written.
    """
    if not shards:
        return
    # One block per shard: Ray repeats the task of a worker that was lost, and a shard is whole or not there.
    graph = ray.data.from_items(shards, override_num_blocks=len(shards))
    with warnings.catch_warnings():
        # Up to Ray 2.63 there is no other way to limit the retries.
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
            f"the worker of one shard died {RETRIES + 1} times ({type(error).__name__}); its host's log tells why. "
            "Finished shards are kept: the same command continues from them"
        ) from error


def counted(write: Callable[[], int]) -> dict[str, Any]:
    """What ``write`` counted; files' and networks' errors as a value, since Ray Data loses an error's cause."""
    try:
        return {"count": write(), "error": ""}
    except (OSError, BotoCoreError) as error:
        return {"count": 0, "error": f"{type(error).__name__}: {error}"}
