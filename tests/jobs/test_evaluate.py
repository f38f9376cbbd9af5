"""The evaluation job's mistakes. What it scores is tested with what trains it, in test_train.py."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from glefld.data.dataset import open_dataset
from glefld.models import build_model, checkpoint
from glefld.schema import FASHION8, Labels
from jobs.evaluate import Options, describe, run
from tests import dots
from tests.ingested import write_dataset
from tests.mistakes import NO_SERVER, everything, forbid_ray, one_line, write_wrong_files


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a data set, a checkpoint trained on it, one trained for other labels, and what is none."""
    root = tmp_path_factory.mktemp("root")
    write_dataset(root / "data" / "fld", {"train": 4, "val": 2})
    dots.write_checkpoint(str(root / "checkpoint"))
    labels = Labels(FASHION8)
    other = build_model(dots.MODEL, dots.CONFIG, labels)
    checkpoint.save(str(root / "other"), other, dots.card(dots.MODEL, dots.CONFIG, labels, dots.SIZE))
    write_wrong_files(root)
    return root


@pytest.fixture
def options(place: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    """An evaluation that must not come to start Ray."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    forbid_ray(monkeypatch, "evaluate")
    return Options("fld", f"{place}/checkpoint", "val", root=str(place))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no such checkpoint": ({"checkpoint": "/nope"}, "--checkpoint: /nope is neither a checkpoint nor a run"),
    "a text for a checkpoint": (
        {"checkpoint": "{place}/notes.txt"},
        "--checkpoint: {place}/notes.txt is neither",
    ),
    "a checkpoint for other labels": (
        {"checkpoint": "{place}/other"},
        "--checkpoint: the labels of {place}/other",
    ),
    "no data set": ({"data": "{place}/photos"}, "--data: {place}/photos is not a finished data set"),
    "another data set": (
        {"dataset": "deepfashion", "data": "{place}/data/fld"},
        "--data: {place}/data/fld holds",
    ),
    "a model where MLflow has no store": (
        {"checkpoint": "models:/x@y"},
        "--checkpoint: there is no models:/x@y: MLflow's store {place}/mlflow.db does not exist",
    ),
    "a split without rows": (
        {"split": "test"},
        "--split test: the data set {place}/data/fld has no rows in it",
    ),
    "an output that is a folder": ({"output": "{place}/photos"}, "--output {place}/photos is a folder"),
    "an output below a file": ({"output": "{place}/notes.txt/a"}, "--output {place}/notes.txt/a lies in"),
    "an output where nothing can be made": ({"output": "/proc/a"}, "--output /proc/a cannot be written"),
    "a page that is a folder": ({"report": "{place}/photos"}, "--report {place}/photos is a folder"),
    "no workers": ({"num_workers": 0}, "--num-workers must be at least 1, not 0"),
    "more CPUs than there are": ({"cpus_per_worker": 999}, "--cpus-per-worker 999 is more than"),
    "no GPU": ({"device": "gpu"}, "--device gpu: this machine has no GPU"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_one_line_before_ray_starts(
    case: str, options: Options, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, message = WRONG[case]
    changes = {k: v.format(place=place) if isinstance(v, str) else v for k, v in changes.items()}
    before = everything(place)
    told = one_line(lambda: run(dataclasses.replace(options, **changes)), capsys)
    assert message.format(place=place) in told
    assert everything(place) == before


def test_one_of_anything_is_told_in_the_singular(options: Options, place: Path) -> None:
    url = f"{place}/checkpoint"
    card = dataclasses.replace(checkpoint.read_card(url), epoch=1, step=1)
    manifest = open_dataset(f"{place}/data/fld")
    facts = describe(options, url, card, "data", dataclasses.replace(manifest, splits={"val": 1}), None)
    assert facts["trained"].endswith("1 epoch, 1 step")
    assert facts["split"] == "val, 1 row"
    facts = describe(options, url, dataclasses.replace(card, epoch=2, step=3000), "data", manifest, None)
    assert facts["trained"].endswith("2 epochs, 3,000 steps")


@pytest.mark.parametrize("checkpoint", ["{place}/checkpoint", "models:/gle@champion"])
def test_a_tracking_server_that_is_down_is_one_line_before_ray_starts(
    checkpoint: str,
    options: Options,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NO_SERVER)
    chosen = dataclasses.replace(options, checkpoint=checkpoint.format(place=place))
    assert f"MLflow at {NO_SERVER} cannot be used: nothing answers" in one_line(lambda: run(chosen), capsys)
