"""DeepFashion's Category and Attribute Prediction benchmark, coarse lists: landmarks, category, 1,000 attributes.

Liu et al., "DeepFashion: Powering Robust Clothes Recognition and Retrieval with Rich Annotations", CVPR 2016.
"""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from glefld.datasets.lists import (
    PHOTO,
    Annotations,
    ListFile,
    ListFiles,
    list_array,
    name_and_type,
    read_benchmark,
)
from glefld.schema import FASHION8, Attribute, Labels

FOLDERS = ("Anno", "Anno_coarse", "")
ATTRIBUTE_TYPES = ("texture", "fabric", "shape", "part", "style")
MOST_CATEGORIES = 32_767  # what the column holds


def read(lists: ListFiles) -> Annotations:
    """Read the benchmark's rows. Category and attributes are null if their lists are missing.

    UserError names the missing required list or the line that cannot be read.
    """
    attributes = attribute_names(lists.find("list_attr_cloth.txt", FOLDERS), ATTRIBUTE_TYPES)
    names = tuple(name for name, _ in categories_and_types(lists, FOLDERS))
    extra = []
    if (categories := lists.find("list_category_img.txt", FOLDERS)) is not None:
        extra.append(category_list(categories, len(names)))
    if (values := lists.find("list_attr_img.txt", FOLDERS)) is not None:
        extra.append(attribute_list(values, len(attributes)))
    table = read_benchmark("deepfashion", lists, FASHION8, FOLDERS, *extra)
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


def attribute_names(file: ListFile | None, types: Sequence[str]) -> tuple[Attribute, ...]:
    """Read ``list_attr_cloth.txt``: the attributes and their types; empty without the file."""
    if file is None:
        return ()
    return tuple(Attribute(name, type_) for name, type_ in name_and_type(file, "attribute", len(types)))


def categories_and_types(lists: ListFiles, folders: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
    """Read ``list_category_cloth.txt``: the 50 categories and the garment type of each; empty without the list."""
    if (file := lists.find("list_category_cloth.txt", folders)) is None:
        return ()
    return name_and_type(file, "category", len(FASHION8.garment_types))


def category(file: ListFile, line: int, token: str, categories: int) -> int:
    """Parse a 1-based category, at most ``categories`` if there is a list of them; UserError names the line."""
    return file.whole(line, token, 1, categories or MOST_CATEGORIES)


def category_list(file: ListFile, categories: int) -> pa.Table:
    """Read ``list_category_img.txt``: photo and its category."""
    photos, labels = [], []
    for number, (photo, label) in file.rows((PHOTO, "category_label")):
        photos.append(photo)
        labels.append(category(file, number, label, categories))
    return pa.table({"photo": pa.array(photos, pa.string()), "category": pa.array(labels, pa.int16())})


def attribute_list(file: ListFile, count: int) -> pa.Table:
    """Read ``list_attr_img.txt``: photo and the indices of its attributes with value 1 (-1 is no, 0 is unknown)."""
    photos, attributes = [], []
    for number, (photo, *values) in file.rows((PHOTO, "attribute_labels"), many="attribute_labels"):
        photos.append(photo)
        attributes.append(file.flags(number, values, count))
    return pa.table(
        {"photo": pa.array(photos, pa.string()), "attributes": list_array(attributes, pa.int16())}
    )
