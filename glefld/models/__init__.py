"""All systems by name. Each system has its own file with a config dataclass, a ``Model`` and its presets.

To add a system, add its file and an entry in ``MODELS``.
"""

import dataclasses
import json
import reprlib
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from glefld.errors import UserError
from glefld.models import baseline, classifier, dafe, fcos, fpn, gle, liu2018, local, sanl
from glefld.models.system import Model, System
from glefld.schema import Labels

MODELS: dict[str, System] = {
    "fpn": fpn.SYSTEM,
    "gle": gle.SYSTEM,
    "liu2018": liu2018.LANDMARKS,
    "liu2018-full": liu2018.FULL,
    "sanl": sanl.SYSTEM,
    "dafe": dafe.SYSTEM,
    "baseline": baseline.SYSTEM,
    "local": local.SYSTEM,
    "resnet": classifier.RESNET,
    "sanl-resnet": classifier.SANL_RESNET,
    "fcos": fcos.SYSTEM,
}


def build_model(name: str, config: Mapping[str, Any] | Any, labels: Labels) -> Model:
    """Build a system for a data set's labels from its config: the dataclass, or the mapping stored in a checkpoint.

    UserError if the system, an option or its value is unknown, or if the system cannot be trained on these labels.
    """
    if name not in MODELS:
        raise UserError(f"unknown model {reprlib.repr(name)}: choose one of {', '.join(MODELS)}")
    system = MODELS[name]
    if isinstance(config, Mapping):
        known = {field.name for field in dataclasses.fields(system.config)}
        if unknown := set(config) - known:
            raise UserError(f"model {name!r} has no option {', '.join(sorted(unknown))}")
        try:
            config = TypeAdapter(system.config).validate_json(json.dumps(dict(config)), strict=True)
        except ValidationError as error:
            raise UserError(f"model {name!r}: {first_mistake(error)}") from error
    if system.task == "landmarks" and not len(labels.landmark_set):
        raise UserError(
            f"model {name!r} needs landmarks, and the data set has none: train a classifier (--task classify)"
        )
    return system.module(config, labels)


def first_mistake(error: ValidationError) -> str:
    """Return where the first mistake is and what it is, in one line."""
    mistake = error.errors(include_url=False, include_input=False)[0]
    # A UserError of the dataclass itself says what to do.
    cause = mistake.get("ctx", {}).get("error")
    words = str(cause) if isinstance(cause, UserError) else mistake["msg"]
    place = ".".join(map(str, mistake["loc"]))
    return f"{place}: {words}" if place else words
