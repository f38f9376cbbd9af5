"""The systems, one file each. A new one is a file with a config dataclass and a module, and one line in ``MODELS``."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from glefld.models.gle import GLE, GLEConfig
from glefld.models.local import Local, LocalConfig


class System(NamedTuple):
    config: type[Any]
    module: type[nn.Module]


MODELS: dict[str, System] = {
    "gle": System(GLEConfig, GLE),
    "local": System(LocalConfig, Local),
}


def build_model(name: str, config: Mapping[str, Any] | Any, landmarks: int) -> nn.Module:
    """The named system for K landmarks, from its config (the dataclass, or the mapping a checkpoint holds).

    ValueError for an unknown system or option.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}: choose one of {', '.join(MODELS)}")
    system = MODELS[name]
    if isinstance(config, Mapping):
        known = {field.name for field in dataclasses.fields(system.config)}
        if unknown := set(config) - known:
            raise ValueError(f"model {name!r} has no option {', '.join(sorted(unknown))}")
        config = system.config(**config)
    return system.module(config, landmarks)
