"""SANL's block and its ablations."""

import dataclasses
from typing import get_args

import pytest
import torch

from glefld.data.picture import IMAGENET, Normalisation
from glefld.errors import UserError
from glefld.models import build_model
from glefld.models.blocks import NonLocal, Products
from glefld.models.classifier import Guide, ResNetClassifier, ResNetConfig
from glefld.models.sanl import SANL
from glefld.schema import FASHION8, Labels

LABELS = Labels(FASHION8, categories=("a", "b", "c"))


def test_attention_of_one_everywhere_is_the_plain_block() -> None:
    torch.manual_seed(0)
    block = NonLocal(8).eval()
    x = torch.randn(2, 8, 5, 6)
    torch.testing.assert_close(block(x, torch.ones(2, 1, 5, 6)), block(x))


@pytest.mark.parametrize("products", get_args(Products))
def test_the_block_by_plain_products(products: Products) -> None:
    """softmax(theta phi^T + log attention) g, so a position without attention has a hundredth of its weight."""
    torch.manual_seed(0)
    block = NonLocal(4, products).double().eval()
    x, attention = torch.randn(1, 4, 3, 3).double(), torch.rand(1, 1, 3, 3).double()
    attention[0, 0, 0, 0] = 0
    q, k, v = (conv(x)[0].flatten(1).T for conv in (block.theta, block.phi, block.g))
    match products:
        case "scaled":
            q = q / 2**0.5
        case "cosine":
            q, k = 5 * q / q.norm(dim=1, keepdim=True), k / k.norm(dim=1, keepdim=True)
    weight = (q @ k.T).exp() * attention.flatten().clamp(min=0.01)
    y = (weight / weight.sum(dim=1, keepdim=True)) @ v
    expected = x + block.norm(block.w(y.T.reshape(1, 2, 3, 3)))
    torch.testing.assert_close(block(x, attention), expected)


def sanl(**config: object) -> SANL:
    torch.manual_seed(0)
    model = build_model(
        "sanl", {"backbone": "test_resnet", "guide": "test_resnet", "width": 16, **config}, LABELS
    ).eval()
    assert isinstance(model, SANL)
    for block in model.blocks:
        torch.nn.init.ones_(block.norm.weight)
    return model


def test_attention_matters_at_the_stride_it_says() -> None:
    """none has no blocks; nonlocal no guide; top hands stride 32's map to all; matching each its own."""
    images = torch.randn(1, 3, 64, 64)
    assert not sanl(attention="none").blocks
    assert sanl(attention="nonlocal").guide is None
    for attention in ("top", "matching"):
        model = sanl(attention=attention)
        assert model.guide is not None
        maps = model.guide(images)
        levels = [torch.zeros(1, 16, 64 // s, 64 // s) for s in (4, 8, 16, 32)]
        looked = model.look(images, levels)
        for found, own, level in zip(looked, maps, levels, strict=True):
            assert found is not None
            assert found.shape[2:] == level.shape[2:]
            top = torch.nn.functional.interpolate(maps[-1], level.shape[2:], mode="bilinear")
            assert torch.equal(found, own if attention == "matching" else top)


def test_a_guide_sees_images_as_it_was_trained_with_them() -> None:
    """Whatever the images are normalised with for the system that it guides, and also once it is loaded."""
    half = Normalisation((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))
    pixels = 255 * torch.rand(1, 3, 64, 64)

    def normalised(by: Normalisation) -> torch.Tensor:
        return (pixels - torch.tensor(by.mean)[:, None, None]) / torch.tensor(by.std)[:, None, None]

    guide = Guide("resnet18", "category", LABELS, half)
    trained = ResNetClassifier(ResNetConfig("resnet18"), LABELS).eval()
    own = Normalisation((10.0, 20.0, 30.0), (50.0, 60.0, 70.0))
    for normalisation in (IMAGENET, own):
        trained.normalisation = normalisation
        guide.load(trained)
        expected = trained.attention(normalised(normalisation))
        for found, value in zip(guide(normalised(half)), expected, strict=True):
            torch.testing.assert_close(found, value, atol=1e-3, rtol=1e-3)
    other = guide.classifier.attention(normalised(half))
    assert (other[-1] - expected[-1]).abs().max() > 1e-2


def test_without_refinement_the_coarse_heatmaps_are_the_answer() -> None:
    """And are then decoded with CoarseNet's width."""
    model = sanl(refine=False, attention="none")
    output = model(torch.randn(1, 3, 32, 32))
    assert output.coarse is None
    assert model.codec == model.coarse_codec
    assert sanl().codec.width < sanl().coarse_codec.width


def test_a_guide_takes_only_what_it_expects() -> None:
    """Another label, other classes or another network end in one line; the right one's weights are taken over."""
    guide = Guide("resnet18", "category", LABELS, IMAGENET)
    right = ResNetClassifier(ResNetConfig(), LABELS)
    guide.load(right)
    assert torch.equal(guide.classifier.head.weight, right.head.weight)
    wrong = {
        "another label": build_model("resnet", {"label": "garment_type"}, LABELS),
        "other classes": build_model("resnet", {}, Labels(FASHION8, categories=("a", "b"))),
        "classes of other names": build_model(
            "resnet", {}, dataclasses.replace(LABELS, categories=("a", "b", "d"))
        ),
        "another network": build_model("resnet", {"backbone": "test_resnet"}, LABELS),
        "no classifier": build_model("gle", {"backbone": "test_resnet"}, LABELS),
        "with blocks": build_model("sanl-resnet", {"block": "nonlocal"}, LABELS),
    }
    for name, model in wrong.items():
        with pytest.raises(UserError, match="--classifier"):
            guide.load(model)
        assert name
