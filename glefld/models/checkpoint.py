"""Checkpoints: a folder of weights and a JSON that rebuilds the model, whole or not there.

    <checkpoint>/model.safetensors   weights and buffers
    <checkpoint>/model.json          ``ModelCard``: the system, its config, landmarks, input, how it was trained
    <checkpoint>/training.pt         optimizer and position, to go on from (left out of exported models)
    <checkpoint>/complete.json       size and SHA-256 of each file, written last and after reading them back

A run folder holds ``checkpoints/<step>/`` and two pointers, ``last.json`` and ``best.json``. Nothing is unpickled:
weights are safetensors, and ``training.pt`` is read with ``weights_only``.
"""

import dataclasses
import json
import pickle
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch

from glefld import storage
from glefld.errors import UserError
from glefld.models import build_model
from glefld.models.system import Model
from glefld.schema import Labels

CARD_VERSION = 2
WRITE_ATTEMPTS = 3


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """All that is needed to rebuild and use a model without the flags that trained it."""

    model: str
    config: dict[str, Any]
    labels: Labels
    input_size: int
    dataset: str
    data_hash: str
    recipe: dict[str, Any]
    epoch: int
    step: int
    val: dict[str, float]
    """What it scored on the validation split (``Report.numbers``); empty within an epoch."""
    version: int = CARD_VERSION

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ModelCard":
        if value.get("version") != CARD_VERSION:
            raise UserError(
                f"model.json has version {value.get('version')}, this program reads {CARD_VERSION}"
            )
        return cls(**{**value, "labels": Labels.from_json(value["labels"])})


def save(url: str, model: Model, card: ModelCard, training: Mapping[str, Any] | None = None) -> None:
    """Write a checkpoint folder; OSError if what storage gives back is not what was written."""
    with tempfile.TemporaryDirectory() as folder:
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        safetensors.torch.save_file(state, Path(folder, "model.safetensors"))
        Path(folder, "model.json").write_bytes(storage.json_bytes(dataclasses.asdict(card)))
        if training is not None:
            torch.save(dict(training), Path(folder, "training.pt"))
        files = {
            path.name: storage.put_verified(path, storage.join(url, path.name))
            for path in sorted(Path(folder).iterdir())
        }
        _write_verified(storage.join(url, "complete.json"), files)


def keep(run: str, model: Model, card: ModelCard, training: Mapping[str, Any], best: bool) -> None:
    """Save a checkpoint of a run, point to it, and only then drop those that no pointer names any more."""
    name = f"checkpoints/{card.step:08d}"
    before = {pointed(run, "last"), pointed(run, "best")}
    save(storage.join(run, name), model, card, training)
    # The best one first: killed in between, the run repeats this epoch, and has not forgotten that it was the best.
    if best:
        point(run, "best", name)
    point(run, "last", name)
    for old in before - {None, name, pointed(run, "best")}:
        storage.remove_tree(storage.join(run, str(old)))


def load(url: str) -> tuple[Model, ModelCard]:
    """The model, in eval mode on the CPU, and its card. UserError if the checkpoint is not whole."""
    files = _verified(url, ["model.safetensors", "model.json"])
    card = ModelCard.from_json(json.loads(files["model.json"]))
    model = build_model(card.model, card.config, card.labels)
    model.load_state_dict(safetensors.torch.load(files["model.safetensors"]))
    return model.eval(), card


def load_training(url: str) -> dict[str, Any]:
    """What ``save`` was given as ``training``, its tensors on the CPU. UserError if it would run code."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(_verified(url, ["training.pt"])["training.pt"])
        file.flush()
        try:
            return torch.load(file.name, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise UserError(f"{url}/training.pt holds more than tensors and numbers: {error}") from error


def export(url: str, folder: Path) -> None:
    """Copy the model without its training state to a local folder, itself a whole checkpoint."""
    names = ["model.safetensors", "model.json"]
    files = _verified(url, names)
    for name in names:
        Path(folder, name).write_bytes(files[name])
    storage.write_json(
        str(Path(folder, "complete.json")), {name: storage.digest(files[name]) for name in names}
    )


def point(run: str, name: Literal["last", "best"], checkpoint: str) -> None:
    """Let the run's pointer name a checkpoint, a path below the run. OSError if it does not read back."""
    _write_verified(storage.join(run, f"{name}.json"), {"checkpoint": checkpoint})


def pointed(run: str, name: Literal["last", "best"]) -> str | None:
    """The checkpoint, below the run, that its pointer names; None before there is one.

    UserError if it names anything else: what a pointer has named may be deleted.
    """
    url = storage.join(run, f"{name}.json")
    if not storage.exists(url):
        return None
    found = storage.read_json(url)["checkpoint"]
    if not isinstance(found, str) or not re.fullmatch(r"checkpoints/\d{8,}", found):
        raise UserError(f"{url} names {found!r}, which is no checkpoint of this run")
    return found


def resolve(url: str) -> str:
    """The checkpoint folder of a URL that names one, or names a run (its best). UserError otherwise."""
    if storage.exists(storage.join(url, "complete.json")):
        return url
    if (best := pointed(url, "best")) is not None:
        return storage.join(url, best)
    raise UserError(f"{url} is neither a checkpoint nor a run with one (no complete.json, no best.json)")


def _write_verified(url: str, value: Any) -> None:
    """A few times, since half a pointer would be worse than an old one. OSError if it never reads back."""
    data = storage.json_bytes(value)
    for _ in range(WRITE_ATTEMPTS):
        storage.write_bytes(url, data)
        if storage.exists(url) and storage.read_bytes(url) == data:
            return
    raise OSError(f"{url} was written {WRITE_ATTEMPTS} times and reads back differently")


def _verified(url: str, names: list[str]) -> dict[str, bytes]:
    try:
        expected = storage.read_json(storage.join(url, "complete.json"))
    except FileNotFoundError as error:
        raise UserError(f"{url} is not a whole checkpoint: it has no complete.json") from error
    files = {}
    for name in names:
        if name not in expected:
            raise UserError(f"the checkpoint {url} holds no {name}")
        files[name] = storage.read_bytes(storage.join(url, name))
        if storage.digest(files[name]) != expected[name]:
            raise UserError(
                f"{storage.join(url, name)} is damaged: its size or hash is not what complete.json says"
            )
    return files
