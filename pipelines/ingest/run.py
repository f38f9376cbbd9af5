"""Ingest: from raw archives to a data set of Parquet shards, resumable through ``pipelines.resumable``."""

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from glefld import storage
from glefld.data import lossless
from glefld.datasets import LAYOUTS
from glefld.schema import Manifest, Shard
from pipelines.ingest.plan import IngestOptions, IngestPlan, PlannedShard, make_plan
from pipelines.ingest.shard import ShardSettings, read_rows, rejects_path, write_rejects, write_shard
from pipelines.ingest.source import open_source
from pipelines.resumable import (
    REJECTS,
    ROW_GROUP,
    ShardedOutput,
    content_hash,
    counted,
    require_outside,
    run_tasks,
    source_state,
    to_bytes,
)


def output_at(url: str) -> ShardedOutput:
    """Return the folder of an ingested data set at a URL; nothing is read or written."""
    return ShardedOutput(url, "ingest")


def find_finished(options: IngestOptions, output: str) -> Manifest | None:
    """Return the manifest if ``output`` is finished and whole, else None.

    Raises UserError if it was made with other options, or from a source that has changed since.
    """
    found = output_at(output).finished(
        options.public(), source_state([options.source]), lambda: prepare(options, output).key
    )
    return Manifest.from_json(found) if found is not None else None


def prepare(options: IngestOptions, output: str) -> IngestPlan:
    """Read the source's lists and index, and plan the shards.

    Raises UserError for a source that cannot be used, and for an ``output`` that holds something else.
    """
    options.check()
    require_outside(output, options.source, "--source")
    photos = LAYOUTS[options.dataset].photos
    place = output_at(output)
    with place.claimed():
        state = source_state([options.source])
        return make_plan(options, open_source(options.source, place.staging, photos), state)


def ingest(plan: IngestPlan, output: str, progress: Callable[[int, int], None]) -> Manifest:
    """Write the shards that earlier runs of the plan did not finish, then the manifest. Returns the manifest.

    Ray must be running. ``progress(done, total)`` is called with numbers of listed rows.
    Raises UserError if ``output`` holds shards of another plan, and OSError if the storage fails.
    """
    place = output_at(output)
    paths = [shard.path for shard in plan.shards]
    finished = place.begin(paths, plan.key)
    if not finished:
        # A run of another plan may have left rejects if it was killed before its first shard.
        storage.remove_tree(storage.join(output, REJECTS))
    write_rejects(list(plan.rejects), storage.join(output, REJECTS, "lists.parquet"))
    settings = ShardSettings(
        archive=plan.archive,
        output=place,
        landmark_set=plan.annotations.labels.landmark_set,
        margin=plan.options.margin,
        landmark_tolerance=plan.options.landmark_tolerance,
        key=plan.key,
        lossless=lossless.library() is not None,
    )
    total = plan.annotations.table.num_rows
    done = len(plan.rejects) + sum(report["rows_in"] for report in finished.values())
    progress(done, total)
    todo = [shard for shard in plan.shards if shard.path not in finished]
    for shards, held_out in _stages(todo, plan, output):
        items = [
            {"split": s.split, "index": s.index, "rows": to_bytes(s.rows.combine_chunks())} for s in shards
        ]
        work = {"settings": settings, "held_out": held_out}
        tasks = run_tasks(
            items,
            _write,
            probe=functools.partial(ray.remote(max_retries=0)(read_rows).remote, **work),
            unit="name",
            retries="max_retries",
            fn_kwargs=work,
        )
        for rows in tasks:
            done += rows
            progress(done, total)
    manifest = _manifest(plan, place.complete(paths, plan.key), output)
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
    scored = [_photos(output, shard) for shard in plan.shards if shard.split != "train"]
    held_out = frozenset(itertools.chain.from_iterable(t["photo_hash"].to_pylist() for t in scored))
    yield [shard for shard in todo if shard.split == "train"], held_out


def _photos(output: str, shard: PlannedShard) -> pa.Table:
    """Read ``sample_id``, ``photo_hash`` and ``split`` of a finished shard's rows."""
    with storage.open(storage.join(output, shard.path)) as file:
        table = pq.ParquetFile(file).read(columns=["sample_id", "photo_hash"])
    return table.append_column("split", pa.array([shard.split] * len(table), pa.string()))


def _manifest(plan: IngestPlan, reports: list[dict[str, Any]], output: str) -> Manifest:
    """Build the manifest, and check that every listed row is either in a shard or a reject."""
    shards = []
    splits: Counter[str] = Counter()
    rejects = Counter(r["reason"] for r in plan.rejects)
    for planned, report in zip(plan.shards, reports, strict=True):
        shards.append(
            Shard(
                planned.path,
                planned.split,
                report["rows"],
                report["bytes"],
                report["content_hash"],
                ROW_GROUP,
            )
        )
        splits[planned.split] += report["rows"]
        rejects.update(report["rejects"])
    rows_in = plan.annotations.table.num_rows
    assert rows_in == splits.total() + rejects.total(), (rows_in, splits, rejects)
    return Manifest(
        dataset=plan.options.dataset,
        **vars(plan.annotations.labels),
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
    tables = []
    for shard in plan.shards:
        tables.append(kept := _photos(output, shard))
        url = storage.join(output, rejects_path(shard.split, shard.index))
        if storage.exists(url):
            with storage.open(url) as file:
                rejects = pq.ParquetFile(file).read()
            copies = rejects.filter(pc.equal(rejects["reason"], "duplicate_photo"))
            tables.append(copies.select(kept.column_names).cast(kept.schema))
    photos = pa.concat_tables(tables).group_by("photo_hash")
    groups = photos.aggregate([("split", "count_distinct"), ("sample_id", "list")])
    several = groups.filter(pc.greater(groups["split_count_distinct"], 1))
    return tuple(sorted(tuple(sorted(ids)) for ids in several["sample_id_list"].to_pylist()))
