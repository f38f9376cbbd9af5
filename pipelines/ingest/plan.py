"""What an ingest is going to write: fixed before it starts, whatever the timing and the number of CPUs."""

import dataclasses
import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from glefld.datasets import Dataset, read_annotations
from glefld.datasets.lists import Annotations
from glefld.errors import UserError, require_between
from glefld.schema import SCHEMA_VERSION, SPLITS
from glefld.storage import public_url
from pipelines.archives import MEMBERS, Archive
from pipelines.ingest.shard import REASONS, reject, shard_path
from pipelines.ingest.source import Source, match_photos
from pipelines.resumable import ROW_GROUP, to_bytes

#: A small split is still cut into this many shards (of a row group each at least), for readers to share.
MIN_SHARDS = 8
#: Bytes stored for one byte of the photos: quality 95 at 4:4:4 weighs more than the benchmarks' downloads.
#: Measured on 6,000 photos of DeepFashion at margin 0.25: 1.96.
STORED_PER_PHOTO_BYTE = 2.0


@dataclasses.dataclass(frozen=True)
class IngestOptions:
    """What is read, and everything that decides what the data set holds."""

    dataset: Dataset
    """Layout of the raw data."""
    source: str
    """Folder with the lists and img.zip (.tar, .tar.gz, unpacked img), or one archive of everything; path or URL.
    deepfashion2: train and validation, unpacked or one zip each. image-folder: a folder or an archive with train/,
    val/ and optionally test/, and in each one folder per class."""
    margin: float | Literal["full"] = 0.25
    """What to store around the box, as a fraction of its size on each side; `full` stores the whole photo."""
    landmark_tolerance: float = 0.1
    """How far outside its box a landmark may lie before its row is rejected, as a fraction of the box's size."""
    shard_mib: int = 256
    """Target size, in MiB, of one Parquet file of a large data set."""
    dedupe: bool = False
    """Keep photos whose exact bytes are also in val or test out of train."""

    def check(self) -> None:
        """UserError for a value out of range."""
        if self.margin != "full":
            require_between("--margin", self.margin, 0, 10)
        require_between("--landmark-tolerance", self.landmark_tolerance, 0)
        require_between("--shard-mib", self.shard_mib, 1)

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


@dataclasses.dataclass(frozen=True)
class IngestPlan:
    """All shards, the rows turned away beforehand, and ``key``, a hash of what decides the content."""

    key: str
    options: IngestOptions
    archive: Archive
    annotations: Annotations
    shards: tuple[PlannedShard, ...]
    rejects: tuple[dict[str, Any], ...]
    source: dict[str, Any]


def make_plan(options: IngestOptions, source: Source) -> IngestPlan:
    """Join the lists with the archive's index, turn away what needs no look at a photo, cut the rest.

    Rows go by split and by place in the archive. UserError if no row has both annotation and photo.
    """
    annotations = read_annotations(options.dataset, source.lists)
    members, capitals = match_photos(annotations.table["photo"], source.members)
    rows = annotations.table
    for name in MEMBERS.names:
        rows = rows.append_column(name, members[name])
    incomplete = pc.or_(pc.is_null(rows["split"]), pc.is_null(rows["box"]))
    incomplete = pc.or_(incomplete, pc.is_null(rows["visibility"]))
    missing = pc.is_null(rows["name"])
    reason = pc.case_when(
        pc.make_struct(rows["duplicate"], incomplete, missing),
        "duplicate_id",
        "missing_annotation",
        "missing_photo",
    )
    rejects = tuple(
        reject(row, _uri(row, source.archive), row["reason"], REASONS[row["reason"]])
        for row in rows.append_column("reason", reason).filter(pc.is_valid(reason)).to_pylist()
    )
    if len(rejects) == len(rows):
        reasons = ", ".join(
            f"{name} {count}" for name, count in Counter(r["reason"] for r in rejects).items()
        )
        raise UserError(
            f"none of the {len(rows)} listed rows has an annotation in each list and its photo in "
            f"{source.archive.name} ({reasons}): do they belong together?"
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
    return IngestPlan(
        key=_plan_key(options, annotations, shards, rejects),
        options=options,
        archive=source.archive,
        annotations=annotations,
        shards=shards,
        rejects=rejects,
        source={
            "url": public_url(options.source),
            "photos": source.archive.name,
            # The view is our own addition to the benchmarks' lists.
            "absent_lists": sorted(name for name in source.lists.absent if not name.endswith("view.txt")),
            "files": len(source.members),
            "file_bytes": pc.sum(source.members["size"]).as_py(),
            "files_not_used": len(source.members) - pc.count_distinct(kept["name"]).as_py(),
            "photos_found_by_other_capitals": capitals,
        },
    )


def _uri(row: dict[str, Any], archive: Archive) -> str:
    """Where the row's photo is, or would be: an unpacked folder's members lack the ``img/`` of the lists."""
    listed = row["photo"].removeprefix("img/") if archive.kind == "folder" else row["photo"]
    return archive.uri(row["name"] or listed)


def _cut(rows: pa.Table, shard_bytes: int) -> list[pa.Table]:
    """Rows in order into shards of nearly equal bytes, by the photos' sizes, alike in any kind of archive."""
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
    """A hash of all that decides what the shards hold: a restart keeps only shards of the same plan."""
    digest = hashlib.sha256()
    facts = [
        SCHEMA_VERSION,
        options.public(),
        annotations.labels.landmark_set.to_json(),
        list(rejects),
        ROW_GROUP,
    ]
    digest.update(json.dumps(facts, default=bytes.hex).encode())
    for shard in shards:
        digest.update(shard.path.encode())
        digest.update(to_bytes(shard.rows.combine_chunks()))
    return digest.hexdigest()
