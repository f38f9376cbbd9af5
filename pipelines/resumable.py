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
import itertools
import json
import logging
import posixpath
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, TypeVar

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

from glefld import listing, storage
from glefld.data.dataset import MANIFEST, read_manifest
from glefld.errors import UserError
from glefld.redaction import public_url
from glefld.temporary import temporary_file, temporary_space
from pipelines import metrics

Result = TypeVar("Result")

#: Rows per Parquet row group, which is also what a task buffers of its output and what training reads at a time: some
#: 500 kB of crops. Larger ones are shuffled less well, and of a small data set fewer workers would have their share.
ROW_GROUP = 64
#: Retries of a shard's task, after its photos were found to be harmless, when its worker or host dies.
RETRIES = 4
#: Shards whose worker died twice before no more are begun and their photos are looked into, and photos that may kill a
#: worker in one of them. If there are more, it is hardly the photos.
MAX_LOST = 8
MAX_KILLERS = 16
#: Hosts that may die one after the other while the same photos are looked at, before it is laid to the photos.
HOSTS = 3
#: Reason and words of a photo that ``run_tasks`` has found to kill its workers.
KILLER = ("kills_its_worker", "each process that decodes the photo dies")
#: What the driver raises for what a task has raised.
RAISED = {"UserError": UserError, "OSError": OSError, "RuntimeError": RuntimeError}
DEATHS = (ActorDiedError, ActorUnavailableError, NodeDiedError, OutOfMemoryError, WorkerCrashedError)
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
        options = manifest.get("options")
        if not isinstance(options, dict):
            raise UserError(
                f"{self.url} holds a {MANIFEST} without options, which glefld {self.job} has not written: choose "
                "another --output"
            )
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
        made = storage.missing_folders(self.url)
        new = self._claim()
        try:
            yield
        except BaseException:
            if new:
                storage.remove_tree(self.staging)
                storage.remove_file(storage.join(self.url, MARKER))
                for folder in made or [self.url]:
                    storage.remove_empty_folder(folder)
            raise

    def _claim(self) -> bool:
        """Write the marker unless it is there. Returns whether it was written."""
        if (marker := self._marker()) is not None:
            if marker["job"] != self.job:
                raise UserError(
                    f"{self.url} holds the output of glefld {marker['job']}: choose another --output for glefld "
                    f"{self.job}"
                )
            return False
        if storage.is_file(self.url):
            raise UserError(f"{self.url} is a file: --output must be a folder")
        if self.manifest() is None and (there := storage.entries(self.url)):
            raise UserError(
                f"{self.url} already holds {there[0].name}, which glefld {self.job} has not written: choose a new or "
                "empty folder as --output"
            )
        self._mark("")
        return True

    def _marker(self) -> dict[str, Any] | None:
        url = storage.join(self.url, MARKER)
        if not storage.exists(url):
            return None
        found = storage.read_json(url)
        if not isinstance(found, dict) or not isinstance(found.get("job"), str):
            raise UserError(
                f"{url} does not say which job wrote it: choose another --output, or delete the folder if it is not "
                "needed"
            )
        return found

    def _mark(self, key: str) -> None:
        marker = {"job": self.job, "plan": key}
        if self._marker() != marker:
            storage.write_json(storage.join(self.url, MARKER), marker)

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
        found = self._found(paths := set(planned))
        others = [path for path, report in found.items() if report.get("plan") != key or path not in paths]
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
            footers = pool.map(lambda path: self.footer(path) if path in paths else {}, sizes)
            return {
                path: {**report, "bytes": sizes[path]}
                for path, report in zip(sizes, footers, strict=True)
                if report is not None
            }

    def footer(self, path: str) -> dict[str, Any] | None:
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
        with temporary_file() as file:
            with temporary_space(), pq.ParquetWriter(file, schema, **options) as writer:
                for batch in batches:
                    content = batch.drop_columns(list(unhashed)) if unhashed else batch
                    digest.update(content.serialize())
                    writer.write_batch(batch, row_group_size=len(batch))
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


def require_outside(output: str, source: str, option: str) -> None:
    """Raise UserError if the output lies in what is read. Those are paths or URLs, and ``option`` names the latter."""
    if storage.absolute(output).startswith(storage.absolute(source).rstrip("/") + "/"):
        raise UserError(
            f"--output {public_url(output)} lies in {option}, where the next run would read it: choose a folder "
            f"outside {option}"
        )


