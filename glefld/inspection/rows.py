"""The numbers of a data set's rows, without their pictures: some 140 bytes a garment of eight landmarks.

Letters in shapes: n rows, m the most landmarks that a garment type has.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from glefld.data.garments import hashes
from glefld.data.reader import SplitReader
from glefld.schema import VIEWS, LandmarkSet, Manifest, Split, Visibility

COLUMNS = [
    "source_uri",
    "source_width",
    "source_height",
    "photo_hash",
    "box",
    "crop_box",
    "garment_type",
    "category",
    "view",
    "landmarks",
    "visibility",
]


class Group(NamedTuple):
    """A row group that was read: of which split, which one of it, and where its rows are in ``Rows``."""

    split: Split
    number: int
    rows: slice


@dataclasses.dataclass(frozen=True)
class Rows:
    """What was read of some row groups."""

    groups: list[Group]
    split: np.ndarray  # [n] int8, index into ``splits``
    number: np.ndarray  # [n] int64, of the row in its split
    slot: np.ndarray  # [n] int16, index of the garment type, -1 if unknown
    points: (
        np.ndarray
    )  # [n, m, 2] float32, within the box, NaN where missing; in the order of the type's landmarks
    visibility: np.ndarray  # [n, m] int8, likewise; -1 beyond the type's landmarks
    box: np.ndarray  # [n, 4] float32, photo pixels
    photo_size: np.ndarray  # [n, 2] int32
    photo: np.ndarray  # [n] uint64, hash of the photo's uri
    content: np.ndarray  # [n] uint64, of the photo's bytes
    view: np.ndarray  # [n] int8, index into ``VIEWS``, -1 if unknown
    category: np.ndarray  # [n] int16, 1-based, 0 if unknown
    splits: tuple[Split, ...]

    def __len__(self) -> int:
        return len(self.split)

    def of_type(self, slot: int, landmarks: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of a type that has so many landmarks, and their points [rows, landmarks, 2]."""
        found = np.flatnonzero(self.slot == slot)
        return found, self.points[found, :landmarks]


class Readers:
    """The splits of a data set, to read rows from."""

    def __init__(self, data: str, manifest: Manifest, splits: Sequence[Split]) -> None:
        """UserError if a split has no rows."""
        self.manifest = manifest
        self.splits = tuple(splits)
        self.of: dict[Split, SplitReader] = {split: SplitReader(data, manifest, split) for split in splits}

    def spread(self, most: int) -> list[tuple[Split, list[int]]]:
        """Return the row groups of each split that hold about ``most`` of its rows: all, or some, evenly spread."""
        return [
            (split, spread([group.rows for group in reader.groups], most))
            for split, reader in self.of.items()
        ]

    def read(self, most: int, tell: Callable[[int, int], None]) -> Rows:
        """Read the numbers of about ``most`` rows of each split. tell: is told rows done and rows in all."""
        chosen = self.spread(most)
        total = sum(self.of[split].groups[group].rows for split, groups in chosen for group in groups)
        made = _Maker(self.manifest.labels.landmark_set)
        tell(0, total)
        for split, groups in chosen:
            reader = self.of[split]
            for group, table in zip(groups, reader.tables(COLUMNS, groups), strict=True):
                made.add(table, split, self.splits.index(split), group, reader.first_row(group))
                tell(made.rows, total)
        return made.finish(self.splits)

    def fetch(
        self, rows: Rows, which: Sequence[int], columns: list[str] | None = None
    ) -> dict[int, dict[str, Any]]:
        """Return some rows of the data set by their place in ``rows``, whole or some columns of them."""
        found: dict[int, dict[str, Any]] = {}
        places = np.unique(np.asarray(which, np.int64))
        for index, split in enumerate(self.splits):
            here = places[rows.split[places] == index]
            here = here[np.argsort(rows.number[here])]
            if len(here):
                (table,) = self.of[split].read([rows.number[here]], columns)
                found |= zip(here.tolist(), table.to_pylist(), strict=True)
        return found


def spread(sizes: Sequence[int], most: int) -> list[int]:
    """Return which groups of these sizes hold about ``most`` rows: all, or some that are evenly spread."""
    total = sum(sizes)
    if total <= most:
        return list(range(len(sizes)))
    number = max(1, round(most * len(sizes) / total))
    return np.unique(np.linspace(0, len(sizes) - 1, number).round().astype(int)).tolist()


class _Maker:
    """Collects ``Rows`` from tables."""

    def __init__(self, landmark_set: LandmarkSet) -> None:
        self._types = landmark_set.garment_types
        self._k = len(landmark_set)
        self._most = max((len(type_.landmarks) for type_ in self._types), default=0)
        self._groups: list[Group] = []
        self._columns: list[dict[str, np.ndarray]] = []
        self.rows = 0

    def add(self, table: pa.Table, split: Split, number: int, group: int, first: int) -> None:
        """Add a row group."""
        n = table.num_rows
        box, crop = (_numbers(table, name, 4).astype(np.float64) for name in ("box", "crop_box"))
        everywhere = _numbers(table, "landmarks", 2 * self._k).reshape(n, self._k, 2)
        everywhere = (everywhere + crop[:, None, :2] - box[:, None, :2]) / (
            box[:, None, 2:] - box[:, None, :2]
        )
        codes = _numbers(table, "visibility", self._k)
        slot = np.full(n, -1, np.int16)
        points = np.full((n, self._most, 2), np.nan, np.float32)
        visibility = np.full((n, self._most), -1, np.int8)
        given = _filled(table, "garment_type", -1)
        for index, type_ in enumerate(self._types):
            here = np.flatnonzero(given == type_.code)
            own = np.array(type_.landmarks, np.int64)
            slot[here] = index
            visibility[here, : len(own)] = codes[here][:, own]
            placed = np.where((codes <= Visibility.OCCLUDED)[..., None], everywhere, np.nan)
            points[here, : len(own)] = placed[here][:, own]
        views = {name: i for i, name in enumerate(VIEWS)}
        self._columns.append(
            {
                "split": np.full(n, number, np.int8),
                "number": first + np.arange(n),
                "slot": slot,
                "points": points,
                "visibility": visibility,
                "box": box.astype(np.float32),
                "photo_size": np.stack(
                    [table[f"source_{side}"].to_numpy() for side in ("width", "height")], axis=1
                ),
                "photo": hashes(table["source_uri"]),
                "content": np.frombuffer(b"".join(h[:8] for h in table["photo_hash"].to_pylist()), np.uint64),
                "view": np.array([views.get(view, -1) for view in table["view"].to_pylist()], np.int8),
                "category": _filled(table, "category", 0).astype(np.int16),
            }
        )
        self._groups.append(Group(split, group, slice(self.rows, self.rows + n)))
        self.rows += n

    def finish(self, splits: tuple[Split, ...]) -> Rows:
        """Return all that was added."""
        columns = {name: np.concatenate([c[name] for c in self._columns]) for name in self._columns[0]}
        return Rows(groups=self._groups, splits=splits, **columns)


def _numbers(table: pa.Table, name: str, width: int) -> np.ndarray:
    flat = table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(table.num_rows, width)


def _filled(table: pa.Table, name: str, value: int) -> np.ndarray:
    return table[name].fill_null(value).to_numpy()
