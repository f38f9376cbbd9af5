"""The data model shared by all jobs: landmark sets, visibility codes, the Arrow schema and the manifest.

Coordinates are continuous everywhere: pixel i covers [i, i + 1), so an annotated integer x is the point x + 0.5.
In the crop ``photo[y1:y2, x1:x2]`` that landmark lies at (x + 0.5 - x1, y + 0.5 - y1), and the crop is x2 - x1 wide.
"""

import dataclasses
import json
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, Literal, get_args

import pyarrow as pa

from glefld.errors import UserError

#: 3: crops in the photo's own JPEG encoding, maybe larger than the box with its margin. 2: all crops of quality 95 and
#: 4:4:4. The columns are the same, so both are read.
SCHEMA_VERSION = 3
READABLE_VERSIONS = (2, 3)
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
VIEWS = ("front", "side", "back")
#: Most garments that a detector's boxes are taken for in a photo, unless told.
MOST_GARMENTS = 10
#: The single-label targets a garment can be classified by.
ClassLabel = Literal["category", "garment_type"]


class Visibility(IntEnum):
    """State of one landmark slot of a garment: the benchmarks' codes 0 to 2, and this project's own 3."""

    VISIBLE = 0
    OCCLUDED = 1
    CUT_OFF = 2
    ABSENT = 3  # the garment's type has no such landmark, or nothing was annotated


@dataclasses.dataclass(frozen=True)
class GarmentType:
    """One garment type of a landmark set: the raw data set's code, its name, and the indices of its landmarks."""

    code: int
    name: str
    landmarks: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class LandmarkSet:
    """K landmarks: their names, the index each one swaps with when mirrored, and the landmarks of each garment type.

    The manifest stores the set with the data. Nothing else fixes K, so a custom set is just another instance.
    ``sigmas`` [K], for object keypoint similarity, are empty where none are known. They are for scores alone: sets
    that differ in nothing else are equal.
    UserError if the names are not unique, the mirror is not a pairing, a garment type names an unknown landmark, or
    there are not as many sigmas as landmarks.
    """

    name: str
    landmarks: tuple[str, ...]
    mirror: tuple[int, ...]
    garment_types: tuple[GarmentType, ...]
    sigmas: tuple[float, ...] = dataclasses.field(default=(), compare=False)

    def __post_init__(self) -> None:
        k = len(self.landmarks)
        if len(set(self.landmarks)) != k:
            raise UserError(f"landmark set {self.name!r}: landmark names must be unique")
        if sorted(self.mirror) != list(range(k)) or any(
            self.mirror[m] != i for i, m in enumerate(self.mirror)
        ):
            raise UserError(
                f"landmark set {self.name!r}: mirror must pair each of the {k} landmarks with one of them"
            )
        if len(self.sigmas) not in (0, k):
            raise UserError(f"landmark set {self.name!r}: {len(self.sigmas)} sigmas for {k} landmarks")
        for garment in self.garment_types:
            if not set(garment.landmarks) <= set(range(k)):
                raise UserError(
                    f"landmark set {self.name!r}: type {garment.name!r} names an unknown landmark"
                )

    def __len__(self) -> int:
        return len(self.landmarks)

    def garment_type(self, code: int) -> GarmentType:
        """Return the garment type with this code; KeyError if the set has none."""
        for garment in self.garment_types:
            if garment.code == code:
                return garment
        raise KeyError(code)

    def to_json(self) -> dict[str, Any]:
        """Return the set as JSON-serialisable values; without sigmas there is no such key."""
        value = dataclasses.asdict(self)
        return value if self.sigmas else {name: v for name, v in value.items() if name != "sigmas"}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "LandmarkSet":
        """Rebuild the set from ``to_json``'s value."""
        return cls(
            name=value["name"],
            landmarks=tuple(value["landmarks"]),
            mirror=tuple(value["mirror"]),
            garment_types=tuple(
                GarmentType(g["code"], g["name"], tuple(g["landmarks"])) for g in value["garment_types"]
            ),
            sigmas=tuple(value.get("sigmas", ())),
        )


