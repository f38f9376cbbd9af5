"""What all systems inherit: the average with the mirror image."""

import pytest
import torch

from glefld.models import build_model
from glefld.schema import FASHION8, Attribute, Labels

LABELS = Labels(FASHION8, ("Blouse", "Jeans"), (Attribute("dots", 1),), ("texture",))
SYSTEMS = {
    "fpn": {"backbone": "test_resnet", "width": 8},
    "sanl": {"backbone": "test_resnet", "width": 8, "attention": "none"},
    "liu2018-full": {"backbone": "test_resnet", "hidden": 8},
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_mirrored_photo_gives_the_mirrored_answer(name: str) -> None:
    """Of all outputs: maps turned, left and right landmarks swapped, classes and attributes the same."""
    torch.manual_seed(0)
    model = build_model(name, SYSTEMS[name], LABELS).eval()
    images = torch.randn(2, 3, 64, 64)
    mirror = list(FASHION8.mirror)
    with torch.no_grad():
        own, other = model.both_ways(images), model.both_ways(images.flip(-1))
        once = model(images)
    told = {name for name, value in own._asdict().items() if value is not None}
    assert told == {name for name, value in once._asdict().items() if value is not None}
    for name in told:
        expected, found = getattr(own, name), getattr(other, name)
        if name in ("heatmaps", "coarse"):
            found = found.flip(-1)[:, mirror]
        elif name == "visibility":
            found = found[:, mirror]
        torch.testing.assert_close(found, expected)
        assert not torch.allclose(getattr(once, name), expected)
