"""Classifiers: the one whose Grad-CAM guides SANL, and one with SANL's block inside.

``resnet`` is a network of timm's with a head for one of the data set's labels. ``sanl-resnet`` follows the
fine-grained classifier of SANL (Li et al., ICME 2019, https://arxiv.org/abs/1903.04104): non-local blocks, with or
without the attention of a ``resnet`` trained beforehand. Where the paper places the block is not known. Here it
follows layer3, as in non-local networks (Wang et al., CVPR 2018, https://arxiv.org/abs/1711.07971).
"""

import dataclasses
from typing import Literal

import torch
from torch import Tensor, nn

from glefld.data.picture import Normalisation
from glefld.errors import UserError
from glefld.models.backbones import EMBEDDED, STRIDES, Backbone
from glefld.models.blocks import NonLocal
from glefld.models.gradcam import grad_cam
from glefld.models.system import Guidance, Model, Output, Preset, System
from glefld.recipe import BEST, Recipe
from glefld.schema import Labels

#: The networks that SANL's block is built into.
ResNet = Literal["resnet18", "resnet50", "resnet101"]
Label = Literal["category", "garment_type", "attributes"]


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Options of ``resnet``."""

    backbone: str = "resnet18"
    """Network from timm with features at strides 4, 8, 16 and 32."""
    label: Label | None = None
    """What to classify. Default: category if the data set has it, else attributes, else garment type."""


class ResNetClassifier(Model):
    """A backbone with global average pooling and one linear head.

    UserError if the data set does not have the label.
    """

    features: Backbone
    stride = 1

    def __init__(self, config: ResNetConfig, labels: Labels) -> None:
        super().__init__(labels, Backbone(config.backbone, STRIDES))
        self.target = config.label or default_label(labels)
        outputs = len(answers(self.target, labels)) * (2 if self.target == "attributes" else 1)
        self.head = nn.Linear(self.features.channels[-1], outputs)
        if self.target != "attributes":
            self.label = self.target

    def logits(self, features: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, n]: one logit per class, or for attributes a no and a yes logit each"""
        return self.head(features.mean(dim=(2, 3)))

    def answer(self, features: Tensor) -> Output:
        """[B, C, h, w] -> classes [B, n] or attributes [B, n / 2, 2]"""
        logits = self.logits(features)
        if self.target == "attributes":
            return Output(attributes=logits.unflatten(1, (-1, 2)))
        return Output(classes=logits)

    def forward(self, images: Tensor) -> Output:
        """[B, 3, H, W] -> classes or attributes"""
        return self.answer(self.features(images)[-1])

    def attention(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> Grad-CAM of the top answer at strides 4, 8, 16 and 32, each [B, 1, h, w] in [0, 1]"""

        def score(features: Tensor) -> Tensor:
            logits = self.logits(features)
            return logits[:, 1::2] if self.target == "attributes" else logits

        return grad_cam(images, self.features, score)


def default_label(labels: Labels) -> Label:
    """Return what to classify if nothing is given: category if there is one, else attributes, else garment type."""
    if labels.categories:
        return "category"
    return "attributes" if labels.attributes else "garment_type"


def answers(label: Label, labels: Labels) -> tuple[str, ...]:
    """Return the names of the classes or attributes; UserError if the data set does not have this label."""
    names = tuple(a.name for a in labels.attributes) if label == "attributes" else labels.classes(label)
    if not names:
        raise UserError(
            f"the data set has no {label.replace('_', ' ')} to classify: choose another --model.label"
        )
    return names


class Guide(nn.Module):
    """A trained classifier used only for its attention: frozen, always in eval mode, and saved with the model."""

    scale: Tensor
    shift: Tensor

    def __init__(
        self, backbone: str, label: Label | None, labels: Labels, normalisation: Normalisation
    ) -> None:
        """``normalisation`` is that of the images it is given; the classifier sees them as it was trained with."""
        super().__init__()
        self.classifier = ResNetClassifier(ResNetConfig(backbone, label), labels)
        self.normalisation = normalisation
        self.register_buffer("scale", torch.empty(3, 1, 1))
        self.register_buffer("shift", torch.empty(3, 1, 1))
        self._feed(self.classifier.normalisation)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Guide":
        """Stay in eval mode, so that batch norm statistics do not change."""
        return super().train(False)

    def _feed(self, own: Normalisation) -> None:
        """Set how images are turned into those that the classifier was trained with."""
        mean, std, own_mean, own_std = (
            torch.tensor(value)[:, None, None]
            for value in (self.normalisation.mean, self.normalisation.std, own.mean, own.std)
        )
        self.scale.copy_(std / own_std)
        self.shift.copy_((mean - own_mean) / own_std)

    @property
    def needed(self) -> Guidance:
        """The classifier that ``load`` takes."""
        return Guidance(self.classifier.features.name, self.classifier.target)

    def load(self, classifier: Model) -> None:
        """Copy a trained classifier's weights; UserError if its network or its classes differ from this one's."""
        own = self.classifier
        if type(classifier) is not ResNetClassifier or classifier.features.name != own.features.name:
            raise UserError(
                "--classifier must name a checkpoint of --task classify --model resnet with --model.backbone "
                f"{own.features.name}"
            )
        told, expected = (answers(model.target, model.labels) for model in (classifier, own))
        if classifier.target != own.target or told != expected:
            raise UserError(
                f"--classifier was trained on {len(told)} names of {classifier.target}, but this model expects "
                f"{len(expected)} of {own.target}"
                + (": set --model.label to the classifier's" if classifier.target != own.target else "")
                + (" with other names: train it on this data set" if len(told) == len(expected) else "")
            )
        own.load_state_dict(classifier.state_dict())
        self._feed(classifier.normalisation)

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> attention at strides 4, 8, 16 and 32, each [B, 1, h, w] in [0, 1]"""
        return self.classifier.attention(images * self.scale + self.shift)


@dataclasses.dataclass(frozen=True)
class SANLResNetConfig(ResNetConfig):
    """Options of ``sanl-resnet``. UserError for fewer than 1 or more than 100 blocks."""

    backbone: ResNet = "resnet18"
    """ResNet from timm, whose layers the blocks are bound to. None of them has weights on board: --weights,
    --pretrained or --random-weights says what it starts with."""
    block: Literal["none", "nonlocal", "sanl"] = "sanl"
    """none: the plain ResNet. nonlocal: with non-local blocks. sanl: blocks guided by --classifier's attention."""
    blocks: int = 1
    """Number of blocks after layer3."""
    guide: str = "resnet18"
    """Backbone of the classifier whose attention guides the blocks."""

    def __post_init__(self) -> None:
        if not 1 <= self.blocks <= 100:
            raise UserError(
                f"--model.blocks must be from 1 to 100, not {self.blocks}: use --model.block none to leave the blocks "
                "out"
            )


class SANLResNet(ResNetClassifier):
    """A ResNet classifier with non-local or SANL blocks after layer3."""

    def __init__(self, config: SANLResNetConfig, labels: Labels) -> None:
        super().__init__(config, labels)
        number = config.blocks if config.block != "none" else 0
        self.blocks = nn.ModuleList(NonLocal(self.features.channels[2]) for _ in range(number))
        for block in self.blocks:
            assert isinstance(block, NonLocal)
            block.start_as_identity()
        self.guide = (
            Guide(config.guide, config.label, labels, self.normalisation) if config.block == "sanl" else None
        )

    @property
    def guided_by(self) -> Guidance | None:
        return self.guide.needed if self.guide is not None else None

    def load_classifier(self, classifier: Model) -> None:
        if self.guide is None:
            return super().load_classifier(classifier)
        return self.guide.load(classifier)

    def forward(self, images: Tensor) -> Output:
        """[B, 3, H, W] -> classes or attributes"""
        resnet = self.features.net.model
        x = resnet.maxpool(resnet.act1(resnet.bn1(resnet.conv1(images))))
        x = resnet.layer3(resnet.layer2(resnet.layer1(x)))
        attention = self.guide(images)[2] if self.guide is not None else None
        for block in self.blocks:
            x = block(x, attention)
        return self.answer(resnet.layer4(x))


def resnet_preset(name: Preset, dataset: str) -> tuple[ResNetConfig, Recipe]:
    """Return the preset's config and recipe. The recipes are this project's."""
    return (ResNetConfig(), CLASSIFY) if name == "paper" else (ResNetConfig(EMBEDDED), BEST)


def sanl_resnet_preset(name: Preset, dataset: str) -> tuple[SANLResNetConfig, Recipe]:
    """Return the preset's config and recipe. The recipes are this project's."""
    if name == "paper":
        return SANLResNetConfig("resnet50"), CLASSIFY
    return SANLResNetConfig(guide=EMBEDDED), BEST


CLASSIFY = Recipe(batch_size=64, epochs=20, learning_rate=1e-4, schedule="cosine", weight_decay=0.01)
RESNET = System("classify", ResNetConfig, ResNetClassifier, resnet_preset)
SANL_RESNET = System("classify", SANLResNetConfig, SANLResNet, sanl_resnet_preset)
