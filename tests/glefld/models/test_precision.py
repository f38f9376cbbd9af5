"""The precision of a forward pass: as asked for, else the one that the model's own steps are faster in."""

import copy

import pytest
import torch
from torch import Tensor

from glefld.models import build_model, precision
from glefld.models.precision import Choice, choose_precision, faster, measure
from glefld.models.system import Model, Output
from tests.dots import LABELS

CONFIG = {"backbone": "test_resnet", "modules": 1, "width": 8, "start": "identity"}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "SECONDS", 0.01)
    monkeypatch.setattr(precision, "LEAST_SECONDS", 0.01)


class Sluggish(Model):
    """Works in one precision ten times as long as in the other."""

    def __init__(self, slow: torch.dtype) -> None:
        super().__init__(LABELS)
        self.slow = slow
        self.scale = torch.nn.Parameter(torch.ones(64, 64))

    def forward(self, images: Tensor) -> Output:
        found = self.scale
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        for _ in range(2000 if dtype == self.slow else 100):
            found = torch.relu(found + 1)
        return Output(found * images.mean())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("slow", "expected"), [(torch.float32, "bf16"), (torch.bfloat16, "fp32")])
def test_auto_takes_what_the_model_at_hand_is_faster_in(
    slow: torch.dtype, expected: str, training: bool, quick: None
) -> None:
    """Whatever the hardware is said to be good at."""
    choice = choose_precision("auto", Sluggish(slow), 32, 4, training=training)
    assert choice.precision == expected
    assert "a step in bf16 is" in choice.why


def test_digits_are_not_given_away_for_a_little() -> None:
    assert faster({"fp32": 1.0, "bf16": 0.95}).precision == "fp32"
    assert faster({"fp32": 1.0, "bf16": 0.5}) == Choice(
        "bf16", "a step in bf16 is 2.00 times as fast as in fp32"
    )


@pytest.mark.parametrize("named", ["fp32", "bf16"])
def test_a_named_precision_is_never_measured(named: precision.Named, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(precision, "measure")
    choice = choose_precision(named, Sluggish(torch.float32), 32, 4, training=True)
    assert (choice.precision, choice.dtype) == (named, precision.DTYPES[named])


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_nothing_but_its_answer(training: bool, quick: None) -> None:
    """Parameters, gradients, batch norm's statistics, modes and random numbers are what they were."""
    model = build_model("gle", CONFIG, LABELS).train()
    model.get_submodule("features").eval()
    before = copy.deepcopy(model)
    state = torch.random.get_rng_state()
    seconds = measure(model, 32, 4, training=training)
    assert min(seconds.values()) > 0
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, value in before.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [module.training for module in model.modules()] == [m.training for m in before.modules()]
