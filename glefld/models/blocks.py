"""Blocks that several systems share. B batch, C channels, K landmarks, H and W the feature map's size."""

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.vgg import make_layers

#: Convolution widths with "M" for a max-pool, as torchvision's VGG writes them. All end at stride 8.
VGG_LAYERS: dict[str, list[str | int]] = {
    "vgg16": [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512],
    "vgg-small": [16, "M", 32, "M", 64, 64, "M", 128, 128],
}


def vgg_features(name: str) -> tuple[nn.Sequential, int]:
    """VGG up to conv4_3 after its ReLU, [B, 3, 8H, 8W] -> [B, C, H, W], and its C.

    ``vgg16`` has the indices of torchvision's ``vgg16().features``, so its ImageNet checkpoint loads by name. The
    small one has batch norm, without which a VGG does not train from random weights.
    """
    layers = VGG_LAYERS[name]
    return make_layers(layers, batch_norm=name != "vgg16"), int(layers[-1])


class NonLocal(nn.Module):
    """Embedded-Gaussian non-local block with a residual (GLE eq. 1-3): x + norm(w(softmax(theta phi^T) g))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 2
        self.theta = nn.Conv2d(channels, inner, 1)
        self.phi = nn.Conv2d(channels, inner, 1)
        self.g = nn.Conv2d(channels, inner, 1)
        self.w = nn.Conv2d(inner, channels, 1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]"""
        query, key, value = (conv(x).flatten(2).transpose(1, 2) for conv in (self.theta, self.phi, self.g))
        y = F.scaled_dot_product_attention(
            query, key, value, scale=1.0
        )  # [B, HW, C / 2]; the paper does not scale
        y = y.transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:])
        return x + self.norm(self.w(y))


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
        # Heatmaps are nearly zero everywhere; a map that starts so does not spend its first epochs on getting there.
        last = self.layers[-1]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        nn.init.normal_(last.weight, std=1e-2)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, K, 8H, 8W]"""
        return self.layers(x)