def source_state(urls: Iterable[str]) -> str:
    """Hash the state of all files at and below these URLs, to notice that one has changed, is gone or is new."""
    return combined_state(_state_below(url) for url in urls)


def combined_state(states: Iterable[str]) -> str:
    """Return the source's state from that of each file or folder: for a folder, the digest of its listing."""
    return hashlib.sha256("".join(states).encode()).hexdigest()


def _state_below(url: str) -> str:
    if storage.is_file(url):
        return json.dumps(storage.state(url))
    below = listing.Digest()
    for _ in below.passing(listing.files(url)):
        pass
    return below.hexdigest()


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


class Done(NamedTuple):
    """What a task has done: the rows of its shard, how many of them ended how, and how long it waited for data."""

    rows: int
    outcomes: Mapping[str, int]
    """Rows that were written by ``ok`` or by what was wrong with them."""
    waited: float = 0.0
    """Seconds in which a model had no data."""


class Stage(NamedTuple):
    """A stage before the one that writes: an actor class, and the options for Ray Data's ``map``."""

    work: type
    options: dict[str, Any]


def run_tasks(
    job: str,
    shards: list[dict[str, Any]],
    write: Any,
    *,
    probe: Callable[[bytes], ray.ObjectRef],
    unit: str,
    retries: Literal["max_retries", "max_task_retries"],
    rows_of: Callable[[Mapping[str, Any]], pa.Table] = lambda item: from_bytes(item["rows"]),
    first: Stage | None = None,
    **options: Any,
) -> Iterator[int]:
    """Write the shards as Ray Data tasks, and yield the row count of each as it finishes.

    job: its name in the metrics, to which each shard is added.

    A photo may kill the process that decodes it. A shard whose worker died twice is left for the end. Then its rows are
    halved until the photos are found that kill a worker with nothing else to do, and the shard is written without
    looking at them. If the workers of many shards die, that happens before the other shards are begun.

    shards: ``rows_of`` each gives its rows. write: a function, or an actor class, that takes such an item and
    returns ``counted(...)``; it must not look at the photos that ``killers`` of the item names. probe: starts a task
    without retries that does with an Arrow stream of rows what ``write`` does, but writes nothing. unit: column that
    names a row's photo. retries: Ray's option for the retries of a task or of an actor's task. first: what each item
    goes through before, in other processes; returns ``prepared(...)``. options: passed to Ray Data's ``map``.
    Raises UserError if workers die for another reason, and OSError if a shard could not be written.
    """
    todo = [{**item, "killers": []} for item in shards]
    while todo:
        left = yield from _write_all(job, todo, write, {**options, retries: 1}, first)
        metrics.lost(job, min(len(left), MAX_LOST + 1))  # the others were not begun
        # If more than MAX_LOST were lost, these are among the first that are left: shards are begun in order.
        some, todo = left[: 2 * MAX_LOST], left[2 * MAX_LOST :]
        suspects = [{**item, "killers": find_killers(rows_of(item), unit, probe)} for item in some]
        if lost := (yield from _write_all(job, suspects, write, {**options, retries: RETRIES}, first)):
            found = [name for item in suspects for name in item["killers"]]
            named = f" (but for {len(found)}, such as {found[0]})" if found else ""
            raise UserError(
                f"the workers of {len(lost)} shards died {RETRIES + 1} times, although one by one their photos can be "
                f"processed{named}: see the logs of their hosts, and whether memory is short. Finished shards are "
                "kept; run the same command again to continue"
            )


