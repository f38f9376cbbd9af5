"""Backbones: the features asked for, from weights of timm's and of torchvision's that are all in their places."""

from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from glefld.data.picture import IMAGENET, Normalisation
from glefld.errors import UserError
from glefld.models.backbones import EMBEDDED, EMBEDDED_NORMALISATION, STRIDES, Backbone

#: torchvision's networks, timm's names of them, and the layers that give the features at strides 8 and 16.
TORCHVISION: dict[str, tuple[str, tuple[str, str]]] = {
    "resnet18": ("resnet18", ("layer2", "layer3")),
    "convnext_tiny": ("convnext_tiny", ("features.3", "features.5")),
    "vgg16_bn": ("vgg16_bn", ("features.32", "features.42")),
    "mobilenet_v2": ("mobilenetv2_100", ("features.6", "features.13")),
    "mobilenet_v3_large": ("mobilenetv3_large_100", ("features.6", "features.12")),
    "efficientnet_b0": ("efficientnet_b0", ("features.3", "features.5")),
    "efficientnet_v2_s": ("efficientnetv2_s", ("features.3", "features.5")),
    "densenet121": ("densenet121", ("features.denseblock2", "features.denseblock3")),
}


def randomised(network: nn.Module) -> nn.Module:
    """In eval mode, with scales, shifts and statistics that differ from those that networks start with."""
    torch.manual_seed(1)
    for parameter in network.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            nn.init.normal_(buffer, std=0.1)
        elif name.endswith("running_var"):
            nn.init.uniform_(buffer, 0.2, 1.5)
    return network.eval()


