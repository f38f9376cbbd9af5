"""Backbones: any of timm's networks that gives features, by timm's name (``weights`` has what they start with).

timm: https://github.com/huggingface/pytorch-image-models.
Letters in shapes: B batch, C channels, H and W the input's size.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from glefld.data.picture import Normalisation
from glefld.errors import UserError

#: EfficientNet-Lite0 (https://arxiv.org/abs/1905.11946, without squeeze-and-excitation and with ReLU6). Of timm's two
#: networks of these layers it is the one that pads as TensorFlow does; the other's weights are on timm's hub alone.
EMBEDDED = "tf_efficientnet_lite0"
#: What the embedded network was trained with; timm rounds it to 127.5.
EMBEDDED_NORMALISATION = Normalisation((127.0, 127.0, 127.0), (128.0, 128.0, 128.0))
#: The strides of the usual stages.
STRIDES = (4, 8, 16, 32)
#: Counters of batch norms, which nothing reads.
UNUSED = "num_batches_tracked"
#: Of these networks torchvision's batch norms add TORCHVISION_EPS to the variance, timm's less: it becomes part of it.
LARGER_EPS = (
    "mobilenetv3_",
    "efficientnetv2_",
    "efficientnet_b5",
    "efficientnet_b6",
    "efficientnet_b7",
)
TORCHVISION_EPS = 1e-3
#: What timm raises of a network that gives no features, or of a name that it does not know.
REFUSALS = (RuntimeError, AttributeError, AssertionError, TypeError, ValueError)


class Backbone(nn.Module):
    """The features of one of timm's networks at the given strides. What only its later layers need is left out.

    UserError if timm has no such network, or if it has no features at one of the strides.
    """

    def __init__(self, name: str, strides: Sequence[int]) -> None:
        super().__init__()
        import timm  # only where a network is made: it takes seconds to import, and options are parsed without it

        self.name = name
        self.strides = tuple(strides)
        described = _described(name)
        try:
            # Of several features at one stride the deepest.
            found = {info["reduction"]: i for i, info in enumerate(described.feature_info)}
        except (*REFUSALS, LookupError) as error:
            raise UserError(
                f"--model.backbone {name}: timm describes no features of it: choose another"
            ) from error
        if missing := [stride for stride in strides if stride not in found]:
            raise UserError(
                f"--model.backbone {name} has features at the strides {_listed(found)} and none at {_listed(missing)}, "
                "which this system needs: choose another"
            )
        indices = [found[stride] for stride in strides]
        try:
            self.net = timm.create_model(name, features_only=True, feature_cls="getter", out_indices=indices)
        except REFUSALS as error:
            raise UserError(
                f"--model.backbone {name}: timm gives no features of it ({error}): choose another"
            ) from error
        #: Channels of the features at each stride.
        self.channels: list[int] = self.net.feature_info.channels()
        self.normalisation = _normalisation(name, self.net.pretrained_cfg)

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> the features at each stride, [B, C, H / stride, W / stride]"""
        return self.net(images)

    def require_size(self, size: int) -> None:
        """Raise UserError if pictures of this side, in pixels, give no features, or not of size / stride, rounded.

        Some of timm's networks take one size only; others lose pixels at the edges, where they do not pad.
        """
        training, (weight, *_) = self.training, self.parameters()
        try:
            with torch.no_grad():
                found = self.eval()(torch.zeros(1, 3, size, size, device=weight.device))
        except (
            Exception
        ) as error:  # whatever a network stumbles over: timm's own asserts and PyTorch's shapes
            words = str(error).partition("\n")[0]
            raise UserError(
                f"the backbone {self.name} does not take --input-size {size} ({words}): choose another of the two"
            ) from error
        finally:
            self.train(training)
        for stride, features in zip(self.strides, found, strict=True):
            if any(side not in (size // stride, -(-size // stride)) for side in features.shape[2:]):
                raise UserError(
                    f"the backbone {self.name} gives features of {features.shape[2]} x {features.shape[3]} at "
                    f"stride {stride} for --input-size {size}, not of {size // stride}: choose another backbone"
                )

    @property
    def rounds_up(self) -> bool:
        """Whether the features of sides that a stride does not divide are rounded up; others lose the remainder."""
        training, (weight, *_) = self.training, self.parameters()
        side = self.strides[-1] + 1
        with torch.no_grad():
            found = self.eval()(torch.zeros(1, 3, side, side, device=weight.device))
        self.train(training)
        return found[-1].shape[-1] == 2

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Load the weights of the whole network, as ``load_weights`` does."""
        load_weights(self.net, self.name, state, prefix="model.")


def load_weights(network: nn.Module, name: str, state: Mapping[str, Tensor], prefix: str = "") -> None:
    """Load weights of timm's network ``name``, under timm's names, or under others in timm's order, as torchvision's.

    network: all of it, or its features; prefix: what its tensors' names begin with, before timm's.
    UserError if a tensor is missing, or if they are not in order those of the network.
    """
    own = network.state_dict()
    wanted = {key: key.removeprefix(prefix) for key in own if not key.endswith(UNUSED)}
    if any(theirs not in state or state[theirs].shape != own[key].shape for key, theirs in wanted.items()):
        state = _in_order(name, state)
    network.load_state_dict(
        own | {key: state[theirs].reshape(own[key].shape) for key, theirs in wanted.items()}
    )


def _in_order(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under timm's names, each used once, in the order in which they stand."""
    described = _described(name)
    wanted = {key: value for key, value in described.state_dict().items() if not key.endswith(UNUSED)}
    given = {key: value for key, value in state.items() if not key.endswith(UNUSED)}
    for (key, expected), (other, value) in zip(wanted.items(), given.items(), strict=False):
        if _size(expected) != _size(value):
            raise UserError(
                f"--weights does not fit the backbone {name}: where it has {key} {list(expected.shape)}, the file has "
                f"{other} {list(value.shape)}. Give a checkpoint of timm's or torchvision's for this network"
            )
    if len(wanted) != len(given):
        raise UserError(
            f"--weights does not fit the backbone {name}, which has {len(wanted)} tensors, not {len(given)}: give a "
            "checkpoint of timm's or torchvision's for this network"
        )
    found = dict(zip(wanted, given.values(), strict=True))
    if name.startswith(LARGER_EPS):
        for layer, module in described.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                found[f"{layer}.running_var"] = found[f"{layer}.running_var"] + (TORCHVISION_EPS - module.eps)
    return found


def _described(name: str) -> Any:
    """Return the whole network without memory for its weights; UserError if timm has none of this name."""
    import timm

    require_known(name)
    try:
        with torch.device("meta"):
            return timm.create_model(name)
    except REFUSALS as error:
        raise UserError(f"--model.backbone {name}: {error}") from error


def require_known(name: str) -> None:
    """Raise UserError if timm has no network of this name."""
    import timm

    if timm.is_model(name):
        return
    near = difflib.get_close_matches(name, timm.list_models(), 3) or [EMBEDDED, "resnet18", "vgg16"]
    raise UserError(
        f"--model.backbone {name}: timm has no network of this name. Choose one such as {', '.join(near)}"
    )


def _normalisation(name: str, config: Mapping[str, Any]) -> Normalisation:
    if name == EMBEDDED:
        return EMBEDDED_NORMALISATION
    return Normalisation(*(tuple(round(255 * value, 3) for value in config[key]) for key in ("mean", "std")))


def _size(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape without sides of 1: torchvision's scale of a layer has two more than timm's."""
    return tuple(side for side in tensor.shape if side != 1)


def _listed(strides: Sequence[int] | Mapping[int, int]) -> str:
    return ", ".join(map(str, strides))
