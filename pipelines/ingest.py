"""Raw archives to a data set of Parquet shards: a fixed plan, one Ray Data graph over it, the manifest last."""

import dataclasses
import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from glefld import storage
from glefld.dataset import MANIFEST, open_dataset
from glefld.datasets import Dataset, read_annotations
from glefld.datasets.lists import Annotations
from glefld.schema import SCHEMA_VERSION, SPLITS, Manifest, Shard
from pipelines.archives import MEMBERS, Archive, public_url
from pipelines.shards import (
    FOOTER,
    REASONS,
    ROW_GROUP,
    ShardJob,
    reject,
    rejects_path,
    shard_path,
    write_rejects,
    write_shard,
)
from pipelines.sources import Source, match_photos, open_source

STAGING = "_staging"
#: Rejects that the lists alone decide, before any photo is read.
LIST_REJECTS = "_rejects/lists.parquet"
#: A small split is still cut into this many shards (of a row group each at least), for readers to share.
MIN_SHARDS = 8
#: Bytes of the stored crop for one of the photo, about: quality 95 at 4:4:4 weighs more than what was downloaded.
STORED_PER_PHOTO_BYTE = 2.0


@dataclasses.dataclass(frozen=True)
class IngestOptions:
    """What is read, and everything that decides the content of the data set. See ``jobs.ingest`` for the meanings."""

    dataset: Dataset
    source: str
    margin: float | Literal["full"] = 0.25
    landmark_tolerance: float = 0.1
    shard_mib: int = 256
    dedupe: bool = False

    def public(self) -> dict[str, Any]:
        """The options as the manifest keeps them: without credentials."""
        return {**dataclasses.asdict(self), "source": public_url(self.source)}


