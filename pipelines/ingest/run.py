"""Raw archives to a data set of Parquet shards: a fixed plan, a Ray Data graph over it, the manifest last."""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from glefld import storage
from glefld.data.dataset import MANIFEST, open_dataset
from glefld.datasets import LAYOUTS
from glefld.errors import UserError
from glefld.schema import Manifest, Shard
from pipelines import resumable as tasks
from pipelines.ingest.plan import IngestOptions, Plan, PlannedShard, make_plan
from pipelines.ingest.shard import FOOTER, ShardJob, rejects_path, write_rejects, write_shard
from pipelines.ingest.source import open_source

STAGING = "_staging"
REJECTS = "_rejects"


def find_finished(options: IngestOptions, output: str) -> Manifest | None:
    """The data set that is at ``output`` already, if any; UserError if it was made with other options."""
    if not storage.exists(storage.join(output, MANIFEST)):
        return None
    manifest = open_dataset(output)
    _require_same(manifest.options, options.public(), output)
    _clean(output)
    return manifest


def prepare(options: IngestOptions, output: str) -> Plan:
    """Read the source's lists and index; UserError in one line for a source that cannot be used."""
    place = LAYOUTS[options.dataset].photos
    return make_plan(options, open_source(options.source, storage.join(output, STAGING), place))


def ingest(plan: Plan, output: str, progress: Callable[[int, int], None]) -> Manifest:
    """Write what of the plan an earlier, interrupted run has not finished, and the manifest last.

    Ray must be running. ``progress(done, all)`` counts listed rows. UserError if ``output`` holds shards of
    another plan.
    """
    finished = _finished(plan, output)
    _clean_parts(output)
    if not finished:
        # Rejects may be left of a run of another plan that was killed before its first shard.
        storage.remove_tree(storage.join(output, REJECTS))
    write_rejects(list(plan.rejects), storage.join(output, REJECTS, "lists.parquet"))
    job = ShardJob(
        archive=plan.archive,
        output=output,
        landmark_set=plan.annotations.labels.landmark_set,
        margin=plan.options.margin,
        landmark_tolerance=plan.options.landmark_tolerance,
        plan=plan.key,
    )
    total = plan.annotations.table.num_rows
    done = len(plan.rejects) + sum(report["rows_in"] for report in finished.values())
    progress(done, total)
    todo = [shard for shard in plan.shards if shard.path not in finished]
    for shards, held_out in _stages(todo, plan, output):
        for rows in _write_shards(shards, job, held_out):
            done += rows
            progress(done, total)
    finished = _finished(plan, output)
    tasks.require_all([shard.path for shard in plan.shards], finished, output)
    manifest = _manifest(plan, finished, output)
    storage.write_json(storage.join(output, MANIFEST), manifest.to_json())
    _clean(output)
    return manifest


def _stages(
    todo: list[PlannedShard], plan: Plan, output: str
) -> Iterator[tuple[list[PlannedShard], frozenset[bytes]]]:
    """All at once or, to dedupe, train after the scored splits, with the photos to keep out of it."""
    if not plan.options.dedupe:
        yield todo, frozenset()
        return
    yield [shard for shard in todo if shard.split != "train"], frozenset()
    scored = [_photos(output, shard) for shard in plan.shards if shard.split != "train"]
    held_out = frozenset(itertools.chain.from_iterable(t["photo_hash"].to_pylist() for t in scored))
    yield [shard for shard in todo if shard.split == "train"], held_out


def _finished(plan: Plan, output: str) -> dict[str, dict[str, Any]]:
    """The footer's report of each shard that is there, by its path, with its ``bytes``.

    UserError if the output holds shards of another plan.
    """
    planned = {shard.path for shard in plan.shards}
    fs, root = storage.filesystem(output)
    fs.invalidate_cache()
    reports = {}
    for path, info in fs.find(root, detail=True).items() if fs.exists(root) else ():
        relative = path[len(root) :].lstrip("/")
        if not relative.endswith(".parquet") or relative.startswith("_"):
            continue
        report = _footer(fs, path) if relative in planned else {}
        if report is None:
            continue
        if report.get("plan") != plan.key:
            raise UserError(
                f"{output} holds {relative}, which is not of this ingest (another source, other options or "
                "another release): give another --output, or delete it"
            )
        reports[relative] = {**report, "bytes": info["size"]}
    return reports


