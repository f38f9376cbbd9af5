"""What every system must do; a new one is tested by its line in ``CASES``."""

from pathlib import Path
from typing import Any

import pytest
import torch

from glefld import checkpoint, heatmap
from glefld.checkpoint import ModelCard
from glefld.models import MODELS, build_model
from glefld.schema import FASHION8

#: Small configs of each system, and the ends of parameters' names whose gradient a norm or the softmax cancels.
GLE_CANCELLED = (".phi.bias", ".w.bias", ".g.bias", ".local.0.bias", ".local.3.bias")
CASES: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("gle", {"backbone": "vgg16", "modules": 1, "width": 16}, GLE_CANCELLED),
    ("gle", {"backbone": "vgg-small", "modules": 0, "width": 16}, ()),
    ("gle", {"backbone": "vgg-small", "modules": 3, "width": 16}, GLE_CANCELLED),
    ("local", {"width": 8}, ()),
]
each_model = pytest.mark.parametrize(("name", "config", "cancelled"), CASES)


def test_every_system_is_here() -> None:
    assert {name for name, _, _ in CASES} == set(MODELS)


@each_model
@pytest.mark.parametrize("size", [(32, 32), (40, 64)])
def test_heatmaps_have_the_inputs_size(
    name: str, config: dict[str, Any], cancelled: tuple[str, ...], size: tuple[int, int]
) -> None:
    maps = build_model(name, config, 5).eval()(torch.randn(2, 3, *size))
    assert maps.shape == (2, 5, *size)


@each_model
def test_every_parameter_learns(name: str, config: dict[str, Any], cancelled: tuple[str, ...]) -> None:
    """No gradient is None, and each weight's is non-zero but for biases that a norm or the softmax cancels."""
    torch.manual_seed(0)
    model = build_model(name, config, 8)
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    small = config.get("backbone") == "vgg-small"  # its features have batch norm after each convolution
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        before_norm = small and parameter_name.startswith("features") and parameter_name.endswith(".bias")
        if not parameter_name.endswith(cancelled or ("nothing",)) and not before_norm:
            assert parameter.grad.abs().max() > 0, parameter_name


@each_model
def test_bf16_runs_forward_and_back(name: str, config: dict[str, Any], cancelled: tuple[str, ...]) -> None:
    """Under autocast the loss is finite and so are the gradients, which stay fp32."""
    torch.manual_seed(0)
    model = build_model(name, config, 8)
    with torch.autocast("cpu", torch.bfloat16):
        maps = model(torch.randn(2, 3, 32, 32))
    loss = heatmap.loss(maps, torch.full((2, 8, 2), 16.0), torch.ones(2, 8), 1.0, rows=2)
    loss.backward()
    assert loss.isfinite()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


@each_model
def test_a_checkpoint_rebuilds_it(
    name: str, config: dict[str, Any], cancelled: tuple[str, ...], tmp_path: Path
) -> None:
    """From the folder alone, to the same answers."""
    model = build_model(name, config, 8).eval()
    card = ModelCard(
        model=name,
        config=config,
        landmark_set=FASHION8,
        input_size=32,
        radius=1.0,
        dataset="fld",
        data_hash="",
        recipe={},
        epoch=0,
        step=0,
        ne=None,
    )
    checkpoint.save(str(tmp_path / "checkpoint"), model, card)
    again, card_again = checkpoint.load(str(tmp_path / "checkpoint"))
    x = torch.randn(1, 3, 32, 32)
    assert card_again == card
    assert torch.equal(again(x), model(x))
