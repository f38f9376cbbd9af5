"""Backbones from torchvision.

VGG: https://arxiv.org/abs/1409.1556, ResNet: https://arxiv.org/abs/1512.03385, ConvNeXt: https://arxiv.org/abs/2201.03545.
Parameters keep torchvision's names, so that its ImageNet checkpoints can be loaded. Nothing is downloaded.
Letters in shapes: B batch, C channels, H and W the input's size.
"""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from glefld.errors import UserError

#: Channels of each convolution, with "M" for a max-pool, in torchvision's notation. All end at stride 8.
VGG_LAYERS: dict[str, list[str | int]] = {
    "vgg16": [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512],
    "vgg-small": [16, "M", 32, "M", 64, 64, "M", 128, 128],
}
Stride8 = Literal["vgg16", "vgg-small", "resnet18"]
ResNet = Literal["resnet18", "resnet50", "resnet101"]
Stride32 = Literal["resnet18", "resnet50", "resnet101", "convnext-tiny"]


def stride8(name: Stride8) -> tuple[nn.Module, int]:
    """Return a stride-8 backbone, [B, 3, H, W] -> [B, C, H / 8, W / 8], and its C.

    vgg16: up to conv4_3 and its ReLU, with the indices of torchvision's ``vgg16().features``. vgg-small: a narrow VGG
    with batch norm, without which a VGG does not train from random weights. resnet18: up to layer2.
    """
    if name == "resnet18":
        return ResNetFeatures(name, last=2), 128
    # Only where a network is made: torchvision takes seconds to import, and options are parsed without it.
    from torchvision.models.vgg import make_layers

    layers = VGG_LAYERS[name]
    return make_layers(layers, batch_norm=name != "vgg16"), int(layers[-1])


def stride32(name: Stride32) -> tuple[nn.Module, int]:
    """Return a stride-32 backbone, [B, 3, H, W] -> [B, C, H / 32, W / 32], and its C."""
    import torchvision.models

    if name == "convnext-tiny":
        return torchvision.models.convnext_tiny().features, 768
    resnet = ResNetFeatures(name)
    return resnet, resnet.channels[-1]


class ResNetFeatures(nn.Module):
    """A torchvision ResNet without its classifier, up to stage ``last`` (1 to 4)."""

    def __init__(self, name: ResNet, last: int = 4) -> None:
        super().__init__()
        import torchvision.models

        resnet = getattr(torchvision.models, name)()
        self.last = last
        #: Channels of each stage; the stages have strides 4, 8, 16 and 32.
        self.channels = [resnet.fc.in_features // 2 ** (4 - stage) for stage in range(1, last + 1)]
        for part in ("conv1", "bn1", "relu", "maxpool", *(f"layer{i + 1}" for i in range(last))):
            self.add_module(part, getattr(resnet, part))

    def stem(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 64, H / 4, W / 4]"""
        for part in ("conv1", "bn1", "relu", "maxpool"):
            images = self.get_submodule(part)(images)
        return images

    def stages(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> the features of stages 1 to ``last``, at strides 4, 8, 16 and 32"""
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
    """Load a backbone's weights from a torchvision checkpoint; UserError if one is missing or has another shape."""
    found = {name.removeprefix("features."): value for name, value in state.items()}
    wanted = features.state_dict()
    for name, value in wanted.items():
        if name not in found or found[name].shape != value.shape:
            raise UserError(
                f"--weights does not fit this backbone ({name} is missing or its shape differs): give torchvision's "
                "checkpoint of the network named by --model.backbone"
            )
    features.load_state_dict({name: found[name] for name in wanted})
