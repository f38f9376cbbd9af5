"""The plan of an ingest: the rows of every shard, fixed in advance and independent of timing and number of CPUs."""

import dataclasses
import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.compute as pc
import simplejpeg

from glefld import storage
from glefld.data import lossless
from glefld.datasets import Dataset, read_annotations
from glefld.datasets.lists import Annotations
from glefld.errors import UserError, require_between
from glefld.redaction import public_url
from glefld.schema import SCHEMA_VERSION, SPLITS
from glefld.synthetic.raw_lists import MARK
from pipelines.archives import MAX_MEMBER_BYTES, MEMBERS, Archive
from pipelines.ingest.shard import REASONS, reject, shard_path
from pipelines.ingest.source import Source, match_photos
from pipelines.resumable import ROW_GROUP, to_bytes

#: Raise this when the same photos and lists would give other rows, so that shards of two releases are not mixed.
INGEST_VERSION = 3
#: Even a small split gets this many shards (of at least one row group each), so that several readers can share it.
MIN_SHARDS = 8
#: Bytes stored per byte of the source photos, to size shards. Measured on 6,000 photos of DeepFashion at margin 0.25:
#: 0.85 where crops are cut without decoding, 1.94 where they are encoded again.
STORED_PER_PHOTO_BYTE = 0.85


@dataclasses.dataclass(frozen=True)
class IngestOptions:
    """The source, and the options that determine the content of the data set."""

    dataset: Dataset
    """Layout of the raw data."""
    source: str
    """Folder with the lists and img.zip (or .tar, .tar.gz, unpacked img/), or one archive of everything; path or URL.
    deepfashion2: folder with train and validation, unpacked or one zip each. image-folder: folder or archive with
    train/, val/ and optionally test/, each with one folder per class."""
    margin: float | Literal["full"] = 0.25
    """Margin to store around the bounding box, as a fraction of its size on each side. full: store the whole photo."""
    landmark_tolerance: float = 0.1
    """How far outside its bounding box a landmark may lie before the row is rejected, as a fraction of the box size."""
    shard_mib: int = 256
    """Target size of a Parquet file in MiB."""
    dedupe: bool = False
    """Drop photos from train whose exact bytes are also in val or test."""

    def check(self) -> None:
        """Raise UserError for a value out of range."""
        if self.margin != "full":
            require_between("--margin", self.margin, 0, 10)
        require_between("--landmark-tolerance", self.landmark_tolerance, 0)
        require_between("--shard-mib", self.shard_mib, 1)

    def public(self) -> dict[str, Any]:
        """Return the options for the manifest, without credentials."""
        return {**dataclasses.asdict(self), "source": public_url(self.source)}


@dataclasses.dataclass(frozen=True)
class PlannedShard:
    """One Parquet file to write. ``rows`` has the columns of ANNOTATIONS, and of MEMBERS for the photos."""

    split: str
    index: int
    rows: pa.Table

    @property
    def path(self) -> str:
        """The shard's path, relative to the output."""
        return shard_path(self.split, self.index)


@dataclasses.dataclass(frozen=True)
class IngestPlan:
    """All shards, and the rows already rejected. ``key`` hashes everything that determines the content."""

    key: str
    options: IngestOptions
    archive: Archive
    annotations: Annotations
    shards: tuple[PlannedShard, ...]
    rejects: tuple[dict[str, Any], ...]
    source: dict[str, Any]
    source_state: str


def make_plan(options: IngestOptions, source: Source, source_state: str = "") -> IngestPlan:
    """Join the lists with the archive's index, reject rows that need no look at the photo, and shard the rest.

    Rows are sorted by split, then by position in the archive. source_state: of the files, taken before they were read.
    Raises UserError for lists that cannot be read, or if no row has both an annotation and a photo.
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
            f"none of the {len(rows)} listed rows has an annotation in every list and a photo in "
            f"{source.archive.name} ({reasons}): check that --source has lists and photos of the same data set"
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
            "rendered": storage.is_folder(options.source)
            and storage.exists(storage.join(options.source, MARK)),
            # The view list is an addition of ours; the benchmarks do not have it.
            "absent_lists": sorted(name for name in source.lists.absent if not name.endswith("view.txt")),
            "files": len(source.members),
            "file_bytes": pc.sum(source.members["size"]).as_py(),
            "files_not_used": len(source.members) - pc.count_distinct(kept["name"]).as_py(),
            "files_replaced": source.replaced,
            "photos_found_by_other_capitals": capitals,
        },
        source_state=source_state,
    )


def _uri(row: dict[str, Any], archive: Archive) -> str:
    """Return the URI of the row's photo, even if the photo is missing."""
    # Lists say ``img/...``; in an unpacked folder, members are named relative to ``img/``.
    listed = row["photo"].removeprefix("img/") if archive.kind == "folder" else row["photo"]
    return archive.uri(row["name"] or listed)


def _cut(rows: pa.Table, shard_bytes: int) -> list[pa.Table]:
    """Split the rows, in order, into shards of nearly equal size.

    Sizes are those of the unpacked photos, so the split is the same for every kind of archive.
    """
    if not len(rows):
        return []
    sizes = rows["size"].to_numpy().astype(np.int64).clip(max=MAX_MEMBER_BYTES)  # larger ones are never read
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
    """Hash everything that determines the content of the shards. A restart keeps only shards with the same key."""
    digest = hashlib.sha256()
    facts = [
        SCHEMA_VERSION,
        INGEST_VERSION,
        # They determine the bytes of crops: what is decoded and encoded anew, and what is cut.
        PIL.__version__,
        simplejpeg.__version__,
        lossless.version(),
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
