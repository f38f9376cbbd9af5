"""What a system costs, against counts by hand."""

import torch
from torch import Tensor, nn

from glefld.models import build_model
from glefld.models.blocks import NonLocal
from glefld.models.system import Model, Output
from glefld.schema import FASHION8, Labels
from glefld.scoring import cost


class Two(Model):
    """One 3x3 convolution and one non-local block."""

    def __init__(self) -> None:
        super().__init__(Labels(FASHION8))
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.block = NonLocal(8)

    def forward(self, images: Tensor) -> Output:
        return Output(self.block(self.conv(images)))


def test_by_hand() -> None:
    """Convolutions, and the two matrix products of attention over all pairs of positions."""
    n = 10 * 10
    expected = n * 8 * 3 * 9 + n * (3 * 8 * 4 + 4 * 8) + 2 * n * n * 4
    assert cost.multiply_adds(Two(), 10) == expected
    assert cost.parameters(Two()) == 8 * 27 + 8 + 3 * (8 * 4 + 4) + (4 * 8 + 8) + 16


def test_a_guide_counts_with_its_backward_pass() -> None:
    """SANL with attention costs more than three passes of its classifier above SANL without."""
    labels = Labels(FASHION8, categories=("a", "b"))
    config = {"backbone": "resnet18", "width": 16}
    guided, plain = (
        cost.multiply_adds(build_model("sanl", {**config, "attention": attention}, labels), 32)
        for attention in ("matching", "nonlocal")
    )
    alone = cost.multiply_adds(build_model("resnet", {"label": "category"}, labels), 32)
    assert 1.5 * alone < guided - plain < 3 * alone


def test_speed_is_a_number_of_images() -> None:
    assert 1 < cost.images_per_second(Two(), 16, 4, torch.float32) < 1e7
