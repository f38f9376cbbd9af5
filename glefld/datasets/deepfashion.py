"""DeepFashion's Category and Attribute Prediction benchmark, coarse lists: landmarks, category, 1,000 attributes.

Liu et al., "DeepFashion: Powering Robust Clothes Recognition and Retrieval with Rich Annotations", CVPR 2016.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from glefld.datasets.lists import (
    Annotations,
    ListFile,
    ListFiles,
    list_array,
    name_and_type,
    read_benchmark,
)
from glefld.errors import UserError
from glefld.schema import FASHION8, Attribute, Labels

FOLDERS = ("Anno", "Anno_coarse", "")
ATTRIBUTE_TYPES = ("texture", "fabric", "shape", "part", "style")


def read(lists: ListFiles) -> Annotations:
    """Read the benchmark's rows. Category and attributes are null if their lists are missing.

    UserError names the missing required list or the line that cannot be read.
    """
    attributes = attribute_names(lists.find("list_attr_cloth.txt", FOLDERS))
    extra = []
    if (categories := lists.find("list_category_img.txt", FOLDERS)) is not None:
        extra.append(category_list(categories))
    if (values := lists.find("list_attr_img.txt", FOLDERS)) is not None:
        extra.append(attribute_list(values, len(attributes)))
    table = read_benchmark("deepfashion", lists, FASHION8, FOLDERS, *extra)
    names = tuple(name for name, _ in categories_and_types(lists, FOLDERS))
    return Annotations(
        table,
        Labels(FASHION8, used_categories(table, names), attributes, ATTRIBUTE_TYPES if attributes else ()),
    )


def used_categories(table: pa.Table, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the categories up to the largest label in use: 48 of the benchmark's 50, as in Liu & Lu's network.

    Cape, Nightdress, Shirtdress and Sundress (38, 45, 49, 50) were merged into Dress. So 46 of the 48 have photos.
    """
    largest = pc.max(table["category"]).as_py()
    return names[: largest or 0]


def attribute_names(file: ListFile | None) -> tuple[Attribute, ...]:
    """Read ``list_attr_cloth.txt``: the attributes and their types; empty without the file."""
    return tuple(Attribute(name, type_) for name, type_ in name_and_type(file)) if file is not None else ()


def categories_and_types(lists: ListFiles, folders: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
    """Read ``list_category_cloth.txt``: the 50 categories and the garment type of each; empty without the list.

    UserError if it names an unknown garment type.
    """
    if (file := lists.find("list_category_cloth.txt", folders)) is None:
        return ()
    categories = name_and_type(file)
    if unknown := {type_ for _, type_ in categories} - {garment.code for garment in FASHION8.garment_types}:
        raise UserError(f"{file.path}: unknown garment types {sorted(unknown)}")
    return categories


def category_list(file: ListFile) -> pa.Table:
    """Read ``list_category_img.txt``: photo and its 1-based category."""
    photos, categories = [], []
    for number, line in file.rows():
        photo, *tokens = line.split()
        photos.append(photo)
        categories.append(int(file.numbers(number, tokens, 1)[0]))
    return pa.table({"photo": pa.array(photos, pa.string()), "category": pa.array(categories, pa.int16())})


def attribute_list(file: ListFile, count: int) -> pa.Table:
    """Read ``list_attr_img.txt``: photo and the indices of its attributes with value 1 (-1 is no, 0 is unknown)."""
    photos, attributes = [], []
    for number, line in file.rows():
        photo, _, values = line.strip().partition(" ")
        present = np.fromstring(values, np.int8, sep=" ")
        if len(present) != count:
            raise file.error(
                number, f"expected {count} values, one per row of list_attr_cloth.txt, got {len(present)}"
            )
        photos.append(photo)
        attributes.append(np.flatnonzero(present == 1).astype(np.int16))
    return pa.table(
        {"photo": pa.array(photos, pa.string()), "attributes": list_array(attributes, pa.int16())}
    )
