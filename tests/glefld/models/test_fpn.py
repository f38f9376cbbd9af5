"""The pyramid's levels, and the second head, which refines what the first one has found."""

import pytest
import torch
import torch.nn.functional as F

from glefld.models import build_model
from glefld.models.blocks import Merge, TopDown
from glefld.models.distribution import Distribution
from glefld.models.fpn import FPN, by_peak
from glefld.schema import FASHION8, Labels


def fpn(**config: object) -> FPN:
    torch.manual_seed(0)
    model = build_model("fpn", {"backbone": "test_resnet", "width": 16, **config}, Labels(FASHION8)).eval()
    assert isinstance(model, FPN)
    return model


def test_each_level_has_the_ones_above_it() -> None:
    """And the merged map is the sum of all of them, at the finest one's size, also where sides are odd."""
    torch.manual_seed(0)
    features = [torch.randn(1, c, side, side) for c, side in ((3, 10), (4, 5), (5, 3))]
    top_down, merge = TopDown([3, 4, 5], 8), Merge(3, 8).eval()
    levels = top_down(features)
    expected: list[torch.Tensor] = []
    for conv, x in reversed(list(zip(top_down, features, strict=True))):
        above = F.interpolate(expected[0], x.shape[2:], mode="bilinear") if expected else 0
        expected.insert(0, F.conv2d(x, conv.weight, conv.bias) + above)
    for level, wanted in zip(levels, expected, strict=True):
        torch.testing.assert_close(level, wanted)
    parts = [F.interpolate(conv(x), (10, 10), mode="bilinear") for conv, x in zip(merge, levels, strict=True)]
    torch.testing.assert_close(merge(levels), parts[0] + parts[1] + parts[2])


def test_the_second_head_refines_the_first_ones_distributions() -> None:
    """It is aimed at narrower ones, and what the first head has found, alone, changes its answer."""
    model, images = fpn(), torch.randn(2, 3, 64, 64)
    found = model(images)
    assert found.coarse is not None
    assert found.coarse.shape == (2, 8, 8, 8)
    assert found.heatmaps.shape == (2, 8, 16, 16)
    assert isinstance(model.coarse_codec, Distribution)
    assert model.coarse_codec.sigma == 2 * model.codec.sigma
    with torch.no_grad():
        model.coarse[-1].weight.mul_(10)
    assert not torch.allclose(model(images).heatmaps, found.heatmaps)


def test_without_refinement_one_head_is_all() -> None:
    model = fpn(refine=False)
    found = model(torch.randn(2, 3, 64, 64))
    assert found.coarse is None
    assert found.heatmaps.shape == (2, 8, 16, 16)
    assert not any(name.startswith("coarse") for name in model.state_dict())


def test_visibility_looks_where_the_map_is_likely() -> None:
    """At stride 8, where a position's probability is that of its four map pixels."""
    model = fpn()
    looked: list[torch.Tensor] = []
    model.visibility.register_forward_pre_hook(lambda module, inputs: looked.append(inputs[1]))
    heatmaps = model(torch.randn(2, 3, 64, 64)).heatmaps
    assert heatmaps is not None
    torch.testing.assert_close(looked[0], (4 * F.avg_pool2d(heatmaps.exp(), 2)).log())


@pytest.mark.parametrize("height", [0.0, 30.0, -2000.0])
def test_a_distribution_by_its_peak(height: float) -> None:
    """1 at the peak, e-fold less for each unit of logits below it, whatever the logits' level is."""
    logits = torch.tensor([[[[0.0, -1.0], [-200.0, -2.0]]]]) + height
    expected = torch.tensor([[[[0.0, -1.0], [-200.0, -2.0]]]]).exp()
    torch.testing.assert_close(by_peak(logits), expected, atol=1e-4, rtol=1e-4)
