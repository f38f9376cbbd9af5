"""The one definition of a sample: landmark sets, visibility codes, the Arrow schema and the manifest.

Coordinates are continuous everywhere: pixel i covers [i, i + 1), so an annotated integer x is the point x + 0.5.
A crop ``photo[y1:y2, x1:x2]`` therefore moves a landmark to (x + 0.5 - x1, y + 0.5 - y1) of a picture x2 - x1 wide.
"""

import dataclasses
import json
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, Literal, get_args

import pyarrow as pa

from glefld.errors import UserError

SCHEMA_VERSION = 2
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
VIEWS = ("front", "side", "back")
#: What a garment is one of.
ClassLabel = Literal["category", "garment_type"]


class Visibility(IntEnum):
    """State of one landmark slot of a garment. The first three are the benchmarks' codes; the fourth is ours."""

    VISIBLE = 0
    OCCLUDED = 1
    CUT_OFF = 2
    ABSENT = 3  # the garment's type has no such landmark, or nothing was annotated


@dataclasses.dataclass(frozen=True)
class GarmentType:
    """One garment type of a landmark set: the raw data set's code, a name, and its landmarks' indices."""

    code: int
    name: str
    landmarks: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class LandmarkSet:
    """K landmarks: their names, the landmark each changes places with in a mirror, and which garment has which.

    A user's own set is one more instance, written to the manifest with the data; nothing else knows K.
    """

    name: str
    landmarks: tuple[str, ...]
    mirror: tuple[int, ...]
    garment_types: tuple[GarmentType, ...]

    def __post_init__(self) -> None:
        k = len(self.landmarks)
        if len(set(self.landmarks)) != k:
            raise UserError(f"landmark set {self.name!r}: landmark names must be unique")
        if sorted(self.mirror) != list(range(k)) or any(
            self.mirror[m] != i for i, m in enumerate(self.mirror)
        ):
            raise UserError(
                f"landmark set {self.name!r}: mirror must pair each of the {k} landmarks with one"
            )
        for garment in self.garment_types:
            if not set(garment.landmarks) <= set(range(k)):
                raise UserError(
                    f"landmark set {self.name!r}: type {garment.name!r} names an unknown landmark"
                )

    def __len__(self) -> int:
        return len(self.landmarks)

    def garment_type(self, code: int) -> GarmentType:
        """The type with this code; KeyError if the set has none."""
        for garment in self.garment_types:
            if garment.code == code:
                return garment
        raise KeyError(code)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "LandmarkSet":
        return cls(
            name=value["name"],
            landmarks=tuple(value["landmarks"]),
            mirror=tuple(value["mirror"]),
            garment_types=tuple(
                GarmentType(g["code"], g["name"], tuple(g["landmarks"])) for g in value["garment_types"]
            ),
        )


#: FLD and DeepFashion: the order of the full-body garment, into which the other two types are spread.
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

#: Data sets of classes alone.
NO_LANDMARKS = LandmarkSet("none", (), (), ())


def _field(name: str, type_: pa.DataType, unit: str, nullable: bool = False) -> pa.Field:
    return pa.field(name, type_, nullable=nullable, metadata={"unit": unit})


