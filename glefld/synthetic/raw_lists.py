"""Writing the benchmarks' list files, with the row counts, column names, padding and codes of the originals."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from glefld import storage
from glefld.schema import FASHION8, SPLITS, Attribute, Visibility
from glefld.synthetic.faults import ListRow
from glefld.synthetic.vocabulary import CATEGORIES, COARSE_ATTRIBUTES, FINE_ATTRIBUTES
from glefld.temporary import temporary_file

#: A file that only rendered data sets have. Ingest tells by it that the photos are not the benchmark's.
MARK = "rendered.json"
UNKNOWN_ATTRIBUTES = 6  # attributes per row, of 1,000, that are marked unknown


@dataclasses.dataclass(frozen=True)
class ListWriter:
    """Writes lists below a path or URL, each atomically."""

    output: str

    def lines(self, name: str, lines: Iterable[str]) -> None:
        """Write a file of these lines."""
        # Stream through a local file: the attribute list of a full-sized data set is nearly a gigabyte.
        with temporary_file() as file:
            file.writelines(f"{line}\n".encode("ascii") for line in lines)
            storage.put_file(file, storage.join(self.output, name))

    def table(self, name: str, columns: str, count: int, rows: Iterable[str]) -> None:
        """Write a list with its two header lines: the number of rows and the column names."""

        def lines() -> Iterable[str]:
            yield str(count)
            yield columns
            yield from rows

        self.lines(name, lines())


def write_fld(output: str, rows: Sequence[ListRow]) -> None:
    """Write FLD's ``list_landmarks`` (with variation_type), ``list_bbox`` and partition, and a ``list_view``."""
    _write_common(ListWriter(output), rows, [row.name for row in rows], variation=True)


def write_deepfashion(output: str, rows: Sequence[ListRow]) -> None:
    """Write DeepFashion's coarse lists, with names padded to 70 characters, and a ``list_view``."""
    writer, names = ListWriter(output), [row.name.ljust(70) for row in rows]
    _write_common(writer, rows, names, variation=False)
    _write_vocabulary(writer, "Anno", COARSE_ATTRIBUTES)
    named = list(zip(names, rows, strict=True))
    writer.table(
        "Anno/list_category_img.txt",
        "image_name  category_label",
        len(rows),
        (f"{name} {row.category}" for name, row in named),
    )
    writer.table(
        "Anno/list_attr_img.txt",
        "image_name  attribute_labels",
        len(rows),
        (f"{name} {_attribute_tokens(row)}" for name, row in named),
    )


def write_deepfashion_fine(output: str, rows: Sequence[ListRow]) -> None:
    """Write DeepFashion's fine lists: one file without header per column and split, and a ``_view`` file."""
    writer = ListWriter(output)
    columns: dict[str, Callable[[ListRow], str]] = {
        "": lambda row: row.name,
        "_bbox": lambda row: _padded(row.box),
        "_landmards": _packed_landmarks,
        "_cate": lambda row: str(row.category),
        "_attr": lambda row: " ".join(str(int(i in row.attributes)) for i in range(len(FINE_ATTRIBUTES))),
        "_view": lambda row: row.view,
    }
    for split in SPLITS:
        mine = [row for row in rows if row.split == split]
        for suffix, value in columns.items():
            writer.lines(f"Anno_fine/{split}{suffix}.txt", map(value, mine))
    _write_vocabulary(writer, "Anno_fine", FINE_ATTRIBUTES)


def _write_common(writer: ListWriter, rows: Sequence[ListRow], names: Sequence[str], variation: bool) -> None:
    named = list(zip(names, rows, strict=True))
    points = " ".join(
        f"landmark_visibility_{i} landmark_location_x_{i} landmark_location_y_{i}" for i in range(1, 9)
    )

    def garment(row: ListRow) -> str:
        return f"{row.garment_type} {row.variation}" if variation else str(row.garment_type)

    tables: dict[str, tuple[str, Callable[[ListRow], str]]] = {
        "Anno/list_landmarks.txt": (
            f"image_name clothes_type {'variation_type ' if variation else ''}{points}",
            lambda row: f"{garment(row)} {_landmark_tokens(row)}",
        ),
        "Anno/list_bbox.txt": ("image_name x_1 y_1 x_2 y_2", lambda row: _padded(row.box)),
        "Anno/list_view.txt": ("image_name view", lambda row: row.view),
        "Eval/list_eval_partition.txt": ("image_name evaluation_status", lambda row: row.split),
    }
    for name, (columns, value) in tables.items():
        writer.table(name, columns, len(rows), [f"{photo} {value(row)}" for photo, row in named])


def _write_vocabulary(writer: ListWriter, folder: str, attributes: Sequence[Attribute]) -> None:
    writer.table(
        f"{folder}/list_category_cloth.txt",
        "category_name  category_type",
        len(CATEGORIES),
        (f"{name:<15}{code}" for name, code in CATEGORIES),
    )
    writer.table(
        f"{folder}/list_attr_cloth.txt",
        "attribute_name  attribute_type",
        len(attributes),
        (f"{attribute.name:<28} {attribute.type}" for attribute in attributes),
    )


def _padded(values: Iterable[int]) -> str:
    return " ".join(f"{value:03d}" for value in values)


def _landmark_tokens(row: ListRow) -> str:
    """Return visibility, x and y of each landmark of the garment type; ``2 000 000`` if it is cut off."""
    tokens = []
    for slot in FASHION8.garment_type(row.garment_type).landmarks:
        code = int(row.visibility[slot])
        tokens.append(f"{code} {_padded((0, 0) if code == Visibility.CUT_OFF else row.landmarks[slot])}")
    return " ".join(tokens)


def _packed_landmarks(row: ListRow) -> str:
    """Return 16 integers: the garment type's landmarks in its order, ``0 0`` for those not seen and after the last.

    The benchmark lists no hidden landmark either: where some are missing, its boxes reach further than the others.
    """
    tokens = []
    for slot in FASHION8.garment_type(row.garment_type).landmarks:
        seen = row.visibility[slot] == Visibility.VISIBLE
        tokens.append(_padded(row.landmarks[slot]) if seen else "0 0")
    return " ".join(tokens + ["0 0"] * (len(FASHION8) - len(tokens)))


def _attribute_tokens(row: ListRow) -> str:
    """Return each attribute's value, two characters wide: 1 yes, -1 no, 0 unknown."""
    tokens = ["-1"] * len(COARSE_ATTRIBUTES)
    for index in np.random.default_rng(row.number).integers(0, len(tokens), UNKNOWN_ATTRIBUTES):
        tokens[index] = " 0"
    for index in row.attributes:
        tokens[index] = " 1"
    return " ".join(tokens)
