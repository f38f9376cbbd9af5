"""DAFE's two forms compute what they say, and its first checkpoints still load."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from glefld.models import build_model
from glefld.models.dafe import DAFE, ChannelExcitation, ElementwiseReuse
from glefld.schema import FASHION8, Labels


def dafe(**config: Any) -> DAFE:
    torch.manual_seed(0)
    model = build_model("dafe", {"backbone": "resnet18", "width": 16, **config}, Labels(FASHION8)).eval()
    assert isinstance(model, DAFE)
    return model


def test_elementwise_attention_by_hand() -> None:
    """As many weights as low has values: a transposed convolution of high, plus low times the sigmoid, enlarged."""
    torch.manual_seed(0)
    block = ElementwiseReuse(6, 4).double()
    high, low = torch.randn(2, 6, 5, 3).double(), torch.randn(2, 4, 10, 6).double()
    state = block.state_dict()
    weights = F.conv2d(high, state["attention.0.weight"], state["attention.0.bias"]).sigmoid()
    enlarged = F.interpolate(weights, scale_factor=2, mode="bilinear")
    assert enlarged.shape == low.shape
    up = F.conv_transpose2d(high, state["up.weight"], state["up.bias"], stride=2, padding=1)
    torch.testing.assert_close(block(high, low), up + enlarged * low)


def test_excitation_by_hand() -> None:
    """x * conv(relu(conv(mean))), without a sigmoid: the weights may be negative and above 1."""
    torch.manual_seed(0)
    block = ChannelExcitation(8).double()
    x = 9 * torch.randn(3, 8, 4, 5).double()
    first, last = block.excite[0], block.excite[2]
    hidden = (x.mean(dim=(2, 3)) @ first.weight[..., 0, 0].T + first.bias).relu()
    weight = hidden @ last.weight[..., 0, 0].T + last.bias
    assert weight.min() < 0.7
    assert weight.max() > 1.3
    torch.testing.assert_close(block(x), x * weight[..., None, None])


def test_the_elementwise_pyramid_has_the_backbones_widths() -> None:
    """At strides 16, 8 and 4, and channel-wise attention at the same; the other pyramid has one width at all four."""
    seen: list[tuple[int, ...]] = []

    def watch(model: DAFE) -> list[tuple[int, ...]]:
        seen.clear()
        for module in (*model.reuse, *model.enhance):
            module.register_forward_hook(lambda _, given, out: seen.append(tuple(out.shape[1:])))
        model(torch.randn(1, 3, 64, 64))
        return seen

    model = dafe(pixel="elementwise", channel="se")
    assert watch(model)[1:] == [size for size in ((256, 4, 4), (128, 8, 8), (64, 16, 16)) for _ in range(2)]
    assert [type(module) is ChannelExcitation for module in model.enhance] == [True, True, True, False]
    assert watch(dafe())[::2] == [(16, 2, 2), (16, 4, 4), (16, 8, 8), (16, 16, 16)]


#: Of each part's parameters in the first checkpoints, one and its shape. ``PART`` lacks where the part is off.
FORMER = {
    "lateral.3.weight": (16, 512, 1, 1),
    "smooth.3.0.weight": (16, 16, 3, 3),
    "head.2.weight": (8, 16, 1, 1),
}
FORMER_PART = {
    "pixel": ("reuse.2.attention.1.weight", (1, 4, 3, 3)),
    "channel": ("enhance.3.excite.0.weight", (4, 32)),
}


@pytest.mark.parametrize("channel", [True, False])
@pytest.mark.parametrize("pixel", [True, False])
def test_the_first_checkpoints_configs_still_say_the_same(pixel: bool, channel: bool) -> None:
    """On or off was all that they could say, and on is today's default. Names and shapes are those of then."""
    former = dafe(pixel=pixel, channel=channel)
    named = dafe(pixel="spatial" if pixel else "none", channel="affinity" if channel else "none")
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(former(x).heatmaps, named(x).heatmaps)
    shapes = {name: tuple(value.shape) for name, value in former.state_dict().items()}
    assert FORMER.items() <= shapes.items()
    for part, on in (("pixel", pixel), ("channel", channel)):
        name, shape = FORMER_PART[part]
        assert shapes.get(name) == (shape if on else None)


def test_a_config_without_the_options_is_the_default() -> None:
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(dafe()(x).heatmaps, dafe(pixel="spatial", channel="affinity")(x).heatmaps)