@dataclasses.dataclass(frozen=True)
class PlannedShard:
    """One file to write: ``rows`` has the columns of ANNOTATIONS and, for the photos, of MEMBERS."""

    split: str
    index: int
    rows: pa.Table

    @property
    def path(self) -> str:
        return shard_path(self.split, self.index)

    def to_bytes(self) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.rows.schema) as writer:
            writer.write_table(self.rows.combine_chunks())
        return sink.getvalue().to_pybytes()


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be written, fixed before the work starts and independent of timing and of how many CPUs there are."""

    key: str
    archive: Archive
    annotations: Annotations
    shards: tuple[PlannedShard, ...]
    rejects: tuple[dict[str, Any], ...]
    source: dict[str, Any]


def ingest(
    options: IngestOptions, output: str, progress: Callable[[int, int], None]
) -> tuple[Manifest, bool]:
    """Read ``options.source`` and write the data set at ``output``; its manifest, and whether it was there already.

    Shards that an earlier, interrupted run has finished are kept. ``progress(done, all)`` counts listed rows.
    ValueError for a source that cannot be read, and for an output that holds something else.
    """
    if storage.exists(storage.join(output, MANIFEST)):
        manifest = open_dataset(output)
        _require_same(manifest.options, options.public(), output)
        _clean(output)
        return manifest, True
    plan = make_plan(options, open_source(options.source, storage.join(output, STAGING)))
    reports = _finished(plan, output)
    _clean_parts(output)
    write_rejects(list(plan.rejects), storage.join(output, LIST_REJECTS))
    job = ShardJob(
        archive=plan.archive,
        output=output,
        landmark_set=plan.annotations.landmark_set,
        margin=options.margin,
        landmark_tolerance=options.landmark_tolerance,
        plan=plan.key,
    )
    total = plan.annotations.table.num_rows
    done = len(plan.rejects) + sum(report["rows_in"] for report in reports.values())
    progress(done, total)
    # The splits that are scored come first, so that train can be kept free of their photos.
    for stage in (("val", "test"), ("train",)) if options.dedupe else (SPLITS,):
        todo = [s for s in plan.shards if s.split in stage and s.path not in reports]
        before = [s.path for s in plan.shards if s.split not in stage and s.split != "train"]
        held_out = frozenset(_photos(output, before)["photo_hash"].to_pylist()) if before else frozenset()
        for rows in _write_shards(todo, job, held_out):
            done += rows
            progress(done, total)
    manifest = _manifest(options, plan, _finished(plan, output), output)
    storage.write_json(storage.join(output, MANIFEST), manifest.to_json())
    _clean(output)
    return manifest, False


def make_plan(options: IngestOptions, source: Source) -> Plan:
    """Join the lists with the archive's index, turn away what needs no look at a photo, and cut the rest in shards.

    Rows go by split and by place in the archive. ValueError if the source holds none of the listed photos.
    """
    annotations = read_annotations(options.dataset, source.lists)
    members, capitals = match_photos(annotations.table["photo"], source.members)
    rows = annotations.table
    for name in MEMBERS.names:
        rows = rows.append_column(name, members[name])
    unlisted = pc.or_(
        pc.or_(pc.is_null(rows["split"]), pc.is_null(rows["box"])), pc.is_null(rows["visibility"])
    )
    reason = pc.case_when(
        pc.make_struct(rows["duplicate"], unlisted, pc.is_null(rows["name"])),
        "duplicate_id",
        "missing_annotation",
        "missing_photo",
    )
    missing = pc.sum(pc.is_null(rows["name"])).as_py() or 0
    if missing == len(rows):
        raise ValueError(
            f"{source.archive.name} holds none of the {missing} listed photos: is it the lists' archive?"
        )
    rejects = tuple(
        reject(row, source.archive.uri(row["name"] or row["photo"]), row["reason"], REASONS[row["reason"]])
        for row in rows.append_column("reason", reason).filter(pc.is_valid(reason)).to_pylist()
    )
    order = [("start", "ascending"), ("name", "ascending"), ("sample_id", "ascending")]
    kept = rows.filter(pc.is_null(reason)).sort_by(order).combine_chunks()
    shards = tuple(
        PlannedShard(split, index, part)
        for split in SPLITS
        for index, part in enumerate(
            _cut(kept.filter(pc.equal(kept["split"], split)), options.shard_mib << 20)
        )
    )
    used = pc.count_distinct(kept["name"]).as_py()
    return Plan(
        key=_plan_key(options, annotations, shards, rejects),
        archive=source.archive,
        annotations=annotations,
        shards=shards,
        rejects=rejects,
        source={
            "url": public_url(options.source),
            "photos": source.archive.name,
            "photo_bytes": pc.sum(source.members["size"]).as_py(),
            "files": len(source.members),
            "files_not_used": len(source.members) - used,
            "photos_matched_without_capitals": capitals,
        },
    )


def _cut(rows: pa.Table, shard_bytes: int) -> list[pa.Table]:
    """Rows in order into shards of nearly equal bytes, told from the photos' sizes, which no kind of archive changes."""
    if not len(rows):
        return []
    sizes = rows["size"].to_numpy().astype(np.int64)
    count = max(
        math.ceil(sizes.sum() * STORED_PER_PHOTO_BYTE / shard_bytes),
        min(MIN_SHARDS, math.ceil(len(rows) / ROW_GROUP)),
    )
    middle = np.cumsum(sizes) - sizes / 2
    shard = (middle / max(1, sizes.sum()) * count).astype(np.int64)
    edges = [0, *(np.flatnonzero(np.diff(shard)) + 1).tolist(), len(rows)]
    return [rows.slice(i, j - i) for i, j in itertools.pairwise(edges)]


def _plan_key(
    options: IngestOptions,
    annotations: Annotations,
    shards: Iterable[PlannedShard],
    rejects: Iterable[dict[str, Any]],
) -> str:
    """A hash of all that decides what the shards hold, so that a restart keeps only shards of the same plan."""
    digest = hashlib.sha256()
    facts = [SCHEMA_VERSION, options.public(), annotations.landmark_set.to_json(), list(rejects), ROW_GROUP]
    digest.update(json.dumps(facts, default=bytes.hex).encode())
    for shard in shards:
        digest.update(shard.path.encode())
        digest.update(shard.to_bytes())
    return digest.hexdigest()


def _finished(plan: Plan, output: str) -> dict[str, dict[str, Any]]:
    """The footer's report of each shard that is there, by its path, with its ``bytes``.

    ValueError if the output holds shards of another plan.
    """
    planned = {shard.path for shard in plan.shards}
    fs, root = storage.filesystem(output)
    fs.invalidate_cache()
    reports = {}
    for path, info in fs.find(root, detail=True).items() if fs.exists(root) else ():
        relative = path[len(root) :].lstrip("/")
        if any(part.startswith("_") for part in relative.split("/")):
            continue
        report = _footer(fs, path) if relative in planned else {}
        if report.get("plan") != plan.key:
            raise ValueError(
                f"{output} holds {relative}, which is not of this ingest (another source, other options or another "
                "release): give another --output, or delete it"
            )
        reports[relative] = {**report, "bytes": info["size"]}
    return reports


