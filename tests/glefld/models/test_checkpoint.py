"""Checkpoints: what is saved is loaded, and each mistake in one of another hand is one line that names the file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image

from glefld import storage
from glefld.data.picture import Normalisation
from glefld.errors import UserError
from glefld.models import build_model, checkpoint
from glefld.models.system import Model
from glefld.predict import Predictor, checkpoint_hash
from glefld.prediction import prepare
from tests import dots
from tests.dots import LABELS, SIZE, card, encoded, network, write_checkpoint
from tests.full_disk import on_full_disk

CONFIG = {"backbone": "test_resnet", "modules": 0, "width": 8}


def gle() -> Model:
    return build_model("gle", CONFIG, LABELS).eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a good checkpoint."""
    folder = tmp_path_factory.mktemp("good")
    checkpoint.save(str(folder), gle(), card("gle", CONFIG, LABELS, SIZE), {"step": 1})
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def put(folder: Path, files: dict[str, bytes]) -> str:
    """A checkpoint of these files, its ``complete.json`` as their program would have written it."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    sums = {name: storage.digest(data) for name, data in files.items() if name != "complete.json"}
    storage.write_json(str(folder / "complete.json"), sums)
    return str(folder)


def changed(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda value: {**value, **changes}


def without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda value: {key: item for key, item in value.items() if key != name}


def labels(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda value: {**value, "labels": {**value["labels"], **changes}}


def landmark_set(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda value: labels(landmark_set={**value["labels"]["landmark_set"], **changes})(value)


def config(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda value: {**value, "config": {**value["config"], **changes}}


CARDS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a list": (lambda value: [value], "has version None"),
    "another version": (changed(version=1), "has version 1, but this program reads 4"),
    "no version": (without("version"), "has version None"),
    "a version that is a list": (changed(version=[2] * 9000), "has version"),
    "no labels": (without("labels"), "labels: Field required"),
    "no input size": (without("input_size"), "input_size: Field required"),
    "an unknown key": (changed(colour="red"), "colour: Unexpected keyword argument"),
    "an input size in words": (changed(input_size="64"), "input_size: Input should be a valid integer"),
    "half an input size": (changed(input_size=64.5), "input_size: Input should be a valid integer"),
    "no pixels": (changed(input_size=0), "input_size must be between 1 and 4096, not 0"),
    "an input of 10^400 pixels": (changed(input_size=10**400), "input_size must be between 1 and 4096"),
    "an input that the stride does not divide": (changed(input_size=60), "not a multiple of gle's stride 8"),
    "an unknown system": (changed(model="glee"), "unknown model 'glee'"),
    "a system that is a number": (changed(model=1), "model: Input should be a valid string"),
    "a config that is a list": (changed(config=[]), "config: Input should be"),
    "an unknown option": (config(depth=1), "model 'gle' has no option depth"),
    "an unknown backbone": (
        config(backbone="get_model"),
        "--model.backbone get_model: timm has no network of this name",
    ),
    "a backbone from the hub": (
        config(backbone="hf-hub:somebody/something"),
        "--model.backbone hf-hub:somebody/something: timm has no network of this name",
    ),
    "a backbone that is a number": (
        config(backbone=7),
        "model 'gle': backbone: Input should be a valid string",
    ),
    "another backbone": (config(backbone="test_efficientnet"), "does not hold the weights"),
    "a width in words": (config(width="8"), "model 'gle': width: Input should be a valid integer"),
    "a width that does not fit": (config(width=7), "--model.width must be a multiple of 4, not 7"),
    "a width of 2^40": (config(width=2**40), "describes no network that can be built|tensors differ"),
    "a width of 10^400": (config(width=10**400), "describes no network that can be built"),
    "a million modules": (config(modules=1_000_000), "--model.modules must be between 0 and 100"),
    "another width": (config(width=16), r"does not hold the weights .* tensors differ, such as branch"),
    "more modules": (config(modules=1), "does not hold the weights"),
    "no normalisation": (without("normalisation"), "normalisation: Field required"),
    "a mean of two channels": (
        changed(normalisation={"mean": [0, 0], "std": [1, 1, 1]}),
        r"normalisation.mean.*: Field required",
    ),
    "a standard deviation of 0": (
        changed(normalisation={"mean": [0, 0, 0], "std": [1, 0, 1]}),
        "normalisation: a standard deviation must be above 0",
    ),
    "a mean that is no number": (
        changed(normalisation={"mean": [0, float("nan"), 0], "std": [1, 1, 1]}),
        "normalisation: a mean must be from 0 to 255",
    ),
    "labels that are a list": (changed(labels=[]), "labels: Input should be an object"),
    "categories in one word": (labels(categories="ab"), "labels.categories: Input should be a valid"),
    "an attribute without a type": (
        labels(attributes=[{"name": "a"}]),
        r"labels.attributes.0.type: Field required",
    ),
    "a type without a name": (labels(attributes=[{"name": "a", "type": 1}]), "of which some have no name"),
    "one landmark more": (
        landmark_set(landmarks=["a", "b", "c"]),
        "mirror must pair each of the 3 landmarks",
    ),
    "a landmark twice": (landmark_set(landmarks=["a", "a"]), "landmark names must be unique"),
    "no landmarks": (landmark_set(landmarks=[], mirror=[], garment_types=[]), "needs landmarks"),
    "an unknown landmark": (
        landmark_set(garment_types=[{"code": 1, "name": "dots", "landmarks": [0, 7]}]),
        "names an unknown landmark",
    ),
    "scores in words": (changed(val={"ne": "low"}), "val.ne: Input should be a valid number"),
}


@pytest.mark.parametrize("case", CARDS)
def test_a_card_of_another_shape_is_told_in_one_line(
    case: str, files: dict[str, bytes], tmp_path: Path
) -> None:
    change, message = CARDS[case]
    data = json.dumps(change(json.loads(files["model.json"]))).encode()
    with pytest.raises(UserError, match=message) as error:
        checkpoint.load(put(tmp_path, files | {"model.json": data}))
    assert str(tmp_path) in str(error.value)
    assert len(str(error.value)) < 1000


def test_scores_may_be_no_numbers(files: dict[str, bytes], tmp_path: Path) -> None:
    """Those of a model that has diverged, as Python writes them."""
    value = json.loads(files["model.json"]) | {"val": {"ne": float("nan"), "epe": float("inf"), "pck": 0}}
    _, found = checkpoint.load(put(tmp_path, files | {"model.json": json.dumps(value).encode()}))
    assert str(found.val) == "{'ne': nan, 'epe': inf, 'pck': 0.0}"


def other_weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[bytes], bytes]:
    return lambda data: safetensors.torch.save(change(safetensors.torch.load(data)))


FIRST = "features.net.model.conv1.0.weight"
WEIGHTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "text": (lambda data: b"not weights", "cannot be read"),
    "nothing": (lambda data: b"", "cannot be read"),
    "the first half": (lambda data: data[: len(data) // 2], "cannot be read"),
    "a header without end": (lambda data: b"\xff" * 8 + data[8:], "cannot be read"),
    "an unknown kind of number": (lambda data: data.replace(b'"F32"', b'"F99"', 1), "cannot be read"),
    "a tensor too few": (other_weights(without(FIRST)), f"1 tensors differ, such as {FIRST}"),
    "a tensor too many": (other_weights(changed(extra=torch.zeros(1))), "1 tensors differ, such as extra"),
    "another shape": (
        other_weights(lambda w: {**w, FIRST: w[FIRST][:-1].clone()}),
        f"1 tensors differ, such as {FIRST}",
    ),
    "another kind of number": (
        other_weights(lambda w: {**w, FIRST: w[FIRST].bfloat16()}),
        f"1 tensors differ, such as {FIRST}",
    ),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_do_not_fit_are_told_in_one_line(
    case: str, files: dict[str, bytes], tmp_path: Path
) -> None:
    change, message = WEIGHTS[case]
    name = "model.safetensors"
    with pytest.raises(UserError, match=message) as error:
        checkpoint.load(put(tmp_path, files | {name: change(files[name])}))
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize("data", [b"text", b"", b"PK\x03\x04 and no more", b"\x80\x02]q\x00."])
def test_training_state_that_cannot_be_read_is_told(
    data: bytes, files: dict[str, bytes], tmp_path: Path
) -> None:
    url = put(tmp_path, files | {"training.pt": data})
    with pytest.raises(UserError, match=r"training\.pt (cannot be read|holds more)"):
        checkpoint.load_training(url)


LISTS = [
    b"[]",
    b"7",
    b"null",
    b'{"model.json": 3}',
    b'{"model.json": {"bytes": 1}}',
    b"\xff\xfe",
    b"{",
    b"[" * 99_999,
]


@pytest.mark.parametrize("data", LISTS, ids=range(len(LISTS)))
def test_a_damaged_list_of_files_is_told(data: bytes, files: dict[str, bytes], tmp_path: Path) -> None:
    url = put(tmp_path, files)
    (tmp_path / "complete.json").write_bytes(data)
    for read in (checkpoint.load, checkpoint_hash):
        with pytest.raises(UserError, match=r"complete\.json|has no model"):
            read(url)
    (tmp_path / "best.json").write_bytes(data)
    with pytest.raises(UserError, match=r"best\.json"):
        checkpoint.pointed(url, "best")


def save(url: str, training: dict[str, Any] | None) -> None:
    checkpoint.save(url, network(), card(dots.MODEL, dots.CONFIG, LABELS, SIZE), training)


@pytest.mark.parametrize(("most", "training"), [(1000, None), (3 << 20, {"x": torch.zeros(1 << 20)})])
def test_a_full_disk_is_told_with_the_file(
    most: int, training: dict[str, Any] | None, tmp_path: Path
) -> None:
    """And leaves no part of it; what is not whole is no checkpoint."""
    folder = tmp_path / "checkpoint"
    told = on_full_disk(most, tmp_path, save, str(folder), training)
    file = "model.safetensors" if training is None else "training.pt"
    assert told == f"OSError: [Errno 27] File too large: '{folder / file}'"
    assert not list(folder.glob("_part-*"))
    assert not (folder / "complete.json").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "complete.json"])
def test_a_damaged_checkpoint_is_refused(name: str, tmp_path: Path) -> None:
    """A truncated or missing file is one error that names the checkpoint."""
    url = write_checkpoint(str(tmp_path / "checkpoint"))
    checkpoint.load(url)
    path = tmp_path / "checkpoint" / name
    if name == "complete.json":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match="checkpoint"):
        checkpoint.load(url)


def test_a_checkpoint_of_other_layers_is_refused(tmp_path: Path) -> None:
    """As one of a system that has changed since it was trained."""
    url = str(tmp_path / "checkpoint")
    model = gle()
    model.get_submodule("branch").extra = torch.nn.Linear(1, 1)
    checkpoint.save(url, model, card("gle", CONFIG, LABELS, SIZE))
    with pytest.raises(UserError, match=r"layers of gle have changed since, train the model again"):
        checkpoint.load(url)


def test_an_exported_checkpoint_gives_the_same_model(tmp_path: Path) -> None:
    url = write_checkpoint(str(tmp_path / "checkpoint"))
    (tmp_path / "export").mkdir()
    checkpoint.export(url, tmp_path / "export")
    (model, saved), (again, saved_again) = (checkpoint.load(u) for u in (url, str(tmp_path / "export")))
    x = torch.randn(2, 3, saved.input_size, saved.input_size)
    assert saved == saved_again
    assert torch.equal(model(x).heatmaps, again(x).heatmaps)


def test_a_checkpoint_carries_its_normalisation(tmp_path: Path) -> None:
    """A model is fed with what it was trained with, not with what its backbone's name would give it today."""
    own = Normalisation((10.0, 20.0, 30.0), (50.0, 100.0, 200.0))
    url = str(tmp_path / "checkpoint")
    checkpoint.save(url, network(), card(dots.MODEL, dots.CONFIG, LABELS, SIZE, own))
    model, saved = checkpoint.load(url)
    assert model.normalisation == saved.normalisation == own
    predictor = Predictor(url, torch.device("cpu"), 1)
    plain = prepare(encoded(Image.new("RGB", (SIZE, SIZE), (60, 120, 230)), "PNG"), SIZE)
    (image,) = predictor.pipeline.run([plain.picture])
    torch.testing.assert_close(image, torch.ones(3, SIZE, SIZE))
