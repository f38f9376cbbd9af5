"""A checkpoint is scored on any data set with which it shares what it predicts."""

import dataclasses
import json
from pathlib import Path

import pytest

from glefld.data.dataset import MANIFEST
from glefld.errors import UserError
from glefld.models import build_model, checkpoint
from glefld.schema import Attribute, Labels, LandmarkSet
from pipelines.evaluate import Tasks, evaluate_checkpoint, shared_labels
from tests import dots
from tests.ingested import write_dataset

CATEGORIES = ("skirt", "dress")
ATTRIBUTES = (Attribute("floral", 1), Attribute("cotton", 1))
TURNED = LandmarkSet("turned", ("right_dot", "left_dot"), (1, 0), dots.DOTS.garment_types)


def data_of(folder: Path, labels: Labels) -> str:
    """A data set of two-dot photos that says it has these labels."""
    url = write_dataset(folder, {"train": 4, "val": 12})
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | dataclasses.asdict(labels)))
    return url


def model_of(folder: Path, name: str, labels: Labels) -> str:
    """An untrained checkpoint of a system for these labels."""
    config = {
        "local": dots.CONFIG,
        "liu2018-full": {"backbone": "test_resnet"},
        "resnet": {"backbone": "test_resnet"},
    }[name]
    model = build_model(name, config, labels)
    checkpoint.save(str(folder), model, dots.card(name, config, labels, dots.SIZE))
    return str(folder)


LANDMARKS = Labels(dots.DOTS)
WITH_CATEGORIES = Labels(dots.DOTS, CATEGORIES)
WITH_ALL = Labels(dots.DOTS, CATEGORIES, ATTRIBUTES, ("pattern",))
SHARED = {
    "landmarks, of a data set with more": ("local", LANDMARKS, WITH_ALL, LANDMARKS),
    "landmarks, where the categories differ": (
        "local",
        WITH_CATEGORIES,
        Labels(dots.DOTS, ("coat",)),
        LANDMARKS,
    ),
    "categories, where the landmarks differ": (
        "resnet",
        WITH_ALL,
        Labels(TURNED, CATEGORIES),
        Labels(dots.LandmarkSet("none", (), (), ()), CATEGORIES),
    ),
    "all": ("local", WITH_ALL, WITH_ALL, WITH_ALL),
}


@pytest.mark.parametrize("case", SHARED)
def test_what_both_have_is_scored(case: str, tmp_path: Path) -> None:
    name, trained, scored, shared = SHARED[case]
    url = model_of(tmp_path / "model", name, trained)
    assert shared_labels(url, data_of(tmp_path / "data", scored)) == shared


@pytest.mark.parametrize(
    ("name", "trained", "scored"),
    [
        ("local", LANDMARKS, Labels(TURNED)),
        ("local", WITH_CATEGORIES, Labels(TURNED, CATEGORIES)),
        ("resnet", WITH_CATEGORIES, LANDMARKS),
    ],
)
def test_where_nothing_is_shared_both_are_named(
    name: str, trained: Labels, scored: Labels, tmp_path: Path
) -> None:
    url = model_of(tmp_path / "model", name, trained)
    with pytest.raises(UserError, match=r"the labels of .* differ from those of"):
        shared_labels(url, data_of(tmp_path / "data", scored))


@pytest.mark.usefixtures("evaluate_here")
def test_other_labels_change_no_score(tmp_path: Path) -> None:
    """Trained on landmarks alone, a checkpoint scores the same where the same photos have categories as well."""
    url = dots.write_checkpoint(str(tmp_path / "checkpoint"))
    plain, more = (
        evaluate_checkpoint(url, data_of(tmp_path / name, labels), "val", Tasks())
        for name, labels in (("plain", LANDMARKS), ("more", WITH_ALL))
    )
    assert plain.ne is not None
    assert plain.ne < 0.05
    assert more == plain
