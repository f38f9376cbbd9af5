"""The local network sees 31 pixels around a point, and uses all of them."""

import torch

from glefld.models import build_model
from glefld.schema import FASHION8, Labels


def test_it_sees_31_pixels() -> None:
    """The gradient of one output pixel reaches 15 pixels each way, and not one further."""
    torch.manual_seed(0)
    model = build_model("local", {"width": 8}, Labels(FASHION8)).eval()
    image = torch.randn(1, 3, 64, 64, requires_grad=True)
    heatmaps = model(image).heatmaps
    assert heatmaps is not None
    heatmaps[0, :, 32, 32].sum().backward()
    assert image.grad is not None
    rows, columns = image.grad[0].abs().sum(dim=0).nonzero().unbind(dim=1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (17, 47, 17, 47)
