"""Building blocks shared by several systems.

Letters in shapes: B batch, C channels, K landmarks, H and W the feature map's size.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glefld.data.truth import SEEN

#: Lower bound on attention: a position without any keeps a small weight instead of none.
LEAST_ATTENTION = 0.01
#: What a non-local block's softmax is of. plain: theta phi^T, as in the papers. scaled: that by the root of the number
#: of its terms (Vaswani et al., NeurIPS 2017). cosine: the cosines of theta and phi, times a sharpness that is learned
#: from 5 (Henry et al., "Query-Key Normalization", 2020).
Products = Literal["plain", "scaled", "cosine"]
#: On a CPU up to so many positions attend by plain matrix products, which hold a weight for each pair of them:
#: PyTorch's fused kernel takes 1.7 to 3.2 times as long there. Beyond, memory counts.
PLAIN_POSITIONS = 1600


class NonLocal(nn.Module):
    """Embedded-Gaussian non-local block with a residual: x + norm(w(softmax(theta phi^T) g)), as in GLE eq. 1-3.

    The block is from Wang et al., "Non-local Neural Networks", CVPR 2018 (https://arxiv.org/abs/1711.07971).
    With a spatial attention map it is SANL's block. SANL's equations are not known. Here each position is weighted by
    its attention, softmax(theta phi^T + log attention), so that attention of 1 everywhere gives the plain block.
    """

    def __init__(self, channels: int, products: Products = "plain") -> None:
        super().__init__()
        inner = channels // 2
        self.scale = inner**-0.5 if products == "scaled" else 1.0
        self.sharpness = nn.Parameter(torch.tensor(5.0)) if products == "cosine" else None
        self.theta = nn.Conv2d(channels, inner, 1)
        self.phi = nn.Conv2d(channels, inner, 1)
        self.g = nn.Conv2d(channels, inner, 1)
        self.w = nn.Conv2d(inner, channels, 1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor, attention: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], attention [B, 1, H, W] in [0, 1] or None -> [B, C, H, W]"""
        query, key, value = (
            conv(x).flatten(2).transpose(1, 2).unsqueeze(1) for conv in (self.theta, self.phi, self.g)
        )
        if self.sharpness is not None:
            query = (F.normalize(query, dim=-1) * self.sharpness).to(value.dtype)
            key = F.normalize(key, dim=-1).to(value.dtype)
        bias = None
        if attention is not None:
            bias = attention.flatten(2).clamp(min=LEAST_ATTENTION).log().to(query.dtype)  # [B, 1, HW]
            bias = bias.unsqueeze(1)  # [B, 1, 1, HW]
        y = attend(query, key, value, bias, self.scale)  # [B, 1, HW, C / 2]
        y = y.squeeze(1).transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:])
        return x + self.norm(self.w(y))

    def start_as_identity(self) -> None:
        """Zero the last norm's scale, so that the block starts as the identity."""
        nn.init.zeros_(self.norm.weight)


def attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """Return softmax(scale query key^T + bias) value.

    query, key, value and the result: [B, 1, N, C], one head, as only four dimensions have a fused kernel. bias:
    [B, 1, 1, N]. Memory grows linearly in N beyond ``PLAIN_POSITIONS``.
    """
    positions = query.shape[2]
    if query.device.type != "cpu" or positions > PLAIN_POSITIONS:
        if bias is not None:
            bias = bias.expand(-1, -1, positions, -1)
        # The fused kernels need each position's channels side by side, as they are in channels-last.
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        return F.scaled_dot_product_attention(query, key, value, bias, scale=scale)
    with torch.autocast(
        "cpu", enabled=False
    ):  # it would make the weights fp32, which is no exacter: products are bf16
        scores = (query * scale) @ key.transpose(-1, -2)
        return (scores if bias is None else scores + bias).softmax(-1) @ value


class TopDown(nn.ModuleList):
    """A feature pyramid's way down (Lin et al., CVPR 2017, https://arxiv.org/abs/1612.03144), without its 3x3 layers.

    Each level is a 1x1 convolution of the backbone's features plus the level above.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__(nn.Conv2d(c, width, 1) for c in channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The backbone's features, fine to coarse -> [B, width, h, w] each, in the same order"""
        levels: list[Tensor] = []
        for conv, own in zip(reversed(self), reversed(features), strict=True):
            level = conv(own)
            levels.append(level + upsampled(levels[-1], level) if levels else level)
        return levels[::-1]


class Pyramid(nn.Module):
    """The finest level of a feature pyramid, and a 3x3 convolution."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.lateral = TopDown(channels, width)
        self.smooth = conv_norm(width, width)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The backbone's features, fine to coarse -> [B, width, H, W] at the finest one's stride"""
        return self.smooth(self.lateral(features)[0])


