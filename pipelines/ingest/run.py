"""Ingest: from raw archives to a data set of Parquet shards, resumable through ``pipelines.resumable``."""

import functools
import itertools
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from glefld import storage
from glefld.data import lossless
from glefld.data.prefetch import in_threads
from glefld.datasets import LAYOUTS, read_annotations
from glefld.errors import UserError
from glefld.schema import Manifest, Shard
from pipelines import metrics
from pipelines.ingest.plan import IngestOptions, IngestPlan, PlannedShard, make_plan
from pipelines.ingest.shard import ShardSettings, planned_rows, read_rows, rejects_path, write_shard
from pipelines.ingest.source import Source, find_source, index, list_files
from pipelines.ingest.sql import database, registered
from pipelines.resumable import (
    READERS,
    REJECTS,
    ShardedOutput,
    content_hash,
    counted,
    require_outside,
    run_tasks,
    source_state,
)


def output_at(url: str) -> ShardedOutput:
    """Return the folder of an ingested data set at a URL; nothing is read or written."""
    return ShardedOutput(url, "ingest")


def find_finished(options: IngestOptions, output: str) -> Manifest | None:
    """Return the manifest if ``output`` is finished and whole, else None.

    Raises UserError if it was made with other options, or from a source that has changed since.
    """
    place = output_at(output)

    def key() -> str:
        try:
            return prepare(options, output).key
        finally:
            storage.remove_tree(place.staging)

    found = place.finished(options.public(), _state(options, output), key)
    return Manifest.from_json(found) if found is not None else None


def find(options: IngestOptions, output: str) -> Source:
    """Find the source's lists and photos by listing folders.

    Raises UserError for a source without them, and for an ``output`` inside it.
    """
    options.check()
    require_outside(output, options.source, "--source")
    layout = LAYOUTS[options.dataset]
    source = find_source(options.source, layout.photos, layout.files)
    for url in source.photos:
        require_outside(output, url, "the folder of --source")
    return source


def _state(options: IngestOptions, output: str) -> str:
    """Return the state of all that is read: what --source names and, if that is one annotation file, the photos."""
    urls = [options.source]
    if LAYOUTS[options.dataset].own and storage.is_file(options.source):
        urls += [url for url in find(options, output).photos if url != options.source]
    return source_state(urls)


def prepare(options: IngestOptions, output: str, start_ray: Callable[[], None] = lambda: None) -> IngestPlan:
    """Read the source's lists and indexes, plan the shards, and write the plan below the output.

    start_ray: called before the indexes of several archives are read. If Ray then runs, its tasks read them.
    Raises UserError for a source that cannot be used, and for an ``output`` that holds something else.
    """
    source = find(options, output)
    place = output_at(output)
    with place.claimed():
        state = _state(options, output)
        # Each run has its own: another one, of the same options or not, may be reading its plan.
        folder = storage.join(place.staging, f"plan-{uuid.uuid4().hex}")
        lists = list_files(source, (), options.own)
        # What is wrong with the lists is told before anything is started, if they can be read without the indexes.
        annotations = read_annotations(options.dataset, lists) if source.lists_alone else None
        if len(source.photos) > 1:
            start_ray()
        try:
            indexes = index(source, place.staging, folder)
            if annotations is None:
                lists = list_files(source, indexes, options.own)
                annotations = read_annotations(options.dataset, lists)
            plan = make_plan(options, source.name, indexes, annotations, lists.absent, folder, state)
            for found in indexes:
                storage.remove_file(found.file)
        except BaseException:
            storage.remove_tree(folder)
            raise
        return plan


def begin(plan: IngestPlan, output: str) -> dict[str, dict[str, Any]]:
    """Return the reports of the shards that earlier runs of the plan finished, by path. Removes what others left.

    Raises UserError if ``output`` holds shards of another plan.
    """
    place = output_at(output)
    try:
        finished = place.begin([shard.path for shard in plan.shards], plan.key)
    except UserError:
        storage.remove_tree(plan.folder)
        raise
    if not finished:
        # A run of another plan may have left rejects if it was killed before its first shard.
        storage.remove_tree(storage.join(output, REJECTS))
    return finished


def shard_settings(plan: IngestPlan, output: str) -> ShardSettings:
    """Return the settings that all tasks of a plan share."""
    return ShardSettings(
        archives=plan.archives,
        output=output_at(output),
        landmark_set=plan.labels.landmark_set,
        margin=plan.options.margin,
        landmark_tolerance=plan.options.landmark_tolerance,
        key=plan.key,
        group_rows=plan.group_rows,
        lossless=lossless.library() is not None,
        upright=LAYOUTS[plan.options.dataset].upright,
    )


