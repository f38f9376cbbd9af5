"""GLE: its parameters are the paper's, and its module computes the paper's equations."""

import pytest
import torch
from torch import Tensor, nn

from glefld.errors import UserError
from glefld.models import build_model
from glefld.models.blocks import LandmarkBranch
from glefld.models.gle import GLEConfig, GlobalLocalModule
from glefld.schema import FASHION8, Labels


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts() -> None:
    """447,496 in the landmark branch and 5,248,256 in each module, whatever k is."""
    assert count(LandmarkBranch(512, 8)) == 447_496
    assert count(GlobalLocalModule(512)) == 5_248_256
    backbone = count(build_model("gle", {"modules": 0}, Labels(FASHION8))) - 447_496
    for modules in (1, 2, 3):
        assert (
            count(build_model("gle", {"modules": modules}, Labels(FASHION8)))
            == backbone + 447_496 + modules * 5_248_256
        )


def test_backbone_is_vgg16_to_conv4_3() -> None:
    """No layer more, and its features are those of torchvision's network, cut off behind conv4_3's activation."""
    from torchvision.models import vgg16

    features = build_model("gle", {"modules": 0}, Labels(FASHION8)).eval().features
    theirs = vgg16().features[:23].eval()
    assert features is not None
    ours = {
        key.removeprefix("net.model.features."): value.shape for key, value in features.state_dict().items()
    }
    assert ours == {key: value.shape for key, value in theirs.state_dict().items()}
    features.net.model.features.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 40, 40)
    torch.testing.assert_close(features(x), [theirs(x)])


def randomised(module: nn.Module) -> nn.Module:
    """All weights, norm statistics and affine terms random, so that none of them can be left out unseen."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            nn.init.normal_(buffer, std=0.3)
        elif name.endswith("running_var"):
            nn.init.uniform_(buffer, 0.5, 2.0)
    return module.double().eval()


def conv(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """A convolution with padding as plain matrix products: one for each of its offsets. x [C, H, W]."""
    size = layer.kernel_size[0]
    pad = size // 2
    _, height, width = x.shape
    padded = torch.zeros(x.shape[0], height + 2 * pad, width + 2 * pad, dtype=x.dtype)
    padded[:, pad : pad + height, pad : pad + width] = x
    total = torch.zeros(layer.out_channels, height * width, dtype=x.dtype)
    for i in range(size):
        for j in range(size):
            total += layer.weight[:, :, i, j] @ padded[:, i : i + height, j : j + width].reshape(
                x.shape[0], -1
            )
    assert layer.bias is not None
    return (total + layer.bias[:, None]).reshape(-1, height, width)


def norm(x: Tensor, layer: nn.BatchNorm2d) -> Tensor:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    scale = layer.weight / (layer.running_var + layer.eps).sqrt()
    return (x - layer.running_mean[:, None, None]) * scale[:, None, None] + layer.bias[:, None, None]


def by_equations(module: GlobalLocalModule, x: Tensor) -> Tensor:
    """GLE eq. 1-3 and the local part on one sample [C, H, W], with matrix products only."""
    block = module.non_local
    theta, phi, g = (conv(x, layer).flatten(1) for layer in (block.theta, block.phi, block.g))  # [C / 2, N]
    affinity = torch.exp(theta.T @ phi)  # not scaled
    y = g @ (affinity / affinity.sum(dim=1, keepdim=True)).T
    z = x + norm(conv(y.reshape(-1, *x.shape[1:]), block.w), block.norm)
    first, first_norm, _, second, second_norm, _ = module.local
    assert isinstance(first, nn.Conv2d)
    assert isinstance(second, nn.Conv2d)
    assert isinstance(first_norm, nn.BatchNorm2d)
    assert isinstance(second_norm, nn.BatchNorm2d)
    h = norm(conv(z, first), first_norm).clamp(min=0)
    return norm(conv(h, second), second_norm).clamp(min=0)


@pytest.mark.parametrize(("channels", "height", "width"), [(8, 5, 5), (16, 4, 7)])
def test_module_computes_its_equations(channels: int, height: int, width: int) -> None:
    """The module and its equations, written out with plain matrix products, agree to 1e-5."""
    torch.manual_seed(channels)
    module = randomised(GlobalLocalModule(channels))
    x = torch.randn(2, channels, height, width, dtype=torch.float64)
    expected = torch.stack([by_equations(module, sample) for sample in x])  # type: ignore[arg-type]
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5)


def test_identity_start_passes_its_input_on() -> None:
    """A module that starts as identity gives features that follow its input, and a random one does not."""
    torch.manual_seed(0)
    x = torch.rand(4, 64, 14, 14)
    same, other, residual = GlobalLocalModule(64), GlobalLocalModule(64), GlobalLocalModule(64, residual=True)
    same.start_as_identity()
    residual.start_as_identity()
    torch.testing.assert_close(residual(x), x)

    def likeness(module: nn.Module) -> float:
        return torch.corrcoef(torch.stack([module(x).flatten(), x.flatten()]))[0, 1].item()

    assert likeness(same) > 0.8
    assert abs(likeness(other)) < 0.2


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("gel", {}, "unknown model 'gel'"),
        ("gle", {"module": 2}, "has no option module"),
        ("gle", {"modules": -1}, "must be between 0 and 100"),
        ("gle", {"width": 6}, "multiple of 4"),
        ("gle", {"pyramid": -1}, "must be at least 0"),
        ("gle", {"backbone": "vgg-16"}, "timm has no network of this name. Choose one such as vgg16"),
    ],
)
def test_wrong_options_end_in_one_line(name: str, config: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_model(name, config, Labels(FASHION8))


def test_config_names_its_defaults() -> None:
    """The paper's network is the default: VGG16, no pyramid, two modules, width 64, random start."""
    assert GLEConfig() == GLEConfig("vgg16", 0, 2, "random", 64)


def test_a_residual_module_adds_what_another_computes() -> None:
    torch.manual_seed(1)
    plain = randomised(GlobalLocalModule(8))
    residual = GlobalLocalModule(8, residual=True).double().eval()
    residual.load_state_dict(plain.state_dict())
    x = torch.rand(2, 8, 5, 6, dtype=torch.float64)
    added = residual(x) - x
    assert added.abs().max() > 0.1
    positive = added > 0
    torch.testing.assert_close(added[positive], plain(x)[positive])


def test_norms_of_the_branch_are_an_option() -> None:
    for norm in (False, True):
        layers = build_model("gle", {"backbone": "test_resnet", "norm": norm}, Labels(FASHION8)).branch.layers
        norms = sum(isinstance(layer, nn.BatchNorm2d) for layer in layers)
        assert norms == (12 if norm else 0)
