"""What a training starts with: weights that fit, and groups of parameters."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch

from glefld.errors import UserError
from glefld.models import build_model, checkpoint
from glefld.recipe import Recipe
from glefld.schema import FASHION8, Labels
from glefld.training.start import Job, initial_model, origin, parameter_groups
from tests import dots
from tests.dots import LABELS, card, network

CONFIG = {"backbone": "test_resnet", "modules": 1, "width": 8, "start": "identity"}
RECIPE = Recipe(input_size=32)


def test_a_wrong_recipe_is_an_error_that_names_the_option() -> None:
    cases = (({"input_size": 0}, "input-size"), ({"epochs": 0}, "epochs"), ({"batch_size": 0}, "batch"))
    for wrong, message in cases:
        with pytest.raises(ValueError, match=message):
            Recipe(**wrong)


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_weights_that_carry_code_do_not_run_it(tmp_path: Path) -> None:
    """Given as --weights, and in a checkpoint with correct hashes."""
    torch.save({"features.0.weight": Code(tmp_path / "ran")}, tmp_path / "code.pth")
    job = Job("fld", "", "", "gle", CONFIG, RECIPE, weights=str(tmp_path / "code.pth"))
    with pytest.raises(ValueError, match="is no checkpoint of a backbone"):
        initial_model(job, LABELS)
    url = str(tmp_path / "checkpoint")
    checkpoint.save(
        url,
        network(),
        card(dots.MODEL, dots.CONFIG, LABELS, RECIPE.input_size),
        {"optimizer": Code(tmp_path / "ran")},
    )
    with pytest.raises(ValueError, match="holds more than tensors and numbers"):
        checkpoint.load_training(url)
    assert not (tmp_path / "ran").exists()


def saved(folder: Path, name: str) -> str:
    """The weights of one of timm's networks, from a seed of their own, as a file."""
    torch.manual_seed(7)
    torch.save(timm.create_model(name).state_dict(), folder / f"{name}.pth")
    return str(folder / f"{name}.pth")


def test_the_backbone_starts_from_a_file(tmp_path: Path) -> None:
    """Its weights become the file's; a file for another network and a system without a backbone are one clear error."""
    url = saved(tmp_path, "test_resnet")
    job = Job("fld", "", "", "gle", CONFIG, RECIPE, weights=url)
    model, state = initial_model(job, LABELS), torch.load(url)
    assert model.features is not None
    for name, value in model.features.net.state_dict().items():
        assert torch.equal(value, state[name.removeprefix("model.")]), name
    wrong = {
        "does not fit the backbone test_efficientnet": dataclasses.replace(
            job, config=CONFIG | {"backbone": "test_efficientnet"}
        ),
        "has no backbone": dataclasses.replace(job, model="local", config={}),
        "multiple of 8": dataclasses.replace(job, recipe=dataclasses.replace(RECIPE, input_size=36)),
    }
    for message, mistaken in wrong.items():
        with pytest.raises(ValueError, match=message):
            initial_model(mistaken, LABELS)


def test_liu2018_takes_vgg16_to_its_end(tmp_path: Path) -> None:
    """Also conv5, behind the attention: as in the paper."""
    job = Job("fld", "", "", "liu2018-full", {"hidden": 8}, RECIPE, weights=saved(tmp_path, "vgg16"))
    model, state = initial_model(job, Labels(FASHION8, ("a", "b"))), torch.load(tmp_path / "vgg16.pth")
    for ours, theirs in ((0, 24), (2, 26), (4, 28)):
        for part in ("weight", "bias"):
            assert torch.equal(
                model.get_parameter(f"conv5.{ours}.{part}"), state[f"features.{theirs}.{part}"]
            )


def test_every_weight_starts_as_another_trainings(tmp_path: Path) -> None:
    """Buffers too; a checkpoint of another system, of other sizes or of other landmarks is one clear error."""
    url = str(tmp_path / "checkpoint")
    job = Job("fld", "", "", "gle", CONFIG, RECIPE, start_from=url)
    torch.manual_seed(7)
    other = build_model("gle", CONFIG, LABELS)
    for buffer in other.buffers():
        buffer.random_(1, 9)
    checkpoint.save(url, other, card("gle", CONFIG, LABELS, 64))
    state, wanted = initial_model(job, LABELS).state_dict(), other.state_dict()
    assert state.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(state[name], value), name
    with pytest.raises(
        UserError, match=r"tensors differ, such as .* Give the options that it was trained with"
    ):
        initial_model(dataclasses.replace(job, config=CONFIG | {"width": 16}), LABELS)
    with pytest.raises(UserError, match=r"is gle with .* which does not fit this local"):
        initial_model(dataclasses.replace(job, model="local", config={}), LABELS)
    with pytest.raises(UserError, match="knows the landmarks dots, not fashion8"):
        initial_model(job, Labels(FASHION8))