def _footer(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, Any] | None:
    """None for a file that is cut short, as some clients leave one silently: it is written again."""
    try:
        with fs.open(path, "rb") as file:
            metadata = pq.read_metadata(file).metadata or {}
    except pa.ArrowInvalid:
        return None
    return json.loads(metadata.get(FOOTER, b"{}"))


def _write_shards(shards: list[PlannedShard], job: ShardJob, held_out: frozenset[bytes]) -> Iterator[int]:
    """Write these shards, one Ray task each; yields the number of listed rows of each as it is done."""
    if not shards:
        return
    items = [{"split": s.split, "index": s.index, "rows": s.to_bytes()} for s in shards]
    work = {"job": job, "held_out": held_out}
    for report in tasks.reports(items, _write_or_tell, fn_kwargs=work, max_retries=tasks.RETRIES):
        yield report["rows"]


def _write_or_tell(row: dict[str, Any], job: ShardJob, held_out: frozenset[bytes]) -> dict[str, Any]:
    return tasks.or_error(lambda: write_shard(row, job, held_out))


def _photos(output: str, shard: PlannedShard) -> pa.Table:
    """``sample_id``, ``photo_hash`` and ``split`` of a finished shard's rows."""
    fs, root = storage.filesystem(output)
    with fs.open(storage.join(root, shard.path), "rb") as file:
        table = pq.ParquetFile(file).read(columns=["sample_id", "photo_hash"])
    return table.append_column("split", pa.array([shard.split] * len(table), pa.string()))


def _manifest(plan: Plan, reports: dict[str, dict[str, Any]], output: str) -> Manifest:
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
        dataset=plan.options.dataset,
        **vars(plan.annotations.labels),
        rows_in=rows_in,
        splits=dict(splits),
        rejects=dict(sorted(rejects.items())),
        shards=tuple(shards),
        content_hash=hashlib.sha256("".join(shard.content_hash for shard in shards).encode()).hexdigest(),
        options=plan.options.public(),
        source=plan.source,
        photos_in_several_splits=_in_several_splits(plan, output),
    )


def _in_several_splits(plan: Plan, output: str) -> tuple[tuple[str, ...], ...]:
    """The sample ids of each photo whose very bytes stand in several splits, kept out by --dedupe or not."""
    fs, root = storage.filesystem(output)
    tables = []
    for shard in plan.shards:
        tables.append(kept := _photos(output, shard))
        path = storage.join(root, rejects_path(shard.split, shard.index))
        if fs.exists(path):
            with fs.open(path, "rb") as file:
                rejects = pq.ParquetFile(file).read()
            copies = rejects.filter(pc.equal(rejects["reason"], "duplicate_photo"))
            tables.append(copies.select(kept.column_names).cast(kept.schema))
    photos = pa.concat_tables(tables).group_by("photo_hash")
    groups = photos.aggregate([("split", "count_distinct"), ("sample_id", "list")])
    several = groups.filter(pc.greater(groups["split_count_distinct"], 1))
    return tuple(sorted(tuple(sorted(ids)) for ids in several["sample_id_list"].to_pylist()))


def _require_same(found: dict[str, Any], wanted: dict[str, Any], output: str) -> None:
    differing = [name for name in wanted if found.get(name) != wanted[name]]
    if differing:
        words = ", ".join(f"{name} {found.get(name)!r} (now {wanted[name]!r})" for name in differing)
        raise UserError(
            f"{output} is finished already, made with {words}: give another --output, or delete it"
        )


def _clean(output: str) -> None:
    storage.remove_tree(storage.join(output, STAGING))
    _clean_parts(output)


def _clean_parts(output: str) -> None:
    """Remove what a killed run had begun to write; only local files leave such beginnings."""
    if storage.is_local(output):
        for part in Path(storage.filesystem(output)[1]).glob("**/_part-*"):
            part.unlink(missing_ok=True)