def theirs(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomised(getattr(torchvision.models, name)())


def outputs(network: nn.Module, layers: tuple[str, ...], x: Tensor) -> list[Tensor]:
    """What the layers give, copied before an activation in place changes it."""
    found: dict[str, Tensor] = {}

    def keep(layer: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda module, given, output: found.update({layer: output.clone()})

    for layer in layers:
        network.get_submodule(layer).register_forward_hook(keep(layer))
    with torch.no_grad():
        network(x)
    return [found[layer] for layer in layers]


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_weights_give_torchvisions_features(name: str) -> None:
    """Whatever the names of its tensors, and where its batch norms add another number to the variance."""
    ours, layers = TORCHVISION[name]
    network = theirs(name)
    backbone = Backbone(ours, (8, 16)).eval()
    backbone.load(network.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found = backbone(x)
    for value, expected in zip(found, outputs(network, layers, x), strict=True):
        assert expected.std() > 1e-3
        torch.testing.assert_close(value / expected.std(), expected / expected.std(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TORCHVISION)
def test_each_tensor_of_a_file_has_one_place(name: str) -> None:
    """Each is filled with a number of its own: it comes to one place, or to none if it is of a later layer."""
    network = getattr(torchvision.models, name)()
    state = {
        key: torch.full_like(value, number)
        for number, (key, value) in enumerate(network.state_dict().items())
    }
    backbone = Backbone(TORCHVISION[name][0], (16,))
    backbone.load(state)
    numbers = [
        [round(number, 2) for number in value.unique().tolist()]
        for key, value in backbone.state_dict().items()
        if not key.endswith("num_batches_tracked")
    ]
    assert {len(found) for found in numbers} == {1}
    places = [found[0] for found in numbers]
    assert len(set(places)) == len(places)
    assert set(places) <= set(range(len(state)))


def test_timms_own_names_go_before_the_order() -> None:
    """A file of timm's may hold its tensors in any order, and a head of any number of classes."""
    network = timm.create_model("test_resnet", num_classes=7)
    state = dict(sorted(randomised(network).state_dict().items(), reverse=True))
    backbone = Backbone("test_resnet", STRIDES)
    backbone.load(state)
    for key, value in backbone.net.state_dict().items():
        assert torch.equal(value, state[key.removeprefix("model.")]), key


def shuffled() -> dict[str, Tensor]:
    state = torchvision.models.mobilenet_v3_small().state_dict()
    return dict(reversed(state.items()))


WRONG: dict[str, tuple[Callable[[], dict[str, Tensor]], str]] = {
    "another network": (
        lambda: timm.create_model("test_resnet").state_dict(),
        r"where it has blocks.* \[.*\], the file has conv1.* \[.*\]. Give a checkpoint of timm's or torchvision's",
    ),
    "another size of the network": (
        lambda: timm.create_model("mobilenetv3_small_050").state_dict(),
        r"where it has .* \[.*\], the file has",
    ),
    "the end is missing": (
        lambda: dict(list(torchvision.models.mobilenet_v3_small().state_dict().items())[:-1]),
        r"which has \d+ tensors, not \d+",
    ),
    "too much": (
        lambda: {**torchvision.models.mobilenet_v3_small().state_dict(), "more": torch.ones(3)},
        r"which has \d+ tensors, not \d+",
    ),
    "another order": (shuffled, "where it has conv_stem.weight"),
    "nothing": (dict, r"which has \d+ tensors, not 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_for_another_network_is_one_line(case: str) -> None:
    """It names the option, the backbone and where the two part; and the backbone keeps its weights."""
    state, message = WRONG[case]
    backbone = Backbone("mobilenetv3_small_100", STRIDES)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(UserError, match=message) as told:
        backbone.load(state())
    assert str(told.value).startswith("--weights does not fit the backbone mobilenetv3_small_100")
    assert str(told.value).isprintable()
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


UNKNOWN = {
    "a typing mistake": (
        "resnet_18",
        STRIDES,
        "--model.backbone resnet_18: timm has no network of .* resnet18",
    ),
    "nothing like it": ("x", STRIDES, f"Choose one such as {EMBEDDED}"),
    "nothing": ("", STRIDES, "Choose one such as"),
    "an unknown kind of weights": (
        "resnet18.nobodys",
        STRIDES,
        "--model.backbone resnet18.nobodys: .*nobodys",
    ),
    "a place on the hub": ("hf-hub:timm/resnet18", STRIDES, "timm has no network of this name"),
    "a transformer of one stride": (
        "test_vit",
        STRIDES,
        "test_vit has features at the strides 16 and none at 4, 8, 32, which this system needs: choose another",
    ),
    "a stride that it leaves out": ("test_convnext", (2, 4), "strides 4, 8, 16, 32 and none at 2"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_a_backbone_that_cannot_be_is_one_line(case: str) -> None:
    name, strides, message = UNKNOWN[case]
    with pytest.raises(UserError, match=message) as told:
        Backbone(name, strides)
    assert str(told.value).isprintable()


#: Networks, and whether they round odd sides up.
NETWORKS = {
    EMBEDDED: True,
    "resnet18": True,
    "test_resnet": True,
    "test_efficientnet": True,
    "test_convnext": False,
    "convnextv2_atto": False,
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("strides", [(8,), (32,), (8, 32), STRIDES])
def test_the_strides_asked_for_are_the_strides_got(name: str, strides: tuple[int, ...]) -> None:
    """In their order, with the channels that it says, also for sides that no stride divides."""
    backbone = Backbone(name, strides).train()
    assert backbone.rounds_up == NETWORKS[name]
    assert backbone.training
    backbone.eval()
    for height, width in ((64, 96), (72, 40), (37, 61), (33, 63)):
        with torch.no_grad():
            found = backbone(torch.zeros(1, 3, height, width))
        for stride, channels, value in zip(strides, backbone.channels, found, strict=True):
            sides = [-(-side // stride) if NETWORKS[name] else side // stride for side in (height, width)]
            assert value.shape == (1, channels, *sides)


def test_later_layers_are_left_out() -> None:
    """What no feature needs has no parameters: they would be in each checkpoint and never learn."""
    backbone = Backbone(EMBEDDED, (8,))
    for parameter in backbone.parameters():
        assert parameter.grad is None
    backbone(torch.randn(2, 3, 32, 32))[0].square().sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())
    sizes = [sum(p.numel() for p in Backbone(EMBEDDED, (stride,)).parameters()) for stride in STRIDES]
    assert sizes == sorted(set(sizes))


def test_each_backbone_is_fed_as_it_was_trained() -> None:
    """timm says with what; for the weights on board their own source does."""
    assert Backbone("resnet18", (8,)).normalisation == IMAGENET
    assert Backbone(EMBEDDED, (8,)).normalisation == EMBEDDED_NORMALISATION
    assert EMBEDDED_NORMALISATION.mean == (127, 127, 127)
    assert EMBEDDED_NORMALISATION.std == (128, 128, 128)
    half = (127.5, 127.5, 127.5)
    assert Backbone("test_convnext", (8,)).normalisation == Normalisation(half, half)
