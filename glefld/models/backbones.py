"""Image features, from torchvision. C channels, H and W the input's size.

Parameters keep torchvision's names, so that its ImageNet checkpoints load; they are never fetched by themselves.
"""

from collections.abc import Mapping
from typing import Literal

import torchvision.models
from torch import Tensor, nn
from torchvision.models.vgg import make_layers

from glefld.errors import UserError

#: Convolution widths with "M" for a max-pool, as torchvision's VGG writes them. All end at stride 8.
VGG_LAYERS: dict[str, list[str | int]] = {
    "vgg16": [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512],
    "vgg-small": [16, "M", 32, "M", 64, 64, "M", 128, 128],
}
Stride8 = Literal["vgg16", "vgg-small", "resnet18"]
ResNet = Literal["resnet18", "resnet50", "resnet101"]
Stride32 = Literal["resnet18", "resnet50", "resnet101", "convnext-tiny"]


def stride8(name: Stride8) -> tuple[nn.Module, int]:
    """Features [B, 3, H, W] -> [B, C, H / 8, W / 8], and C.

    vgg16: to conv4_3 after its ReLU, with the indices of torchvision's ``vgg16().features``. vgg-small: a narrow one
    with batch norm, without which a VGG does not train from random weights. resnet18: to layer2.
    """
    if name == "resnet18":
        return ResNetFeatures(name, last=2), 128
    layers = VGG_LAYERS[name]
    return make_layers(layers, batch_norm=name != "vgg16"), int(layers[-1])


def stride32(name: Stride32) -> tuple[nn.Module, int]:
    """Features [B, 3, H, W] -> [B, C, H / 32, W / 32], and C."""
    if name == "convnext-tiny":
        return torchvision.models.convnext_tiny().features, 768
    resnet = ResNetFeatures(name)
    return resnet, resnet.channels[-1]


class ResNetFeatures(nn.Module):
    """A torchvision ResNet without its classifier, and without the stages after ``last`` (1 to 4)."""

    def __init__(self, name: ResNet, last: int = 4) -> None:
        super().__init__()
        resnet = getattr(torchvision.models, name)()
        self.last = last
        #: Channels of each stage, at strides 4, 8, 16 and 32.
        self.channels = [resnet.fc.in_features // 2 ** (4 - stage) for stage in range(1, last + 1)]
        for part in ("conv1", "bn1", "relu", "maxpool", *(f"layer{i + 1}" for i in range(last))):
            self.add_module(part, getattr(resnet, part))

    def stem(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 64, H / 4, W / 4]"""
        for part in ("conv1", "bn1", "relu", "maxpool"):
            images = self.get_submodule(part)(images)
        return images

    def stages(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> the stages' features at strides 4, 8, 16 and 32, as many as there are."""
        x = self.stem(images)
        found = []
        for i in range(self.last):
            x = self.get_submodule(f"layer{i + 1}")(x)
            found.append(x)
        return found

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> the last stage's features [B, C, h, w]"""
        return self.stages(images)[-1]


def load_features(features: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Take these features' weights from a torchvision checkpoint. UserError if one is missing or has another shape."""
    found = {name.removeprefix("features."): value for name, value in state.items()}
    wanted = features.state_dict()
    for name, value in wanted.items():
        if name not in found or found[name].shape != value.shape:
            raise UserError(
                f"--weights does not hold this backbone's weights ({name} is missing or has another shape): give "
                "torchvision's checkpoint of the network that --model.backbone names"
            )
    features.load_state_dict({name: found[name] for name in wanted})
