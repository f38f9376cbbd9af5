"""Grad-CAM against a case whose answer is known, and that it leaves nothing behind."""

import pytest
import torch

from glefld.models.classifier import ResNetClassifier, ResNetConfig
from glefld.models.gradcam import grad_cam
from glefld.schema import FASHION8, Labels


def test_a_linear_score_is_explained_by_its_weights() -> None:
    """For a mean over positions and a linear head, the last map is relu(sum_c w_c A_c), as CAM has it."""
    torch.manual_seed(0)
    stem = torch.randn(3, 4, 5, 6)
    weight = torch.randn(2, 4)
    (cam,) = grad_cam(stem, lambda x: [x], lambda x: x.mean(dim=(2, 3)) @ weight.T)
    scores = stem.mean(dim=(2, 3)) @ weight.T
    for row, chosen in enumerate(scores.argmax(dim=1)):
        expected = (weight[chosen][:, None, None] * stem[row]).sum(dim=0).relu()
        torch.testing.assert_close(cam[row, 0], expected / expected.max())


def test_nothing_that_speaks_for_the_score_is_attention_everywhere() -> None:
    (cam,) = grad_cam(torch.ones(1, 2, 3, 3), lambda x: [x], lambda x: -x.mean(dim=(2, 3)))
    assert torch.equal(cam, torch.ones(1, 1, 3, 3))


@pytest.mark.parametrize("backbone", ["resnet18", "test_convnext", "test_efficientnet"])
def test_a_classifiers_attention(backbone: str) -> None:
    """At strides 4, 8, 16, 32, in [0, 1] with a 1 in each, also within no_grad, and no gradient on parameters."""
    model = ResNetClassifier(ResNetConfig(backbone), Labels(FASHION8, categories=("a", "b", "c"))).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        maps = model.attention(images)
    assert [tuple(m.shape) for m in maps] == [(2, 1, 64 // s, 96 // s) for s in (4, 8, 16, 32)]
    for m in maps:
        assert m.min() >= 0
        assert torch.equal(m.amax(dim=(1, 2, 3)), torch.ones(2))
        assert not m.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
