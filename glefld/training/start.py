"""What a training run is, and what it starts or goes on with: weights, a classifier, or its last checkpoint."""

import dataclasses
import io
import math
import warnings
from typing import Any

import torch
from torch import Tensor

from glefld import storage
from glefld.errors import Mistake, UserError
from glefld.models import build_model, checkpoint
from glefld.models.precision import Named
from glefld.models.system import Model
from glefld.recipe import Recipe
from glefld.redaction import public_url
from glefld.schema import Labels, Manifest


@dataclasses.dataclass(frozen=True)
class Job:
    """One training run. It can be sent to workers as JSON."""

    dataset: str
    data: str
    """URL of the ingested data set."""
    run: str
    """URL of the run's folder, which gets the checkpoints."""
    model: str
    config: dict[str, Any]
    """The system's own options."""
    recipe: Recipe
    weights: str | None = None
    """URL of a torchvision checkpoint to initialise the backbone with."""
    classifier: str | None = None
    """URL of a classifier's checkpoint, for systems that are guided by one."""
    rows: int | None = None
    """Train on the first rows only."""

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Job":
        """Return the job that ``dataclasses.asdict`` made the value of."""
        return cls(**{**value, "recipe": Recipe.from_json(value["recipe"])})


@dataclasses.dataclass(frozen=True)
class Position:
    """How far a run has come."""

    epoch: int = 0
    """Completed epochs."""
    step: int = 0
    """Completed steps of the next epoch."""
    best: float = math.inf
    """The lowest validation error so far."""


def last_or_initial(
    job: Job, manifest: Manifest, device: torch.device
) -> tuple[Model, torch.optim.Optimizer, Position, Named | None]:
    """Model, optimizer, position and precision of the run's last checkpoint; without one, those that a run starts with.

    The precision is None if it is still to be chosen.
    Mistake if the data set is not the one that the run was started with.
    """
    last = checkpoint.pointed(job.run, "last")
    if last is not None:
        model, card = checkpoint.load(storage.join(job.run, last))
        if card.data_hash != manifest.content_hash:
            raise Mistake(f"{job.data} has changed since {job.run} was started: train a new run on it")
    else:
        model = initial_model(job, manifest.labels)
    model.to(device)
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=job.recipe.learning_rate,
        weight_decay=job.recipe.weight_decay,
        fused=True,
    )
    if last is None:
        return model, optimizer, Position(), None
    state = checkpoint.load_training(storage.join(job.run, last))
    optimizer.load_state_dict(state["optimizer"])
    return model, optimizer, Position(**state["position"]), state.get("precision")


def read_weights(url: str) -> dict[str, Tensor]:
    """Read a torchvision checkpoint: tensors by name. UserError if there is none at the URL."""
    shown = f"--weights {public_url(url)}"
    try:
        data = io.BytesIO(storage.read_bytes(url))
    except FileNotFoundError as error:
        raise UserError(f"{shown}: there is no such file") from error
    except IsADirectoryError as error:
        raise UserError(f"{shown} is a folder: name the file in it") from error
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd pickles, beside the one line that says it all
            state = torch.load(data, map_location="cpu", weights_only=True)
    except Exception as error:  # a file of another kind is read as a pickle, and breaks that anywhere
        # torch's own words are advice to run the file's code, or of pickle's internals.
        raise UserError(
            f"{shown} is not a torchvision checkpoint: it cannot be read as tensors by name, or holds code, which is "
            "never run. Give a file as torchvision publishes it (a state_dict saved with torch.save)"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{shown} is not a torchvision checkpoint: it holds more than tensors by name")
    return state


def initial_model(job: Job, labels: Labels) -> Model:
    """The model that a run starts with: initialised from the seed, then with the job's weights and classifier.

    UserError for an input size that the system does not accept, and for weights that are not usable or do not fit.
    """
    weights = read_weights(job.weights) if job.weights is not None else None
    torch.manual_seed(job.recipe.seed)
    model = build_model(job.model, job.config, labels)
    size = job.recipe.input_size
    if size % model.stride:
        raise UserError(
            f"input-size must be a multiple of {model.stride}, the stride of {job.model}, not {size}"
        )
    if weights is not None:
        model.load_backbone(weights)
    if job.classifier is not None:
        classifier, _ = checkpoint.load(job.classifier)
        model.load_classifier(classifier)
    return model