def sample_schema(landmark_set: LandmarkSet) -> pa.Schema:
    """The Arrow schema of one Parquet shard: a row a garment (``split`` is the partition, not a column)."""
    box = pa.list_(pa.float32(), 4)
    return pa.schema(
        [
            _field("sample_id", pa.string(), "data set, photo and the garment's number in it"),
            _field("source_uri", pa.string(), "the photo; archive_uri::member inside an archive"),
            _field("source_width", pa.int32(), "pixels"),
            _field("source_height", pa.int32(), "pixels"),
            _field("photo_hash", pa.binary(16), "blake2b, 16 bytes, of the photo's file"),
            _field("box", box, "x1 y1 x2 y2, photo pixels, continuous"),
            _field("crop_box", box, "x1 y1 x2 y2, photo pixels: what of the photo is stored"),
            _field("image", pa.binary(), "JPEG"),
            _field("image_width", pa.int32(), "pixels"),
            _field("image_height", pa.int32(), "pixels"),
            _field("garment_type", pa.int8(), "code of the landmark set's garment type", nullable=True),
            _field("variation", pa.int8(), "FLD variation_type, 1..5", nullable=True),
            _field("category", pa.int16(), "1-based category of the data set's list", nullable=True),
            _field(
                "attributes", pa.list_(pa.int16()), "0-based indices of the attributes it has", nullable=True
            ),
            _field("view", pa.string(), "front, side or back", nullable=True),
            _field("area", pa.float32(), "of the garment's mask, photo pixels", nullable=True),
            _field(
                "landmarks", pa.list_(pa.float32()), "2K: x y in the stored picture, NaN where there is none"
            ),
            _field("visibility", pa.list_(pa.int8()), "K: 0 visible, 1 occluded, 2 cut off, 3 absent"),
        ],
        metadata={
            "glefld.schema_version": str(SCHEMA_VERSION),
            "glefld.landmark_set": json.dumps(landmark_set.to_json(), separators=(",", ":")),
        },
    )


REJECT_SCHEMA = pa.schema(
    [
        _field("sample_id", pa.string(), "as it would have been"),
        _field("split", pa.string(), "train, val or test"),
        _field("source_uri", pa.string(), "the photo, found or not"),
        _field("reason", pa.string(), "one of pipelines.ingest.REASONS"),
        _field("detail", pa.string(), "what was wrong, in words"),
        _field("photo_hash", pa.binary(16), "where the photo could be read", nullable=True),
    ],
    metadata={"glefld.schema_version": str(SCHEMA_VERSION)},
)


@dataclasses.dataclass(frozen=True)
class Attribute:
    """One attribute of a data set's list: its name and its type (1 texture, 2 fabric, 3 shape, 4 part, 5 style)."""

    name: str
    type: int


@dataclasses.dataclass(frozen=True)
class Labels:
    """What a data set's garments can be told to have: the size of every head of every model, and the names."""

    landmark_set: LandmarkSet
    categories: tuple[str, ...] = ()
    attributes: tuple[Attribute, ...] = ()
    #: The name of attribute type 1, 2, ...
    attribute_types: tuple[str, ...] = ()

    def classes(self, label: ClassLabel) -> tuple[str, ...]:
        """The names of the classes that this label tells apart; empty where the data set has none."""
        if label == "category":
            return self.categories
        return tuple(garment.name for garment in self.landmark_set.garment_types)

    def summary(self) -> str:
        """In a few words."""
        k = len(self.landmark_set)
        heads = [f"{k} landmarks {self.landmark_set.name!r}"] if k else []
        heads += [f"{len(self.categories)} categories"] if self.categories else []
        heads += [f"{len(self.attributes)} attributes"] if self.attributes else []
        return ", ".join(heads)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Labels":
        return cls(
            LandmarkSet.from_json(value["landmark_set"]),
            tuple(value["categories"]),
            tuple(Attribute(**a) for a in value["attributes"]),
            tuple(value["attribute_types"]),
        )


@dataclasses.dataclass(frozen=True)
class Shard:
    """One finished Parquet file: its path below the data set's root, and what is in it."""

    path: str
    split: str
    rows: int
    bytes: int
    content_hash: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """``manifest.json`` of a data set, written last: a folder without one is not a data set."""

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
    schema_version: int = SCHEMA_VERSION

    @property
    def labels(self) -> Labels:
        return Labels(self.landmark_set, self.categories, self.attributes, self.attribute_types)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Manifest":
        """UserError if the file was written by another schema version."""
        if value.get("schema_version") != SCHEMA_VERSION:
            raise UserError(
                f"the data set has schema version {value.get('schema_version')}, this program reads {SCHEMA_VERSION}: "
                "ingest it again"
            )
        fields = dict(value)
        fields |= vars(Labels.from_json(value))
        fields["shards"] = tuple(Shard(**s) for s in value["shards"])
        fields["photos_in_several_splits"] = tuple(tuple(p) for p in value["photos_in_several_splits"])
        return cls(**fields)
