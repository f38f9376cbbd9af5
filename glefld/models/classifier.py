"""Classifiers on a ResNet: the one whose Grad-CAM guides SANL, and SANL's block within a classifier.

``resnet`` is torchvision's network with heads for the data set's labels. ``sanl-resnet`` is the paper's for birds and
dishes: non-local blocks after layer3, with or without the attention of a ``resnet`` trained before. Where the
paper puts the block is not known; after layer3 is where non-local networks have one (Wang et al. 2018).
"""

import dataclasses
from typing import Literal

from torch import Tensor, nn

from glefld.errors import UserError
from glefld.models.backbones import ResNet, ResNetFeatures, load_features
from glefld.models.blocks import NonLocal
from glefld.models.gradcam import grad_cam
from glefld.models.system import Model, Output, Preset, System
from glefld.recipe import SMALL, Recipe
from glefld.schema import Labels

Label = Literal["category", "garment_type", "attributes"]


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    backbone: ResNet = "resnet18"
    """torchvision's ResNet."""
    label: Label | None = None
    """What is classified. Default: the category where the data set has any, else attributes, else garment type."""


class ResNetClassifier(Model):
    """ResNet, mean over positions, one linear head."""

    stride = 1

    def __init__(self, config: ResNetConfig, labels: Labels) -> None:
        super().__init__(labels)
        self.target = config.label or default_label(labels)
        self.features = ResNetFeatures(config.backbone)
        outputs = len(answers(self.target, labels)) * (2 if self.target == "attributes" else 1)
        self.head = nn.Linear(self.features.channels[-1], outputs)
        if self.target != "attributes":
            self.label = self.target

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        load_features(self.features, state)

    def logits(self, features: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, n]: a logit a class; of attributes, the no's and yes's in turn"""
        return self.head(features.mean(dim=(2, 3)))

    def answer(self, features: Tensor) -> Output:
        """[B, C, h, w] -> classes [B, n] or attributes [B, n / 2, 2]"""
        logits = self.logits(features)
        if self.target == "attributes":
            return Output(attributes=logits.unflatten(1, (-1, 2)))
        return Output(classes=logits)

    def forward(self, images: Tensor) -> Output:
        """[B, 3, H, W] -> classes or attributes"""
        return self.answer(self.features(images))

    def attention(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> Grad-CAM of the most likely answer at strides 4, 8, 16, 32: each [B, 1, h, w] in [0, 1]"""
        stages = [self.features.get_submodule(f"layer{i}") for i in range(1, 5)]

        def score(features: Tensor) -> Tensor:
            logits = self.logits(features)
            return logits[:, 1::2] if self.target == "attributes" else logits

        return grad_cam(self.features.stem(images), stages, score)


def default_label(labels: Labels) -> Label:
    if labels.categories:
        return "category"
    return "attributes" if labels.attributes else "garment_type"


def answers(label: Label, labels: Labels) -> tuple[str, ...]:
    """The names of what is told apart. UserError if the data set has no such label."""
    names = tuple(a.name for a in labels.attributes) if label == "attributes" else labels.classes(label)
    if not names:
        raise UserError(
            f"the data set has no {label.replace('_', ' ')} to classify: give another --model.label"
        )
    return names


class Guide(nn.Module):
    """A trained classifier that only tells where to look: frozen, in eval mode, in no optimizer, but in checkpoints."""

    def __init__(self, label: Label | None, labels: Labels) -> None:
        super().__init__()
        self.classifier = ResNetClassifier(ResNetConfig("resnet18", label), labels)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Guide":
        """Always in eval mode: its batch norm must not drift."""
        return super().train(False)

    def load(self, classifier: Model) -> None:
        """Take a trained classifier's weights. UserError if it is another network or tells other classes apart."""
        own = self.classifier
        if type(classifier) is not ResNetClassifier or classifier.features.channels != own.features.channels:
            raise UserError(
                "--classifier must name a checkpoint of --task classify --model resnet with resnet18"
            )
        told, expected = (answers(model.target, model.labels) for model in (classifier, own))
        if classifier.target != own.target or told != expected:
            raise UserError(
                f"--classifier tells {len(told)} names of {classifier.target} apart, this model expects "
                f"{len(expected)} of {own.target}"
                + (": set --model.label as it was trained with" if classifier.target != own.target else "")
                + (" with other names: train it on this data set" if len(told) == len(expected) else "")
            )
        own.load_state_dict(classifier.state_dict())

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> attention at strides 4, 8, 16, 32: each [B, 1, h, w] in [0, 1]"""
        return self.classifier.attention(images)


@dataclasses.dataclass(frozen=True)
class SANLResNetConfig(ResNetConfig):
    block: Literal["none", "nonlocal", "sanl"] = "sanl"
    """none: the plain ResNet; nonlocal: with non-local blocks; sanl: guided by --classifier's attention."""
    blocks: int = 1
    """Blocks after layer3."""

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise UserError(
                f"--model.blocks must be at least 1, not {self.blocks}: leave them out with --model.block none"
            )


class SANLResNet(ResNetClassifier):
    """A ResNet with SANL blocks after layer3."""

    def __init__(self, config: SANLResNetConfig, labels: Labels) -> None:
        super().__init__(config, labels)
        number = config.blocks if config.block != "none" else 0
        self.blocks = nn.ModuleList(NonLocal(self.features.channels[2]) for _ in range(number))
        for block in self.blocks:
            assert isinstance(block, NonLocal)
            block.start_as_identity()
        self.guide = Guide(config.label, labels) if config.block == "sanl" else None

    @property
    def guided_by(self) -> str | None:
        return self.guide.classifier.target if self.guide is not None else None

    def load_classifier(self, classifier: Model) -> None:
        if self.guide is None:
            return super().load_classifier(classifier)
        return self.guide.load(classifier)

    def forward(self, images: Tensor) -> Output:
        """[B, 3, H, W] -> classes or attributes"""
        features = self.features
        x = features.stem(images)
        for stage in ("layer1", "layer2", "layer3"):
            x = features.get_submodule(stage)(x)
        attention = self.guide(images)[2] if self.guide is not None else None
        for block in self.blocks:
            x = block(x, attention)
        return self.answer(features.get_submodule("layer4")(x))


def resnet_preset(name: Preset, dataset: str) -> tuple[ResNetConfig, Recipe]:
    """Recipes are ours."""
    return ResNetConfig(), CLASSIFY if name == "paper" else SMALL


def sanl_resnet_preset(name: Preset, dataset: str) -> tuple[SANLResNetConfig, Recipe]:
    """Recipes are ours."""
    if name == "paper":
        return SANLResNetConfig("resnet50"), CLASSIFY
    return SANLResNetConfig(), SMALL


CLASSIFY = Recipe(batch_size=64, epochs=20, learning_rate=1e-4, schedule="cosine", weight_decay=0.01)
RESNET = System("classify", ResNetConfig, ResNetClassifier, resnet_preset)
SANL_RESNET = System("classify", SANLResNetConfig, SANLResNet, sanl_resnet_preset)
