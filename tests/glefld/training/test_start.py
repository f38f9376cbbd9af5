"""What a training starts with: weights that fit, and files that are none."""

import dataclasses
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models.vgg import make_layers

from glefld.errors import UserError
from glefld.models import checkpoint
from glefld.models.backbones import VGG_LAYERS
from glefld.recipe import Recipe
from glefld.training.start import Job, initial_model, read_weights
from tests.dots import LABELS, card, network

CONFIG = {"backbone": "vgg-small", "modules": 1, "width": 8, "start": "identity"}
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
    with pytest.raises(ValueError, match="not a torchvision checkpoint"):
        initial_model(job, LABELS)
    url = str(tmp_path / "checkpoint")
    checkpoint.save(
        url, network(), card("gle", CONFIG, LABELS, RECIPE.input_size), {"optimizer": Code(tmp_path / "ran")}
    )
    with pytest.raises(ValueError, match="holds more than tensors and numbers"):
        checkpoint.load_training(url)
    assert not (tmp_path / "ran").exists()


def test_the_backbone_starts_from_a_torchvision_checkpoint(tmp_path: Path) -> None:
    """A file of another kind or for another network is one clear error."""
    features = make_layers(VGG_LAYERS["vgg16"], batch_norm=False)
    state = {f"features.{name}": value for name, value in features.state_dict().items()}
    torch.save(state | {"classifier.0.weight": torch.zeros(1)}, tmp_path / "vgg16.pth")
    config = {"backbone": "vgg16", "modules": 0, "width": 8}
    job = Job("fld", "", "", "gle", config, RECIPE, weights=str(tmp_path / "vgg16.pth"))
    model = initial_model(job, LABELS)
    for name, value in model.get_submodule("features").state_dict().items():
        assert torch.equal(value, state[f"features.{name}"])
    wrong = {
        "does not fit this backbone": dataclasses.replace(job, config=CONFIG),
        "has no backbone": dataclasses.replace(job, model="local", config={}),
        "multiple of 8": dataclasses.replace(job, recipe=dataclasses.replace(RECIPE, input_size=36)),
    }
    for message, mistaken in wrong.items():
        with pytest.raises(ValueError, match=message):
            initial_model(mistaken, LABELS)


NO_WEIGHTS: dict[str, bytes] = {
    "words": b"no checkpoint",
    "a list of groceries": b"shopping list: milk\n",
    "nothing": b"",
    "an archive": b"PK\x03\x04" + bytes(100),
    "a picture": b"\xff\xd8\xff\xe0" + bytes(range(256)),
    "a pickled module": pickle.dumps(torch.nn.Linear(1, 1)),
}


@pytest.mark.parametrize("case", NO_WEIGHTS)
def test_weights_that_are_none_are_told_in_one_line_that_names_the_option(case: str, tmp_path: Path) -> None:
    """Whatever the reader stumbles over."""
    (tmp_path / "weights").write_bytes(NO_WEIGHTS[case])
    with pytest.raises(UserError, match=r"--weights .* is not a torchvision checkpoint") as told:
        read_weights(str(tmp_path / "weights"))
    assert str(told.value).isprintable()
    for word in ("KeyError", "weights_only", "Unpickling"):
        assert word not in str(told.value)


def test_random_bytes_are_no_weights(tmp_path: Path) -> None:
    seed = int(np.random.default_rng().integers(1 << 31))
    print("seed", seed)
    rng = np.random.default_rng(seed)
    for _ in range(300):
        (tmp_path / "weights").write_bytes(rng.bytes(int(rng.integers(1, 60))))
        with pytest.raises(UserError, match=r"--weights .* is not a torchvision checkpoint"):
            read_weights(str(tmp_path / "weights"))


@pytest.mark.parametrize("state", [{"epoch": 3, "state_dict": {}}, [torch.zeros(1)], torch.zeros(1)])
def test_a_checkpoint_of_another_shape_is_no_weights(state: object, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "weights")
    with pytest.raises(UserError, match="it holds more than tensors by name"):
        read_weights(str(tmp_path / "weights"))