def _write_all(
    job: str, shards: list[dict[str, Any]], write: Any, options: dict[str, Any], first: Stage | None
) -> Generator[int, None, list[dict[str, Any]]]:
    """Yield the row count of each shard that was written; return the others, in order.

    Their workers died too often, or were not begun as those of more than ``MAX_LOST`` shards had.
    """
    if not shards:
        return []
    context = ray.data.DataContext.get_current().copy()
    context.max_errored_blocks = MAX_LOST
    done = set()
    with ray.data.DataContext.current(context), warnings.catch_warnings():
        # One block per shard, so that Ray retries exactly the shard whose worker died.
        graph = ray.data.from_items(
            [{**item, "number": number} for number, item in enumerate(shards)],
            override_num_blocks=len(shards),
        )
        # As of Ray 2.63 there is no other way to limit the retries.
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated", RayDeprecationWarning)
        if first is not None:
            graph = graph.map(first.work, max_task_retries=options["max_task_retries"], **first.options)
        graph = graph.map(write, **options)
    try:
        for result in graph.iter_rows():
            if result["raised"]:
                raise RAISED[result["raised"]](result["error"])
            done.add(result["number"])
            metrics.shard(job, json.loads(result["outcomes"]), result["seconds"], result["waited"])
            yield result["count"]
    except DEATHS as error:
        logger.warning(
            "the workers of more than %d shards died (%s): looking for the photos that kill them",
            *(MAX_LOST, type(error).__name__),
        )
    return [item for number, item in enumerate(shards) if number not in done]


def find_killers(rows: pa.Table, unit: str, probe: Callable[[bytes], ray.ObjectRef]) -> list[str]:
    """Return the photos, by their name in the column ``unit``, that kill each worker that is given nothing else.

    Rows of one photo must be adjacent. Raises UserError if workers die without any photo, or if more than
    ``MAX_KILLERS`` photos kill theirs.
    """
    names = rows[unit].to_pylist()
    starts = [i for i, name in enumerate(names) if i == 0 or name != names[i - 1]]
    edges = [*starts, len(names)]

    def survives(first: int, end: int) -> bool:
        """Whether a worker survives the photos with these numbers. The death of one host says little of them."""
        part = to_bytes(rows.slice(edges[first], edges[end] - edges[first]).combine_chunks())
        for _ in range(HOSTS):
            try:
                ray.get(probe(part))
            except NodeDiedError:
                continue
            except DEATHS:
                return False
            return True
        return False

    def search(first: int, end: int) -> Iterator[str]:
        if survives(first, end):
            return
        if end - first > 1:
            middle = (first + end) // 2
            yield from search(first, middle)
            yield from search(middle, end)
        elif not survives(first, end):  # once more: it may have been the memory of another process
            yield names[edges[first]]

    if not survives(0, 0):
        raise UserError("workers die before they look at a photo: see the logs of their hosts")
    found = list(itertools.islice(search(0, len(starts)), MAX_KILLERS + 1))
    if len(found) > MAX_KILLERS:
        raise UserError(
            f"more than {MAX_KILLERS} photos of one shard kill the process that decodes them (first: {found[0]}): "
            "check the source. Finished shards are kept"
        )
    for name in found:
        logger.warning("%s kills the process that decodes it, and is left out", name)
    return found


def counted(item: dict[str, Any], write: Callable[[], Done]) -> dict[str, Any]:
    """Call ``write`` for an item of ``run_tasks`` and return what it has done, or what it or an earlier stage raised.

    Ray Data would take an exception for a lost shard.
    """
    answer = {"number": item["number"], "count": 0, "outcomes": "{}", "seconds": 0.0, "waited": 0.0}
    started = time.perf_counter()
    done, failure = (None, item["failure"]) if item.get("failure") else _caught(write)
    if done is not None:
        answer |= {"count": done.rows, "outcomes": json.dumps(done.outcomes), "waited": done.waited}
    raised, _, error = failure.partition(": ")
    return {**answer, "seconds": time.perf_counter() - started, "raised": raised, "error": error}


def prepared(item: dict[str, Any], name: str, prepare: Callable[[], bytes]) -> dict[str, Any]:
    """Return an item of ``run_tasks`` with what ``prepare`` returns as ``name``, for the next stage."""
    found, failure = _caught(prepare)
    return {**item, name: found or b"", "failure": failure}


def _caught(work: Callable[[], Result]) -> tuple[Result | None, str]:
    """Return what ``work`` returns, or None and what it raised: a name of ``RAISED``, a colon and the message."""
    try:
        return work(), ""
    except UserError as error:
        return None, f"UserError: {error}"
    except (OSError, BotoCoreError) as error:
        return None, f"OSError: {type(error).__name__}: {error}"
    except Exception:
        return None, f"RuntimeError: a task failed\n{traceback.format_exc()}"
