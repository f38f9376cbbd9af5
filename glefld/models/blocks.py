"""Blocks that several systems share. B batch, C channels, K landmarks, H and W the feature map's size."""

import torch.nn.functional as F
from torch import Tensor, nn

#: What a position without any attention still gets: it is looked at little, but not lost.
LEAST_ATTENTION = 0.01


class NonLocal(nn.Module):
    """Embedded-Gaussian non-local block with a residual (GLE eq. 1-3): x + norm(w(softmax(theta phi^T) g)).

    With a map of spatial attention it is SANL's block. How the paper joins the two is not known; here a position is
    looked at in proportion to its attention: softmax(theta phi^T + log attention), so that attention 1 everywhere is
    the plain block.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 2
        self.theta = nn.Conv2d(channels, inner, 1)
        self.phi = nn.Conv2d(channels, inner, 1)
        self.g = nn.Conv2d(channels, inner, 1)
        self.w = nn.Conv2d(inner, channels, 1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor, attention: Tensor | None = None) -> Tensor:
        """[B, C, H, W] and, if any, [B, 1, H, W] in [0, 1] -> [B, C, H, W]"""
        query, key, value = (conv(x).flatten(2).transpose(1, 2) for conv in (self.theta, self.phi, self.g))
        bias = None
        if attention is not None:
            bias = attention.flatten(2).clamp(min=LEAST_ATTENTION).log().to(query.dtype)  # [B, 1, HW]
            bias = bias.expand(-1, query.shape[1], -1)
        # The papers do not scale.
        y = F.scaled_dot_product_attention(query, key, value, bias, scale=1.0)  # [B, HW, C / 2]
        y = y.transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:])
        return x + self.norm(self.w(y))

    def start_as_identity(self) -> None:
        """Silence the non-local term, so that the block at first passes its input on."""
        nn.init.zeros_(self.norm.weight)


class LandmarkBranch(nn.Module):
    """Liu & Lu's landmark branch: three transposed convolutions from stride 8 to the input's size, a map a landmark.

    ``width`` 64 is the paper's; 512 channels in and 8 landmarks out then make 447,496 parameters.
    """

    def __init__(self, channels: int, landmarks: int, width: int = 64) -> None:
        super().__init__()

        def conv(c_in: int, c_out: int, size: int = 3) -> list[nn.Module]:
            return [nn.Conv2d(c_in, c_out, size, padding=size // 2), nn.ReLU(inplace=True)]

        def double(c_in: int, c_out: int) -> list[nn.Module]:
            return [nn.ConvTranspose2d(c_in, c_out, 4, stride=2, padding=1), nn.ReLU(inplace=True)]

        self.layers = nn.Sequential(
            *conv(channels, width, 1),
            *conv(width, width),
            *conv(width, width),
            *conv(width, 2 * width),
            *double(2 * width, width),
            *conv(width, width),
            *conv(width, width),
            *double(width, width // 2),
            *conv(width // 2, width // 2),
            *conv(width // 2, width // 2),
            *double(width // 2, width // 4),
            *conv(width // 4, width // 4),
            nn.Conv2d(width // 4, landmarks, 1),
        )
        # Twelve layers without a norm: PyTorch's default start would shrink the signal by 3 ** 0.5 in each.
        for layer in self.layers[:-1]:
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        last = self.layers[-1]
        assert isinstance(last, nn.Conv2d)
        start_heatmaps(last)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, K, 8H, 8W]"""
        return self.layers(x)


def start_heatmaps(layer: nn.Conv2d) -> None:
    """Let a last layer start near zero, as heatmaps are: it then does not spend its first epochs on getting there."""
    assert layer.bias is not None
    nn.init.normal_(layer.weight, std=1e-2)
    nn.init.zeros_(layer.bias)


def conv_norm(c_in: int, c_out: int) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU: [B, c_in, H, W] -> [B, c_out, H, W]"""
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)
    )


class HeatmapHead(nn.Sequential):
    """Two convolutions and a map a landmark: [B, C, H, W] -> [B, K, H, W]"""

    def __init__(self, c_in: int, channels: int, landmarks: int) -> None:
        last = nn.Conv2d(channels, landmarks, 1)
        start_heatmaps(last)
        super().__init__(conv_norm(c_in, channels), conv_norm(channels, channels), last)
