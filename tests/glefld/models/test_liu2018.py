"""Liu & Lu's full network: its attention is the released one, by its parameters and by what it computes."""

from typing import Literal, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from glefld.models.liu2018 import Attention


class Layer(NamedTuple):
    """A convolution, plain or transposed, and whether it has a bias and a batch norm after it."""

    kind: Literal["conv", "transposed"]
    c_in: int
    c_out: int
    side: int
    bias: bool
    norm: bool

    @property
    def parameters(self) -> int:
        weights = self.c_in * self.c_out * self.side**2
        return weights + self.c_out * self.bias + 2 * self.c_out * self.norm


#: The released network, from its input of 512 features and the heatmaps' maximum to as many weights.
RELEASED = [
    Layer("conv", 513, 32, 1, bias=False, norm=False),
    Layer("conv", 32, 64, 4, bias=False, norm=True),
    Layer("conv", 64, 128, 4, bias=False, norm=True),
    Layer("conv", 128, 128, 1, bias=False, norm=False),
    Layer("transposed", 128, 128, 1, bias=True, norm=True),
    Layer("transposed", 256, 64, 4, bias=False, norm=True),
    Layer("transposed", 128, 32, 4, bias=False, norm=True),
    Layer("transposed", 64, 512, 1, bias=True, norm=False),
]


def test_attention_has_the_released_layers_and_parameters() -> None:
    """574,944, as its layers add up; and each layer's weight has the shape that the released network's has."""
    attention = Attention(512)
    layers = [m for m in attention.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.ConvTranspose2d)]
    for layer, released in zip(layers, RELEASED, strict=True):
        transposed = isinstance(layer, torch.nn.ConvTranspose2d)
        assert transposed == (released.kind == "transposed")
        channels = (released.c_in, released.c_out) if transposed else (released.c_out, released.c_in)
        assert layer.weight.shape == (*channels, released.side, released.side)
        assert (layer.bias is not None) == released.bias
    expected = sum(layer.parameters for layer in RELEASED)
    assert expected == 574_944
    assert sum(p.numel() for p in attention.parameters()) == expected


def by_hand(state: dict[str, Tensor], features: Tensor, heatmaps: Tensor) -> Tensor:
    """The released network as its description reads, step by step, for sides that are multiples of 4."""
    convolutions = [name for name, value in state.items() if value.ndim == 4]

    def conv(x: Tensor, number: int) -> Tensor:
        name, layer = convolutions[number], RELEASED[number]
        apply = F.conv2d if layer.kind == "conv" else F.conv_transpose2d
        stride, padding = (2, 1) if layer.side == 4 else (1, 0)
        return apply(x, state[name], state.get(name.replace("weight", "bias")), stride, padding)

    def norm(x: Tensor, prefix: str) -> Tensor:
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"{prefix}.{key}"] for key in keys))

    maximum = heatmaps.max(dim=1, keepdim=True).values
    ratio = heatmaps.shape[-1] // features.shape[-1]
    # With an even ratio and half-pixel centres, bilinear sampling is the mean of the four pixels in the middle.
    a, b = ratio // 2 - 1, ratio // 2
    resized = sum(maximum[..., i::ratio, j::ratio] for i in (a, b) for j in (a, b)) / 4
    e0 = conv(torch.cat([features, resized], 1), 0)
    e1 = norm(conv(F.leaky_relu(e0, 0.2), 1), "down1.2")
    e2 = norm(conv(F.leaky_relu(e1, 0.2), 2), "down2.2")
    inner = norm(conv(conv(F.leaky_relu(e2, 0.2), 3).relu(), 4), "inner.4")
    x = norm(conv(torch.cat([inner, e2], 1).relu(), 5), "norm2")
    x = norm(conv(torch.cat([x, e1], 1).relu(), 6), "norm1")
    return conv(torch.cat([x, e0], 1).relu(), 7).tanh()


def randomised() -> Attention:
    """In eval mode, with norms that differ from the identity."""
    torch.manual_seed(0)
    attention = Attention(512).eval()
    for name, value in attention.state_dict().items():
        if value.ndim == 1:
            value.copy_(0.5 + torch.rand(value.shape) if name.endswith("var") else torch.randn(value.shape))
    return attention


def test_attention_computes_what_the_released_network_does() -> None:
    attention = randomised().double()
    features, heatmaps = torch.randn(2, 512, 28, 28).double(), torch.rand(2, 8, 224, 224).double()
    expected = by_hand(attention.state_dict(), features, heatmaps)
    assert expected.std() > 0.01
    torch.testing.assert_close(attention(features, heatmaps), expected)


@pytest.mark.parametrize("sides", [(4, 4), (7, 7), (14, 14), (9, 6), (5, 11)])
def test_attention_fits_features_of_any_size(sides: tuple[int, int]) -> None:
    """Where halving rounds down, as at 112 pixels, the way up adds what was lost."""
    height, width = sides
    found = randomised()(torch.randn(2, 512, height, width), torch.rand(2, 8, 8 * height, 8 * width))
    assert found.shape == (2, 512, height, width)
    assert found.abs().max() < 1
