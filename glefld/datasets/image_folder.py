"""One folder per class, as in torchvision's ImageFolder: ``{train,val,test}/<class>/<any depth>/photo``, no lists."""

import numpy as np
import pyarrow as pa

from glefld.data.photos import is_picture
from glefld.datasets.lists import WHOLE_PHOTO, Annotations, ListFiles, box_array, join, list_array
from glefld.errors import UserError
from glefld.schema import NO_LANDMARKS, SPLITS, Labels

LAYOUT = "{split}/<class>/<photo> is the layout"


def read(lists: ListFiles) -> Annotations:
    """Read one row per photo. The box is the whole photo, the category the 1-based rank of its class by name.

    UserError if train or val has no photos, a photo is in no class folder, or a class has no photos in train.
    """
    photos = [photo for photo in lists.photos if is_picture(photo) and not _hidden(photo)]
    for photo in photos:
        if photo.count("/") < 2:
            expected = LAYOUT.format(split=photo.split("/")[0])
            raise UserError(f"{lists.source}: {photo} is not in a class folder ({expected})")
    splits, classes = zip(*(photo.split("/")[:2] for photo in photos), strict=True) if photos else ((), ())
    found = {split: {c for s, c in zip(splits, classes, strict=True) if s == split} for split in SPLITS}
    for split in ("train", "val"):
        if not found[split]:
            raise UserError(f"{lists.source} has no photos in {split}/ ({LAYOUT.format(split=split)})")
    names = sorted(set(classes))
    if unseen := [name for name in names if name not in found["train"]]:
        several = f" (and {len(unseen) - 1} more)" if len(unseen) > 1 else ""
        raise UserError(
            f"{lists.source}: the class {unseen[0]!r}{several} has no photos in train/: add some, or take it out of "
            "val/ and test/"
        )
    category = {name: number for number, name in enumerate(names, 1)}
    nothing = [np.zeros(0)] * len(photos)
    table = pa.table(
        {
            "photo": pa.array(photos, pa.string()),
            "split": pa.array(splits, pa.string()),
            "box": box_array([WHOLE_PHOTO] * len(photos)),
            "category": pa.array([category[name] for name in classes], pa.int16()),
            "landmarks": list_array(nothing, pa.float32()),
            "visibility": list_array(nothing, pa.int8()),
        }
    )
    return Annotations(join("image-folder", [table]), Labels(NO_LANDMARKS, tuple(names)))


def _hidden(photo: str) -> bool:
    """Return whether a hidden folder holds the photo: ``.ipynb_checkpoints``, for example, is not a class."""
    return any(part.startswith(".") for part in photo.split("/"))