class Merge(nn.ModuleList):
    """The levels of a pyramid added up at the finest one's size, a 3x3 convolution after each.

    As in Kirillov et al., "Panoptic Feature Pyramid Networks", CVPR 2019 (https://arxiv.org/abs/1901.02446), but with
    one convolution a level.
    """

    def __init__(self, levels: int, width: int) -> None:
        super().__init__(conv_norm(width, width) for _ in range(levels))

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """[B, width, h, w] each, fine to coarse -> [B, width, H, W]"""
        finest, *others = (conv(level) for conv, level in zip(self, levels, strict=True))
        return torch.stack([finest, *(upsampled(level, finest) for level in others)]).sum(dim=0)


def upsampled(x: Tensor, to: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, C, H, W], the size of the second one"""
    return F.interpolate(x, to.shape[2:], mode="bilinear")


class LandmarkBranch(nn.Module):
    """Liu & Lu's landmark branch (see ``liu2018``): stride 8 to the input's size, one heatmap per landmark.

    Three transposed convolutions between plain ones. The paper's ``width`` is 64: with 512 input channels and 8
    landmarks that makes 447,496 parameters.
    """

    def __init__(self, channels: int, landmarks: int, width: int = 64, norm: bool = False) -> None:
        """norm: batch norm after each layer but the last, which the paper does not have."""
        super().__init__()

        def then(c_out: int) -> list[nn.Module]:
            return [*([nn.BatchNorm2d(c_out)] if norm else []), nn.ReLU(inplace=True)]

        def conv(c_in: int, c_out: int, size: int = 3) -> list[nn.Module]:
            return [nn.Conv2d(c_in, c_out, size, padding=size // 2), *then(c_out)]

        def double(c_in: int, c_out: int) -> list[nn.Module]:
            return [nn.ConvTranspose2d(c_in, c_out, 4, stride=2, padding=1), *then(c_out)]

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
        # Without a norm in twelve layers: PyTorch's default initialisation would shrink the signal by 3 ** 0.5 in each.
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
    """Initialise a last layer near zero, the value of most heatmap pixels, so that training need not first reach it."""
    nn.init.normal_(layer.weight, std=1e-2)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def conv_norm(c_in: int, c_out: int) -> nn.Sequential:
    """Return 3x3 convolution, batch norm and ReLU: [B, c_in, H, W] -> [B, c_out, H, W]"""
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)
    )


class VisibilityHead(nn.Module):
    """Whether each landmark is to be seen, from the features where it is and from those of the whole garment.

    What a landmark's distribution attends to is pooled, in the spirit of Liu & Lu's landmark-driven attention.
    """

    def __init__(self, channels: int, whole: int, landmarks: int) -> None:
        super().__init__()
        self.where = nn.Parameter(torch.zeros(landmarks, channels, len(SEEN)))
        self.whole = nn.Linear(whole, landmarks * len(SEEN))

    def forward(self, x: Tensor, logits: Tensor, deep: Tensor) -> Tensor:
        """x [B, C, H, W], the landmarks' logits [B, K, H, W], the deepest features [B, D, h, w] -> [B, K, 3] logits"""
        attention = logits.detach().flatten(2).softmax(dim=-1)  # the landmarks' own loss alone places them
        pooled = attention @ x.flatten(2).transpose(1, 2)  # [B, K, C]
        whole = self.whole(deep.mean(dim=(2, 3))).unflatten(1, (-1, len(SEEN)))
        return torch.einsum("bkc,kcs->bks", pooled, self.where) + whole


class GarmentTypeHead(nn.Sequential):
    """The garment's type, from the deepest features of the whole garment by way of one hidden layer.

    It learns from them without changing them: the landmarks' losses alone decide what the features are.
    """

    def __init__(self, channels: int, types: int, hidden: int = 128) -> None:
        super().__init__(nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, types))

    def forward(self, deep: Tensor) -> Tensor:
        """The deepest features [B, D, h, w] -> [B, T] logits"""
        return super().forward(deep.detach().mean(dim=(2, 3)))


class HeatmapHead(nn.Sequential):
    """Two 3x3 convolutions and so many maps M: [B, C, H, W] -> [B, M, H, W]

    bias: of the maps; a softmax over a map would take it away.
    """

    def __init__(self, c_in: int, channels: int, maps: int, bias: bool = True) -> None:
        last = nn.Conv2d(channels, maps, 1, bias=bias)
        start_heatmaps(last)
        super().__init__(conv_norm(c_in, channels), conv_norm(channels, channels), last)
