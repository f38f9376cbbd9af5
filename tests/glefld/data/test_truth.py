"""Ground truth as tensors: in pixels of the photo, and with what is unknown told apart from what is not."""

import math

import pyarrow as pa
import pytest
import torch

from glefld.data.truth import Truth, type_slot
from glefld.schema import FASHION8, VIEWS, Attribute, Labels, sample_schema

LABELS = Labels(
    FASHION8,
    categories=("Blouse", "Jeans", "Robe"),
    attributes=tuple(Attribute(name, 1) for name in ("dots", "lace", "red", "wool")),
    attribute_types=("texture",),
)


def test_stored_landmarks_become_points_of_the_photo() -> None:
    """They are stored in pixels of the crop; what a row does not say is NaN or -1."""
    row = {
        **{"sample_id": "a", "source_uri": "a", "source_width": 300, "source_height": 300},
        **{"photo_hash": bytes(16), "image": b"", "image_width": 60, "image_height": 60},
        **{"box": [30, 40, 60, 80], "crop_box": [20, 25, 80, 85], "garment_type": None, "view": "back"},
        **{"category": 2, "attributes": [0, 3]},
        "landmarks": [1.5, 2.5] + [math.nan] * 14,
        "visibility": [0] + [3] * 7,
    }
    schema = sample_schema(FASHION8)
    table = pa.concat_tables(pa.Table.from_pylist([row | {"view": v}], schema) for v in ("back", None))
    truth = Truth.from_arrow(table, LABELS)
    assert truth.points[:, 0].tolist() == [[21.5, 27.5]] * 2
    assert truth.points[:, 1:].isnan().all()
    assert truth.box.tolist() == [[30, 40, 60, 80]] * 2
    assert truth.garment_type.tolist() == [-1, -1]
    assert truth.view.tolist() == [VIEWS.index("back"), -1]
    assert truth.category.tolist() == [1, 1], "stored from 1, counted from 0"
    assert truth.attributes.tolist() == [[1, 0, 0, 1]] * 2
    assert len(Truth.from_arrow(table.slice(0, 0), LABELS).points) == 0
    assert Truth.from_arrow(table.slice(1), LABELS).view.tolist() == [-1]


def test_a_type_that_is_not_of_the_landmark_set_is_unknown() -> None:
    assert type_slot(torch.tensor([3, 1, -1, 9]), torch.tensor([1, 2, 3])).tolist() == [2, 0, 3, 3]


@pytest.mark.parametrize(("label", "expected"), [("category", [2, -1]), ("garment_type", [1, -1])])
def test_a_label_is_an_index_into_its_classes(label: str, expected: list[int]) -> None:
    """Of a category as of a garment type, whose codes begin at 1; -1 where it is unknown."""
    unknown = torch.full((2,), -1)
    truth = Truth(
        points=torch.zeros(2, 8, 2),
        visibility=torch.zeros(2, 8, dtype=torch.int64),
        box=torch.zeros(2, 4),
        garment_type=torch.tensor([2, -1]),
        view=unknown,
        category=torch.tensor([2, -1]),
        attributes=torch.zeros(2, 4),
    )
    found = truth.label(label, LABELS)
    assert found.tolist() == expected
    assert len(LABELS.classes(label)) > found.max()
