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
import io
import logging
import pickle
import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from pydantic import TypeAdapter, ValidationError

from glefld import storage
from glefld.data.picture import Normalisation
from glefld.errors import UserError, require_between
from glefld.models import MODELS, build_model, first_mistake
from glefld.models.calibration import Calibration
from glefld.models.system import Model, Task
from glefld.recipe import MOST_INPUT
from glefld.redaction import public_url, redacted
from glefld.schema import Labels

logger = logging.getLogger(__name__)

CARD_VERSION = 4
#: What an exported model consists of, besides complete.json.
EXPORTED = ("model.safetensors", "model.json")
WRITE_ATTEMPTS = 3
#: Matches the path of a checkpoint relative to its run.
OF_A_RUN = re.compile(r"checkpoints/\d{8,}")
#: The files of a run's checkpoint.
FILES = {*EXPORTED, "training.pt", "complete.json"}


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """Everything needed to rebuild and use a model without its training command line."""

    model: str
    config: dict[str, Any]
    labels: Labels
    input_size: int
    normalisation: Normalisation
    calibration: Calibration
    least_score: float | None
    """Boxes of a lower score are no garments; None if the model is not a detector."""
    weights: str
    """Where the backbone's first weights were from (``weights.describe``)."""
    dataset: str
    """The title of the data set it was trained on, which says so if its photos were rendered."""
    data_hash: str
    recipe: dict[str, Any]
    epoch: int
    step: int
    val: dict[str, float]
    """Scores on the val split (``Report.numbers``); empty for a checkpoint saved within an epoch."""
    version: int = CARD_VERSION

    def __post_init__(self) -> None:
        require_between("input_size", self.input_size, 1, MOST_INPUT)
        types = {attribute.type for attribute in self.labels.attributes}
        if not types <= set(range(1, len(self.labels.attribute_types) + 1)):
            raise UserError(f"attributes have the types {sorted(types)}, of which some have no name")

    @classmethod
    def parse(cls, data: bytes, name: str) -> "ModelCard":
        """Rebuild a model card from the content of ``model.json``, at ``name``.

        UserError if it has another version, or keys or values that are not those of a card.
        """
        value = storage.parse_json(data, name)
        version = value.get("version") if isinstance(value, dict) else None
        if version != CARD_VERSION:
            raise UserError(
                f"{name} has version {reprlib.repr(version)}, but this program reads {CARD_VERSION}: train the model "
                "again"
            )
        try:
            return TypeAdapter(cls).validate_json(data, strict=True, extra="forbid")
        except ValidationError as error:
            raise UserError(f"{name} is not a model card of this program: {first_mistake(error)}") from error


def save(url: str, model: Model, card: ModelCard, training: Mapping[str, Any] | None = None) -> None:
    """Write a checkpoint folder; OSError if a file reads back differently than it was written."""
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    # In memory: Ray kills workers before they could remove a temporary file.
    files = {
        "model.json": storage.json_bytes(dataclasses.asdict(card)),
        "model.safetensors": safetensors.torch.save(state),
    }
    if training is not None:
        buffer = io.BytesIO()
        torch.save(dict(training), buffer)
        files["training.pt"] = buffer.getvalue()
    digests = {name: storage.write_verified(storage.join(url, name), data) for name, data in files.items()}
    _write_verified(storage.join(url, "complete.json"), digests)


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


def tidy(run: str) -> None:
    """Remove what killed processes left in a run: older checkpoints without a pointer, and partial files.

    A checkpoint that is newer than the last one stays: the run comes to that step again and writes it anew. Nor could
    it be removed while a worker that was given up may still be writing it. Files that are not a checkpoint's stay.
    """
    last, best = pointed(run, "last"), pointed(run, "best")
    storage.remove_unfinished(run)
    for entry in storage.entries(storage.join(run, "checkpoints")):
        name = f"checkpoints/{entry.name}"
        if not OF_A_RUN.fullmatch(name):
            continue
        storage.remove_unfinished(entry.url)
        old = last is not None and int(entry.name) < int(last.rpartition("/")[2])
        if old and name != best and storage.find(entry.url).keys() <= FILES:
            storage.remove_tree(entry.url)


def load(url: str) -> tuple[Model, ModelCard]:
    """Load the model, in eval mode on the CPU, and its card.

    UserError if the checkpoint is incomplete or damaged, or if its weights are not those of the model in its card.
    """
    files = _verified(url, EXPORTED)
    name = storage.join(url, "model.json")
    card = ModelCard.parse(files["model.json"], name)
    weights = storage.join(url, "model.safetensors")
    try:
        state = safetensors.torch.load(files["model.safetensors"])
    except Exception as error:  # SafetensorError, and KeyError and others for an unknown type of number
        raise UserError(f"{weights} cannot be read ({error}): copy the checkpoint again") from error
    try:
        # Without memory for its weights: a card may name any width.
        with torch.device("meta"):
            skeleton = build_model(card.model, card.config, card.labels)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    except (
        RuntimeError,
        TypeError,
    ) as error:  # PyTorch's for sizes beyond 64 bits, with a page of its own frames
        words = str(error).partition("\n")[0]
        raise UserError(f"{name} describes no network that can be built: {words}") from error
    wanted, found = (
        {key: (tuple(value.shape), value.dtype) for key, value in tensors.items()}
        for tensors in (skeleton.state_dict(), state)
    )
    if differing := sorted(key for key in wanted | found if wanted.get(key) != found.get(key)):
        raise UserError(
            f"{weights} does not hold the weights of the model in model.json: {len(differing)} tensors differ, such as "
            f"{differing[0]}. If the layers of {card.model} have changed since, train the model again"
        )
    if card.input_size % skeleton.stride:
        raise UserError(
            f"{name}: the input size {card.input_size} is not a multiple of {card.model}'s stride {skeleton.stride}"
        )
    model = build_model(card.model, card.config, card.labels)
    model.load_state_dict(state)
    model.normalisation, model.calibration = card.normalisation, card.calibration
    model.least_score = card.least_score
    return model.eval(), card