def ingest(plan: IngestPlan, output: str, progress: Callable[[int, int], None]) -> Manifest:
    """Write the shards that earlier runs of the plan did not finish, then the manifest. Returns the manifest.

    Ray must be running. ``progress(done, total)`` is called with numbers of listed rows.
    Raises UserError if ``output`` holds shards of another plan, and OSError if the storage fails.
    """
    place = output_at(output)
    finished = begin(plan, output)
    if plan.rejects_file is not None:
        storage.copy(plan.rejects_file, storage.join(output, REJECTS, "lists.parquet"))
    settings = shard_settings(plan, output)
    done = sum(plan.rejects.values()) + sum(report["rows_in"] for report in finished.values())
    progress(done, plan.rows_in)
    metrics.rows_left("ingest", plan.rows_in - done)
    if not finished:
        metrics.rows("ingest", plan.rejects)
    todo = [shard for shard in plan.shards if shard.path not in finished]
    for shards, held_out in _stages(todo, plan, output):
        work = {"settings": settings, "held_out": held_out}
        tasks = run_tasks(
            "ingest",
            [shard.item for shard in shards],
            _write,
            rows_of=planned_rows,
            probe=functools.partial(ray.remote(max_retries=0)(read_rows).remote, **work),
            unit="name",
            retries="max_retries",
            fn_kwargs=work,
        )
        for rows in tasks:
            done += rows
            progress(done, plan.rows_in)
            metrics.rows_left("ingest", plan.rows_in - done)
    manifest = _manifest(plan, place.complete([shard.path for shard in plan.shards], plan.key), output)
    place.finish(manifest.to_json())
    return manifest


def _write(row: dict[str, Any], settings: ShardSettings, held_out: frozenset[bytes]) -> dict[str, Any]:
    return counted(row, lambda: write_shard(row, settings, held_out))


def _stages(
    todo: list[PlannedShard], plan: IngestPlan, output: str
) -> Iterator[tuple[list[PlannedShard], frozenset[bytes]]]:
    """Yield groups of shards to write in turn, each with the photo hashes to keep out of it.

    With --dedupe, train comes after val and test, whose photos it must not contain. Otherwise there is one group.
    """
    if not plan.options.dedupe:
        yield todo, frozenset()
        return
    yield [shard for shard in todo if shard.split != "train"], frozenset()
    scored = [shard for shard in plan.shards if shard.split != "train"]
    tables = in_threads(lambda shard: _photos(output, shard), scored, READERS)
    held_out = frozenset(itertools.chain.from_iterable(t["photo_hash"].to_pylist() for t in tables))
    yield [shard for shard in todo if shard.split == "train"], held_out


_PHOTOS = pa.schema([("sample_id", pa.string()), ("photo_hash", pa.binary(16)), ("split", pa.string())])


def _photos(output: str, shard: PlannedShard) -> pa.Table:
    """Read ``sample_id``, ``photo_hash`` and ``split`` of a finished shard's rows."""
    with storage.open(storage.join(output, shard.path)) as file:
        table = pq.ParquetFile(file).read(columns=["sample_id", "photo_hash"])
    return table.append_column("split", pa.array([shard.split] * len(table), pa.string())).cast(_PHOTOS)


def _manifest(plan: IngestPlan, reports: list[dict[str, Any]], output: str) -> Manifest:
    """Build the manifest, and check that every listed row is either in a shard or a reject."""
    shards = []
    splits: Counter[str] = Counter()
    rejects = Counter(plan.rejects)
    for planned, report in zip(plan.shards, reports, strict=True):
        shards.append(
            Shard(
                planned.path,
                planned.split,
                report["rows"],
                report["bytes"],
                report["content_hash"],
                plan.group_rows,
            )
        )
        splits[planned.split] += report["rows"]
        rejects.update(report["rejects"])
    rows_in = plan.rows_in
    assert rows_in == splits.total() + rejects.total(), (rows_in, splits, rejects)
    return Manifest(
        dataset=plan.options.dataset,
        **vars(plan.labels),
        rows_in=rows_in,
        splits=dict(splits),
        rejects=dict(sorted(rejects.items())),
        shards=tuple(shards),
        content_hash=content_hash(reports),
        options=plan.options.public(),
        source=plan.source,
        plan=plan.key,
        source_state=plan.source_state,
        photos_in_several_splits=_in_several_splits(plan, output),
    )


def _in_several_splits(plan: IngestPlan, output: str) -> tuple[tuple[str, ...], ...]:
    """Return the sample ids of each photo whose exact bytes are in several splits, including those --dedupe dropped."""
    tables = in_threads(lambda shard: _read_photos(plan, shard, output), plan.shards, READERS)
    batches = itertools.chain.from_iterable(table.to_batches() for table in tables)
    with database() as db:
        with registered(db, "read", _PHOTOS, batches):
            db.execute("CREATE TABLE photos AS FROM read")
        groups = db.sql(
            "SELECT list_sort(list(sample_id)) FROM photos WHERE photo_hash IN (SELECT photo_hash FROM photos "
            "GROUP BY photo_hash HAVING min(split) <> max(split)) GROUP BY photo_hash"
        ).fetchall()
    return tuple(sorted(tuple(ids) for (ids,) in groups))


def _read_photos(plan: IngestPlan, shard: PlannedShard, output: str) -> pa.Table:
    """Read what ``_photos`` reads, and the same of the copies that --dedupe has kept out of the shard."""
    kept = _photos(output, shard)
    url = storage.join(output, rejects_path(shard.split, shard.index))
    if not plan.options.dedupe or not storage.exists(url):
        return kept
    with storage.open(url) as file:
        rejects = pq.ParquetFile(file).read()
    copies = rejects.filter(pc.equal(rejects["reason"], "duplicate_photo"))
    return pa.concat_tables([kept, copies.select(kept.column_names).cast(kept.schema)])
