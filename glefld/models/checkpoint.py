"""Checkpoints: self-contained folders that are either complete or ignored.

    <checkpoint>/model.safetensors   weights and buffers
    <checkpoint>/model.json          ``ModelCard``: the system, its config, labels, input size and training recipe
    <checkpoint>/training.pt         optimizer state and position, for resuming (not in exported models)
    <checkpoint>/complete.json       size and SHA-256 of each file, written last, after the files were read back

A run folder holds ``checkpoints/<step>/`` and two pointers, ``last.json`` and ``best.json``. Loading a checkpoint
never runs code from it: weights are safetensors, and ``training.pt`` is read with ``weights_only``.
"""

import dataclasses
import hashlib
import json
import pickle
import re
import tempfile
from collections.abc import Mapping, Sequence
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
#: What an exported model consists of, besides complete.json.
EXPORTED = ("model.safetensors", "model.json")
WRITE_ATTEMPTS = 3
#: Matches the path of a checkpoint relative to its run.
OF_A_RUN = re.compile(r"checkpoints/\d{8,}")


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """Everything needed to rebuild and use a model without its training command line."""

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
    """Scores on the val split (``Report.numbers``); empty for a checkpoint saved within an epoch."""
    version: int = CARD_VERSION

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ModelCard":
        """Rebuild a model card from ``model.json``; UserError if it has another version."""
        if value.get("version") != CARD_VERSION:
            raise UserError(
                f"model.json has version {value.get('version')}, but this program reads {CARD_VERSION}: "
                "train the model again"
            )
        return cls(**{**value, "labels": Labels.from_json(value["labels"])})


def save(url: str, model: Model, card: ModelCard, training: Mapping[str, Any] | None = None) -> None:
    """Write a checkpoint folder; OSError if a file reads back differently than it was written."""
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
    """Save a checkpoint of a run, update the run's pointers, then delete the checkpoints they no longer name.

    OSError if a file or a pointer reads back differently than it was written.
    """
    name = f"checkpoints/{card.step:08d}"
    before = {pointed(run, "last"), pointed(run, "best")}
    save(storage.join(run, name), model, card, training)
    # "best" before "last": a run killed in between resumes before this epoch and repeats it. The other order would
    # resume after the epoch and never record that it was the best.
    if best:
        point(run, "best", name)
    point(run, "last", name)
    for old in before - {None, name, pointed(run, "best")}:
        storage.remove_tree(storage.join(run, str(old)))


def load(url: str) -> tuple[Model, ModelCard]:
    """Load the model, in eval mode on the CPU, and its card; UserError if the checkpoint is incomplete or damaged."""
    files = _verified(url, EXPORTED)
    card = ModelCard.from_json(json.loads(files["model.json"]))
    model = build_model(card.model, card.config, card.labels)
    model.load_state_dict(safetensors.torch.load(files["model.safetensors"]))
    return model.eval(), card


def load_training(url: str) -> dict[str, Any]:
    """Load what was given to ``save`` as ``training``, with tensors on the CPU.

    UserError if the checkpoint is incomplete or damaged, or if unpickling would run code.
    """
    with tempfile.NamedTemporaryFile() as file:
        file.write(_verified(url, ["training.pt"])["training.pt"])
        file.flush()
        try:
            return torch.load(file.name, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise UserError(f"{url}/training.pt holds more than tensors and numbers: {error}") from error


def export(url: str, folder: Path) -> None:
    """Copy a checkpoint without its training state to a local folder, which is again a complete checkpoint.

    UserError if the checkpoint is incomplete or damaged.
    """
    files = _verified(url, EXPORTED)
    for name, data in files.items():
        Path(folder, name).write_bytes(data)
    storage.write_json(
        str(Path(folder, "complete.json")), {name: storage.digest(data) for name, data in files.items()}
    )


def digest(url: str) -> str:
    """Return one SHA-256 of the weights and the card as they are now, to compare with one that is kept elsewhere.

    In a checkpoint's folder, ``sha256sum model.safetensors model.json | sha256sum`` prints the same.
    FileNotFoundError if a file is missing; complete.json is not asked.
    """
    files = {name: storage.digest(storage.read_bytes(storage.join(url, name))) for name in EXPORTED}
    lines = "".join(f"{found['sha256']}  {name}\n" for name, found in files.items())
    return hashlib.sha256(lines.encode()).hexdigest()


def point(run: str, name: Literal["last", "best"], checkpoint: str) -> None:
    """Point the run's ``name`` at a checkpoint, a path relative to the run; OSError if it reads back differently."""
    _write_verified(storage.join(run, f"{name}.json"), {"checkpoint": checkpoint})


def pointed(run: str, name: Literal["last", "best"]) -> str | None:
    """Return the checkpoint that the run's pointer names, relative to the run; None if there is no pointer yet.

    UserError if it names anything else: a checkpoint that loses its pointer is deleted, so the path must be safe.
    """
    url = storage.join(run, f"{name}.json")
    if not storage.exists(url):
        return None
    found = storage.read_json(url)["checkpoint"]
    if not isinstance(found, str) or not OF_A_RUN.fullmatch(found):
        raise UserError(f"{url} names {found!r}, which is not a checkpoint of this run")
    return found


def resolve(url: str) -> str:
    """Return the checkpoint at a URL, or the best checkpoint if the URL is a run; UserError if it is neither."""
    if storage.exists(storage.join(url, "complete.json")):
        return url
    if (best := pointed(url, "best")) is not None:
        return storage.join(url, best)
    raise UserError(
        f"{url} is neither a checkpoint nor a run with a best one: it has no complete.json and no best.json"
    )


def _write_verified(url: str, value: Any) -> None:
    """Write until it reads back, since a damaged pointer is worse than an old one; OSError after a few attempts."""
    data = storage.json_bytes(value)
    for _ in range(WRITE_ATTEMPTS):
        storage.write_bytes(url, data)
        if storage.exists(url) and storage.read_bytes(url) == data:
            return
    raise OSError(f"{url} was written {WRITE_ATTEMPTS} times and reads back differently each time")


def _verified(url: str, names: Sequence[str]) -> dict[str, bytes]:
    """Read files of a checkpoint; UserError if one is missing or does not match ``complete.json``."""
    try:
        expected = storage.read_json(storage.join(url, "complete.json"))
    except FileNotFoundError as error:
        raise UserError(f"{url} is not a complete checkpoint: it has no complete.json") from error
    files = {}
    for name in names:
        if name not in expected:
            raise UserError(f"the checkpoint {url} has no {name}")
        files[name] = storage.read_bytes(storage.join(url, name))
        if storage.digest(files[name]) != expected[name]:
            raise UserError(
                f"{storage.join(url, name)} is damaged: its size or hash differs from complete.json"
            )
    return files