def read_card(url: str) -> ModelCard:
    """Return a checkpoint's card alone, without building its model; UserError if it is incomplete or damaged."""
    return ModelCard.parse(_verified(url, ["model.json"])["model.json"], storage.join(url, "model.json"))


def load_training(url: str) -> dict[str, Any]:
    """Load what was given to ``save`` as ``training``, with tensors on the CPU.

    UserError if the checkpoint is incomplete or damaged, or if unpickling would run code.
    """
    data = _verified(url, ["training.pt"])["training.pt"]
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{url}/training.pt holds more than tensors and numbers: {error}") from error
    except (RuntimeError, EOFError, ValueError, LookupError) as error:
        raise UserError(f"{url}/training.pt cannot be read: {error}") from error


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
    value = storage.read_json(url)
    found = value.get("checkpoint") if isinstance(value, dict) else value
    if not isinstance(found, str) or not OF_A_RUN.fullmatch(found):
        raise UserError(f"{url} names {reprlib.repr(found)}, which is not a checkpoint of this run")
    return found


def resolve(url: str) -> str:
    """Return the checkpoint at a URL, or the best checkpoint if the URL is a run; UserError if it is neither."""
    if storage.exists(storage.join(url, "complete.json")):
        return url
    if (best := pointed(url, "best")) is not None:
        return storage.join(url, best)
    if url.lower().endswith((".onnx", ".pt2")):
        raise UserError(
            f"{url} is an exported model, which glefld predict takes if it is ONNX: give its checkpoint"
        )
    raise UserError(
        f"{url} is neither a checkpoint nor a run with a best one: it has no complete.json and no best.json"
    )


def newest_run(root: str, task: Task = "landmarks") -> str | None:
    """Return the run below ``<root>/runs`` that was begun last, of those with a best checkpoint for the task.

    None if there is none. A run with damaged files is passed over, and a line of the log says so: one broken run must
    not stand before all others.
    """
    found = []
    for entry in storage.entries(storage.join(root, "runs")):
        try:
            begun = _begun(entry.url, task) if entry.is_folder else None
        except (UserError, FileNotFoundError) as error:
            logger.warning(
                "the run %s is damaged and passed over: %s", public_url(entry.url), redacted(str(error))
            )
            continue
        if begun is not None:
            found.append((begun, entry.url))
    return max(found)[1] if found else None


def _begun(run: str, task: Task) -> str | None:
    """Return when a run was begun, empty if that is not recorded; None if it has no best checkpoint for the task.

    UserError or FileNotFoundError if its files are damaged.
    """
    if (best := pointed(run, "best")) is None:
        return None
    card = storage.join(run, best, "model.json")
    match storage.read_json(card):
        case {"model": str(name)}:
            system = MODELS.get(name)
        case _:
            raise UserError(f"{card} names no system")
    if system is None or system.task != task:
        return None
    record = storage.join(run, "run.json")
    match storage.read_json(record) if storage.exists(record) else {}:
        case {"begun": str(begun)}:
            return begun
        case dict():
            return ""
    raise UserError(f"{record} is not the record of a run")


def _write_verified(url: str, value: Any) -> None:
    """Write until it reads back, since a damaged pointer is worse than an old one; OSError after a few attempts."""
    data = storage.json_bytes(value)
    for _ in range(WRITE_ATTEMPTS):
        storage.write_bytes(url, data)
        if storage.exists(url) and storage.read_bytes(url) == data:
            return
    raise OSError(f"{url} was written {WRITE_ATTEMPTS} times and reads back differently each time")


def complete(url: str) -> dict[str, dict[str, Any]]:
    """Read the size and hash of each file of a checkpoint; UserError if it is incomplete or its list is damaged."""
    name = storage.join(url, "complete.json")
    try:
        value = storage.read_json(name)
    except FileNotFoundError as error:
        raise UserError(f"{url} is not a complete checkpoint: it has no complete.json") from error
    match value:
        case dict(files) if all(map(_is_digest, files.values())):
            return files
    raise UserError(
        f"{name} does not list the sizes and hashes of a checkpoint's files: copy the checkpoint again"
    )


def _is_digest(value: Any) -> bool:
    match value:
        case {"bytes": int(), "sha256": str()}:
            return True
    return False


def _verified(url: str, names: Sequence[str]) -> dict[str, bytes]:
    """Read files of a checkpoint; UserError if one is missing or does not match ``complete.json``."""
    expected = complete(url)
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