def _footer(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, Any]:
    try:
        with fs.open(path, "rb") as file:
            metadata = pq.read_metadata(file).metadata or {}
    except pa.ArrowInvalid:
        return {}
    return json.loads(metadata.get(FOOTER, b"{}"))


def _write_shards(todo: list[PlannedShard], job: ShardJob, held_out: frozenset[bytes]) -> Iterator[int]:
    """Write these shards, one Ray task each; yields the number of listed rows of each as it is done."""
    if not todo:
        return
    items = [{"split": s.split, "index": s.index, "rows": s.to_bytes()} for s in todo]
    # A block a shard: Ray repeats the task of a worker that was lost, and a shard is whole or not there.
    graph = ray.data.from_items(items, override_num_blocks=len(items)).map(
        write_shard, fn_kwargs={"job": job, "held_out": held_out}
    )
    for report in graph.iter_rows():
        yield report["rows_in"]


def _photos(output: str, paths: Iterable[str]) -> pa.Table:
    """``sample_id`` and ``photo_hash`` of these shards' rows."""
    fs, root = storage.filesystem(output)
    tables = []
    for path in paths:
        with fs.open(storage.join(root, path), "rb") as file:
            tables.append(pq.read_table(file, columns=["sample_id", "photo_hash"]))
    return pa.concat_tables(tables)


def _manifest(
    options: IngestOptions, plan: Plan, reports: dict[str, dict[str, Any]], output: str
) -> Manifest:
    shards = [
        Shard(s.path, s.split, **{key: reports[s.path][key] for key in ("rows", "bytes", "content_hash")})
        for s in plan.shards
    ]
    splits: Counter[str] = Counter()
    rejects = Counter(r["reason"] for r in plan.rejects)
    for shard in shards:
        splits[shard.split] += shard.rows
        rejects.update(reports[shard.path]["rejects"])
    rows_in = plan.annotations.table.num_rows
    assert rows_in == splits.total() + rejects.total(), (rows_in, splits, rejects)
    return Manifest(
        dataset=options.dataset,
        landmark_set=plan.annotations.landmark_set,
        rows_in=rows_in,
        splits=dict(splits),
        rejects=dict(sorted(rejects.items())),
        shards=tuple(shards),
        content_hash=hashlib.sha256("".join(shard.content_hash for shard in shards).encode()).hexdigest(),
        options=options.public(),
        source=plan.source,
        photos_in_several_splits=_in_several_splits(plan, output),
        categories=plan.annotations.categories,
        attributes=plan.annotations.attributes,
    )


def _in_several_splits(plan: Plan, output: str) -> tuple[tuple[str, ...], ...]:
    """The sample ids of each photo whose very bytes stand in more than one split, turned away by --dedupe or not."""
    tables = []
    fs, root = storage.filesystem(output)
    for shard in plan.shards:
        photos = _photos(output, [shard.path])
        path = storage.join(root, rejects_path(shard.split, shard.index))
        if fs.exists(path):
            with fs.open(path, "rb") as file:
                rejects = pq.read_table(file, filters=[("reason", "==", "duplicate_photo")])
            photos = pa.concat_tables(
                [photos, rejects.select(photos.column_names)], promote_options="permissive"
            )
        tables.append(photos.append_column("split", pa.array([shard.split] * len(photos), pa.string())))
    groups = (
        pa.concat_tables(tables, promote_options="permissive")
        .group_by("photo_hash")
        .aggregate([("split", "count_distinct"), ("sample_id", "list")])
    )
    several = groups.filter(pc.greater(groups["split_count_distinct"], 1))
    return tuple(sorted(tuple(sorted(ids)) for ids in several["sample_id_list"].to_pylist()))


def _require_same(found: dict[str, Any], wanted: dict[str, Any], output: str) -> None:
    differing = [name for name in wanted if found.get(name) != wanted[name]]
    if differing:
        words = ", ".join(f"{name} {found.get(name)!r} (now {wanted[name]!r})" for name in differing)
        raise ValueError(
            f"{output} is finished already, made with {words}: give another --output, or delete it"
        )


def _clean(output: str) -> None:
    storage.remove_tree(storage.join(output, STAGING))
    _clean_parts(output)


def _clean_parts(output: str) -> None:
    """Remove what a killed run had begun to write: only local files have such beginnings."""
    if storage.is_local(output):
        for part in Path(storage.filesystem(output)[1]).glob("**/_part-*"):
            part.unlink(missing_ok=True)