#: FLD and DeepFashion: the 8 landmarks of a full-body garment, in its order. The other types use a subset of them.
FASHION8 = LandmarkSet(
    name="fashion8",
    landmarks=(
        "left_collar",
        "right_collar",
        "left_sleeve",
        "right_sleeve",
        "left_waistline",
        "right_waistline",
        "left_hem",
        "right_hem",
    ),
    mirror=(1, 0, 3, 2, 5, 4, 7, 6),
    garment_types=(
        GarmentType(1, "upper", (0, 1, 2, 3, 6, 7)),
        GarmentType(2, "lower", (4, 5, 6, 7)),
        GarmentType(3, "full", (0, 1, 2, 3, 4, 5, 6, 7)),
    ),
)

#: For data sets that have class labels only.
NO_LANDMARKS = LandmarkSet("none", (), (), ())


def _field(name: str, type_: pa.DataType, unit: str, nullable: bool = False) -> pa.Field:
    return pa.field(name, type_, nullable=nullable, metadata={"unit": unit})


def sample_schema(landmark_set: LandmarkSet) -> pa.Schema:
    """Return the Arrow schema of a Parquet shard: one row per garment. ``split`` is the partition, not a column."""
    box = pa.list_(pa.float32(), 4)
    return pa.schema(
        [
            _field("sample_id", pa.string(), "data set, photo and the garment's number in the photo"),
            _field("source_uri", pa.string(), "the photo; archive_uri::member inside an archive"),
            _field("source_width", pa.int32(), "pixels"),
            _field("source_height", pa.int32(), "pixels"),
            _field("photo_hash", pa.binary(16), "16-byte blake2b hash of the photo's file"),
            _field("box", box, "x1 y1 x2 y2, photo pixels, continuous"),
            _field("crop_box", box, "x1 y1 x2 y2, photo pixels: the part of the photo that is stored"),
            _field("image", pa.binary(), "JPEG"),
            _field("image_width", pa.int32(), "pixels"),
            _field("image_height", pa.int32(), "pixels"),
            _field("garment_type", pa.int8(), "code of the landmark set's garment type", nullable=True),
            _field("variation", pa.int8(), "FLD variation_type, 1..5", nullable=True),
            _field("category", pa.int16(), "1-based index into the data set's categories", nullable=True),
            _field(
                "attributes",
                pa.list_(pa.int16()),
                "0-based indices of the garment's attributes",
                nullable=True,
            ),
            _field("view", pa.string(), "front, side or back", nullable=True),
            _field("area", pa.float32(), "of the garment's mask, photo pixels", nullable=True),
            _field("landmarks", pa.list_(pa.float32()), "2K: x y in the stored picture, NaN where missing"),
            _field("visibility", pa.list_(pa.int8()), "K: 0 visible, 1 occluded, 2 cut off, 3 absent"),
        ],
        metadata={
            "glefld.schema_version": str(SCHEMA_VERSION),
            "glefld.landmark_set": json.dumps(landmark_set.to_json(), separators=(",", ":")),
        },
    )


REJECT_SCHEMA = pa.schema(
    [
        _field("sample_id", pa.string(), "the id the row would have had"),
        _field("split", pa.string(), "train, val or test"),
        _field("source_uri", pa.string(), "the photo, found or not"),
        _field("reason", pa.string(), "why the row was rejected, as a short constant"),
        _field("detail", pa.string(), "what was wrong, as text"),
        _field("photo_hash", pa.binary(16), "where the photo could be read", nullable=True),
    ],
    metadata={"glefld.schema_version": str(SCHEMA_VERSION)},
)


@dataclasses.dataclass(frozen=True)
class Attribute:
    """One attribute of a data set: its name and its 1-based type, an index into ``Labels.attribute_types``."""

    name: str
    type: int


