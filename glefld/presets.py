"""Named starting points of a training run: a model's config and a recipe, each option of which can be overridden."""

from typing import Any, Literal

from glefld.loader import Augmentation
from glefld.models import MODELS
from glefld.models.gle import GLEConfig
from glefld.training import Recipe

Preset = Literal["paper", "small"]

#: Of the augmentation the paper names only the mirror image; its released code does not swap left and right, this does.
PAPER_RECIPE = Recipe()
#: Ours, tuned on val for two CPU cores and random weights.
SMALL_RECIPE = Recipe(
    input_size=112,
    epochs=20,
    batch_size=16,
    learning_rate=1e-3,
    schedule="cosine",
    weight_decay=0.01,
    augmentation=Augmentation(rotate=10, scale=0.1, shift=0.05, colour=0.1),
)


def preset(name: Preset, model: str, dataset: str) -> tuple[Any, Recipe]:
    """The model's config and the recipe of a preset for a data set."""
    recipe = PAPER_RECIPE if name == "paper" else SMALL_RECIPE
    if model == "gle":
        modules = 3 if dataset == "fld" else 2  # the paper's choice
        if name == "paper":
            return GLEConfig(modules=modules), recipe
        return GLEConfig(backbone="vgg-small", modules=modules, start="identity"), recipe
    return MODELS[model].config(), recipe
