"""What a training run is, and what it starts or goes on with: weights, a classifier, or its last checkpoint."""

import dataclasses
import json
import math
from typing import Any, cast

import torch
from torch import nn

from glefld import storage
from glefld.errors import Mistake, UserError
from glefld.models import build_model, checkpoint, weights
from glefld.models.backbones import Backbone
from glefld.models.classifier import Label, ResNetClassifier, answers
from glefld.models.precision import Named
from glefld.models.system import Model
from glefld.recipe import Recipe
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
    """What the backbone is initialised with: a source of ``glefld.models.weights``; None: random weights."""
    classifier: str | None = None
    """URL of a classifier's checkpoint, for systems that are guided by one."""
    rows: int | None = None
    """Train on the first rows only."""
    start_from: str | None = None
    """URL of the checkpoint of another training, whose weights all of the model's start as."""

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
        parameter_groups(model, job.recipe), lr=job.recipe.learning_rate, fused=True
    )
    if last is None:
        return model, optimizer, Position(), None
    state = checkpoint.load_training(storage.join(job.run, last))
    optimizer.load_state_dict(state["optimizer"])
    return model, optimizer, Position(**state["position"]), state.get("precision")


def origin(job: Job) -> str:
    """Return where the run's first weights were from, in words for its model cards.

    A run that has a checkpoint keeps that one's words: what it started with may be gone.
    """
    last = checkpoint.pointed(job.run, "last")
    if last is not None:
        return _card(storage.join(job.run, last)).weights
    if job.start_from is not None:
        return f"{weights.describe(job.start_from)} ({_card(job.start_from).weights})"
    return weights.describe(job.weights, job.config.get("backbone"))


def _card(url: str) -> checkpoint.ModelCard:
    name = storage.join(url, "model.json")
    return checkpoint.ModelCard.parse(storage.read_bytes(name), name)


def parameter_groups(model: Model, recipe: Recipe) -> list[dict[str, Any]]:
    """Return the trained parameters for an optimizer. ``rate`` multiplies a group's learning rate in each step."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    backbone = {
        id(parameter) for parameter in (model.features.parameters() if model.features is not None else ())
    }
    for parameter in filter(lambda parameter: parameter.requires_grad, model.parameters()):
        rate = recipe.backbone_rate if id(parameter) in backbone else 1.0
        decay = (
            recipe.weight_decay if parameter.ndim > 1 else 0.0
        )  # what has one dimension is a bias or a norm's
        groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": found, "rate": rate, "weight_decay": decay} for (rate, decay), found in groups.items()]


def initial_model(job: Job, labels: Labels) -> Model:
    """The model that a run starts with: initialised from the seed, then with the job's weights and classifier.

    With ``start_from`` its weights are those of another training. UserError for an input size that the system does not
    accept, and for weights that are not usable or do not fit.
    """
    torch.manual_seed(job.recipe.seed)
    model = build_model(job.model, job.config, labels)
    size = job.recipe.input_size
    if size % model.stride:
        raise UserError(
            f"input-size must be a multiple of {model.stride}, the stride of {job.model}, not {size}"
        )
    for network in model.modules():  # a guide has one too
        if isinstance(network, Backbone):
            network.require_size(size)
    if job.weights is not None:
        if model.features is None:
            raise UserError(f"{job.model} has no backbone that takes weights: give --random-weights")
        model.load_backbone(weights.read(job.weights, model.features.name))
    if job.classifier is not None:
        classifier, _ = checkpoint.load(job.classifier)
        model.load_classifier(classifier)
    if job.start_from is not None:
        _copy_weights(job.start_from, model, job.model, job.config)
    return model


def _copy_weights(url: str, model: Model, name: str, config: dict[str, Any]) -> None:
    """Give a model, of this system and options, the weights of a checkpoint; UserError if they do not fit."""
    other, card = checkpoint.load(url)
    known, wanted = card.labels.landmark_set, model.labels.landmark_set
    if known != wanted and not model.detects:
        differ = "of other names or order than " if known.name == wanted.name else "not "
        raise UserError(
            f"--start-from: {url} knows the landmarks {known.name}, {differ}{wanted.name}, which this data set has"
        )
    theirs, ours = (
        {key: tuple(value.shape) for key, value in network.state_dict().items()} for network in (other, model)
    )
    if differing := sorted(key for key in theirs | ours if theirs.get(key) != ours.get(key)):
        raise UserError(
            f"--start-from: {url} is {card.model} with {card.config}, which does not fit this {name}: "
            f"{len(differing)} tensors differ, such as {differing[0]}. Give the options that it was trained with"
        )
    config = json.loads(json.dumps(config))  # as a card has it
    # Tensors of equal shapes may mean something else: what another option or other classes have made of them.
    options = [
        f"--model.{key.replace('_', '-')} {card.config.get(key)!r}, not {config.get(key)!r}"
        for key in sorted(card.config | config)
        if card.config.get(key) != config.get(key)
    ]
    if card.model != name or options:
        told = ", ".join(options) or f"the system {card.model}, not {name}"
        raise UserError(f"--start-from: {url} was trained with {told}. Give what it was trained with")
    learnt, asked = _learnt(other), _learnt(model)
    if learnt != asked:
        told = " and ".join(f"{len(names)} names of {label}" for label, names in learnt.items())
        here = " and ".join(f"{len(names)} of {label}" for label, names in asked.items())
        raise UserError(
            f"--start-from: {url} was trained on {told or 'no classes'}, this model on {here or 'none'}, with other "
            "names or in another order: train a new model"
        )
    model.load_state_dict(other.state_dict())
    model.normalisation = other.normalisation


def _learnt(model: Model) -> dict[Label, tuple[str, ...]]:
    """Return the names of the classes or attributes that a classifier, or a model's guide, tells apart, by label."""
    found: list[Label] = [cast(Label, model.guided_by.label)] if model.guided_by is not None else []
    if isinstance(model, ResNetClassifier):
        found.append(model.target)
    return {label: answers(label, model.labels) for label in found}