@dataclasses.dataclass(frozen=True)
class Labels:
    """The label space of a data set. It sets the size of every model's heads and names their outputs."""

    landmark_set: LandmarkSet
    categories: tuple[str, ...] = ()
    attributes: tuple[Attribute, ...] = ()
    #: Names of the attribute types 1, 2, ...
    attribute_types: tuple[str, ...] = ()

    def classes(self, label: ClassLabel) -> tuple[str, ...]:
        """Return the class names of this label; empty if the data set does not have it."""
        if label == "category":
            return self.categories
        return tuple(garment.name for garment in self.landmark_set.garment_types)

    def shared(self, other: "Labels") -> "Labels":
        """Return what both label spaces have: landmark set, categories and attributes, each only if it is the same."""
        same_attributes = (self.attributes, self.attribute_types) == (other.attributes, other.attribute_types)
        return Labels(
            self.landmark_set if self.landmark_set == other.landmark_set else NO_LANDMARKS,
            self.categories if self.categories == other.categories else (),
            self.attributes if same_attributes else (),
            self.attribute_types if same_attributes else (),
        )

    def summary(self) -> str:
        """Return a one-line summary for the terminal."""
        k = len(self.landmark_set)
        heads = [f"{k} landmarks {self.landmark_set.name!r}"] if k else []
        heads += [f"{len(self.categories)} categories"] if self.categories else []
        heads += [f"{len(self.attributes)} attributes"] if self.attributes else []
        return ", ".join(heads)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Labels":
        """Rebuild the labels from the fields of a manifest or a model card."""
        return cls(
            LandmarkSet.from_json(value["landmark_set"]),
            tuple(value["categories"]),
            tuple(Attribute(**a) for a in value["attributes"]),
            tuple(value["attribute_types"]),
        )


@dataclasses.dataclass(frozen=True)
class Shard:
    """One finished Parquet file: its path relative to the data set's root, its split, size and content hash."""

    path: str
    split: str
    rows: int
    bytes: int
    content_hash: str
    group_rows: int = 0
    """Rows of each of its row groups, the last of which may have fewer; 0 if only its footer tells."""


#: What the title of a data set of rendered photos ends with.
RENDERED = " (rendered)"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A data set's ``_manifest.json``. It is written last, so a folder without one is not a finished data set."""

    dataset: str
    landmark_set: LandmarkSet
    rows_in: int
    splits: dict[str, int]
    rejects: dict[str, int]
    shards: tuple[Shard, ...]
    content_hash: str
    options: dict[str, Any]
    source: dict[str, Any]
    photos_in_several_splits: tuple[tuple[str, ...], ...] = ()
    categories: tuple[str, ...] = ()
    attributes: tuple[Attribute, ...] = ()
    attribute_types: tuple[str, ...] = ()
    plan: str = ""
    """Key of the plan that the shards belong to."""
    source_state: str = ""
    """Hash of the source's files: sizes and versions, not contents."""
    schema_version: int = SCHEMA_VERSION

    @property
    def rendered(self) -> bool:
        """Whether the photos are this project's own drawings."""
        return bool(self.source.get("rendered"))

    @property
    def title(self) -> str:
        """The data set's name in tables and charts. Rendered photos do not stand under the benchmark's name alone."""
        return self.dataset + (RENDERED if self.rendered else "")

    @property
    def labels(self) -> Labels:
        """The data set's label space."""
        return Labels(self.landmark_set, self.categories, self.attributes, self.attribute_types)

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as JSON-serialisable values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Manifest":
        """Rebuild a manifest; UserError if it was written with a schema version that is not read."""
        if value.get("schema_version") not in READABLE_VERSIONS:
            raise UserError(
                f"the data set has schema version {value.get('schema_version')}, but this program reads "
                f"{READABLE_VERSIONS[0]} to {READABLE_VERSIONS[-1]}: ingest it again"
            )
        fields = dict(value)
        fields |= vars(Labels.from_json(value))
        fields["shards"] = tuple(Shard(**s) for s in value["shards"])
        fields["photos_in_several_splits"] = tuple(tuple(p) for p in value["photos_in_several_splits"])
        return cls(**fields)
