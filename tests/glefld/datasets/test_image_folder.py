"""An image folder's photos are its rows, its folders their categories; what cannot be trained on is named."""

import pytest

from glefld.datasets import read_annotations
from glefld.datasets.lists import ANNOTATIONS, WHOLE_PHOTO, ListFiles
from glefld.errors import UserError
from glefld.schema import NO_LANDMARKS, Labels

PHOTOS = (
    "train/wren/1.jpg",
    "train/Owl/a/b/2.JPEG",
    "train/red kite/3 4.png",
    "val/wren/1.jpg",
    "test/Owl/5.webp",
)


def read(*photos: str):
    return read_annotations("image-folder", ListFiles("birds", {}, photos))


def test_photos_become_rows() -> None:
    """Categories are places among the sorted names, as torchvision sorts them; there is no landmark and no box."""
    annotations = read(*PHOTOS)
    assert annotations.labels == Labels(NO_LANDMARKS, categories=("Owl", "red kite", "wren"))
    assert annotations.table.schema == ANNOTATIONS
    rows = annotations.table.to_pylist()
    assert [row["photo"] for row in rows] == list(PHOTOS)
    assert [row["sample_id"] for row in rows] == [f"image-folder/{photo}#0" for photo in PHOTOS]
    assert [row["split"] for row in rows] == ["train", "train", "train", "val", "test"]
    assert [row["category"] for row in rows] == [3, 1, 2, 3, 1]
    for row in rows:
        assert (row["box"], row["landmarks"], row["visibility"]) == (list(WHOLE_PHOTO), [], [])
        assert row["garment_type"] is None
        assert not row["duplicate"]


def test_other_files_are_passed_over() -> None:
    """Notes, thumbnails' databases, and what macOS or a notebook leaves behind are neither photos nor classes."""
    others = (
        "train/notes.txt",
        "train/wren/Thumbs.db",
        "train/wren/._1.jpg",
        "train/.ipynb_checkpoints/1-checkpoint.jpg",
        "val/._wren/1.jpg",
    )
    assert read(*PHOTOS, *others).table.equals(read(*PHOTOS).table)


def test_a_photo_met_twice_is_a_duplicate() -> None:
    """An archive may hold the same member twice: both are rows, and the second one is marked."""
    table = read(*PHOTOS, PHOTOS[0]).table
    assert table["duplicate"].to_pylist() == [False] * 5 + [True]


WRONG = {
    "nothing at all": ((), "birds has no photos in train/ .train/<class>/<photo> is the layout"),
    "no val": (("train/wren/1.jpg", "test/wren/1.jpg"), "birds has no photos in val/"),
    "no train": (("val/wren/1.jpg",), "birds has no photos in train/"),
    "a photo without a class": ((*PHOTOS, "val/6.jpg"), "val/6.jpg is not in a class folder .val/<class>/"),
    "a class without train photos": (
        (*PHOTOS, "test/kestrel/6.jpg"),
        "the class 'kestrel' has no photos in train/",
    ),
    "several of them": (
        (*PHOTOS, "val/auk/6.jpg", "val/kestrel/6.jpg"),
        "the class 'auk' .and 1 more. has no",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_are_named(case: str) -> None:
    photos, message = WRONG[case]
    with pytest.raises(UserError, match=message):
        read(*photos)