def test_a_card_tells_the_weights_behind_the_start(tmp_path: Path) -> None:
    """Also after a resume, when the start is gone."""
    url, run = str(tmp_path / "start"), str(tmp_path / "run")
    model, own = build_model("gle", CONFIG, LABELS), card("gle", CONFIG, LABELS, 64)
    checkpoint.save(url, model, own)
    job = Job("fld", "", run, "gle", CONFIG, RECIPE, start_from=url)
    told = origin(job)
    assert told == f"{url} ({own.weights})"
    checkpoint.keep(run, model, dataclasses.replace(own, weights=told), {}, best=True)
    assert origin(dataclasses.replace(job, start_from="/gone")) == told


@pytest.mark.parametrize(
    ("backbone", "told"),
    [("xception", "gives features of .* at stride"), ("swin_tiny_patch4_window7_224", "does not take")],
)
def test_a_backbone_that_does_not_suit_the_size_is_refused(backbone: str, told: str) -> None:
    """Features that are not where their stride says, and a network of one size only."""
    config = {"backbone": backbone, "width": 8}
    job = Job("fld", "", "", "dafe", config, dataclasses.replace(RECIPE, input_size=96))
    with pytest.raises(UserError, match=rf"backbone {backbone} {told}.*--input-size 96"):
        initial_model(job, LABELS)


def test_a_guides_backbone_has_to_suit_the_size_too() -> None:
    config = {"backbone": "test_resnet", "guide": "swin_tiny_patch4_window7_224", "width": 8}
    job = Job("fld", "", "", "sanl", config, dataclasses.replace(RECIPE, input_size=96))
    with pytest.raises(UserError, match="swin_tiny_patch4_window7_224 does not take --input-size 96"):
        initial_model(job, LABELS)


def test_a_start_of_equal_shapes_but_another_meaning_is_refused(tmp_path: Path) -> None:
    """Another option that no tensor's shape tells, and the same number of other classes."""
    url = str(tmp_path / "gle")
    config = CONFIG | {"start": "random"}
    checkpoint.save(url, build_model("gle", config, LABELS), card("gle", config, LABELS, 64))
    job = Job("fld", "", "", "gle", CONFIG, RECIPE, start_from=url)
    with pytest.raises(UserError, match=r"--model.start 'random', not 'identity'"):
        initial_model(job, LABELS)
    known, asked = (dataclasses.replace(LABELS, categories=names) for names in (("a", "b"), ("b", "a")))
    url, config = str(tmp_path / "resnet"), {"backbone": "test_resnet", "label": "category"}
    checkpoint.save(url, build_model("resnet", config, known), card("resnet", config, known, 64))
    job = Job("fld", "", "", "resnet", config, RECIPE, start_from=url)
    with pytest.raises(UserError, match=r"trained on 2 names of category, .* in another order"):
        initial_model(job, asked)


def test_the_backbone_learns_at_its_own_rate() -> None:
    """Each trained parameter is in one group, the backbone's in those of its rate; norms and biases do not decay."""
    recipe = dataclasses.replace(RECIPE, backbone_rate=0.1, weight_decay=0.01)
    model = initial_model(Job("fld", "", "", "gle", CONFIG, recipe), LABELS)
    assert model.features is not None
    backbone = {id(parameter) for parameter in model.features.parameters()}
    found = [
        (id(parameter), group["rate"], group["weight_decay"], parameter.ndim)
        for group in parameter_groups(model, recipe)
        for parameter in group["params"]
    ]
    assert sorted(key for key, *_ in found) == sorted(map(id, model.parameters()))
    for key, rate, decay, dimensions in found:
        assert rate == (0.1 if key in backbone else 1)
        assert decay == (0.01 if dimensions > 1 else 0)
